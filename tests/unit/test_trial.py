"""Tests of images: which ones run when, what their commands are given, and how every end is told.

The guest is a function that does what `launch` does for its caller; the engine is one that keeps its jobs.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from uklimg import trial
from uklimg.cli.test import News
from uklimg.digest import Digest
from uklimg.engine.base import Job, JobResult, Line, Rootfs
from uklimg.errors import ExitCode, Location, ToolError
from uklimg.events import BuildFinished, BuildPlanned, Event, StepCached, StepStarted
from uklimg.guest.protocol import Report, ReportKind, Status
from uklimg.runner.launch import Outcome
from uklimg.runner.machine import PortForward
from uklimg.runner.stops import Stops
from uklimg.spec.model import BaseImage, BuildStage, HeredocFile, ImageTest, Port

pytestmark = pytest.mark.unit

PLACE = Location("Uklfile", 1, 1)
STAGE = BuildStage(PLACE, "build", BaseImage("debian-trixie"), (), (("LANG", "C"),), "/src", "tester", ())
ROOTFS = Rootfs(Path("/layout"), Digest.of(b"build"))
TCP = Port(80, "tcp")


@dataclass
class Guest:
    """A guest that begins, runs until it is stopped (or at once ``ends`` by itself), and ends with ``status``."""

    status: Status = field(default_factory=Status)
    ends: bool = False
    begins: bool = True
    error: BaseException | None = None
    events: list[str] = field(default_factory=list)

    def __call__(
        self, *, show: Callable[[bytes], object], stops: Stops, on_report: Callable[[Report], object]
    ) -> Outcome:
        if not self.begins:
            assert self.error is not None
            raise self.error
        show(b"hello\n")
        on_report(Report(ReportKind.BEGIN, name="program"))
        if not self.ends:
            select.select([stops], [], [], 60)
            self.events.append("stopped")
        if self.error is not None:
            raise self.error
        return Outcome(self.status)


@dataclass
class Engine:
    """An engine whose commands do what ``does`` says of their test's name."""

    does: Mapping[str, Callable[[Job, threading.Event], None]] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    name: str = "fake"

    def run(self, job: Job, on_line: Line, cancel: threading.Event | None = None) -> JobResult:
        assert cancel is not None
        name = job.env["UKLIMG_TEST"]
        self.jobs.append(job)
        self.events.append(name)
        shared = next(mount.source for mount in job.mounts if mount.target == trial.FOLDER)
        self.seen.append(" ".join(f"{path.name}={path.read_text().strip()}" for path in sorted(shared.iterdir())))
        on_line(f"{name} says hello")
        if name in self.does:
            self.does[name](job, cancel)
        return JobResult()

    def prune(self, keep: object) -> None: ...


def a_test(name: str, **options: object) -> ImageTest:
    return ImageTest(PLACE, name, ("/bin/sh", "-c", name), name, **{"stage": "", "ended": None, **options})  # type: ignore[arg-type]


def failing(job: Job, _: threading.Event) -> None:
    text = f"{job.name}: the command ended with status 3; the whole log is {job.log}"
    raise ToolError(text, exit_code=ExitCode.STEP)


def hanging(_: Job, cancel: threading.Event) -> None:
    assert cancel.wait(60)
    raise KeyboardInterrupt


def run(
    folder: Path,
    tests: list[ImageTest],
    guest: Guest,
    engine: Engine,
    ports: tuple[Port, ...] = (),
    forwards: tuple[PortForward, ...] = (),
) -> trial.Trial:
    engine.events = guest.events
    wanted = trial.Tests(tests, {"build": trial.Container(STAGE, ROOTFS)}, "build", ports)
    return trial.run_tests(
        wanted, guest, engine, forwards, folder, lambda result: guest.events.append(f"/{result.name}")
    )


@contextmanager
def listening(*, drops: bool = False) -> Iterator[int]:
    """A port that takes connections, and as QEMU does without a listener in the guest, drops them."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drop() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=drop if drops else server.listen, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_commands_run_in_the_stage_and_know_where_the_guest_is(tmp_path: Path) -> None:
    with listening() as port:
        engine = Engine()
        script = HeredocFile("EOF", b"#!/bin/sh\n", 0o755)
        forwards = (PortForward(port, 80), PortForward(port, 53, "udp"))
        done = run(tmp_path, [a_test("a", files=(script,))], Guest(), engine, (TCP, Port(53, "udp")), forwards)
    assert done.passed
    assert done.ending == "exit status 0"
    (job,) = engine.jobs
    assert job.rootfs == ROOTFS
    assert (job.argv, job.workdir, job.user, job.network) == (("/bin/sh", "-c", "a"), "/src", "tester", True)
    assert job.env == {
        "LANG": "C",
        "UKLIMG_HOST": "127.0.0.1",
        "UKLIMG_TEST": "a",
        "UKLIMG_CONSOLE": "/run/uklimg/console",
        "UKLIMG_PORT_80": str(port),
        "UKLIMG_PORT_53": str(port),
    }
    assert [(mount.target, mount.read_only) for mount in job.mounts] == [("/run/uklimg", True), ("/dev/pipes", True)]
    script_file = job.mounts[1].source / "EOF"
    assert script_file.read_bytes() == b"#!/bin/sh\n"
    assert script_file.stat().st_mode & 0o777 == 0o755
    assert engine.seen == ["console=hello"]


def test_a_program_with_ports_is_tested_while_it_runs_and_then_stopped(tmp_path: Path) -> None:
    guest = Guest(Status(signal=15))
    done = run(tmp_path, [a_test("b", ended=True), a_test("a"), a_test("c")], guest, Engine(), (Port(53, "udp"),))
    assert guest.events == ["a", "/a", "c", "/c", "stopped", "b", "/b"]
    assert done.passed
    assert done.ending == "the program was ended by signal 15"


def test_a_program_without_ports_is_tested_when_it_has_ended(tmp_path: Path) -> None:
    engine = Engine()
    done = run(tmp_path, [a_test("a")], Guest(Status(signal=11), ends=True), engine)
    assert done.passed, "what the status must be is the test's business"
    assert engine.jobs[0].env["UKLIMG_STATUS"] == "139"
    assert engine.seen == ["console=hello status=139"]


def test_a_program_that_does_not_end_fails_the_test_and_is_stopped(tmp_path: Path) -> None:
    guest, engine = Guest(), Engine()
    done = run(tmp_path, [a_test("a", timeout=1)], guest, engine)
    assert not engine.jobs
    (result,) = done.results
    assert result.problem == "the program has not ended within 1 seconds"
    assert result.console == "hello\n"
    assert guest.events == ["/a", "stopped"]


def test_a_command_that_fails_is_told_with_what_it_and_the_guest_printed(tmp_path: Path) -> None:
    engine = Engine({"a": failing, "b": hanging})
    done = run(tmp_path, [a_test("a"), a_test("b", timeout=1), a_test("c")], Guest(), engine, (Port(53, "udp"),))
    a, b, c = done.results
    assert (a.problem, a.output, a.console) == ("the command ended with status 3", "a says hello", "hello\n")
    assert b.problem == "not done within 1 seconds"
    assert (c.problem, c.console) == ("", "")
    assert not done.passed


def test_a_program_that_ends_too_early_is_told(tmp_path: Path) -> None:
    guest, engine = Guest(Status(exit=4), ends=True), Engine({"a": failing})
    done = run(tmp_path, [a_test("a")], guest, engine, (TCP,), (PortForward(1, 80),))
    assert done.results[0].problem == "the command ended with status 3; by then the program had ended: exit status 4"


def test_a_guest_that_never_begins_is_an_error(tmp_path: Path) -> None:
    error = ToolError("the guest's kernel panicked: oh", exit_code=ExitCode.RUN_FAILED)
    with pytest.raises(ToolError, match="panicked: oh"):
        run(tmp_path, [a_test("a")], Guest(begins=False, error=error), Engine())


def test_a_panic_at_the_end_fails_the_whole(tmp_path: Path) -> None:
    error = ToolError("the guest's kernel panicked: oh", exit_code=ExitCode.RUN_FAILED)
    done = run(tmp_path, [a_test("a")], Guest(error=error), Engine(), (Port(53, "udp"),))
    assert not done.results[0].problem
    assert done.broken == "the guest's kernel panicked: oh"
    assert not done.passed


def test_an_engine_that_does_not_work_is_an_error_and_the_guest_ends(tmp_path: Path) -> None:
    def broken(job: Job, _: threading.Event) -> None:
        raise ToolError("no container can run here")

    guest = Guest()
    with pytest.raises(ToolError, match="no container"):
        run(tmp_path, [a_test("a")], guest, Engine({"a": broken}), (Port(53, "udp"),))
    assert guest.events == ["a", "stopped"]


def test_ctrl_c_ends_command_and_guest(tmp_path: Path) -> None:
    def interrupted(job: Job, _: threading.Event) -> None:
        raise KeyboardInterrupt

    guest = Guest()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [a_test("a"), a_test("b")], guest, Engine({"a": interrupted}), (Port(53, "udp"),))
    assert guest.events == ["a", "stopped"]


def test_a_port_answers_when_a_connection_lasts() -> None:
    with listening() as port:
        assert trial.answers("127.0.0.1", port, 0.2)
    with listening(drops=True) as port:
        assert not trial.answers("127.0.0.1", port, 5)
    assert not trial.answers("127.0.0.1", port, 5), "nobody listens"


def test_every_exposed_port_gets_one_of_this_machine() -> None:
    chosen = trial.choose_forwards([Port(53, "udp"), Port(53, "tcp"), Port(80, "tcp")])
    assert [(forward.guest, forward.protocol) for forward in chosen] == [(53, "tcp"), (53, "udp"), (80, "tcp")]
    assert chosen[0].host == chosen[1].host != chosen[2].host
    assert {forward.address for forward in chosen} == {"127.0.0.1"}


def test_a_build_stage_that_is_there_is_no_news() -> None:
    """`test` builds the image, then the stages that its commands run in: mostly the same once more."""
    first: list[Event] = [BuildPlanned(2, 2), StepCached("a", "A", "1"), BuildFinished(0, 2, 2, 0.1)]
    nothing: list[Event] = [BuildPlanned(1, 1), StepCached("a", "A", "1"), BuildFinished(0, 1, 1, 0.1)]
    work: list[Event] = [BuildPlanned(2, 1), StepCached("a", "A", "1"), StepStarted("b", "B", "2")]
    work.append(BuildFinished(1, 1, 2, 0.1))
    heard: list[Event] = []
    sink = News(heard.append)
    for event in (*first, *nothing, *work, *nothing):
        sink(event)
    assert heard == [*first, *work]
