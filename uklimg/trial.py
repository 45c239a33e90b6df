"""Tests of an image: boot it once, run commands of the user's against it in containers, and say how each went.

The machine runs in a thread of its own; commands run in the caller's, which is the one that Ctrl-C reaches. A
command finds in its environment where the guest's ports are (UKLIMG_HOST, UKLIMG_PORT_<guest port>) and, in the
folder FOLDER, the files ``console`` (what the guest has printed so far) and, once the program has ended, ``status``.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from uklimg.engine.base import Engine, Job, Line, Mount, Rootfs
from uklimg.errors import ExitCode, ToolError, UklimgError
from uklimg.guest.protocol import Report, ReportKind
from uklimg.runner.launch import Outcome
from uklimg.runner.machine import PortForward
from uklimg.runner.stops import Stops
from uklimg.spec.model import HEREDOC_FOLDER, BuildStage, ImageTest, Port

FOLDER = "/run/uklimg"
CONSOLE = "console"
STATUS = "status"
TIMEOUT = 60
"""Seconds that a test has unless the Uklfile says otherwise."""

_HOST = "127.0.0.1"
# Seconds: until PID 1 has begun the program; until it takes connections; how long a connection must last to be one.
_BOOT = 180.0
_READY = 60.0
_LASTS = 1.0
_TRIES = 50
# Of a command's output and of the console, what a result keeps: lines, bytes.
_LINES = 200
_TAIL = 8192


class Boot(Protocol):
    """Runs the guest to its end: ``uklimg.runner.launch.launch`` with all but these given."""

    def __call__(
        self, *, show: Callable[[bytes], object], stops: Stops, on_report: Callable[[Report], object]
    ) -> Outcome: ...


@dataclass(frozen=True)
class Result:
    """How one test went. ``problem`` is one line, "" when it passed; ``output`` what the command printed last, and
    ``console`` with a problem what the guest did."""

    name: str
    seconds: float
    problem: str = ""
    output: str = ""
    console: str = ""


@dataclass(frozen=True)
class Container:
    """Where commands run: a build stage's root file system."""

    stage: BuildStage
    rootfs: Rootfs


@dataclass(frozen=True)
class Tests:
    """What is to be done. ``containers`` by stage name; ``default`` is the stage of tests that name none.
    ``timeout`` in seconds, for tests that say nothing themselves."""

    tests: Sequence[ImageTest]
    containers: Mapping[str, Container]
    default: str
    ports: Sequence[Port]
    timeout: int = TIMEOUT

    def ended(self, test: ImageTest) -> bool:
        """Whether the test is about a program that has ended: what exposes no port is expected to end."""
        return not self.ports if test.ended is None else test.ended


@dataclass
class Guest:
    """A machine in a thread of its own. ``outcome`` and ``error`` are known when the thread has ended."""

    boot: Boot
    console: Path
    stops: Stops = field(default_factory=Stops)
    begun: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None
    error: BaseException | None = None
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="guest", daemon=True)

    def __enter__(self) -> Guest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.stops.close()

    def _run(self) -> None:
        try:
            with self.console.open("ab", buffering=0) as file:
                self.outcome = self.boot(show=file.write, stops=self.stops, on_report=self._report)
        except BaseException as error:
            self.error = error
        finally:
            self.begun.set()

    def _report(self, report: Report) -> None:
        if report.kind is ReportKind.BEGIN:
            self.begun.set()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Whether the guest has ended within that time."""
        self._thread.join(seconds)
        return not self.running

    def stop(self) -> None:
        """Have the program stopped as `uklimg run` does for Ctrl-C; the machine ends for certain."""
        if self.running:
            self.stops.request()
            try:
                self._thread.join()
            except KeyboardInterrupt:
                self.stops.request()  # a second one ends the machine at once
                self._thread.join()
                raise

    def ending(self) -> str:
        """How it ended, in words; "" while it runs."""
        if self.running:
            return ""
        if self.outcome is None:
            return self.error.message if isinstance(self.error, UklimgError) else repr(self.error)
        status = self.outcome.status
        return f"the program was ended by signal {status.signal}" if status.signal else f"exit status {status.exit}"


@dataclass(frozen=True)
class Trial:
    """All of it. ``ending`` says how the program ended; ``broken`` is what was wrong with the machine's end, as a
    panic, "" as a rule."""

    results: Sequence[Result]
    ending: str
    broken: str = ""

    @property
    def passed(self) -> bool:
        return not self.broken and not any(result.problem for result in self.results)


def run_tests(
    wanted: Tests,
    boot: Boot,
    engine: Engine,
    forwards: Sequence[PortForward],
    folder: Path,
    done: Callable[[Result], object],
) -> Trial:
    """Run the tests in the order of the file: first those of the running program, then, when it has ended, others.

    It ends by itself, or by its stop signal where a test wanted it running. ``folder`` is empty and takes files of
    ours; ``done`` hears each result at once. ToolError as ``boot`` raises it when the guest never began.
    """
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / CONSOLE).touch()
    runner = _Runner(wanted, engine, forwards, folder, shared)
    results: list[Result] = []
    running = [test for test in wanted.tests if not wanted.ended(test)]
    others = [test for test in wanted.tests if wanted.ended(test)]
    with Guest(boot, shared / CONSOLE) as guest:
        _await_begin(guest)
        if running:
            _await_ready(guest, [forward for forward in forwards if forward.protocol == "tcp"])
        for tests, run in ((running, runner.run), (others, runner.run_ended)):
            for test in tests:
                results.append(run(test, guest))
                done(results[-1])
            if tests is running and running:
                guest.stop()
    broken = guest.error.message if isinstance(guest.error, UklimgError) else ""
    return Trial(results, guest.ending(), broken)


def _await_begin(guest: Guest) -> None:
    """Until PID 1 has begun the program; raises what the machine raised when it never did."""
    if not guest.begun.wait(_BOOT):
        guest.stops.request()  # nothing has begun: this ends the machine at once
        message = f"the guest did not begin its program within {_BOOT:.0f} seconds"
        raise ToolError(message, hint="uklimg run --verbose shows what it does", exit_code=ExitCode.RUN_FAILED)
    if guest.error is not None:
        raise guest.error


def _await_ready(guest: Guest, forwards: Sequence[PortForward]) -> None:
    """Until every forwarded TCP port leads to something, the program has ended, or _READY seconds have passed."""
    deadline = time.monotonic() + _READY
    for forward in forwards:
        while guest.running and time.monotonic() < deadline and not answers(forward.address, forward.host, _LASTS):
            time.sleep(0.1)


def answers(address: str, port: int, seconds: float) -> bool:
    """Whether a connection is taken and lasts ``seconds``, or brings data earlier. QEMU takes connections whether or
    not anybody listens in the guest, and drops them when nobody does."""
    with socket.socket() as probe:
        probe.settimeout(seconds)
        try:
            probe.connect((address, port))
            return bool(probe.recv(1))
        except TimeoutError:
            return True
        except OSError:
            return False


def choose_forwards(ports: Sequence[Port]) -> tuple[PortForward, ...]:
    """A free port of this machine for every exposed one; one number for all protocols of a guest's port.

    Between here and the boot another process may take one; that is an error of the boot then.
    """
    forwards: list[PortForward] = []
    taken: set[int] = set()
    for number in sorted({port.number for port in ports}):
        protocols = sorted(port.protocol for port in ports if port.number == number)
        host = _free_port(protocols, taken)
        taken.add(host)
        forwards += [PortForward(host, number, protocol, _HOST) for protocol in protocols]
    return tuple(forwards)


def _free_port(protocols: Sequence[str], taken: set[int]) -> int:
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    for _ in range(_TRIES):
        with ExitStack() as stack:
            probes = [stack.enter_context(socket.socket(type=kinds[protocol])) for protocol in protocols]
            probes[0].bind((_HOST, 0))
            number = int(probes[0].getsockname()[1])
            with suppress(OSError):
                for probe in probes[1:]:
                    probe.bind((_HOST, number))
                if number not in taken:
                    return number
    raise ToolError("this machine has no free port", exit_code=ExitCode.RUN_FAILED)


def environment(test: ImageTest, container: Container, forwards: Sequence[PortForward]) -> Mapping[str, str]:
    """What a test's command gets: the stage's ENV, and where the guest is."""
    ports = {f"UKLIMG_PORT_{forward.guest}": str(forward.host) for forward in forwards}
    ours = {"UKLIMG_HOST": _HOST, "UKLIMG_TEST": test.name, "UKLIMG_CONSOLE": f"{FOLDER}/{CONSOLE}"}
    return {**dict(container.stage.env), **ours, **ports}


class _Runner:
    """Runs commands of tests."""

    def __init__(
        self, wanted: Tests, engine: Engine, forwards: Sequence[PortForward], folder: Path, shared: Path
    ) -> None:
        self._wanted = wanted
        self._engine = engine
        self._forwards = forwards
        self._folder = folder
        self._shared = shared
        self._count = 0

    def run(self, test: ImageTest, guest: Guest) -> Result:
        """While the program runs, as it should."""
        result = self._command(test, {})
        if result.problem and not guest.running:
            return replace(result, problem=f"{result.problem}; by then the program had ended: {guest.ending()}")
        return result

    def run_ended(self, test: ImageTest, guest: Guest) -> Result:
        """When the program has ended, for which it has the test's time."""
        began = time.monotonic()
        if not guest.wait(self._seconds(test)):
            problem = f"the program has not ended within {self._seconds(test)} seconds"
            return Result(test.name, time.monotonic() - began, problem, "", self._printed())
        if guest.outcome is None:
            return Result(test.name, time.monotonic() - began, guest.ending(), "", self._printed())
        code = str(guest.outcome.code)
        (self._shared / STATUS).write_text(f"{code}\n")
        result = self._command(test, {"UKLIMG_STATUS": code})
        return replace(result, seconds=time.monotonic() - began)

    def _seconds(self, test: ImageTest) -> int:
        return test.timeout or self._wanted.timeout

    def _printed(self) -> str:
        """The end of the guest's console."""
        with (self._shared / CONSOLE).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            return file.read().decode(errors="replace")

    def _command(self, test: ImageTest, extra: Mapping[str, str]) -> Result:
        """Run the command with a time limit."""
        self._count += 1
        folder = self._folder / str(self._count)
        for name in ("", "out", "files"):
            (folder / name).mkdir(mode=0o755)
        for file in test.files:
            (folder / "files" / file.name).write_bytes(file.content)
            (folder / "files" / file.name).chmod(file.mode)
        container = self._wanted.containers[test.stage or self._wanted.default]
        mounts = [Mount(self._shared, FOLDER)]
        if test.files:
            mounts.append(Mount(folder / "files", HEREDOC_FOLDER))
        job = Job(
            name=f"TEST {test.name}",
            rootfs=container.rootfs,
            argv=test.argv,
            output=folder / "out",
            log=folder / "log",
            mounts=tuple(mounts),
            env={**environment(test, container, self._forwards), **extra},
            workdir=container.stage.workdir,
            network=True,
            user=container.stage.user,
        )
        lines: deque[str] = deque(maxlen=_LINES)
        late = threading.Event()
        timer = threading.Timer(self._seconds(test), late.set)
        began = time.monotonic()
        timer.start()
        try:
            problem = self._run_job(job, lines.append, late, self._seconds(test))
        finally:
            timer.cancel()
        console = self._printed() if problem else ""
        return Result(test.name, time.monotonic() - began, problem, "\n".join(lines), console)

    def _run_job(self, job: Job, on_line: Line, late: threading.Event, seconds: int) -> str:
        """What went wrong, "" for nothing."""
        try:
            self._engine.run(job, on_line, late)
        except KeyboardInterrupt:
            if not late.is_set():
                raise
            return f"not done within {seconds} seconds"
        except ToolError as error:
            if error.exit_code != ExitCode.STEP:
                raise
            return _ended(error.message)
        return ""


def _ended(message: str) -> str:
    """The engine's message about a command, without the test's name and the log, which is shown."""
    return message.partition(": ")[2].partition(";")[0] or message
