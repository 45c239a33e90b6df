"""What PID 1 is told and what it reports; the other end is ``init.c`` in this folder. Pure.

**Configuration** (runner to guest over the virtio-serial port ``org.uklimg.control``, or the file
``/etc/uklimg/run.conf`` of the initramfs where there is no runner): records ``key=value``, each ended by a NUL byte,
the whole ended by an empty record. The first is ``version=1``. Keys that PID 1 does not know are ignored.
Globals come first: ``workdir``, ``env`` (``NAME=value``), ``stop-signal``, ``grace`` (seconds between the stop signal
and SIGKILL), ``hostname``, ``markers`` and ``raw-console`` (0 or 1). Then sections, each begun by one of

- ``program=<name or absolute path>``: run; a name without ``/`` means ``/ukl/<name>``. Programs run one after the
  other, the next when the one before has ended;
- ``beside=<…>``: started once, after the first program, in ring 3 beside it, with ``UKLIMG_PID`` set to that
  program's process id;
- ``mount=<mount point>``: mounted before anything runs.

and filled by ``label`` (what reports and markers call it; the name or path where there is none), ``arg`` (argv,
argv[0] included), ``env``, ``workdir``, ``timeout`` (seconds, then SIGKILL), ``keep`` (leading arguments that words
after ``--`` on the kernel command line do not replace), for ``beside`` also ``wait`` (the run does not end before it)
and ``stop`` (its end stops the program), for ``mount`` ``type``, ``source``, ``data``, ``read-only``.

**Commands** follow the configuration once the guest has reported the first ``begin``: ``stop=<seconds>`` NUL NUL.

Commands beside the program have ports of their own, ``org.uklimg.exec.0`` and so on: ``commands.py``.

**Reports** (guest to runner) are JSON objects, one a line: ``{"ready":1,"commands":N}`` (N ports for commands),
``{"begin":name}``,
``{"end":name,"exit":N}`` or ``"signal":N`` (with ``"timeout":true`` when it was its time limit), ``{"error":text}``,
and as the last one ``{"exit":N}`` or ``{"signal":N}``: the first status that was not success.
The last line of the console says the same: ``uklimg: exit N`` or ``uklimg: signal N (NAME)``, errors before it as
``uklimg: error: …``. With ``markers``, ``@@BEGIN name`` and ``@@END name exit|signal N[ timeout]`` go to the console.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from uklimg.errors import UserError

PORT = "org.uklimg.control"
RUN_CONF = "/etc/uklimg/run.conf"
PROGRAMS = "/ukl"
STUB_MAGIC = b"\x7fUKL1\n"
VERSION = 1
MAX_BYTES = 4 << 20
OWN_FAILURE = 125

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}")
_FINAL = re.compile(rb"uklimg: (?:(exit) (\d{1,3})|(signal) (\d{1,2}) \([^)\r\n]*\))\r?$", re.MULTILINE)
_ERROR = re.compile(rb"uklimg: error: ([^\r\n]*)")


@dataclass(frozen=True)
class Program:
    """``path``: a linked program's name, or an absolute path. ``argv`` includes argv[0]; empty means (path,).

    ``label`` is what reports and markers call it, "" for ``path``. ``timeout`` in seconds, 0 for none. ``keep``: how
    many leading arguments words after ``--`` of the kernel command line leave alone (the ENTRYPOINT's).
    """

    path: str
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    timeout: int = 0
    keep: int = 1
    label: str = ""


@dataclass(frozen=True)
class Helper:
    """A program in ring 3 beside the first one. ``wait``: the run does not end before it has; ``stop``: its end
    stops the program, and then the program's death by the stop signal counts as success."""

    program: Program
    wait: bool = False
    stop: bool = False


@dataclass(frozen=True)
class Mount:
    """``options`` is mount(2)'s data string."""

    target: str
    source: str
    type: str = "9p"
    options: str = ""
    read_only: bool = False


@dataclass(frozen=True)
class GuestConfig:
    """All that PID 1 needs. ``grace`` in seconds."""

    programs: tuple[Program, ...]
    beside: tuple[Helper, ...] = ()
    mounts: tuple[Mount, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    stop_signal: int = int(signal.SIGTERM)
    grace: int = 10
    hostname: str = "uklimg"
    markers: bool = False
    raw_console: bool = False


def stub(name: str) -> bytes:
    """Contents of ``/ukl/<name>``, which the kernel's UKL binfmt recognises. UserError for an unfit name."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be a program's name",
            hint="letters, digits, '.', '_', '+' and '-', at most 64, beginning with a letter, digit or '_'",
        )
    return STUB_MAGIC + name.encode() + b"\n"


def encode(config: GuestConfig) -> bytes:
    """The configuration as PID 1 reads it, the empty last record included. Mappings are written sorted.

    UserError when a value cannot be carried: a NUL byte, an empty or malformed variable name, too many bytes.
    """
    if not config.programs:
        raise UserError("there is no program to run")
    data = b"".join(_record(key, value) for key, value in _records(config)) + b"\0"
    if len(data) > MAX_BYTES:
        raise UserError("arguments and environment are too large", hint=f"at most {MAX_BYTES >> 20} MiB")
    return data


def encode_stop(grace: int) -> bytes:
    """Ask PID 1 to stop the program: stop signal, ``grace`` seconds, SIGKILL."""
    return _record("stop", str(grace)) + b"\0"


def _record(key: str, value: str) -> bytes:
    if "\0" in value:
        raise UserError(f"a NUL byte cannot be passed to the program: {key} {value!r}")
    return f"{key}={value}".encode(errors="surrogateescape") + b"\0"


def _records(config: GuestConfig) -> Iterator[tuple[str, str]]:
    yield "version", str(VERSION)
    yield "workdir", config.workdir
    yield "stop-signal", str(config.stop_signal)
    yield "grace", str(config.grace)
    yield "hostname", config.hostname
    if config.markers:
        yield "markers", "1"
    if config.raw_console:
        yield "raw-console", "1"
    yield from _environment(config.env)
    for mount in config.mounts:
        yield "mount", mount.target
        yield "type", mount.type
        yield "source", mount.source
        if mount.options:
            yield "data", mount.options
        if mount.read_only:
            yield "read-only", "1"
    for program in config.programs:
        yield "program", program.path
        yield from _program(program)
    for helper in config.beside:
        yield "beside", helper.program.path
        yield from _program(helper.program)
        if helper.wait:
            yield "wait", "1"
        if helper.stop:
            yield "stop", "1"


def _program(program: Program) -> Iterator[tuple[str, str]]:
    if program.label:
        yield "label", program.label
    for argument in program.argv:
        yield "arg", argument
    yield from _environment(program.env)
    if program.workdir:
        yield "workdir", program.workdir
    if program.timeout:
        yield "timeout", str(program.timeout)
    if program.keep != 1:
        yield "keep", str(program.keep)


def _environment(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in sorted(env.items()):
        if not name or "=" in name:
            raise UserError(f"{name!r} cannot be the name of an environment variable")
        yield "env", f"{name}={value}"


class ReportKind(Enum):
    READY = "ready"
    BEGIN = "begin"
    END = "end"
    ERROR = "error"
    FINAL = "final"


@dataclass(frozen=True)
class Status:
    """How a program ended: an exit status, or the signal that killed it (``signal`` > 0)."""

    exit: int = 0
    signal: int = 0

    @property
    def code(self) -> int:
        """As a shell puts it: the exit status, or 128 + signal."""
        return 128 + self.signal if self.signal else self.exit


@dataclass(frozen=True)
class Report:
    """``name`` with BEGIN and END, ``text`` with ERROR, ``status`` with END and FINAL; ``commands`` with READY: how
    many ports for commands PID 1 serves."""

    kind: ReportKind
    name: str = ""
    text: str = ""
    status: Status = field(default_factory=Status)
    timeout: bool = False
    commands: int = 0


def decode_report(line: bytes) -> Report | None:
    """One line of the port; None for what is not a report (the guest is not trusted to be ours)."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    status = _status(value)
    if "end" in value and status is not None:
        return Report(ReportKind.END, name=str(value["end"]), status=status, timeout=value.get("timeout") is True)
    if "begin" in value:
        return Report(ReportKind.BEGIN, name=str(value["begin"]))
    if "error" in value:
        return Report(ReportKind.ERROR, text=str(value["error"]))
    if "ready" in value:
        commands = value.get("commands")
        return Report(ReportKind.READY, commands=commands if type(commands) is int and 0 <= commands < 32 else 0)
    return Report(ReportKind.FINAL, status=status) if status is not None else None


def _status(value: Mapping[str, object]) -> Status | None:
    code, killer = value.get("exit"), value.get("signal")
    if type(code) is int and 0 <= code <= 255:
        return Status(exit=code)
    if type(killer) is int and 0 < killer <= 64:
        return Status(signal=killer)
    return None


def final_of_console(text: bytes) -> Status | None:
    """The status that the console's last ``uklimg: exit|signal`` line gives; None when there is none."""
    every = list(_FINAL.finditer(text))
    if not every:
        return None
    found = every[-1]
    return Status(exit=int(found[2])) if found[1] else Status(signal=int(found[4]))


def error_of_console(text: bytes) -> str | None:
    """The text of the console's first ``uklimg: error:`` line."""
    found = _ERROR.search(text)
    return found[1].decode(errors="replace") if found else None
