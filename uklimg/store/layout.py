"""An OCI image layout on disk (image-layout.md of the OCI image specification), written atomically, read with care.

    oci-layout  index.json  blobs/sha256/<hex>   what skopeo, oras and umoci read
    tmp/                                         what is being written; files of dead owners are swept
    corrupt/                                     blobs that had other bytes than their name promises
    locks/

Every write is temp + fsync + rename; every blob is hashed before its bytes are used.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from uklimg import locks, oci
from uklimg.digest import CHUNK, Digest
from uklimg.errors import CorruptError, InternalError
from uklimg.store.writer import PARTIAL, BlobWriter, PartialWriter, partial_writer, reported

__all__ = ["LAYOUT", "SWEEPING", "BlobWriter", "Layout", "PartialWriter", "fsync_folder", "reported"]

SWEEPING = "sweep.lock"
"""Held by ``prune`` from looking at a blob's age to removing it, and shared by who makes a blob new."""
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
# Larger blobs are hashed once a process, and again only when the file changed.
_ALWAYS_HASHED = 1 << 20
UPLOAD = ".upload"  # of files in tmp/ that say where an upload can go on
_TRANSFER_KEPT = 24 * 3600.0  # seconds


def fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Layout:
    """The layout below ``root``, which is made when missing. Safe for several threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._blobs = self.root / "blobs" / "sha256"
        self._corrupt = self.root / "corrupt"
        self.tmp = self.root / "tmp"
        self.locks = self.root / "locks"
        self._verified: dict[Digest, tuple[int, int, int]] = {}
        self._guard = threading.Lock()
        with reported("make the store"):
            for folder in (self._blobs, self._corrupt, self.tmp, self.locks):
                folder.mkdir(parents=True, exist_ok=True)
            if not (self.root / "oci-layout").exists():
                self.replace(self.root / "oci-layout", LAYOUT)
            if not (self.root / "index.json").exists():
                with self.editing():
                    pass

    # Writing

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """A new blob: ``write`` its bytes, then ``commit``. Without ``commit`` nothing stays."""
        temporary = self.tmp / f"{uuid.uuid4().hex}.blob"
        with reported("write to the store"):
            fd = locks.create_locked(temporary)
        try:
            yield BlobWriter(self, fd, temporary)
        finally:
            # Unlinked before the lock goes; after a commit it has another name.
            temporary.unlink(missing_ok=True)
            os.close(fd)

    def partial(self, digest: Digest) -> AbstractContextManager[PartialWriter]:
        """A blob from a network, of which ``writer.size`` bytes are there already when an earlier attempt broke.

        Its user adds the rest and commits. When that ends in an exception other than CorruptError, or the process is
        killed, what has arrived stays in ``tmp/`` for the next one; nothing of it is used before all was hashed.
        """
        return partial_writer(self, self.tmp / f"{digest.hex}{PARTIAL}")

    def adopt(self, temporary: Path, digest: Digest) -> None:
        """Move a file, hashed and fsynced by the caller, to its place."""
        with locks.locked(self.locks / SWEEPING, shared=True):
            temporary.rename(self.blob_path(digest))
        fsync_folder(self._blobs)
        with self._guard:
            self._verified.pop(digest, None)

    def put_bytes(self, data: bytes, media_type: str = "application/octet-stream") -> oci.Descriptor:
        with self.writer() as writer:
            writer.write(data)
            return writer.commit(media_type=media_type)

    def put_file(self, path: Path, media_type: str = "application/octet-stream") -> oci.Descriptor:
        """Copy the file ``path`` into the store."""
        with self.writer() as writer, path.open("rb") as source:
            while chunk := source.read(CHUNK):
                writer.write(chunk)
            return writer.commit(media_type=media_type)

    def replace(self, path: Path, data: bytes) -> None:
        """Write the file ``path`` of the store so that a reader sees the old bytes or the new ones."""
        temporary = self.tmp / f"{uuid.uuid4().hex}.blob"
        with reported("write to the store"):
            fd = locks.create_locked(temporary)
            try:
                with os.fdopen(os.dup(fd), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(fd)
                temporary.rename(path)
                fsync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
                os.close(fd)

    # Reading

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob lies or would lie. Use ``verified_path`` for reading."""
        return self._blobs / digest.hex

    def has(self, digest: Digest, size: int = 0) -> bool:
        """Whether there is such a file, of ``size`` bytes unless 0; its bytes are not read."""
        try:
            found = self.blob_path(digest).stat()
        except FileNotFoundError:
            return False
        return size in (0, found.st_size)

    def keep_blob(self, digest: Digest, size: int) -> bool:
        """``has``, for somebody who relies on it without a record or tag yet: from now on the blob counts as new, and
        ``prune`` leaves new ones alone as long as a build runs."""
        with locks.locked(self.locks / SWEEPING, shared=True):
            if not self.has(digest, size):
                return False
            try:
                os.utime(self.blob_path(digest))
            except OSError:
                return False
        return True

    def verified_path(self, digest: Digest) -> Path:
        """The blob's file after hashing it (large ones once a process).

        CorruptError when it is missing or differs; in the latter case the file is moved to ``corrupt/``, so that the
        next build makes or fetches the blob again.
        """
        path = self.blob_path(digest)
        try:
            found = path.stat()
        except FileNotFoundError:
            raise CorruptError(f"the store lacks blob {digest}", hint="run the build again to make it") from None
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        with self._guard:
            if self._verified.get(digest) == stamp and found.st_size > _ALWAYS_HASHED:
                return path
        with path.open("rb") as file:
            actual = Digest.of_stream(file)
        if actual != digest:
            self.set_aside(digest)
            raise CorruptError(
                f"blob {path} is corrupt: its bytes have {actual}",
                hint="it was moved aside; run the build again to fetch or make it",
            )
        with self._guard:
            self._verified[digest] = stamp
        return path

    def open_blob(self, digest: Digest) -> BinaryIO:
        """The blob for reading, after hashing it."""
        return self.verified_path(digest).open("rb")

    def read_blob(self, digest: Digest) -> bytes:
        """A small blob; the very bytes returned were hashed."""
        try:
            data = self.blob_path(digest).read_bytes()
        except FileNotFoundError:
            raise CorruptError(f"the store lacks blob {digest}", hint="run the build again to make it") from None
        if Digest.of(data) != digest:
            self.verified_path(digest)  # sets it aside and raises
        return data

    def set_aside(self, digest: Digest) -> None:
        """Move a blob to ``corrupt/``."""
        with reported("move a corrupt blob aside"):
            self.blob_path(digest).rename(self._corrupt / f"{digest.hex}.{uuid.uuid4().hex[:8]}")

    def closure(self, root: oci.Descriptor) -> tuple[oci.Descriptor, ...]:
        """``root`` and everything that it refers to, each once; reads and verifies manifests and indexes."""
        found: dict[Digest, oci.Descriptor] = {}
        todo = [root]
        while todo:
            current = todo.pop()
            if current.digest in found:
                continue
            found[current.digest] = current
            if current.media_type in oci.INDEXES:
                todo.extend(oci.parse_index(self.read_blob(current.digest), str(current.digest)).manifests)
            elif current.media_type in oci.MANIFESTS:
                todo.extend(oci.parse_manifest(self.read_blob(current.digest), str(current.digest)).blobs())
        return tuple(found.values())

    def verify(self, root: oci.Descriptor) -> tuple[oci.Descriptor, ...]:
        """The closure of ``root``, with every byte of it hashed; CorruptError when anything is missing or differs."""
        found = self.closure(root)
        for blob in found:
            self.verify_blob(blob)
        return found

    def verify_blob(self, blob: oci.Descriptor) -> None:
        """CorruptError when the blob is missing, or differs from its descriptor in digest or size."""
        size = self.verified_path(blob.digest).stat().st_size
        if size != blob.size:
            raise CorruptError(f"blob {blob.digest} has {size} bytes, and its descriptor says {blob.size}")

    # index.json

    def index(self) -> oci.Index:
        """The entries of index.json."""
        try:
            data = (self.root / "index.json").read_bytes()
        except FileNotFoundError:
            return oci.Index(())
        return oci.parse_index(data, str(self.root / "index.json"))

    def tags(self) -> Mapping[str, oci.Descriptor]:
        """Images by name, sorted."""
        found = {m.annotations[oci.REF_NAME]: m for m in self.index().manifests if oci.REF_NAME in m.annotations}
        return dict(sorted(found.items()))

    def tag(self, name: str, descriptor: oci.Descriptor) -> None:
        """Let ``name`` mean ``descriptor``, whatever it meant before. The blob must be in the store."""
        if not self.has(descriptor.digest):
            raise InternalError(f"tag {name} of a blob that is not in the store: {descriptor.digest}")
        entry = descriptor.annotated({**descriptor.annotations, oci.REF_NAME: name})
        if self.tags().get(name) == entry:
            return
        with self.editing() as entries:
            entries[:] = [e for e in entries if e.annotations.get(oci.REF_NAME) != name]
            entries.append(entry)

    def untag(self, name: str) -> bool:
        """Forget ``name``; False when there is no such tag."""
        with self.editing() as entries:
            before = len(entries)
            entries[:] = [e for e in entries if e.annotations.get(oci.REF_NAME) != name]
            return len(entries) < before

    def attach(self, descriptor: oci.Descriptor) -> None:
        """List a manifest that has a ``subject`` (a referrer) without a name; it lives as long as its subject."""
        with self.editing() as entries:
            if all(entry.digest != descriptor.digest for entry in entries):
                entries.append(descriptor)

    @contextmanager
    def editing(self) -> Iterator[list[oci.Descriptor]]:
        """Change index.json's entries in place, alone; written at the end unless an exception leaves."""
        with locks.locked(self.locks / "index.lock"):
            entries = list(self.index().manifests)
            yield entries
            entries.sort(key=lambda e: (e.annotations.get(oci.REF_NAME, ""), e.digest))
            self.replace(self.root / "index.json", oci.Index(tuple(entries)).encode())

    # Temporary folders

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's file system, removed at the end."""
        path = self.tmp / uuid.uuid4().hex
        lock = path.with_suffix(".lock")
        with reported("write to the store"):
            fd = locks.create_locked(lock)
            path.mkdir()
        try:
            yield path
        finally:
            _discard(path, lock)
            os.close(fd)

    def sweep(self) -> None:
        """Remove what dead owners left in ``tmp/``; what a transfer could go on with stays for a day."""
        for entry in sorted(self.tmp.iterdir()):
            if entry.suffix in (PARTIAL, UPLOAD):
                self._sweep_transfer(entry)
            if entry.suffix not in (".blob", ".lock"):
                continue
            with locks.abandoned(entry) as abandoned:
                if abandoned and entry.suffix == ".blob":
                    entry.unlink(missing_ok=True)
                elif abandoned:
                    _discard(entry.with_suffix(""), entry)

    def _sweep_transfer(self, entry: Path) -> None:
        with locks.abandoned(entry) as abandoned:
            if abandoned and time.time() - entry.stat().st_mtime > _TRANSFER_KEPT:
                entry.unlink(missing_ok=True)


def _discard(folder: Path, lock: Path) -> None:
    """Remove a scratch folder, then its lock; both stay when something cannot be removed, for the next sweep."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        lock.unlink(missing_ok=True)
