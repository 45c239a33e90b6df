"""What a guest printed: two files, so that a guest that prints for ever does not fill the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

LOG, OLDER = "log", "log.1"
LIMIT = 16 << 20
"""Bytes of one file; the newest so many are always there."""
_CHUNK = 1 << 16
_POLL = 0.1


class Log:
    """The supervisor's end."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._folder = folder
        self._limit = limit
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size

    def _open(self) -> int:
        return os.open(self._folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self._limit:
            (self._folder / LOG).rename(self._folder / OLDER)
            os.close(self._fd)
            self._fd, self._size = self._open(), 0
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            self._size += written
            view = view[written:]

    def close(self) -> None:
        os.close(self._fd)


def read(folder: Path, *, tail: int = -1, ended: Callable[[], bool] | None = None) -> Iterator[bytes]:
    """What was printed, from the last ``tail`` lines on (-1: all of it that is kept).

    With ``ended`` it goes on with what is printed later, until ``ended()`` and nothing is left.
    """
    older, newest = _open(folder / OLDER), _open(folder / LOG)
    try:
        skip = _start_of(older, newest, tail) if tail >= 0 else 0
        for fd in (older, newest):
            size = os.fstat(fd).st_size if fd >= 0 else 0
            if fd >= 0:
                os.lseek(fd, min(skip, size), os.SEEK_SET)
                yield from _rest(fd)
            skip = max(0, skip - size)
        while ended is not None:
            last = ended()  # before the look at the file: what came until then is in it
            fresh = _open(folder / LOG)
            if fresh >= 0 and (newest < 0 or os.fstat(fresh).st_ino != os.fstat(newest).st_ino):
                if newest >= 0:
                    yield from _rest(newest)  # what came before it was put aside
                    os.close(newest)
                newest, fresh = fresh, -1
            if fresh >= 0:
                os.close(fresh)
            if newest >= 0:
                yield from _rest(newest)
            if last:
                return
            time.sleep(_POLL)
    finally:
        for fd in (older, newest):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _rest(fd: int) -> Iterator[bytes]:
    while data := os.read(fd, _CHUNK):
        yield data


def _start_of(older: int, newest: int, lines: int) -> int:
    """How many bytes of both together come before the last ``lines`` lines."""
    sizes = [os.fstat(fd).st_size if fd >= 0 else 0 for fd in (older, newest)]
    at = total = sum(sizes)
    if lines == 0:
        return total
    missing = lines
    first = True
    while at > 0:
        size = min(_CHUNK, at)
        at -= size
        data = _read_both(older, newest, sizes[0], at, size)
        if first and data.endswith(b"\n"):
            missing += 1  # the last line's own end
        first = False
        place = len(data)
        while (place := data.rfind(b"\n", 0, place)) >= 0:
            missing -= 1
            if missing == 0:
                return at + place + 1
    return 0


def _read_both(older: int, newest: int, split: int, at: int, size: int) -> bytes:
    data = os.pread(older, max(0, min(size, split - at)), at) if at < split else b""
    if len(data) < size:
        data += os.pread(newest, size - len(data), max(0, at - split))
    return data
