"""Builds that end as nobody planned: killed with everything they started, or on a full disk, at random moments.

Each is a real build with containers (``tinybuild``), in a store of its own. ``UKLIMG_TEST_KILLS`` and
``UKLIMG_TEST_FULL_DISKS`` say how often, ``UKLIMG_TEST_SEED`` repeats a run. The store alone is killed more often,
and faster, in ``test_store`` and ``test_prune``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tinybuild import STEPS, graph

from uklimg.errors import ExitCode
from uklimg.store import Store

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("UKLIMG_TEST_KILLS", "8"))
FULL_DISKS = int(os.environ.get("UKLIMG_TEST_FULL_DISKS", "3"))
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("tinybuild.py")


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("UKLIMG_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"UKLIMG_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "store"
    shutil.rmtree(tmp_path / "store", ignore_errors=True)


@dataclass(frozen=True)
class Ended:
    status: int
    said: list[dict[str, object]]
    err: str

    @property
    def ran(self) -> set[str]:
        assert self.status == 0, self.err
        names = self.said[-1]["ran"]
        assert isinstance(names, list)
        return set(names)

    def finished(self) -> set[str]:
        """The steps of which it said that they are done."""
        return {str(event["step"]) for event in self.said if event.get("event") in ("step-finished", "step-cached")}


@dataclass(frozen=True)
class Running:
    """A build, whose events go to the file ``out``."""

    process: subprocess.Popen[str]
    out: Path

    def said(self) -> list[str]:
        return [line for line in self.out.read_text().splitlines() if line.endswith("}")]  # the last may be cut

    def end(self) -> Ended:
        _, err = self.process.communicate(timeout=300)
        said = [json.loads(line) for line in self.said()]
        self.out.unlink()
        return Ended(self.process.returncode, said, err)


def start(root: Path, number: int, tag: str = "") -> Running:
    argv = [sys.executable, str(SCRIPT), str(root), str(number), *([tag] if tag else [])]
    fd, name = tempfile.mkstemp(prefix="uklimg-test-")
    with os.fdopen(fd, "w") as out:
        process = subprocess.Popen(
            argv, stdout=out, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    return Running(process, Path(name))


def build(root: Path, number: int, tag: str = "") -> Ended:
    return start(root, number, tag).end()


def family(pid: int) -> list[int]:
    """The process and all that it started, the engine's helpers among them, which have sessions of their own."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = path.read_text().rpartition(") ")
            parents.setdefault(int(rest.split()[1]), []).append(int(name.split(" ", 1)[0]))
    found = [pid]
    for member in found:
        found += parents.get(member, [])
    return found


def kill_somewhen(running: Running, chance: random.Random) -> int:
    """After some of its events and a moment more. Returns how many were killed, 0 when it had ended."""
    wanted, later = chance.randint(0, 14), chance.uniform(0, 1)
    while len(running.said()) < wanted and running.process.poll() is None:
        time.sleep(0.01)
    time.sleep(later)
    return kill(running.process) if running.process.poll() is None else 0


def kill(process: subprocess.Popen[str]) -> int:
    """SIGKILL for the whole family; nobody gets to start another in between. Returns how many they were."""
    os.kill(process.pid, signal.SIGSTOP)
    killed: set[int] = set()
    while new := [pid for pid in family(process.pid) if pid not in killed]:
        for pid in new:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        killed.update(new)
    for pid in killed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(killed)


def check(root: Path, number: int, finished: set[str]) -> None:
    """Nothing that was finished is lost, and nothing in the store is other than its name says."""
    store = Store(root)
    with store.session():
        assert list(store.tmp.iterdir()) == []
    for path in (root / "blobs/sha256").iterdir():
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == path.name
    assert list((root / "corrupt").iterdir()) == []
    found = graph(number)
    for name in finished:
        assert store.lookup(found.keys[name]) is not None, name
    for record in store.records():
        store.verify(record.result.root)
    for entry in store.tags().values():
        store.verify(entry)


def check_goes_on(root: Path, number: int, finished: set[str], tag: str) -> None:
    """The next build finishes and makes only what was not finished."""
    again = build(root, number, tag)
    assert again.ran.isdisjoint(finished)
    assert len(again.ran | finished) <= STEPS
    check(root, number, {step.id for step in graph(number).steps})


def test_builds_killed_at_random_moments(root: Path, chance: random.Random) -> None:
    assert build(root, 0, "image:0").ran == {step.id for step in graph(0).steps}
    killed = finished_some = alone = number = 0
    while killed < KILLS:
        number += 1
        running = start(root, number)
        count = kill_somewhen(running, chance)
        ended = running.end()
        if ended.status == -signal.SIGKILL:
            killed += 1
            alone += count == 1
        finished = ended.finished()
        finished_some += 0 < len(finished) < STEPS
        check(root, number, finished)
        if number % 3 == 0:
            # What a tag needs stays whatever is pruned, also right after a kill.
            Store(root).prune(lambda record: chance.random() < 0.5, limit=10_000_000)
            check(root, number, set())
            check_goes_on(root, number, set(), f"image:{number}")
        elif number % 2 == 0:
            check_goes_on(root, number, finished, f"image:{number}")
    print(f"{killed} of {number} builds killed, {killed - alone} with helpers, {finished_some} amid their steps")
    assert finished_some > 0
    store = Store(root)
    store.prune(lambda record: False)
    for entry in store.tags().values():
        store.verify(entry)


@contextmanager
def small_disk(mib: int) -> Iterator[Path]:
    """A file system of its own with so much room."""
    folder = Path(tempfile.mkdtemp(prefix="uklimg-test-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(folder)], check=True)
        folder.rmdir()


def grow(folder: Path, mib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={mib}m", str(folder)], check=True)


def test_builds_on_disks_that_get_full(chance: random.Random) -> None:
    """The disk is as small as to be full at some random step; then it grows, and the build goes on."""
    full = number = 0
    while full < FULL_DISKS:
        number += 1
        mib = chance.randint(3, 21)
        with small_disk(mib) as folder:
            root = folder / "store"
            ended = build(root, number)
            if ended.status:
                full += 1
                assert ended.status in (ExitCode.HOST, ExitCode.STEP), ended.err
                assert "Traceback" not in ended.err and ended.err.count("\n") == 1
                # A step's own command says it in its own way, and buildah at times only that a pipe of its own broke.
                known = re.search(r"[Nn]o space left on device", ended.err) or "closed pipe" in str(ended.said)
                assert known or ended.status == ExitCode.STEP
            print(f"{mib} MiB: {len(ended.finished())} steps finished, {ended.err.strip()}")
            grow(folder, 200)
            check(root, number, ended.finished())
            check_goes_on(root, number, ended.finished(), "image:1")


def test_two_builds_at_once_share_their_steps(root: Path) -> None:
    """Both finish, and each step is made once, by one of them."""
    both = [start(root, 0, f"image:{number}") for number in range(2)]
    first, second = (running.end() for running in both)
    assert first.ran.isdisjoint(second.ran)
    assert first.ran | second.ran == {step.id for step in graph(0).steps}
    tags = Store(root).tags()
    assert tags["image:0"].digest == tags["image:1"].digest
    check(root, 0, first.ran | second.ran)


def test_a_build_goes_on_beside_prunes(root: Path) -> None:
    """Everything that is not the build's is pruned away all the time, under its feet."""
    build(root, 0)
    running = start(root, 1, "image:1")
    store = Store(root)
    rounds = 0
    while running.process.poll() is None:
        rounds += store.prune(lambda record: False, limit=0, wait=True).beside
    ended = running.end()
    assert ended.status == 0, ended.err
    assert rounds > 0
    store.verify(store.tags()["image:1"])
