"""Making room: what goes first, what stays, and builds that go on meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from uklimg import locks
from uklimg.cli.host import Host
from uklimg.cli.main import main
from uklimg.cli.prune import keep_within
from uklimg.digest import JSON, Digest
from uklimg.events import Event, Note
from uklimg.settings import Settings
from uklimg.store import BusyError, StepResult, Store

pytestmark = pytest.mark.integration


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def key(name: str) -> Digest:
    return Digest.of(name.encode())


def add(store: Store, name: str, size: int = 300_000, *, used: float = 0, source: bytes = b"") -> StepResult:
    """A TREE of ``size`` bytes (and as many unpacked), last used at ``used``."""
    fields: dict[str, JSON] = {"name": name}
    if source:
        blob = store.put_bytes(source)
        fields["input /x"] = {"blob": str(blob.digest), "name": "source"}
    with store.scratch() as folder:
        (folder / "out").mkdir()
        (folder / "out" / "file").write_bytes(name.encode() * (size // len(name)))
        found = store.commit_tree(key(name), folder / "out", fields, step=name)
    os.utime(store.root / "cache" / f"{found.key.hex}.json", (used, used))
    return found


def names(store: Store) -> set[str]:
    return {record.step for record in store.records()}


def check_whole(store: Store) -> None:
    """Every record and tag has all it needs."""
    for record in store.records():
        store.verify(record.result.root)
        assert all(store.has(blob) for blob in record.sources())
    for entry in store.tags().values():
        store.verify(entry)


def test_the_least_recently_used_go_until_the_store_fits(store: Store) -> None:
    for number, name in enumerate(("four", "one", "three", "two")):
        add(store, name, used={"one": 1, "two": 2, "three": 3, "four": 4}[name] + number / 100, source=name.encode())
    tagged = add(store, "tagged", used=0)
    store.tag("image:1", tagged.root)
    total = store.du().total
    dry = store.prune(limit=total - 700_000, dry=True)
    assert names(store) == {"one", "two", "three", "four", "tagged"}
    done = store.prune(limit=total - 700_000)
    assert names(store) == {"three", "four", "tagged"}  # each takes 600 kB: a blob and a tree
    assert store.du().total <= total - 700_000
    assert (done.records, done.blobs, done.trees) == (dry.records, dry.blobs, dry.trees) == (2, 8, 2)
    assert done.freed == dry.freed
    check_whole(store)
    store.prune(limit=0)
    assert names(store) == {"tagged"}
    check_whole(store)


def test_the_engines_copies_go_before_results(store: Store) -> None:
    add(store, "one")
    copies = store.root / "engine" / "copies"
    copies.parent.mkdir()
    copies.write_bytes(b"x" * 500_000)
    asked: list[frozenset[Digest]] = []

    def forget(roots: frozenset[Digest]) -> None:
        asked.append(roots)
        if not roots:
            copies.unlink()

    limit = store.taken() - 400_000
    assert store.prune(limit=limit, dry=True, engine=forget).records == 0 and asked == []
    done = store.prune(limit=limit, engine=forget)
    assert (done.records, names(store)) == (0, {"one"}) and done.freed >= 500_000
    found = store.lookup(key("one"))
    assert found is not None and asked == [frozenset({found.root.digest}), frozenset()]
    assert store.taken() <= limit


def test_a_limit_that_fits_removes_no_result(store: Store) -> None:
    add(store, "one")
    stray = store.put_bytes(b"stray" * 1000)
    assert store.prune(limit=store.du().total).records == 0
    assert names(store) == {"one"} and not store.has(stray.digest)


def test_a_build_marks_all_its_results_as_used(store: Store) -> None:
    add(store, "base", used=1)
    add(store, "app", used=2)
    add(store, "other", used=3)
    with store.session() as session:
        session.declare([key("base"), key("app")], [])
    used = {record.step: record.last_used for record in store.records()}
    assert used["other"] < used["app"] <= used["base"]
    store.prune(limit=store.du().total - 1)
    assert names(store) == {"base", "app"}


def test_prune_works_beside_a_build_that_said_what_it_needs(store: Store) -> None:
    source = store.put_bytes(b"source of a step that did not run yet")
    for name in ("needed", "old", "older"):
        add(store, name)
    time.sleep(2.1)  # they are older than the build by more than the clocks' grain
    with store.session() as session:
        pruner = Store(store.root)
        with pytest.raises(BusyError):
            pruner.prune()
        session.declare([key("needed"), key("to be made")], [source.digest])
        made = add(store, "to be made")
        stray = store.put_bytes(b"no record yet")
        done = pruner.prune(lambda record: False, limit=0, engine=lambda roots: pytest.fail("not beside a build"))
        assert done.beside
        assert names(store) == {"needed", "to be made"}
        assert store.has(stray.digest) and store.has(source.digest)
        assert (store.tree(made) / "file").exists()
        check_whole(store)
    forgotten: list[frozenset[Digest]] = []
    pruner.prune(lambda record: False, engine=forgotten.append)
    assert names(store) == set() and not store.has(stray.digest)
    assert forgotten == [frozenset()]
    assert not list((store.root / "locks").glob("*.hold"))


def test_prune_waits_for_who_has_not_said(store: Store) -> None:
    add(store, "one")
    began, done = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        Store(store.root).prune(lambda record: False, wait=True)
        done.set()

    with store.session():
        thread = threading.Thread(target=wait)
        thread.start()
        began.wait()
        assert not done.wait(0.3)
        assert names(store) == {"one"}
    thread.join()
    assert done.is_set() and names(store) == set()


HOLDER = """
import sys, time
from pathlib import Path
from uklimg.digest import Digest
from uklimg.store import Store
with Store(Path(sys.argv[1])).session() as session:
    session.declare([Digest.of(b"one")], [])
    print("up", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_build_needed_is_needed_no_more(store: Store) -> None:
    add(store, "one")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(store.root)], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None and victim.stdout.readline() == b"up\n"
        assert store.prune(lambda record: False).beside and names(store) == {"one"}
        victim.kill()
    assert not store.prune(lambda record: False).beside
    assert names(store) == set()
    assert not list((store.root / "locks").glob("*.hold"))


BUILDER = """
import os, random, sys
from pathlib import Path
from uklimg.digest import Digest
from uklimg.store import Store

seed = int(sys.argv[2])
chance = random.Random(seed)
root = Path(sys.argv[1])
print("up", flush=True)
while not (root / "stop").exists():
    store = Store(root)
    with store.session() as session:
        # Contents are few, so that what one needs is what another is losing.
        wanted = [(f"{chance.randrange(10)}", chance.randrange(4)) for _ in range(4)]
        keys = [Digest.of(name.encode()) for name, _ in wanted]
        source = store.put_bytes(str(chance.randrange(4)).encode() * 1000)
        session.declare(keys, [source.digest])
        results = []
        for key, (name, content) in zip(keys, wanted):
            with store.key_lock(key):
                found = store.lookup(key)
                if found is None:
                    with store.scratch() as folder:
                        (folder / "out").mkdir()
                        (folder / "out" / "file").write_bytes(str(content).encode() * 50_000)
                        found = store.commit_tree(key, folder / "out", {"input": {"blob": str(source.digest)}})
            results.append(found)
        for found in results:
            store.verify(found.root)
            assert (store.tree(found) / "file").stat().st_size == 50_000
            assert store.lookup(found.key) == found
        assert store.has(source.digest)
        if chance.random() < 0.2:
            store.tag(f"image:{chance.randrange(2)}", results[0].root)
        if chance.random() < 0.2:
            store.untag("image:1")
print("whole", flush=True)
"""


def test_builds_and_prunes_that_never_stop(store: Store) -> None:
    """Three builds that share keys and contents, and two prunes that take whatever they may, for some seconds."""
    seed = int(os.environ.get("UKLIMG_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"UKLIMG_TEST_SEED={seed}")
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(store.root), str(seed + number)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    removed = [0, 0]
    stop = threading.Event()

    def prune(number: int) -> None:
        mine = Store(store.root)
        while not stop.is_set():
            removed[number] += mine.prune(lambda record: False, limit=0, wait=True).records

    threads = [threading.Thread(target=prune, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(6)
    (store.root / "stop").touch()
    said = [builder.communicate(timeout=120) for builder in builders]
    stop.set()
    for thread in threads:
        thread.join()
    assert said == [("up\nwhole\n", "")] * len(builders)
    assert sum(removed) > 0
    check_whole(store)
    assert list((store.root / "corrupt").iterdir()) == []


def test_caches_of_run_go_when_nobody_uses_them(store: Store) -> None:
    for name in ("free", "used"):
        (store.root / "mounts" / name).mkdir(parents=True)
        (store.root / "mounts" / name / "file").write_bytes(b"x" * 100_000)
    assert store.du().mounts >= 200_000
    with locks.locked(store.root / "mounts" / "used.lock"):
        done = store.prune(lambda record: False, mounts=True)
    assert done.mounts == 1
    assert not (store.root / "mounts/free").exists() and (store.root / "mounts/used").exists()
    assert store.prune().mounts == 0
    store.prune(limit=0)
    assert not (store.root / "mounts/used").exists()


# --- the commands


class Uklimg:
    def __init__(self, store: Store, folder: Path) -> None:
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "UKLIMG_STORE": str(store.root)}
        self.folder = folder

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        out, err = self.folder / "out", self.folder / "err"
        with out.open("w") as stdout, err.open("w") as stderr:
            status = main(argv, self.environ, self.folder, os.getuid(), stdout, stderr)
        return status, out.read_text(), err.read_text()


@pytest.fixture
def uklimg(store: Store, tmp_path: Path) -> Uklimg:
    return Uklimg(store, tmp_path)


def test_du_says_what_takes_the_room(store: Store, uklimg: Uklimg) -> None:
    now = time.time()
    big = add(store, "big step", 900_000, used=now - 3 * 86400, source=b"s" * 50_000)
    add(store, "small", 90_000, used=now)
    store.tag("image:1", big.root)
    store.put_bytes(b"u" * 20_000)
    status, out, _ = uklimg("du", "-v", "--format", "json")
    assert status == 0
    found = json.loads(out)
    assert found["images"] > 900_000 and 90_000 < found["results"] < 200_000
    assert found["sources"] >= 50_000 and 20_000 <= found["unused"] < 50_000
    kinds = ("images", "results", "sources", "unused", "trees", "mounts", "engine", "other")
    assert found["total"] == sum(found[kind] for kind in kinds)
    assert found["blobs"] == sum(found[kind] for kind in kinds[:4])
    first, second = found["step_results"]
    # The big one's blobs stay with the image; the small one's and its tree would go.
    assert (first["step"], second["step"]) == ("small", "big step")
    assert first["frees"] >= 180_000 and second["size"] > 1_800_000
    _, out, _ = uklimg("du", "-v")
    assert [line.split()[-2:] for line in out.splitlines()[-2:]] == [["0s", "small"], ["big", "step"]]
    assert " 3d  big step" in out


def test_prune_by_size_and_age(store: Store, uklimg: Uklimg) -> None:
    now = time.time()
    for days in (1, 5, 10):
        add(store, f"{days} days", used=now - days * 86400)
    status, out, _ = uklimg("prune", "--older-than", "7d", "--dry-run")
    assert status == 0 and out.startswith("would remove 1 results, 3 blobs, 1 trees: ")
    assert len(names(store)) == 3
    assert uklimg("prune", "--older-than", "7d")[1].startswith("removed 1 results, 3 blobs, 1 trees: ")
    assert names(store) == {"1 days", "5 days"}
    assert uklimg("prune", "--keep-storage", "700kB")[1].startswith("removed 1 results")
    assert names(store) == {"1 days"}
    found = store.lookup(key("1 days"))
    assert found is not None
    store.tag("image:1", found.root)
    status, _, err = uklimg("prune", "--keep-storage", "0")
    assert status == 0
    assert "more than 0 B: images and running builds need it" in err
    check_whole(store)


def test_a_build_keeps_within_the_limit(store: Store, tmp_path: Path) -> None:
    """What `build` does at its end, when uklimg.toml has a limit."""
    settings = Settings(store.root, tmp_path / "uklimg.toml", tmp_path / "state")
    host = Host({"PATH": os.environ["PATH"]}, tmp_path, os.getuid(), sys.stdout, sys.stderr, settings)
    heard: list[Event] = []
    add(store, "old", used=1)
    tagged = add(store, "new", used=2)
    store.tag("image:1", tagged.root)
    keep_within(None, host, store, heard.append)
    keep_within(store.taken(), host, store, heard.append)
    assert heard == [] and names(store) == {"old", "new"}
    with store.session():  # somebody else is at work: not now
        keep_within(700_000, host, Store(store.root), heard.append)
    assert heard == [] and names(store) == {"old", "new"}
    keep_within(700_000, host, store, heard.append)
    assert names(store) == {"new"} and store.taken() <= 700_000
    keep_within(1000, host, store, heard.append)
    said = [(event.text, event.warning) for event in heard if isinstance(event, Note)]
    assert said[0][0].startswith("the store is limited to 700.0 kB: removed 1 results, 6")
    assert said[-1][1] and "more than 1.0 kB: images and running builds need it" in said[-1][0]
    store.verify(tagged.root)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--keep-storage", "much"), "'much' is not a size"),
        (("--older-than", "1"), "'1' is not an age"),
        (("--all", "--keep-storage", "1GB"), "--all removes every result already"),
    ],
)
def test_prune_refuses_nonsense(uklimg: Uklimg, argv: tuple[str, ...], said: str) -> None:
    status, _, err = uklimg("prune", *argv)
    assert status == 1 and said in err


def test_an_interrupted_prune_leaves_a_whole_store(store: Store) -> None:
    """Killed at some moment: what is left is readable, and the next prune goes on."""
    script = (
        "import sys; from pathlib import Path; from uklimg.store import Store; store = Store(Path(sys.argv[1]));"
        "print('up', flush=True); store.prune(lambda record: False)"
    )
    pause = threading.Event()
    for number in range(8):
        for name in ("one", "two", "three", "four"):
            add(store, name, 20_000, source=name.encode())
        found = store.lookup(key("two"))
        assert found is not None
        store.tag("image:1", found.root)
        with subprocess.Popen([sys.executable, "-c", script, str(store.root)], stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None and victim.stdout.readline() == b"up\n"
            pause.wait(0.002 * number)
            victim.send_signal(signal.SIGKILL)
        after = Store(store.root)
        for record in after.records():
            after.verify(record.result.root)
        after.verify(after.tags()["image:1"])
    store.prune(lambda record: False)
    check_whole(store)
