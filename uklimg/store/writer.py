"""Blobs while they are being written: all at once or, for long transfers, in parts that outlive a broken one."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from uklimg import locks, oci
from uklimg.digest import CHUNK, Digest
from uklimg.errors import CorruptError, InternalError, ToolError

PARTIAL = ".partial"
# Bytes after which the kernel is told to begin writing to the disk, so that the fsync at the end has little to do.
_WRITE_OUT = 16 << 20
_SYNC_FILE_RANGE_WRITE = 2
# Chunks that wait to be hashed: at 512 KiB each, two MiB of memory.
_AHEAD = 4
_sync_file_range = ctypes.CDLL(None).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


@contextmanager
def reported(doing: str) -> Iterator[None]:
    """Turn an OSError (disk full, no permission) into a ToolError of one line."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ToolError(f"cannot {doing}: {error.strerror or error}{where}") from error


class Home(Protocol):
    """Where blobs get their names: the layout."""

    def adopt(self, temporary: Path, digest: Digest) -> None: ...


class BlobWriter:
    """Takes a blob's bytes; made by ``Layout.writer``. Nothing is in the store before ``commit``."""

    def __init__(self, layout: Home, fd: int, temporary: Path) -> None:
        self._layout = layout
        self._fd = fd
        self._temporary = temporary
        self._hasher = hashlib.sha256()
        self._committed = False
        self.size = 0

    def write(self, data: bytes | memoryview, /) -> int:
        """Append; the whole of ``data`` is taken. Returns its length, so that this is a file for writing."""
        self._hasher.update(data)
        self._append(data)
        return len(data)

    def _append(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with reported("write to the store"):
            while view:
                view = view[os.write(self._fd, view) :]
        self.size += len(data)

    @property
    def digest(self) -> Digest:
        """Of what was written so far."""
        return Digest(self._hasher.hexdigest())

    def commit(self, expected: Digest | None = None, media_type: str = "application/octet-stream") -> oci.Descriptor:
        """Give the blob its name. CorruptError, and nothing stored, when its digest is not ``expected``."""
        if self._committed:
            raise InternalError("a blob was committed twice")
        digest = self.digest
        if expected is not None and digest != expected:
            raise CorruptError(f"expected {expected}, got {digest} ({self.size} bytes)")
        with reported("write to the store"):
            os.fchmod(self._fd, 0o444)
            os.fsync(self._fd)
            self._layout.adopt(self._temporary, digest)
        self._committed = True
        return oci.Descriptor(media_type, digest, self.size)


class PartialWriter(BlobWriter):
    """A blob of which an earlier attempt may have left the first ``size`` bytes, hashed again here.

    Made by ``Layout.partial``. Hashing runs beside writing and receiving, in a thread of its own: give it ``bytes``.
    """

    def __init__(self, layout: Home, fd: int, temporary: Path) -> None:
        super().__init__(layout, fd, temporary)
        self._aside = _Aside(self._hasher.update)
        self._written_out = 0
        with reported("read what an earlier attempt left"):
            while chunk := os.read(fd, CHUNK):
                self._hasher.update(chunk)
                self.size += len(chunk)

    def write(self, data: bytes | memoryview, /) -> int:
        self._aside.take(bytes(data))
        self._append(data)
        if self.size - self._written_out >= _WRITE_OUT:
            # A hint: should it fail, the fsync at the end does it all.
            _sync_file_range(self._fd, self._written_out, self.size - self._written_out, _SYNC_FILE_RANGE_WRITE)
            self._written_out = self.size
        return len(data)

    @property
    def digest(self) -> Digest:
        self._aside.settle()
        return super().digest

    def restart(self) -> None:
        """Forget all bytes."""
        self._aside.close()
        self._hasher = hashlib.sha256()
        self._aside = _Aside(self._hasher.update)
        with reported("write to the store"):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self.size = self._written_out = 0

    @property
    def worth_keeping(self) -> bool:
        return self.size > 0 and not self._committed

    def close(self) -> None:
        self._aside.close()


class _Aside:
    """Calls ``function`` with each chunk, in order, in a thread that the first one starts."""

    def __init__(self, function: Callable[[bytes], object]) -> None:
        self._function = function
        self._queue: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._room = threading.Semaphore(_AHEAD)
        self._thread: threading.Thread | None = None

    def take(self, chunk: bytes) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._room.acquire()
        self._queue.put(chunk)

    def settle(self) -> None:
        """Wait until all chunks were taken."""
        if self._thread is not None:
            done = threading.Event()
            self._queue.put(done)
            done.wait()

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._function(item)
            self._room.release()


@contextmanager
def partial_writer(layout: Home, temporary: Path) -> Iterator[PartialWriter]:
    """A writer that goes on with the file ``temporary`` where there is one.

    What leaves by anything but CorruptError keeps what was written for the next attempt. While somebody else writes
    that file, the writer begins an unnamed one of its own, of which nothing stays.
    """
    with reported("write to the store"):
        fd = locks.take(temporary)
    shared = fd is not None
    if fd is None:
        temporary = temporary.with_name(f"{os.getpid()}-{threading.get_ident()}-{temporary.stem}.blob")
        fd = locks.create_locked(temporary)
    keep = False
    writer = None
    try:
        writer = PartialWriter(layout, fd, temporary)
        try:
            yield writer
        except CorruptError:
            raise
        except BaseException:
            keep = shared and writer.worth_keeping
            raise
    finally:
        if writer is not None:
            writer.close()
        if not keep:
            temporary.unlink(missing_ok=True)
        os.close(fd)
