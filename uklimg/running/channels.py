"""The supervisor's ends of the ports for commands: which are free, one command to its end, and a client's session.

The guest is not trusted: what it says is cut into frames and limited, and a port on which it misbehaves is not used
again.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.guest import commands
from uklimg.guest.commands import Command, Frame, Frames
from uklimg.guest.protocol import Status

# Seconds that the guest has, once nobody listens to a command, to end it and to free the port.
_END = 10.0
# Seconds to wait for a port that another command is just leaving.
_PATIENCE = 5.0
_CHUNK = 1 << 16
_KEEP = 4096  # bytes of a check's output


class Ports:
    """The ports of one boot. ``theirs`` are for the hypervisor."""

    def __init__(self, count: int = commands.PORTS) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        self.theirs = [theirs for _, theirs in pairs]
        self._ours = [ours for ours, _ in pairs]
        # The first is for health checks: what users run must not make a guest look ill.
        self._free = self._ours[1:]
        self._health = self._ours[:1]
        self._changed = threading.Condition()
        self.served = 0
        """How many PID 1 serves; 0 until it has said so."""

    @contextmanager
    def port(self, *, health: bool = False, patience: float = _PATIENCE) -> Iterator[Port]:
        """A free one for one command, or the one for health checks. ToolError RUN_FAILED when there is none for
        ``patience`` seconds."""
        if not self._ours:
            message = "the guest's hypervisor has no port for commands"
            raise ToolError(message, hint="QEMU has", exit_code=ExitCode.RUN_FAILED)
        if not self.served:
            hint = "build it again with this uklimg"
            message = "the image's PID 1 runs no commands"
            raise ToolError(message, hint=hint, exit_code=ExitCode.RUN_FAILED)
        free = self._health if health else self._free
        with self._changed:
            if not self._changed.wait_for(lambda: bool(free), patience):
                message = f"{len(self._ours) - 1} commands run in the guest already"
                raise ToolError(message, hint="wait until one has ended", exit_code=ExitCode.RUN_FAILED)
            port = Port(free.pop(0))
        try:
            yield port
        finally:
            with self._changed:
                if port.idle:
                    free.append(port.socket)
                    self._changed.notify_all()

    def close(self) -> None:
        for end in (*self._ours, *self.theirs):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
            end.close()


class Port:
    """One session on one port. ``idle``: it can have another one."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.idle = True
        self._frames = Frames()

    def start(self, command: bytes) -> None:
        self.idle = False
        self.socket.sendall(command)

    def receive(self) -> Iterator[Frame]:
        """What has come; EOFError when the machine has ended."""
        try:
            data = self.socket.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            raise EOFError("the guest has ended")
        return self._frames.feed(data)

    def finish(self) -> None:
        """After the last word of a command: have the port freed."""
        self.socket.sendall(commands.encode_frame(commands.BYE))
        for frame in self._until(time.monotonic() + _END):
            if frame.kind == commands.DONE:
                self.idle = True
                return

    def abandon(self) -> None:
        """End the command, whatever it does, and have the port freed."""
        self.socket.sendall(commands.encode_frame(commands.QUIT))
        for frame in self._until(time.monotonic() + _END):
            if frame.kind in (commands.EXIT, commands.FAILED):
                self.finish()
                return

    def _until(self, deadline: float) -> Iterator[Frame]:
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.socket], [], [], left)[0]:
                yield from self.receive()


@dataclass(frozen=True)
class Ran:
    """``status`` None: not done in time, or, with ``problem``, not run at all."""

    status: Status | None
    output: str
    problem: str = ""


def run_command(ports: Ports, command: Command, timeout: float) -> Ran:
    """Run a health check to its end, ``timeout`` seconds at most; keeps the end of what it prints. Raises EOFError
    when the guest ends meanwhile, ToolError as ``Ports.port``."""
    printed = b""
    with ports.port(health=True) as port:
        port.start(commands.encode_start(command) + commands.encode_frame(commands.INPUT))
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([port.socket], [], [], left)[0]:
                continue
            for frame in port.receive():
                if frame.kind in (commands.OUTPUT, commands.ERRORS):
                    printed = (printed + frame.payload)[-_KEEP:]
                elif frame.kind == commands.EXIT:
                    port.finish()
                    return Ran(commands.decode_exit(frame.payload), printed.decode(errors="replace"))
                elif frame.kind == commands.FAILED:
                    port.finish()
                    why = frame.payload[:200].decode(errors="replace")
                    return Ran(None, "", f"the image cannot run {command.argv[0]}: {why}")
        port.abandon()
    return Ran(None, printed.decode(errors="replace"), f"not done within {timeout:g} seconds")


def serve_client(ports: Ports, client: socket.socket, closed: Callable[[], bool]) -> None:
    """A client's command: its frames to a port and back, until the command's end or the client's. ``closed``: the
    machine has ended, so that there is nothing to clean up."""
    try:
        with ports.port() as port:
            answer(client)
            _relay(port, client)
    except ToolError as error:
        answer(client, error)
    except (OSError, EOFError, ValueError, CorruptError):
        if not closed():
            raise


def answer(client: socket.socket, error: ToolError | None = None) -> None:
    """The first line to a client."""
    value = {} if error is None else {"error": error.message, "hint": error.hint}
    with suppress(OSError):
        client.sendall(json.dumps(value).encode() + b"\n")


def _relay(port: Port, client: socket.socket) -> None:
    frames = Frames()
    port.idle = True  # nothing was asked of it yet
    while True:
        readable = select.select([port.socket, client], [], [])[0]
        if client in readable:
            try:
                data = client.recv(_CHUNK)
                for frame in frames.feed(data):
                    port.start(commands.encode_frame(frame.kind, frame.payload))
            except (OSError, CorruptError):
                data = b""
            if not data:
                if not port.idle:
                    port.abandon()
                return
        if port.socket in readable:
            for frame in port.receive():
                with suppress(OSError):  # it is gone, which the next look at it says
                    client.sendall(commands.encode_frame(frame.kind, frame.payload))
                if frame.kind in (commands.EXIT, commands.FAILED):
                    port.finish()
                    return
