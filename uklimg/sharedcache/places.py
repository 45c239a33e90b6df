"""Where entries are: a folder here, a repository in ``registry``.

A place is asked by several threads at once. What it says is not checked here, but for lengths.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from uklimg import oci
from uklimg.digest import CHUNK, Digest
from uklimg.errors import CorruptError, ToolError
from uklimg.events import Sink, TransferFinished, TransferProgress, TransferStarted
from uklimg.store import Layout
from uklimg.store.layout import reported


class Source(Protocol):
    """A cache to read. CorruptError: this entry is of no use; any other ToolError: nor is the place."""

    def manifest(self, key: Digest) -> bytes | None:
        """The manifest of the entry of ``key``; None when there is none."""
        ...

    def chunks(self, blob: oci.Descriptor) -> Iterator[bytes]:
        """The blob's bytes, never more than ``blob.size``."""
        ...


class Target(Protocol):
    """A cache to write."""

    def has_entry(self, key: Digest) -> bool: ...

    def put_blob(self, blob: oci.Descriptor, store: Layout, name: str, sink: Sink, *, doubt: bool = False) -> None:
        """Bring a blob of ``store`` there, unless it is there; with ``doubt``, what is there may be damaged."""
        ...

    def put_entry(self, key: Digest, record: bytes, manifest: bytes) -> None:
        """Make the entry visible; its blobs are there."""
        ...


class FolderSource:
    """An OCI layout that is only read; somebody else may write it meanwhile."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._guard = threading.Lock()
        self._entries: Mapping[str, oci.Descriptor] | None = None

    def manifest(self, key: Digest) -> bytes | None:
        entry = self._named().get(key.hex)
        if entry is None:
            return None
        if entry.size > oci.MAX_MANIFEST:
            raise CorruptError(f"the manifest of {key} has {entry.size} bytes")
        data = b"".join(self.chunks(entry))
        if Digest.of(data) != entry.digest:
            raise CorruptError(f"blob {entry.digest} is damaged")
        return data

    def chunks(self, blob: oci.Descriptor) -> Iterator[bytes]:
        path = self._root / "blobs" / "sha256" / blob.digest.hex
        try:
            with path.open("rb") as file:
                left = blob.size
                while left and (chunk := file.read(min(CHUNK, left))):
                    left -= len(chunk)
                    yield chunk
                if file.read(1):
                    raise CorruptError(f"blob {blob.digest} is longer than {blob.size} bytes")
        except OSError as error:
            raise CorruptError(f"blob {blob.digest} cannot be read: {error.strerror}") from None

    def _named(self) -> Mapping[str, oci.Descriptor]:
        """The entries by name, read once."""
        with self._guard:
            if self._entries is None:
                path = self._root / "index.json"
                try:
                    data = path.read_bytes()
                except OSError as error:
                    raise ToolError(f"cannot read {path}: {error.strerror}") from None
                try:
                    found = oci.parse_index(data, str(path)).manifests
                except CorruptError as error:
                    raise ToolError(error.message) from None  # no entry of it can be found
                self._entries = {entry.annotations.get(oci.REF_NAME, ""): entry for entry in found}
            return self._entries


class FolderTarget:
    """An OCI layout to add to; made when missing."""

    def __init__(self, root: Path) -> None:
        with reported(f"write {root}"):
            self._layout = Layout(root)
            self._layout.sweep()
        self._names = frozenset(self._layout.tags())

    def has_entry(self, key: Digest) -> bool:
        return key.hex in self._names

    def put_blob(self, blob: oci.Descriptor, store: Layout, name: str, sink: Sink, *, doubt: bool = False) -> None:
        there = self._layout.has(blob.digest, blob.size)
        if there and doubt:
            try:
                self._layout.verified_path(blob.digest)
            except CorruptError:
                there = False  # it was set aside
        label = str(blob.digest)
        sink(TransferStarted(label, "export", name, blob.size))
        if not there:
            with self._layout.writer() as writer, store.open_blob(blob.digest) as source:
                while chunk := source.read(CHUNK):
                    writer.write(chunk)
                    sink(TransferProgress(label, len(chunk)))
                writer.commit(blob.digest)
        sink(TransferFinished(label, skipped=there))

    def put_entry(self, key: Digest, record: bytes, manifest: bytes) -> None:
        self._layout.put_bytes(record)
        self._layout.tag(key.hex, self._layout.put_bytes(manifest, oci.MANIFEST))
