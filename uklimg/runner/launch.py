"""Start a virtual machine, tell its PID 1 what to run, show its console, and come back with the program's status.

Nothing stays behind: the hypervisor dies with the calling thread (``uklimg.proc``), its control port is one end of a
socket pair, and what files it needs are in a temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from uklimg import cpio, proc
from uklimg.errors import ExitCode, ToolError
from uklimg.guest.protocol import (
    OWN_FAILURE,
    RUN_CONF,
    GuestConfig,
    Report,
    ReportKind,
    Status,
    decode_report,
    encode,
    encode_stop,
)
from uklimg.room import memory_total
from uklimg.runner.api import call
from uklimg.runner.console import Console
from uklimg.runner.fit import check_fits
from uklimg.runner.machine import Call, Feature, Machine, MachineConfig, Sharing, UserNetwork
from uklimg.runner.network import check_forwards
from uklimg.runner.stops import Stops
from uklimg.runner.virtiofs import find_virtiofsd, shared

# Seconds: from the end of the program's grace, or from the final report, to the machine's end by force.
_SLACK = 10.0
_EXIT = 2.0
_RETRY = 0.1
# Bytes of a folder's path below which a socket in it has an address (107 bytes).
_SHORT = 80
_REPORT_MAX = 64 << 10
_END_OF_FILE = b"\x04"  # Ctrl-D, which the guest's terminal understands


@dataclass(frozen=True)
class Outcome:
    """``status`` of the whole run; ``code`` is what ``uklimg run`` returns. ``reports`` in the order they came."""

    status: Status
    reports: tuple[Report, ...] = ()

    @property
    def code(self) -> int:
        return self.status.code


def launch(
    machine: Machine,
    config: MachineConfig,
    guest: GuestConfig,
    *,
    env: Mapping[str, str],
    show: Callable[[bytes], object],
    stops: Stops | None = None,
    stdin: int | None = None,
    on_report: Callable[[Report], object] = lambda _: None,
    on_start: Callable[[int], object] = lambda _: None,
    channels: Sequence[socket.socket] = (),
    scratch: Path | None = None,
) -> Outcome:
    """Run ``guest`` on ``config`` to its end. Call it from the thread that stays (a process dies with its thread).

    ``show`` gets the console's bytes; ``stdin``, an open file descriptor, is typed on it. ``stops`` asks for an end:
    the first request sends the stop signal to the program, and SIGKILL after ``guest.grace`` seconds, a second one
    ends the machine at once. Raises ToolError: RUN_FAILED when the machine or the program could not start, the
    guest's kernel panicked or the machine ended without a status; INTERRUPTED when a stop was asked for before the
    program ran or twice; HOST when the hypervisor is missing.

    ``on_start`` hears the hypervisor's process id. ``channels`` are the hypervisor's ends of the ports for commands
    (``uklimg.guest.commands``); they are closed here. ``scratch``: a folder for files and sockets of one run, None
    for one in /tmp; without virtiofs and with a port for PID 1 there are none.
    """
    message = encode(guest)
    config = replace(config, folder=scratch if scratch and len(str(scratch)) < _SHORT else Path("/tmp"))
    check(machine, config, env)
    ours, theirs = socket.socketpair()
    console, their_console = socket.socketpair()
    with ExitStack() as outer:
        outer.callback(ours.close)
        outer.callback(console.close)
        has_port = Feature.CONTROL in machine.features
        if not has_port or any(volume.sharing is Sharing.VIRTIOFS for volume in config.volumes):
            folder = Path(outer.enter_context(tempfile.TemporaryDirectory(prefix="uklimg-", dir=config.folder)))
            volumes = outer.enter_context(shared(config.volumes, folder, env))
            config = replace(config, folder=folder, volumes=volumes)
        if not has_port:
            config = replace(config, initrd=_with_guest(config.initrd, message, folder))
            for name, data in machine.files(config).items():
                (folder / name).write_bytes(data)
        with ExitStack() as stack:
            process = _spawn(machine, config, (theirs, their_console, *channels), env, stack)
        with process:
            on_start(process.pid)
            session = _Session(process, ours, console, show, stops, stdin, guest.grace, config.verbose, on_report)
            if has_port:
                session.send(message)
            else:
                session.without_port(guest.programs[0].path, machine.stop(config))
            session.run()
            return session.outcome()


def _spawn(
    machine: Machine, config: MachineConfig, ends: Sequence[socket.socket], env: Mapping[str, str], stack: ExitStack
) -> proc.Process:
    """The hypervisor with its ends of control port, console and ports for commands, which ``stack`` closes here."""
    fds = [stack.enter_context(end).fileno() for end in ends]
    if Feature.CONTROL not in machine.features:
        # Its serial port is its standard input and output.
        file = stack.enter_context(os.fdopen(os.dup(fds[1]), "r+b", buffering=0))
        return proc.spawn(machine.command(config), env=env, stdin=file, stdout=file)
    for fd in fds:
        os.set_inheritable(fd, True)
    argv = machine.command(replace(config, control=fds[0], console=fds[1], commands=tuple(fds[2:])))
    return proc.spawn(argv, env=env, pass_fds=fds)


def _with_guest(initrd: Path | None, message: bytes, folder: Path) -> Path:
    """The initramfs with the guest's configuration in place of the image's own: the kernel unpacks archives that lie
    one behind the other, the later ones over the earlier (Documentation/driver-api/early-userspace)."""
    path = folder / "initrd"
    name = RUN_CONF.lstrip("/")
    entries = [cpio.directory(str(parent)) for parent in Path(name).parents if str(parent) != "."]
    with path.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)  # variables of the guest may be secrets
        if initrd is not None:
            with initrd.open("rb") as own:
                shutil.copyfileobj(own, file)
            file.write(b"\0" * (-file.tell() % 4))
        cpio.write([*entries, cpio.regular(name, message, 0o600)], file, mtime=0)
    return path


def check(machine: Machine, config: MachineConfig, env: Mapping[str, str]) -> None:
    """Say before the boot what would fail it. Raises ToolError (HOST, RUN_FAILED)."""
    proc.find(machine.command(replace(config, folder=config.folder or Path("/tmp")))[0], env)
    for path in (config.kernel, config.initrd):
        if path is not None and not path.is_file():
            raise ToolError(f"no file {path} to boot", exit_code=ExitCode.RUN_FAILED)
    for volume in config.volumes:
        if not Path(volume.path).is_dir():
            raise ToolError(f"no folder {volume.path} for a volume", exit_code=ExitCode.RUN_FAILED)
        if volume.sharing is Sharing.VIRTIOFS:
            find_virtiofsd(env)
    check_fits(config, memory_total())
    if isinstance(config.network, UserNetwork):
        check_forwards(config.network.forwards)


class _Session:
    """One running machine: a select loop over console, control port and stop requests."""

    def __init__(
        self,
        process: proc.Process,
        control: socket.socket,
        console: socket.socket,
        show: Callable[[bytes], object],
        stops: Stops | None,
        stdin: int | None,
        grace: int,
        verbose: bool,
        on_report: Callable[[Report], object],
    ) -> None:
        self._process = process
        self._control = control
        self._reader = console
        self._stdin = stdin
        self._show = show
        self._stops = stops
        self._grace = grace
        self._on_report = on_report
        self._console = Console(hide_end=not verbose)
        self._selector = selectors.PollSelector()  # epoll refuses ordinary files, as in `< file`
        self._outgoing = b""
        self._incoming = b""
        self._reports: list[Report] = []
        self._began = False
        self._stop_call: Call | None = None
        self._unsaid: Call | None = None
        self._has_port = True
        self._interrupted = False
        self._deadline: float | None = None

    def send(self, data: bytes) -> None:
        self._outgoing += data

    def without_port(self, program: str, stop: Call | None) -> None:
        """PID 1 has been told already, and only the console will say how it went. ``stop`` asks for the end."""
        self._has_port = False
        self._stop_call = stop
        self._take(Report(ReportKind.BEGIN, name=program))

    def run(self) -> None:
        """Until the machine has ended and its console is drained, or a deadline has passed."""
        self._control.setblocking(False)
        with self._selector as selector:
            selector.register(self._reader, selectors.EVENT_READ, self._read_console)
            if self._has_port:
                selector.register(self._control, selectors.EVENT_READ, self._serve_control)
            if self._stops is not None:
                selector.register(self._stops, selectors.EVENT_READ, self._stop)
            while self._reader in selector.get_map() and not self._interrupted:
                if self._control in selector.get_map():
                    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
                    selector.modify(self._control, wanted, self._serve_control)
                for key, events in selector.select(self._patience()):
                    key.data(events)
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    break
        if not self._interrupted:
            self._process.ended(_EXIT)  # it closes its console a little before it ends
        self._process.terminate(grace=_EXIT)
        self._show(self._console.flush())

    def _patience(self) -> float | None:
        if self._unsaid is not None:
            # A hypervisor that has just been started may not listen yet; should it never, the deadline ends it.
            with contextlib.suppress(ToolError):
                call(self._unsaid)
                self._unsaid = None
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        return left if self._unsaid is None or left is None else min(left, _RETRY)

    def _read_console(self, _events: int) -> None:
        try:
            data = self._reader.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._selector.unregister(self._reader)
            return
        shown = self._console.feed(data)
        if shown:
            self._show(shown)
        if not self._has_port and self._deadline is None and self._console.final is not None:
            self._deadline = time.monotonic() + _SLACK

    def _read_stdin(self, _events: int) -> None:
        assert self._stdin is not None
        data = os.read(self._stdin, 4096)
        if not data:
            self._selector.unregister(self._stdin)
        with contextlib.suppress(OSError):  # the machine is ending
            self._reader.sendall(data or _END_OF_FILE)

    def _serve_control(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and self._outgoing:
                self._outgoing = self._outgoing[self._control.send(self._outgoing) :]
            if not events & selectors.EVENT_READ:
                return
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # the hypervisor is gone
        if not data:
            self._selector.unregister(self._control)
            return
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        self._incoming = self._incoming[-_REPORT_MAX:]
        for line in lines:
            report = decode_report(line)
            if report is not None:
                self._take(report)

    def _take(self, report: Report) -> None:
        self._reports.append(report)
        if report.kind is ReportKind.BEGIN:
            if self._stdin is not None and not self._began:
                # Not earlier: a serial driver drops what comes while it starts.
                self._selector.register(self._stdin, selectors.EVENT_READ, self._read_stdin)
            self._began = True
        if report.kind is ReportKind.FINAL:
            # What remains is power-off; a kernel that cannot do it must not keep us.
            self._deadline = time.monotonic() + _SLACK
        self._on_report(report)

    def _stop(self, _events: int) -> None:
        assert self._stops is not None
        if self._stops.count() > 1 or not self._began:
            self._interrupted = True
            return
        grace = self._grace if self._stops.grace is None else self._stops.grace
        if self._has_port:
            self.send(encode_stop(grace))
        else:
            self._unsaid = self._stop_call
        self._deadline = time.monotonic() + grace + _SLACK

    def outcome(self) -> Outcome:
        """The program's status, or the ToolError that says why there is none."""
        final = self._final()
        error = next((r.text for r in self._reports if r.kind is ReportKind.ERROR), None) or self._console.error
        if error is not None and (final is None or final.exit == OWN_FAILURE):
            lacking = error.startswith("cannot mount") and error.endswith("No such device")
            hint = "KCONFIG adds a file system: FUSE_FS=y VIRTIO_FS=y is virtiofs" if lacking else ""
            raise ToolError(f"the guest could not run the program: {error}", hint=hint, exit_code=ExitCode.RUN_FAILED)
        if final is not None and not self._interrupted:
            return Outcome(final, tuple(self._reports))
        if self._interrupted:
            when = "" if self._began else " before the program ran"
            raise ToolError(f"interrupted{when}", exit_code=ExitCode.INTERRUPTED)
        raise self._failure()

    def _final(self) -> Status | None:
        for report in reversed(self._reports):
            if report.kind is ReportKind.FINAL:
                return report.status
        return self._console.final

    def _failure(self) -> ToolError:
        panic = self._console.panic
        if panic is not None:
            return ToolError(f"the guest's kernel panicked: {panic}", exit_code=ExitCode.RUN_FAILED)
        if self._deadline is not None:
            return ToolError("the guest did not end when asked to", exit_code=ExitCode.RUN_FAILED)
        result = self._process.completed()
        if result.status != 0:
            last = (result.tail.splitlines() or [""])[-1]
            message = f"{self._process.name} {proc.describe(result.status)}" + (f": {last}" if last else "")
            return self._process.error(message, exit_code=ExitCode.RUN_FAILED)
        return ToolError(
            "the machine ended without the program's status",
            hint="its kernel reset early; --verbose shows its messages",
            exit_code=ExitCode.RUN_FAILED,
            detail=self._console.tail,
        )
