"""Differences of keys' fields in words, and which earlier step is the nearest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uklimg import context, oci
from uklimg.context import open_context
from uklimg.digest import JSON, Digest
from uklimg.errors import UserError
from uklimg.graph import Container, Graph, Host, Output, Step
from uklimg.graph import Kind as Leaves
from uklimg.keydiff import Change, Fields, Kind, compare, leaves
from uklimg.outlook import Earlier, Past, State, Why, outlook, roots
from uklimg.store import Record, StepResult, Store, decode_record, encode_record

pytestmark = pytest.mark.unit

A, B = (str(Digest.of(text)) for text in (b"a", b"b"))


def nowhere(digest: str) -> JSON:
    return None


def texts(before: Fields, after: Fields) -> list[str]:
    return [change.text for change in compare(before, after, {A: "a", B: "b"}, nowhere)]


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"x": 1}, {"x": 2}, "x: 1 → 2"),
        ({"x": True}, {"x": None}, "x: yes → nothing"),
        ({"x": ""}, {"x": "a"}, 'x: "" → a'),
        ({"x": "one\ntwo"}, {"x": "one"}, "x: one\\ntwo → one"),
        ({"x": {"y": {"z": 1}}}, {"x": {"y": {"z": 2, "w": 3}}}, "x.y.w is new: 3"),
        ({"x": {"y": 1}}, {"x": {}}, "x.y is gone: 1"),
        ({"x": ["a", "b"]}, {"x": ["a", "c"]}, "x[1]: b → c"),
        ({"x": ["a", "b"]}, {"x": ["a", "b c", "d"]}, "x: a b → a 'b c' d"),
        ({"x": []}, {"x": ["a"]}, "x: nothing → a"),
        ({"x": {"y": 1}}, {"x": 1}, "x: y=1 → 1"),
        ({"x": A}, {"x": B}, f"x: {A[:19]} → {B[:19]}"),
        ({"x": f"{'long ' * 20}old end"}, {"x": f"{'long ' * 20}new end"}, "x: …old… → …new…"),
        ({"x": "long " * 20}, {"x": "long " * 20 + "new"}, "x: + …new"),
        ({"x": "begin " + "long " * 20}, {"x": "long " * 20}, "x: - begin…"),
        ({"x": "a" * 100}, {"x": "b"}, f"x: {'a' * 60}… → b"),
        ({"action": {"container": {"rootfs": A}}}, {"action": {"container": {"rootfs": B}}}, "input step b changed"),
        ({"input i": {"step": A, "path": ""}}, {"input i": {"step": B, "path": ""}}, "input i: step b changed"),
        ({"input i": {"step": A, "path": ""}}, {"input i": {"step": A, "path": "p"}}, 'input i.path: "" → p'),
        (
            {"input i": {"blob": A, "name": "n"}},
            {"input i": {"blob": B, "name": "n"}},
            f"input i: {A[:19]} → {B[:19]}",
        ),
        ({"input i": {"blob": A, "name": "n"}}, {"input i": {"blob": B, "name": "m"}}, "input i: n → m"),
        ({"input i": {"blob": A, "name": "n"}}, {"input i": {"inline": []}}, "input i: a file → files of uklimg"),
        ({}, {"input i": {"inline": []}}, "input i is new"),
        ({"input i": {"inline": []}}, {}, "input i is gone"),
        (
            {"input i": {"context": A}},
            {"input i": {"context": B}},
            "input i: files of the build context changed; which ones was not noted",
        ),
        (
            {"input /p/hello_2.10-3_amd64.deb": {"blob": A, "name": "hello_2.10-3_amd64.deb"}},
            {"input /p/hello_2.11-1_amd64.deb": {"blob": B, "name": "hello_2.11-1_amd64.deb"}},
            "input /p/hello: hello_2.10-3_amd64.deb → hello_2.11-1_amd64.deb",
        ),
    ],
)
def test_a_difference_in_words(before: Fields, after: Fields, text: str) -> None:
    assert text in texts(before, after)
    assert texts(after, before) != []
    assert texts(before, before) == texts(after, after) == []


def test_a_steps_own_changes_come_first() -> None:
    before: Fields = {"action": {"container": {"rootfs": A, "user": "root"}}, "input i": {"step": A, "path": ""}}
    after: Fields = {"action": {"container": {"rootfs": B, "user": "me"}}, "input i": {"step": B, "path": ""}}
    assert texts(before, after) == [
        "action.container.user: root → me",
        "input step b changed",
        "input i: step b changed",
    ]


def test_files_of_a_folder() -> None:
    def folder(**files: tuple[str, int]) -> Fields:
        listed: list[JSON] = [
            {"path": path, "digest": digest, "mode": mode} for path, (digest, mode) in files.items()
        ]
        return {"input i": {"inline": listed}}

    before, after = folder(a=(A, 0o644), b=(A, 0o644), c=(A, 0o644)), folder(b=(B, 0o755), c=(A, 0o644), d=(A, 0o644))
    assert texts(before, after) == [
        "input i: file a is gone",
        "input i: file b changed",
        "input i: file b: mode 644 → mode 755",
        "input i: file d is new",
    ]


def test_files_of_the_build_context(tmp_path: Path) -> None:
    def listing() -> tuple[str, JSON]:
        tree = open_context(tmp_path).select(["."]).tree
        data = context.listing(tree)
        assert Digest.of(data) == tree.digest
        return str(tree.digest), json.loads(data)

    (tmp_path / "file").write_text("1")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "thing").mkdir()
    known = dict([listing()])
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "file").write_text("2")
    (tmp_path / "thing").rmdir()
    (tmp_path / "thing").write_text("")
    after, content = listing()
    known[after] = content
    (before,) = set(known) - {after}
    changes = compare({"input i": {"context": before}}, {"input i": {"context": after}}, {}, known.__getitem__)
    empty = str(Digest.of(b""))[:19]
    assert [change.text for change in changes] == [
        "input i: file file changed",
        "input i: file link: link to file → link to other",
        f"input i: file thing: folder → {empty}",
    ]


def test_a_listing_of_files_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    tree = open_context(tmp_path).select(["file"]).tree
    (tmp_path / "file").write_text("2")
    with pytest.raises(UserError, match="changed while it was read"):
        context.listing(tree)


def test_leaves_are_flat() -> None:
    assert leaves({"a": {"b": [1, 2]}, "input i": {"inline": [{"path": "p", "mode": 3}]}, "c": None}) == {
        "a.b[0]": 1,
        "a.b[1]": 2,
        "input i.inline[p].path": "p",
        "input i.inline[p].mode": 3,
        "c": None,
    }


# --- the nearest


BASE = Step("base", "", "base", 1, Host("base"), kind=Leaves.ROOTFS)


def run(command: str, name: str = "run", **env: str) -> Graph:
    step = Step(name, "", "run", 1, Container("base", ("/bin/sh", "-c", command), env))
    return Graph.of([BASE, step], name)


def earlier(graph: Graph, when: float = 0, seconds: float | None = None, name: str = "") -> Earlier:
    step = graph.step(graph.target)
    return Earlier(graph.keys[step.id], name or step.id, step.key_fields(graph.keys), when, seconds)


def nearest(graph: Graph, *past: Earlier) -> Earlier | None:
    step = graph.step(graph.target)
    return Past(past).nearest(step, graph.keys[step.id], step.key_fields(graph.keys))


def test_most_equal_fields_win() -> None:
    close, far = earlier(run("make", A="1", B="2"), 1), earlier(run("make", A="3", B="3"), 2)
    assert nearest(run("make", A="1", B="2", C="4"), close, far) == close
    assert nearest(run("make", A="3", B="3", C="4"), close, far) == far


def test_of_equally_near_ones_the_more_alike_then_the_last_used_wins() -> None:
    make, cmake = earlier(run("make -C /src all"), 1), earlier(run("cmake -B /out"), 2)
    assert nearest(run("make -C /src install"), make, cmake) == make
    assert nearest(run("meson setup"), make, cmake) == cmake


def test_the_same_key_and_other_recipes_are_not_near() -> None:
    same = earlier(run("make"))
    other = Earlier(Digest.of(b"x"), "other", {"recipe": "other"})
    assert nearest(run("make"), same, other) is None
    named = Earlier(Digest.of(b"x"), "run", {"recipe": "other"})
    assert nearest(run("make"), same, named) == named


def test_the_time_of_the_nearest_that_has_one() -> None:
    graph = run("make", A="1")
    past = Past(
        [earlier(run("make", A="2"), 3), earlier(run("make", A="2", B="1"), 2, 7.5), earlier(run("x"), 4, 1.0)]
    )
    (_, one) = outlook(graph, frozenset({"base"}), past, listing=nowhere)
    assert (one.state, one.why, one.seconds) == (State.RUN, Why.CHANGED, 7.5)
    assert one.reason == "action.container.env.A: 2 → 1"


def test_under_another_name_other_work_is_new() -> None:
    past = Past([earlier(run("make", "old"), 1)])
    (_, one) = outlook(run("ninja", "new"), frozenset({"base"}), past, listing=nowhere)
    assert (one.why, one.reason) == (Why.NEW, "no result yet")
    (_, one) = outlook(run("make", "new", A="1"), frozenset({"base"}), past, listing=nowhere)
    assert (one.why, one.reason) == (Why.CHANGED, "action.container.env.A is new: 1")


def test_what_only_follows_is_no_root() -> None:
    def two(command: str) -> Graph:
        first = run(command).step("run")
        return Graph.of([BASE, first, Step("next", "", "next", 1, Host("x"), {"i": Output("run")})], "next")

    before, after = two("make"), two("ninja")
    past = Past(Earlier(before.keys[step.id], step.id, step.key_fields(before.keys)) for step in before.steps)
    found = outlook(after, frozenset({"base"}), past, listing=nowhere)
    assert [one.step.id for one in found if one.state is State.RUN] == ["run", "next"]
    assert [one.step.id for one in roots(found)] == ["run"]
    assert found[2].changes == (
        Change("input i", Kind.STEP, str(before.keys["run"]), str(after.keys["run"]), step="run"),
    )


def test_what_nothing_needs_is_skipped() -> None:
    graph = run("make")
    found = outlook(graph, frozenset({"run"}), Past(()), listing=nowhere)
    assert [one.state for one in found] == [State.SKIP, State.HIT]


# --- records


def test_times_in_records_and_records_without(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    root = store.put_bytes(b"{}", oci.MANIFEST)
    fields: Fields = {"input a": {"blob": A, "name": "n"}, "input b": {"context": B}}
    for seconds, expected in ((None, None), (1.2345, 1.234), (0.0, 0.0)):
        record = Record(StepResult(Digest.of(b"k"), Leaves.TREE, root), "s", fields, seconds=seconds)
        data = encode_record(record)
        assert (b"milliseconds" in data) == (seconds is not None)
        assert decode_record(data).seconds == expected
    assert [str(digest) for digest in record.sources()] == [A, B]
    for odd in (b"-1", b'"x"', b"true", b"1.5"):
        assert decode_record(data.replace(b'"milliseconds":0', b'"milliseconds":' + odd)).seconds is None
