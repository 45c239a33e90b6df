"""The build context: .dockerignore's rules, what a COPY takes, digests that do not depend on the checkout."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uklimg.context import BuildContext, open_context, read_text, stage
from uklimg.errors import Location, UserError, UserErrors
from uklimg.uklfile.ignore import PatternError, Rules, compile_component, compile_patterns, parse_rules

pytestmark = pytest.mark.unit

# A loaded machine may be slow at any one example; that says nothing about the code.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PLACE = Location("Uklfile", 3, 6)


def rules(*lines: str) -> Rules:
    return parse_rules("\n".join(lines), ".uklignore")


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a", ["a", "a/b", "a/b/c"], ["b", "b/a", "ab"]),
        ("/a/b/", ["a/b", "a/b/c"], ["a", "b"]),
        ("*.o", ["x.o", ".o", "x.o/y"], ["d/x.o", "x.oo"]),
        ("*/x", ["d/x", "d/x/y"], ["x", "d/e/x"]),
        ("**/x", ["x", "d/x", "d/e/x", "x/y"], ["dx"]),
        ("**/*.o", ["x.o", "d/e/x.o"], ["x.c"]),
        ("**.o", ["x.o", "d/x.o"], ["x.c"]),
        ("d/**", ["d/x", "d/e/x"], ["d", "dx"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "x/a/b"]),
        ("**", ["x", "d/x"], []),
        ("x?", ["xy"], ["x", "xyz", "x/"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "x"]),
        ("[^a-c]x", ["dx"], ["ax"]),
        ("\\*", ["*"], ["a"]),
        ("a.b+(c)", ["a.b+(c)"], ["axb+(c)"]),
        ("[[]x", ["[x"], ["x"]),
        ("[z-a]", [], ["a", "z", "m"]),
        (".", [], ["a"]),
        ("./a/../b", ["b"], ["a"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    found = rules(pattern)
    assert [path for path in matching + others if found.ignored(path)] == matching


def test_last_matching_line_decides() -> None:
    found = rules("*.md", "!README.md", "README-secret.md", "!docs/*.md", "docs")
    assert found.takes_back
    assert not found.ignored("README.md")
    assert found.ignored("README-secret.md")
    assert found.ignored("CHANGES.md")
    assert found.ignored("docs/a.md")
    assert not rules("docs", "!docs/a.md").ignored("docs/a.md")
    assert rules("docs", "!docs/a.md").ignored("docs/b.md")


def test_comments_blanks_and_byte_order_mark() -> None:
    found = rules("\ufeff# a", "", "  ", " b ", " #c", "! d")
    assert [(pattern.text, pattern.include) for pattern in found.patterns] == [
        ("b", False),
        ("#c", False),
        ("d", True),
    ]


def test_malformed_patterns_are_told_by_line() -> None:
    with pytest.raises(UserErrors) as caught:
        rules("a", "[", "!", "x[]", "b\\", "[a-", "[-a]")
    assert [str(error.location) for error in caught.value.errors] == [f".uklignore:{line}:1" for line in range(2, 8)]


@RELAXED
@given(st.text(alphabet="a*?[]\\^-!/.~&|", max_size=20))
def test_any_pattern_compiles_or_is_malformed(text: str) -> None:
    try:
        patterns = compile_patterns([text])
        compile_component(text.replace("/", ""))
    except PatternError:
        return
    assert all(isinstance(pattern.matches("a/b"), bool) for pattern in patterns)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    for path, content in {
        "Uklfile": "FROM x",
        "redis.conf": "port 1",
        "src/a.c": "a",
        "src/b.c": "b",
        "src/sub/c.h": "c",
        "docs/x.md": "x",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    (root / "empty").mkdir()
    (root / "run.sh").write_text("#!/bin/sh")
    (root / "run.sh").chmod(0o755)
    return root


def test_one_file(folder: Path) -> None:
    chosen = open_context(folder).select(["redis.conf"])
    assert chosen.tree.paths == ("redis.conf",)
    assert [(m.path, m.name, m.is_folder) for m in chosen.matches] == [("redis.conf", "redis.conf", False)]
    assert chosen.tree.root == str(folder.resolve())


def test_folders_bring_all_below_them(folder: Path) -> None:
    chosen = open_context(folder).select(["src", "empty"])
    assert chosen.tree.paths == ("empty", "src", "src/a.c", "src/b.c", "src/sub", "src/sub/c.h")
    assert [m.is_folder for m in chosen.matches] == [True, True]


def test_everything(folder: Path) -> None:
    chosen = open_context(folder).select(["."])
    assert "src/sub/c.h" in chosen.tree.paths
    assert "." not in chosen.tree.paths
    assert [(m.path, m.is_folder) for m in chosen.matches] == [(".", True)]


def test_wildcards(folder: Path) -> None:
    context = open_context(folder)
    assert [m.path for m in context.select(["src/*.c"]).matches] == ["src/a.c", "src/b.c"]
    assert [m.path for m in context.select(["*/[a]*"]).matches] == ["src/a.c"]
    assert context.select(["*.none", "redis.conf"]).tree.paths == ("redis.conf",)


def test_excluded_patterns(folder: Path) -> None:
    chosen = open_context(folder).select(["src"], exclude=["**/*.c", "!src/b.c"])
    assert chosen.tree.paths == ("src", "src/b.c", "src/sub", "src/sub/c.h")


def test_missing_files_have_a_suggestion(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_context(folder).select(["redis.cnf"], location=PLACE)
    assert caught.value.line() == ("Uklfile:3:6: 'redis.cnf' is not in the build context (did you mean redis.conf?)")


def test_ignored_files_cannot_be_copied(folder: Path) -> None:
    (folder / ".uklignore").write_text("*.conf\nsrc\n!src/sub\n")
    context = open_context(folder)
    with pytest.raises(UserError) as caught:
        context.select(["redis.conf"], location=PLACE)
    assert caught.value.line() == "Uklfile:3:6: 'redis.conf' is not in the build context (.uklignore ignores it)"
    assert context.select(["src"]).tree.paths == ("src/sub", "src/sub/c.h")
    assert not any(path.startswith("src/a") or path == "redis.conf" for path in context.select(["."]).tree.paths)
    assert context.select(["redis*"]).matches == ()


def test_ignore_file_of_one_uklfile_goes_first(folder: Path) -> None:
    (folder / ".uklignore").write_text("src")
    (folder / "Uklfile.uklignore").write_text("docs")
    context = open_context(folder, folder / "Uklfile")
    assert context.ignore_file == "Uklfile.uklignore"
    assert "src" in context.select(["."]).tree.paths
    assert "docs" not in context.select(["."]).tree.paths


def test_digest_depends_on_what_counts_only(folder: Path) -> None:
    context = open_context(folder)

    def digest() -> object:
        return context.select(["."]).tree.digest

    first = digest()
    (folder / "redis.conf").chmod(0o664)
    os.utime(folder / "redis.conf", (1, 1))
    (folder / "src").chmod(0o700)
    assert digest() == first
    (folder / "redis.conf").chmod(0o755)
    second = digest()
    (folder / "redis.conf").write_text("port 2")
    third = digest()
    (folder / "new").mkdir()
    assert len({str(d) for d in (first, second, third, digest())}) == 4


def test_digest_does_not_depend_on_where_the_context_is(folder: Path, tmp_path: Path) -> None:
    first = open_context(folder).select(["src"]).tree
    moved = folder.rename(tmp_path / "elsewhere")
    second = open_context(moved).select(["src"]).tree
    assert first.digest == second.digest
    assert first.key() == second.key()


def test_links_are_kept_below_and_followed_at_the_top(folder: Path) -> None:
    (folder / "src/link").symlink_to("./a.c")
    (folder / "conf").symlink_to("redis.conf")
    chosen = open_context(folder).select(["src", "conf"])
    assert "src/link" in chosen.tree.paths
    assert (chosen.matches[1].path, chosen.matches[1].name) == ("redis.conf", "conf")
    with_link = chosen.tree.digest
    (folder / "src/link").unlink()
    (folder / "src/link").symlink_to("b.c")
    assert open_context(folder).select(["src", "conf"]).tree.digest != with_link


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "loop"])
def test_links_out_of_the_context_or_in_a_circle(folder: Path, target: str) -> None:
    (folder.parent / "outside").write_text("secret")
    (folder / "loop").symlink_to(target)
    with pytest.raises(UserError) as caught:
        open_context(folder).select(["loop"], location=PLACE)
    assert caught.value.line().startswith("Uklfile:3:6: ")


def test_sockets_and_pipes_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("src/sock")
        with pytest.raises(UserError, match="'src/sock' is a socket, pipe or device"):
            open_context(folder).select(["src"])


def test_names_that_are_not_text_are_refused(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/src/\xff")).write_text("")
    with pytest.raises(UserError, match="is not UTF-8"):
        open_context(folder).select(["src"])


def test_stage_makes_a_clean_copy(folder: Path, tmp_path: Path) -> None:
    (folder / "src/link").symlink_to("./a.c")
    (folder / "src").chmod(0o700)
    tree = open_context(folder).select(["src", "run.sh", "empty"]).tree
    out = tmp_path / "out"
    out.mkdir()
    stage(tree, out, epoch=1000)
    found = {path.relative_to(out).as_posix(): path.lstat() for path in out.rglob("*")}
    assert sorted(found) == sorted(tree.paths)
    modes = {name: oct(entry.st_mode & 0o777) for name, entry in found.items() if name != "src/link"}
    assert modes == {
        "empty": "0o755",
        "run.sh": "0o755",
        "src": "0o755",
        "src/a.c": "0o644",
        "src/b.c": "0o644",
        "src/sub": "0o755",
        "src/sub/c.h": "0o644",
    }
    assert {entry.st_mtime for entry in found.values()} == {1000}
    assert os.readlink(out / "src/link") == "./a.c"  # noqa: PTH115
    assert (out / "src/sub/c.h").read_text() == "c"


@pytest.mark.parametrize("change", ["content", "gone"])
def test_stage_notices_changes(folder: Path, tmp_path: Path, change: str) -> None:
    tree = open_context(folder).select(["src"]).tree
    if change == "content":
        (folder / "src/a.c").write_text("changed")
    else:
        (folder / "src/a.c").unlink()
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="changed while it was read"):
        stage(tree, out, epoch=0)


def test_no_context(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        open_context(tmp_path / "none")


def test_read_text(tmp_path: Path) -> None:
    good, bad = tmp_path / "Uklfile", tmp_path / "bad"
    good.write_text("FROM é")
    bad.write_bytes(b"FROM a\n\xff\n")
    assert read_text(good) == "FROM é"
    with pytest.raises(UserError) as caught:
        read_text(bad)
    assert caught.value.line() == f"{bad}:2: the file is not UTF-8 text"
    with pytest.raises(UserError) as caught:
        read_text(tmp_path / "Uklfle")
    assert caught.value.hint == "did you mean Uklfile?"
    with pytest.raises(UserError, match="directory"):
        read_text(tmp_path)


def test_context_needs_no_rules(folder: Path) -> None:
    assert BuildContext(folder.resolve()).select(["empty"]).tree.paths == ("empty",)
