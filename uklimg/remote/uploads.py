"""Blobs on their way to a registry (distribution-spec, "Pushing Blobs").

A blob goes in one request, which every registry takes and which costs it least. When that breaks, the registry says
how much it has, and the rest goes in chunks from there. Where it was going is noted in the store, so that a push
which was killed goes on as well.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Protocol
from urllib.parse import urljoin, urlsplit

import requests

from uklimg import locks
from uklimg.digest import CHUNK, Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.events import Sink, TransferProgress, discard
from uklimg.oci import Descriptor
from uklimg.remote.authenticator import with_query
from uklimg.remote.door import SizedStream
from uklimg.remote.failures import TransientError, of_response
from uklimg.remote.transport import Transport, check_digest_header
from uklimg.store.layout import UPLOAD, Layout

# Bytes that go in one request once a connection has broken. Smaller blobs are never noted.
PART = 16 << 20
_MAX_NOTE = 16 << 10
# What a registry may say to a chunk that it does not want as such.
_NO_CHUNKS = frozenset({400, 405, 411, 413, 415, 501})


class Source(Protocol):
    """Where a blob's bytes come from."""

    def part(self, start: int, size: int) -> SizedStream:
        """``size`` bytes from ``start`` on; asked for again when an attempt failed."""
        ...


class Note(Protocol):
    """Remembers where an upload can go on."""

    def read(self) -> str: ...
    def write(self, location: str) -> None: ...


class NoNote:
    def read(self) -> str:
        return ""

    def write(self, location: str) -> None:
        return


class FileNote:
    """In a file of the store's that this process has locked. Damage means that nothing is remembered."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> str:
        os.lseek(self._fd, 0, os.SEEK_SET)
        try:
            location = json.loads(os.read(self._fd, _MAX_NOTE))["location"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return ""
        return location if isinstance(location, str) else ""

    def write(self, location: str) -> None:
        data = json.dumps({"location": location}).encode() if location else b""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)


@contextmanager
def note_of(store: Layout, transport: Transport, blob: Descriptor) -> Iterator[Note]:
    """For the upload of ``blob`` to the repository of ``transport``; it stays unless the upload ends well."""
    if blob.size <= PART:
        yield NoNote()
        return
    key = Digest.of(f"{transport.prefix}://{transport.ref.name}@{blob.digest}".encode())
    path = store.tmp / f"{key.hex}{UPLOAD}"
    fd = locks.take(path)
    if fd is None:  # somebody else is sending the same
        yield NoNote()
        return
    try:
        os.fchmod(fd, 0o600)  # a location may have a signature in it
        yield FileNote(fd)
    except BaseException:
        if os.fstat(fd).st_size == 0:
            path.unlink(missing_ok=True)
        raise
    else:
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def upload(
    transport: Transport, blob: Descriptor, source: Source, others: Sequence[str] = (), note: Note | None = None
) -> bool:
    """Bring ``blob`` to the registry; False when that had it in one of its repositories ``others`` and took it there.

    Errors: CORRUPT (what is here is damaged, or the registry says so), NETWORK, AUTH, NOT_FOUND.
    """
    return _Upload(transport, blob, source, note or NoNote()).run(others)


class _Upload:
    def __init__(self, transport: Transport, blob: Descriptor, source: Source, note: Note) -> None:
        self._transport = transport
        self._blob = blob
        self._source = source
        self._note = note
        self._what = f"blob {blob.digest}"
        self._location = ""
        self._at = 0
        self._part = blob.size  # the whole blob
        self._chunks_refused = False

    def run(self, others: Sequence[str]) -> bool:
        self._location = self._noted()
        ask = bool(self._location)
        if ask:
            self._part = PART
        for other in others:
            if self._location:
                break
            if self._mount(other):
                return False
        retry, best = self._transport.retry, 0
        delays = retry.delays()
        while True:
            try:
                if ask:
                    self._ask_how_much()
                ask = True
                if not self._location:
                    self._begin()
                self._send()
                return True
            except TransientError as failure:
                if self._at > best:
                    best, delays = self._at, retry.delays()
                delay = next(delays, None)
                if delay is None:
                    raise failure.error from None
                retry.pause(delay, failure)
                ask = bool(self._location)
                if not self._chunks_refused:
                    self._part = PART

    def _noted(self) -> str:
        """Where an earlier process was sending to, if that is the registry itself."""
        location = self._note.read()
        ours = urlsplit(self._transport.uploads_url())[:2]
        return location if urlsplit(location)[:2] == ours else ""

    def _mount(self, other: str) -> bool:
        """Let the registry take the blob from its repository ``other``; what it does not is sent as usual."""
        url = with_query(self._transport.uploads_url(), {"mount": str(self._blob.digest), "from": other})
        try:
            with self._transport.once("POST", url, {"Content-Length": "0"}, b"", what=self._what) as response:
                if response.status_code == 201:
                    check_digest_header(response, self._blob.digest, self._what)
                    return True
                if response.status_code == 202:
                    self._go_to(response)
        except TransientError:
            return False
        except ToolError as error:
            if error.exit_code not in (ExitCode.AUTH, ExitCode.NOT_FOUND):
                raise
        return False

    def _begin(self) -> None:
        self._at = 0
        url = self._transport.uploads_url()
        with self._transport.once("POST", url, {"Content-Length": "0"}, b"", what=self._what) as response:
            if response.status_code not in (201, 202) or not response.headers.get("Location"):
                raise of_response(response, f"an upload to {self._transport.ref.name}")
            self._go_to(response)
            if least := response.headers.get("OCI-Chunk-Min-Length", ""):
                self._part = max(self._part, int(least) if least.isdigit() and len(least) < 12 else 0)

    def _go_to(self, response: requests.Response) -> None:
        if location := response.headers.get("Location", ""):
            self._location = urljoin(self._location or self._transport.uploads_url(), location)
            self._note.write(self._location)

    def _forget(self) -> None:
        self._location, self._at = "", 0
        self._note.write("")

    def _ask_how_much(self) -> None:
        """After a break: go on where the registry is, or begin again when it has nothing that can be gone on with."""
        try:
            with self._transport.once("GET", self._location, {}, what=self._what) as response:
                end = _end_of_range(response)
                if response.status_code in (200, 202, 204) and end is not None and end <= self._blob.size:
                    self._at = end
                    self._go_to(response)
                    return
        except ToolError as error:
            if error.exit_code == ExitCode.AUTH:
                raise
        self._forget()

    def _send(self) -> None:
        while self._blob.size - self._at > self._part:
            if not self._send_part():
                return self._send_refused()
        size = self._blob.size - self._at
        target = with_query(self._location, {"digest": str(self._blob.digest)})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        if self._at:
            headers["Content-Range"] = f"{self._at}-{self._blob.size - 1}"
        start = self._at
        body = (lambda: self._source.part(start, size)) if size else b""
        with self._transport.once("PUT", target, headers, body, what=self._what) as response:
            if response.status_code in (200, 201, 202, 204):
                return check_digest_header(response, self._blob.digest, self._what)
            if not start or response.status_code not in (400, 404, 416):
                raise of_response(response, self._what)
        # What was there from before, together with the rest, is not the blob.
        return self._send_refused()

    def _send_part(self) -> bool:
        """A chunk in the middle; False when the registry wants none."""
        start, size = self._at, self._part
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Range": f"{start}-{start + size - 1}",
        }
        body = lambda: self._source.part(start, size)  # noqa: E731
        with self._transport.once("PATCH", self._location, headers, body, what=self._what) as response:
            if response.status_code in _NO_CHUNKS | {404, 416}:
                return False
            if response.status_code not in (200, 201, 202, 204):
                raise of_response(response, self._what)
            self._at = start + size
            self._go_to(response)
        return True

    def _send_refused(self) -> None:
        """What is in parts was not wanted: all of it in one request, once."""
        if self._chunks_refused:
            raise ToolError(
                f"{self._transport.ref.host} takes {self._what} neither whole nor in parts",
                exit_code=ExitCode.NETWORK,
            )
        self._chunks_refused = True
        self._part = self._blob.size
        self._forget()
        self._begin()
        self._send()


def _end_of_range(response: requests.Response) -> int | None:
    """Bytes that ``Range: 0-N`` says are there; None when it says nothing. ``0-0`` is what servers say of none."""
    first, dash, last = response.headers.get("Range", "").removeprefix("bytes=").partition("-")
    if first != "0" or not dash or not last.isascii() or not last.isdigit() or len(last) > 15:
        return None
    return int(last) + 1 if int(last) else 0


class BlobSource:
    """A blob of the store, hashed on the way: what is damaged is never sent whole, and is moved aside."""

    def __init__(self, store: Layout, blob: Descriptor, sink: Sink = discard) -> None:
        self._store = store
        self._blob = blob
        self._sink = sink
        self._hasher = hashlib.sha256()
        self._hashed = 0
        self._shown = 0

    def part(self, start: int, size: int) -> SizedStream:
        path = self._store.blob_path(self._blob.digest)
        try:
            file = path.open("rb")
        except OSError:
            self._store.verified_path(self._blob.digest)  # says what is wrong
            raise
        found = os.fstat(file.fileno()).st_size
        if found != self._blob.size:
            file.close()
            raise CorruptError(
                f"blob {self._blob.digest} in the store has {found} bytes instead of {self._blob.size}"
            )
        if start != self._hashed:
            self._hasher, self._hashed = hashlib.sha256(), 0
            while self._hashed < start and (chunk := file.read(min(CHUNK, start - self._hashed))):
                self._took(chunk)
        self._show(start)
        file.seek(start)
        return _Part(file, size, self._sent)

    def _took(self, chunk: bytes) -> None:
        self._hasher.update(chunk)
        self._hashed += len(chunk)

    def _sent(self, chunk: bytes) -> None:
        """Before ``chunk`` leaves. CorruptError instead of the last one of a damaged blob: a registry drops an upload
        that stays short."""
        self._took(chunk)
        if self._hashed >= self._blob.size and self._hasher.hexdigest() != self._blob.digest.hex:
            self._store.verified_path(self._blob.digest)  # hashes it again, sets it aside and raises
            raise CorruptError(f"blob {self._blob.digest} in the store changed while it was read")
        self._show(self._hashed)

    def _show(self, at: int) -> None:
        if at != self._shown:
            self._sink(TransferProgress(str(self._blob.digest), at - self._shown))
            self._shown = at


class BytesSource:
    """Bytes that are at hand."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def part(self, start: int, size: int) -> SizedStream:
        return _Part(io.BytesIO(self._data[start : start + size]), size, lambda chunk: None)


class _Part:
    """The next ``size`` bytes of ``file`` as the body of a request; ``leaving`` sees each chunk before it is sent."""

    def __init__(self, file: BinaryIO, size: int, leaving: Callable[[bytes], None]) -> None:
        self._file = file
        self._size = self._left = size
        self._leaving = leaving

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(CHUNK), b"")

    def read(self, size: int = -1, /) -> bytes:
        if not self._left:
            return b""
        chunk = self._file.read(self._left if size < 0 else min(size, self._left))
        if not chunk:
            raise CorruptError("a blob in the store became shorter while it was read")
        self._left -= len(chunk)
        self._leaving(chunk)
        return chunk

    def close(self) -> None:
        self._file.close()
