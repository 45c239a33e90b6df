"""Locks between processes (and threads): flock(2) on files.

A lock belongs to an open file, so the kernel lets go of it when its owner dies, however it dies. That also makes a
held lock a sign of life, for temporary files whose owner may have been killed.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL = 0.1  # seconds between attempts of somebody who can be cancelled


@contextmanager
def locked(
    path: Path,
    *,
    shared: bool = False,
    cancel: threading.Event | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold the lock ``path`` (made when missing), waiting for it. Setting ``cancel`` from another thread ends the
    waiting as KeyboardInterrupt; with it, ``on_wait`` is called once when it begins."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fd = _open(path, operation | (fcntl.LOCK_NB if cancel else 0))
    if fd is None and on_wait is not None:
        on_wait()
    while fd is None:
        assert cancel is not None
        if cancel.wait(_POLL):
            raise KeyboardInterrupt
        fd = _open(path, operation | fcntl.LOCK_NB)
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """Like ``locked`` and exclusive, but gives False at once when somebody else holds it."""
    fd = _open(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def create_locked(path: Path) -> int:
    """A file for reading and writing, held exclusively as long as the returned descriptor is open.

    An existing one is emptied.
    """
    fd = _open(path, fcntl.LOCK_EX)
    assert fd is not None
    os.ftruncate(fd, 0)
    return fd


def take(path: Path) -> int | None:
    """As ``create_locked``, with what the file holds; None when somebody else has it."""
    return _open(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether nobody holds the file ``path``; False when it does not exist. If so, nobody else holds it until the end
    either: who is just making it waits, and makes another one when this one was removed meanwhile."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(fd).st_nlink > 0
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(fd)


def _open(path: Path, operation: int) -> int | None:
    """Open and lock. Whoever waits may get the lock of a file that was removed meanwhile: then try again."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, operation)
            if os.fstat(fd).st_nlink > 0:
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
