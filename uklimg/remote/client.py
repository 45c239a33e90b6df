"""Push and pull of whole images between a store and a registry.

What a registry sends has a name in the store only after its digest and size were checked, and a tag only after all
of the image is there; what a kill leaves behind are whole blobs under their own digests, which the next pull finds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.events import Sink, TransferFinished, TransferProgress, TransferStarted, discard
from uklimg.oci import (
    INDEXES,
    MANIFESTS,
    MAX_MANIFEST,
    ROLE,
    Descriptor,
    Index,
    Manifest,
    Platform,
    parse_index_or_manifest,
)
from uklimg.ref import Reference
from uklimg.remote.auth import ca_file, default_credentials
from uklimg.remote.failures import Retry
from uklimg.remote.transport import Transport

_MAX_NESTING = 3  # an index in an index is allowed, and rare


class Writer(Protocol):
    """Takes a blob's bytes in order; ``size`` and ``digest`` are of what was written so far."""

    size: int

    @property
    def digest(self) -> Digest: ...

    def write(self, data: bytes, /) -> object: ...

    def commit(self, expected: Digest | None = None) -> object:
        """Give the blob its name; without it nothing is left."""
        ...


class BlobStore(Protocol):
    """What push and pull need of a store; ``uklimg.store.layout.Layout`` is one."""

    def has(self, digest: Digest, size: int = 0) -> bool: ...

    def read_blob(self, digest: Digest) -> bytes:
        """A small blob, verified; CorruptError when it is damaged or missing."""
        ...

    def open_blob(self, digest: Digest) -> BinaryIO: ...

    def writer(self) -> AbstractContextManager[Writer]: ...

    def tag(self, name: str, descriptor: Descriptor) -> None: ...


def connect(ref: Reference, environ: Mapping[str, str], uid: int, retry: Retry | None = None) -> Transport:
    """To the registry of ``ref`` as Podman and Docker would: their credentials, their certificates."""
    ref = ref.on_registry()
    return Transport(ref, default_credentials(environ, uid), retry=retry, ca_file=ca_file(ref.host))


def pull(
    ref: Reference,
    store: BlobStore,
    transport: Transport,
    sink: Sink = discard,
    *,
    platform: Platform | None = None,
    admit: Callable[[Descriptor], object] | None = None,
) -> Descriptor:
    """Bring ``ref`` into the store, tag it there under its full name, and return what was tagged.

    That is the index or manifest as the registry has it, complete; or, with ``platform``, the one manifest of an
    index that is for it. Blobs that the store has are not fetched. ``admit`` is asked about what ``ref`` means before
    anything else is fetched or kept; it refuses by raising. Errors: CORRUPT, NETWORK, AUTH, NOT_FOUND.
    """
    root, data = _root(ref, transport)
    if admit is not None:
        admit(root)
    parsed = parse_index_or_manifest(data, f"image {ref}")
    puller = _Puller(ref, store, transport, sink)
    if platform is not None and isinstance(parsed, Index):
        root = _for_platform(parsed, platform, ref)
        puller.manifest(root, 1)
    else:
        puller.contents(parsed, 1)
        puller.keep(root, data)
    store.tag(str(ref), root)
    return root


def find_manifest(ref: Reference, transport: Transport, platform: Platform) -> tuple[Descriptor, Manifest]:
    """The manifest that ``ref`` means for ``platform``, verified. Errors: as ``pull``."""
    root, data = _root(ref, transport)
    parsed = parse_index_or_manifest(data, f"image {ref}")
    if isinstance(parsed, Index):
        root = _for_platform(parsed, platform, ref)
        what = f"manifest {root.digest}"
        data, _ = transport.manifest(str(root.digest), what)
        _check(root, len(data), Digest.of(data), "from the registry")
        parsed = parse_index_or_manifest(data, what)
    if not isinstance(parsed, Manifest):
        raise CorruptError(f"image {ref} is an index in an index")
    return root, parsed


def fetch_manifests(ref: Reference, store: BlobStore, transport: Transport) -> Descriptor:
    """What ``ref`` means and, if that is an index, the manifests in it into the store, without a name and without
    their blobs. Errors: as ``pull``."""
    root, data = _root(ref, transport)
    puller = _Puller(ref, store, transport, discard)
    puller.keep(root, data)
    parsed = parse_index_or_manifest(data, f"image {ref}")
    for entry in parsed.manifests if isinstance(parsed, Index) else ():
        what = f"manifest {entry.digest}"
        below, _ = transport.manifest(str(entry.digest), what)
        _check(entry, len(below), Digest.of(below), "from the registry")
        puller.keep(entry, below)
    return root


def bring_blob(blob: Descriptor, store: BlobStore, transport: Transport, sink: Sink = discard) -> None:
    """One blob of a repository into the store. Errors: as ``pull``."""
    _Puller(transport.ref, store, transport, sink).blob(blob)


def push(ref: Reference, root: Descriptor, store: BlobStore, transport: Transport, sink: Sink = discard) -> None:
    """Send the index or manifest ``root`` with all below it, and name it ``ref`` there.

    Blobs that the registry has are not sent. Errors: as ``pull``; a damaged local blob is CORRUPT.
    """
    if ref.digest is not None and ref.digest != root.digest:
        raise UserError(f"{ref} asks for another image than {root.digest}", hint="push to a tag")
    data = _Pusher(store, transport, sink).contents(root, 1)
    transport.put_manifest(ref.remote_tag, root, data, f"image {ref}")


def send(root: Descriptor, store: BlobStore, transport: Transport, sink: Sink = discard) -> bytes:
    """Send everything below ``root`` and return its own bytes, which the caller sends under a name."""
    return _Pusher(store, transport, sink).contents(root, 1)


def fetch(ref: Reference, manifest: Descriptor, store: BlobStore, transport: Transport, sink: Sink = discard) -> None:
    """Bring ``manifest`` with everything below it into the store, without a name."""
    _Puller(ref, store, transport, sink).manifest(manifest, 1)


def _root(ref: Reference, transport: Transport) -> tuple[Descriptor, bytes]:
    what = f"image {ref}"
    data, said = transport.manifest(ref.remote_tag, what)
    digest = Digest.of(data)
    if ref.digest is not None and digest != ref.digest:
        raise CorruptError(f"{what}: the registry sends {digest}")
    if said.startswith("sha256:") and said != str(digest):
        raise CorruptError(f"{what}: the registry says {said[:71]} and sends {digest}")
    return Descriptor(parse_index_or_manifest(data, what).media_type, digest, len(data)), data


def _for_platform(index: Index, platform: Platform, ref: Reference) -> Descriptor:
    for entry in index.manifests:
        found = entry.platform
        if found and (found.os, found.architecture) == (platform.os, platform.architecture):
            return entry.bare()
    offered = ", ".join(sorted({str(entry.platform) for entry in index.manifests if entry.platform}))
    raise ToolError(
        f"image {ref} is not there for {platform}", hint=f"it is for {offered}", exit_code=ExitCode.NOT_FOUND
    )


def _check(blob: Descriptor, size: int, digest: Digest, where: str) -> None:
    """Raises CorruptError unless ``size`` and ``digest`` are the blob's."""
    if size != blob.size:
        raise CorruptError(f"blob {blob.digest} {where} has {size} bytes instead of {blob.size}")
    if digest != blob.digest:
        raise CorruptError(f"blob {blob.digest} {where} is damaged: its digest is {digest}")


class _Puller:
    def __init__(self, ref: Reference, store: BlobStore, transport: Transport, sink: Sink) -> None:
        self._ref = ref
        self._store = store
        self._transport = transport
        self._sink = sink
        self._done: set[Digest] = set()

    def contents(self, parsed: Index | Manifest, level: int) -> None:
        """Everything below an index or manifest, but not itself."""
        if level > _MAX_NESTING:
            raise CorruptError(f"image {self._ref} is an index in an index in an index")
        if isinstance(parsed, Index):
            for entry in parsed.manifests:
                self.manifest(entry, level + 1)
        else:
            for blob in parsed.blobs():
                self.blob(blob)

    def manifest(self, entry: Descriptor, level: int) -> None:
        """An index's entry and everything below it."""
        if entry.digest in self._done:
            return
        what = f"manifest {entry.digest}"
        if entry.media_type not in INDEXES | MANIFESTS:
            raise CorruptError(f"image {self._ref} lists a {entry.media_type!r} as a manifest")
        if self._store.has(entry.digest, entry.size):
            data = self._store.read_blob(entry.digest)
        else:
            data, _ = self._transport.manifest(str(entry.digest), what)
            _check(entry, len(data), Digest.of(data), "from the registry")
        parsed = parse_index_or_manifest(data, what)
        if parsed.media_type != entry.media_type:
            raise CorruptError(f"{what} is a {parsed.media_type}, listed as {entry.media_type}")
        self.contents(parsed, level)
        self.keep(entry, data)

    def keep(self, descriptor: Descriptor, data: bytes) -> None:
        """Store what was verified already."""
        self._done.add(descriptor.digest)
        if not self._store.has(descriptor.digest, descriptor.size):
            with self._store.writer() as writer:
                writer.write(data)
                writer.commit(descriptor.digest)

    def blob(self, blob: Descriptor) -> None:
        if blob.digest in self._done:
            return
        self._done.add(blob.digest)
        name = str(blob.digest)
        self._sink(TransferStarted(name, "pull", _title(blob), blob.size))
        there = self._store.has(blob.digest, blob.size)
        if not there:
            with self._store.writer() as writer:
                for chunk in self._transport.blob_chunks(blob):
                    writer.write(chunk)
                    self._sink(TransferProgress(name, len(chunk)))
                _check(blob, writer.size, writer.digest, "from the registry")
                writer.commit(blob.digest)
        self._sink(TransferFinished(name, skipped=there))


class _Pusher:
    def __init__(self, store: BlobStore, transport: Transport, sink: Sink) -> None:
        self._store = store
        self._transport = transport
        self._sink = sink
        self._done: set[Digest] = set()

    def contents(self, root: Descriptor, level: int) -> bytes:
        """Send everything below ``root``, and return its own bytes."""
        if level > _MAX_NESTING:
            raise CorruptError(f"{root.digest} is an index in an index in an index")
        if root.size > MAX_MANIFEST:
            raise CorruptError(f"{root.digest} has {root.size} bytes, too many for a manifest")
        data = self._store.read_blob(root.digest)
        _check(root, len(data), root.digest, "in the store")
        parsed = parse_index_or_manifest(data, f"manifest {root.digest}")
        if isinstance(parsed, Manifest):
            for blob in parsed.blobs():
                self._blob(blob)
            return data
        for entry in parsed.manifests:
            if entry.digest not in self._done:
                self._done.add(entry.digest)
                below = self.contents(entry, level + 1)
                if not self._transport.has_manifest(entry.digest):
                    self._transport.put_manifest(str(entry.digest), entry, below, f"manifest {entry.digest}")
        return data

    def _blob(self, blob: Descriptor) -> None:
        if blob.digest in self._done:
            return
        self._done.add(blob.digest)
        name = str(blob.digest)
        self._sink(TransferStarted(name, "push", _title(blob), blob.size))
        there = self._transport.has_blob(blob.digest)
        if not there:
            self._transport.upload(blob, lambda: Upload(self._store, blob, self._sink))
        self._sink(TransferFinished(name, skipped=there))


class Upload:
    """A blob of the store as the body of a request, checked on the way: what is damaged is never sent whole."""

    def __init__(self, store: BlobStore, blob: Descriptor, sink: Sink) -> None:
        self._stream = store.open_blob(blob.digest)
        self._blob = blob
        self._sink = sink
        self._hasher = hashlib.sha256()
        self._left = blob.size

    def __len__(self) -> int:
        return self._blob.size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(1 << 16), b"")

    def read(self, size: int = -1, /) -> bytes:
        if not self._left:
            return b""
        chunk = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(chunk)
        self._hasher.update(chunk)
        if not self._left or not chunk:
            # Before the last bytes leave: the registry drops an upload that stays short.
            _check(self._blob, self._blob.size - self._left, Digest(self._hasher.hexdigest()), "in the store")
        self._sink(TransferProgress(str(self._blob.digest), len(chunk)))
        return chunk

    def close(self) -> None:
        self._stream.close()


def _title(blob: Descriptor) -> str:
    """What a progress line calls it."""
    role = blob.annotations.get(ROLE, "")
    return f"{role} {blob.digest.short}" if role.isalnum() else blob.digest.short
