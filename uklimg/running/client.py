"""What one does with a guest that runs by itself: start its supervisor, ask it, run a command beside the program."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import select
import signal
import socket
import struct
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uklimg
from uklimg import proc
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.guest import commands
from uklimg.guest.commands import Command, Frames
from uklimg.guest.protocol import Status as Ending
from uklimg.running import folder as folders
from uklimg.running.folder import Guests
from uklimg.running.record import Record, Status
from uklimg.running.supervisor import Task, read_line

_POLL = 0.05
_CHUNK = 1 << 16


def start(guests: Guests, task: Task) -> Record:
    """Have a supervisor run ``task``, and wait until its program has begun. The guest goes on without us.

    ToolError RUN_FAILED when the program never began: then nothing stays behind.
    """
    folder = guests.create(task.record)
    source = str(Path(uklimg.__file__).resolve().parents[1])
    argv = [sys.executable, "-m", "uklimg.running", str(folder)]
    try:
        process = proc.detach(
            argv, env={**task.env, "PYTHONPATH": source}, stdin=pickle.dumps(task), log=folder / folders.TRACE
        )
    except BaseException:
        guests.remove(task.record, force=True)
        raise
    try:
        return _begun(guests, task.record, process, folder)
    except KeyboardInterrupt:
        name = task.record.name
        hint = f"uklimg logs {name}, or rm -f {name}"
        raise ToolError(f"interrupted; {name} goes on", hint=hint, exit_code=ExitCode.INTERRUPTED) from None


def _begun(guests: Guests, started: Record, process: proc.Detached, folder: Path) -> Record:
    while True:
        over = process.poll() is not None
        record = guests.again(started)
        if record is None:
            return started  # it has ended, and nothing was to stay
        if record.status is Status.EXITED and not record.started:
            guests.remove(record)
            raise ToolError(record.error, exit_code=ExitCode.RUN_FAILED)
        if record.status is not Status.STARTING:
            return record
        if over:
            trace = _trace(folder)
            guests.remove(record, force=True)
            raise ToolError(f"the supervisor of {record.name} ended", exit_code=ExitCode.RUN_FAILED, detail=trace)
        time.sleep(_POLL)


def _trace(folder: Path) -> str:
    try:
        return (folder / folders.TRACE).read_text(errors="replace")[-2000:]
    except OSError:
        return ""


def stop(guests: Guests, record: Record, grace: int | None) -> None:
    """Send the stop signal, SIGKILL after ``grace`` seconds (None: the guest's own), and wait for the end. Nothing
    happens to a guest that has ended."""
    now = guests.again(record)
    if now is None or now.ended:
        return
    try:
        _ask(guests, now, {"do": "stop", "grace": grace}).close()
    except ToolError:
        if not _ended(guests, now):
            raise
    wait(guests, now)


def wait(guests: Guests, record: Record) -> Record | None:
    """The guest's state after its end; None when nothing was to stay of it."""
    while True:
        now = guests.again(record)
        if now is None or now.ended:
            return now
        time.sleep(_POLL)


def _ended(guests: Guests, record: Record) -> bool:
    now = guests.again(record)
    return now is None or now.ended


def _ask(guests: Guests, record: Record, request: dict[str, Any]) -> socket.socket:
    """The connection after the supervisor's answer. ToolError RUN_FAILED when there is none, or it says no."""
    try:
        client = folders.connect(guests.folder(record))
    except OSError as error:
        message = f"{record.name} has ended" if _ended(guests, record) else f"{record.name} does not answer: {error}"
        raise ToolError(message, exit_code=ExitCode.RUN_FAILED) from error
    try:
        client.sendall(json.dumps(request).encode() + b"\n")
        value = json.loads(read_line(client))
    except (OSError, ValueError) as error:
        client.close()
        raise ToolError(f"{record.name} has ended meanwhile", exit_code=ExitCode.RUN_FAILED) from error
    if "error" in value:
        client.close()
        raise ToolError(str(value["error"]), hint=str(value.get("hint", "")), exit_code=ExitCode.RUN_FAILED)
    return client


def execute(
    guests: Guests,
    record: Record,
    command: Command,
    *,
    stdin: int | None,
    out: Callable[[bytes], object],
    err: Callable[[bytes], object],
) -> Ending:
    """Run ``command`` beside the program, and return how it ended. ``stdin`` is an open file, or None for none; with
    a terminal for the command, it is one, too. ToolError RUN_FAILED when it could not be run or the guest ended."""
    if record.ended:
        raise ToolError(f"{record.name} has ended", exit_code=ExitCode.RUN_FAILED)
    start_frame = commands.encode_start(command)
    with _ask(guests, record, {"do": "exec"}) as client, contextlib.ExitStack() as stack:
        session = _Session(client, command, stdin, out, err)
        if command.terminal and stdin is not None:
            stack.enter_context(_raw(stdin))
        wake = stack.enter_context(_window_changes()) if command.terminal else -1
        session.send(start_frame)
        if stdin is None and not command.terminal:
            session.send(commands.encode_frame(commands.INPUT))
        return session.run(wake)


class _Session:
    def __init__(
        self,
        client: socket.socket,
        command: Command,
        stdin: int | None,
        out: Callable[[bytes], object],
        err: Callable[[bytes], object],
    ) -> None:
        self._client = client
        self._command = command
        self._stdin = stdin
        self._out = out
        self._err = err
        self._may_send = True
        self._frames = Frames()

    def send(self, data: bytes) -> None:
        """To the supervisor. One that has hung up said before how the command ended, which is there to be read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._client.sendall(data)

    def run(self, wake: int) -> Ending:
        poll = select.poll()  # epoll and its like refuse ordinary files, as in `< file`
        poll.register(self._client, select.POLLIN)
        if wake >= 0:
            poll.register(wake, select.POLLIN)
        while True:
            if self._stdin is not None and self._may_send:
                poll.register(self._stdin, select.POLLIN)
            for fd, _ in poll.poll():
                if fd == wake:
                    os.read(wake, _CHUNK)
                    self.send(commands.encode_window(*window_size(self._stdin)))
                elif fd == self._client.fileno():
                    ending = self._receive()
                    if ending is not None:
                        return ending
                elif self._stdin is not None:
                    poll.unregister(self._stdin)
                    self._send_input()

    def _send_input(self) -> None:
        assert self._stdin is not None
        data = os.read(self._stdin, commands.CHUNK)
        self.send(commands.encode_frame(commands.INPUT, data))
        self._may_send = False
        if not data:
            self._stdin = None

    def _receive(self) -> Ending | None:
        try:
            data = self._client.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            raise ToolError("the guest ended before the command did", exit_code=ExitCode.RUN_FAILED)
        try:
            for frame in self._frames.feed(data):
                if frame.kind == commands.OUTPUT:
                    self._out(frame.payload)
                elif frame.kind == commands.ERRORS:
                    self._err(frame.payload)
                elif frame.kind == commands.TAKEN:
                    self._may_send = True
                elif frame.kind == commands.FAILED:
                    raise self._failure(frame.payload.decode(errors="replace"))
                elif frame.kind == commands.EXIT:
                    return commands.decode_exit(frame.payload)
        except CorruptError as error:
            raise ToolError(error.message, exit_code=ExitCode.RUN_FAILED) from error
        return None

    def _failure(self, text: str) -> ToolError:
        program = self._command.argv[0]
        hint = "it holds what USERLAND and COPY bring" if text == os.strerror(2) else ""
        message = f"the image cannot run {program}: {text[:200]}"
        return ToolError(message, hint=hint, exit_code=ExitCode.RUN_FAILED)


def window_size(fd: int | None) -> tuple[int, int]:
    """Rows and columns of the terminal ``fd``, or the usual ones."""
    if fd is not None:
        with contextlib.suppress(OSError):
            rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
            if rows and columns:
                return rows, columns
    return 24, 80


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Keys go to the command as they are, Ctrl-C too."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _window_changes() -> Iterator[int]:
    """A file that is readable when the terminal's size has changed."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def changed(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"x")

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield reader
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(reader)
        os.close(writer)
