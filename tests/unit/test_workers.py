"""Functions at once, and how they end; and how many steps a machine has room for."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from uklimg import locks
from uklimg.room import COMPILER_MEMORY, memory_available, processors, steps_at_once
from uklimg.workers import Workers

pytestmark = pytest.mark.unit


def test_results_come_in_the_order_in_which_they_are_there() -> None:
    go = threading.Event()

    def slow() -> str:
        assert go.wait(30)
        return "slow"

    with Workers[str](2, threading.Event()) as workers:
        workers.start(slow)
        assert workers.free
        workers.start(lambda: "quick")
        assert not workers.free
        assert workers.wait() == "quick"
        assert workers.busy
        go.set()
        assert workers.wait() == "slow"
        assert not workers.busy


def test_none_is_a_result() -> None:
    with Workers[None](1, threading.Event()) as workers:
        workers.start(lambda: None)
        assert workers.wait() is None


def test_a_failure_cancels_the_others_and_waits_for_them() -> None:
    cancel = threading.Event()
    ended = []

    def wait() -> str:
        assert cancel.wait(30)
        ended.append("cancelled")
        raise KeyboardInterrupt

    def fail() -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Workers[str](2, cancel) as workers:
        workers.start(wait)
        workers.start(fail)
        workers.wait()
    assert ended == ["cancelled"]


def test_what_does_not_end_is_given_up() -> None:
    go = threading.Event()

    def deaf() -> str:
        go.wait(60)
        return ""

    with pytest.raises(ZeroDivisionError), Workers[str](1, threading.Event(), patience=0.01) as workers:
        workers.start(deaf)
        raise ZeroDivisionError
    go.set()


def test_a_second_interruption_does_not_wait() -> None:
    cancel, go = threading.Event(), threading.Event()
    main = threading.get_ident()

    def deaf() -> str:
        assert go.wait(60)
        return ""

    def press() -> None:
        assert cancel.wait(30)
        signal.pthread_kill(main, signal.SIGUSR1)

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, handle)
    other = threading.Thread(target=press)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt), Workers[str](1, cancel, patience=3600) as workers:
            workers.start(deaf)
            raise ZeroDivisionError  # stands for the first one
    finally:
        go.set()
        other.join()
        signal.signal(signal.SIGUSR1, before)


def test_waiting_for_a_lock_can_be_cancelled(tmp_path: Path) -> None:
    cancel = threading.Event()
    path = tmp_path / "lock"
    with locks.locked(path, cancel=cancel), locks.locked(tmp_path / "other"):
        cancel.set()
        with pytest.raises(KeyboardInterrupt), locks.locked(path, cancel=cancel):
            raise AssertionError("two have it")
    with locks.locked(path, cancel=cancel), locks.abandoned(path) as abandoned:
        assert not abandoned


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order = []

    def wait() -> None:
        with locks.locked(path, cancel=threading.Event()):
            order.append("second")

    with locks.locked(path):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize(
    ("jobs", "compilers", "steps"),
    [(1, 0.5, 1), (2, 1, 1), (2, 4, 2), (2, 100, 2), (16, 64, 4), (64, 64, 1), (4, 15, 3)],
)
def test_steps_at_once(jobs: int, compilers: float, steps: int) -> None:
    assert steps_at_once(jobs, int(compilers * COMPILER_MEMORY)) == steps


def test_unknown_memory_limits_nothing() -> None:
    assert steps_at_once(8, 0) == 8


def test_memory_is_what_the_kernel_says_and_no_more_than_the_limit(tmp_path: Path) -> None:
    assert memory_available(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  999999 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n")
    assert memory_available(tmp_path) == 2 << 20
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    for text, expected in (("max\n", 2 << 20), ("1048576\n", 1 << 20), ("9999999999\n", 2 << 20)):
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(text)
        assert memory_available(tmp_path) == expected


def test_this_machine() -> None:
    assert processors() >= 1
    assert memory_available() > 0
