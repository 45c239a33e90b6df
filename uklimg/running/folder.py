"""The folder of guests: ``<state>/guests/<id>/`` with ``state.json``, ``log``, ``control`` (a socket), and more.

A guest's folder appears whole, by rename. Its supervisor alone writes state.json afterwards, each time as a new file.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.locks import locked
from uklimg.running.record import Record, decode, encode

STATE, CONTROL, TRACE = "state.json", "control", "supervisor.log"
_LOCK = ".lock"
_PART = ".part-"
_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
_GONE = 10.0  # seconds that a killed process may take to be gone


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def check_name(name: str) -> str:
    """UserError unless ``name`` is fit for a guest."""
    if not name or name[0] in "-._" or len(name) > 63 or not set(name) <= set(_NAME):
        hint = "letters, digits, '_', '.' and '-', at most 63, beginning with a letter or digit"
        raise UserError(f"{name!r} cannot be a guest's name", hint=hint)
    return name


def write_state(folder: Path, record: Record) -> None:
    """In place of what is there, at once."""
    with tempfile.NamedTemporaryFile("wb", dir=folder, prefix=".state-", delete=False) as file:
        file.write(encode(record))
    Path(file.name).replace(folder / STATE)


class Guests:
    """All guests of this user. ``root`` is made when it is needed, for this user only."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, record: Record) -> Path:
        return self._root / record.id

    def create(self, record: Record) -> Path:
        """The folder of a new guest. UserError when another one has its name."""
        with self._locked():
            for other in self.all():
                if record.name in (other.name, other.id):
                    hint = "choose another --name" if not other.ended else f"uklimg rm {other.name}"
                    raise UserError(f"there is a guest {record.name} already", hint=hint)
            part = Path(tempfile.mkdtemp(prefix=_PART, dir=self._root))
            write_state(part, record)
            folder = self.folder(record)
            part.rename(folder)
        return folder

    def all(self) -> list[Record]:
        """In the order of their making. A folder without a readable state is passed over."""
        found = []
        for folder in self._folders():
            with suppress(CorruptError, OSError):
                found.append(self.read(folder))
        return sorted(found, key=lambda record: (record.created, record.id))

    def damaged(self) -> list[Path]:
        """Folders whose state cannot be read."""
        found = []
        for folder in self._folders():
            try:
                self.read(folder)
            except CorruptError:
                found.append(folder)
            except OSError:
                continue  # it has just been removed
        return found

    def read(self, folder: Path) -> Record:
        return decode((folder / STATE).read_bytes(), str(folder / STATE))

    def find(self, text: str) -> Record:
        """By name, id or the id's beginning. ToolError NOT_FOUND for none, UserError for several."""
        every = self.all()
        for record in every:
            if text in (record.name, record.id):
                return record
        fitting = [record for record in every if text and record.id.startswith(text)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UserError(f"{text} is the beginning of several guests' ids", hint="give more digits")
        names = ", ".join(record.name for record in every) or "none"
        raise ToolError(f"no guest {text}", hint=f"there is {names}", exit_code=ExitCode.NOT_FOUND)

    def again(self, record: Record) -> Record | None:
        """The record as it is now; None when the guest was removed."""
        try:
            return self.read(self.folder(record))
        except OSError:
            return None

    def remove(self, record: Record, *, force: bool = False) -> None:
        """Forget an ended guest; ``force`` ends it first. UserError when it runs. Nothing of it runs afterwards."""
        now = self.again(record)
        if now is None:
            return
        if not now.ended and not force:
            raise UserError(f"{now.name} runs", hint=f"uklimg stop {now.name}, or rm -f")
        # The hypervisor dies with its supervisor; where that went wrong, it is found by what was written down.
        for process in (now.supervisor, now.machine):
            if process is not None and process.alive and process.pid != os.getpid():
                _kill(process.pid)
                deadline = time.monotonic() + _GONE
                while process.alive:
                    if time.monotonic() > deadline:
                        raise ToolError(f"process {process.pid} of {now.name} does not end")
                    time.sleep(0.01)
        shutil.rmtree(self.folder(now), ignore_errors=True)

    def _folders(self) -> list[Path]:
        try:
            return sorted(path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith("."))
        except FileNotFoundError:
            return []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._root / _LOCK):
            for left in self._root.glob(f"{_PART}*"):
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed between mkdir and rename
            yield


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def socket_path(folder: Path, name: str) -> Iterator[str]:
    """A path of ``folder/name`` that fits into a socket's address (107 bytes), however long the real one is."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def listen(folder: Path, name: str = CONTROL) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    with socket_path(folder, name) as path:
        server.bind(path)
    server.listen(16)
    return server


def connect(folder: Path, name: str = CONTROL) -> socket.socket:
    """OSError when nobody listens."""
    client = socket.socket(socket.AF_UNIX)
    try:
        with socket_path(folder, name) as path:
            client.connect(path)
    except BaseException:
        client.close()
        raise
    return client
