"""Commands beside the program: the frames on the ports ``org.uklimg.exec.N``; the other end is ``commands.c``. Pure.

A frame is a letter, the payload's length (32 bits, little-endian) and the payload. A session is one command:

host to guest
    ``S`` start: records as of the configuration (``protocol.py``): ``arg``, ``env``, ``workdir``, ``tty=1`` with
    ``rows`` and ``columns``, and an empty one; ``I`` input (empty: its end), at most CHUNK bytes, and the next one
    only after the guest's ``A``; ``W`` window size (rows, columns, 16 bits each); ``K`` a signal (one byte) for the
    command's group; ``Q`` nobody listens any more: SIGHUP, and SIGKILL a second later; ``B`` the last frame.
guest to host
    ``A`` the input was written; ``O`` and ``E`` standard output and error; then ``X`` its end (0 and the exit status,
    or 1 and the signal) or ``F`` why it could not be started; and ``D`` in answer to ``B``: the port is free.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from uklimg.errors import CorruptError, UserError
from uklimg.guest.protocol import Status

PORTS = 5
CHUNK = 32768
MAX_PAYLOAD = 1 << 20
_HEAD = struct.Struct("<cI")

START, INPUT, WINDOW, SIGNAL, QUIT, BYE = b"S", b"I", b"W", b"K", b"Q", b"B"
TAKEN, OUTPUT, ERRORS, EXIT, FAILED, DONE = b"A", b"O", b"E", b"X", b"F", b"D"


def port_name(number: int) -> str:
    return f"org.uklimg.exec.{number}"


@dataclass(frozen=True)
class Command:
    """``argv`` is looked for on PATH in the guest. ``env`` is added to the program's environment; ``workdir`` ""
    means the program's. With ``terminal`` it has one, of ``rows`` and ``columns``."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    terminal: bool = False
    rows: int = 24
    columns: int = 80


@dataclass(frozen=True)
class Frame:
    kind: bytes
    payload: bytes = b""


def encode_frame(kind: bytes, payload: bytes = b"") -> bytes:
    return _HEAD.pack(kind, len(payload)) + payload


def encode_start(command: Command) -> bytes:
    """The first frame; UserError for what cannot be carried."""
    if not command.argv:
        raise UserError("there is no command to run")
    data = b"".join(f"{key}={value}".encode(errors="surrogateescape") + b"\0" for key, value in _records(command))
    if len(data) >= MAX_PAYLOAD:
        raise UserError("the command and its environment are too large", hint=f"at most {MAX_PAYLOAD >> 20} MiB")
    return encode_frame(START, data + b"\0")


def _records(command: Command) -> Iterator[tuple[str, str]]:
    records = [("arg", argument) for argument in command.argv]
    for name, value in sorted(command.env.items()):
        if not name or "=" in name:
            raise UserError(f"{name!r} cannot be the name of an environment variable")
        records.append(("env", f"{name}={value}"))
    if command.workdir:
        records.append(("workdir", command.workdir))
    if command.terminal:
        records += [("tty", "1"), ("rows", str(command.rows)), ("columns", str(command.columns))]
    for key, value in records:
        if "\0" in value:
            raise UserError(f"a NUL byte cannot be passed to the command: {key} {value!r}")
        yield key, value


def encode_window(rows: int, columns: int) -> bytes:
    return encode_frame(WINDOW, struct.pack("<HH", min(rows, 0xFFFF), min(columns, 0xFFFF)))


def decode_exit(payload: bytes) -> Status:
    """How the command ended; CorruptError when the guest says something else."""
    if len(payload) != 2 or payload[0] > 1:
        raise CorruptError(f"the guest says how the command ended as {payload[:8]!r}")
    return Status(signal=payload[1]) if payload[0] else Status(exit=payload[1])


class Frames:
    """Cuts a stream into frames; the stream is not trusted. CorruptError for one that is too large."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._rest += data
        while len(self._rest) >= _HEAD.size:
            kind, size = _HEAD.unpack_from(self._rest)
            if size > MAX_PAYLOAD:
                raise CorruptError(f"a frame of {size} bytes on a command's port")
            if len(self._rest) < _HEAD.size + size:
                return
            payload = self._rest[_HEAD.size : _HEAD.size + size]
            self._rest = self._rest[_HEAD.size + size :]
            yield Frame(kind, payload)
