"""Push and pull of whole images between a store and a registry.

What a registry sends has a name in the store only after its digest and size were checked, and a tag only after all
of the image is there; what a kill leaves behind are whole blobs under their own digests, which the next pull finds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias

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
from uklimg.remote import known
from uklimg.remote.auth import Credentials, default_credentials
from uklimg.remote.certificates import certificate_folders, find_trust
from uklimg.remote.failures import Retry
from uklimg.remote.parallel import each
from uklimg.remote.transport import Download, Transport
from uklimg.remote.uploads import BlobSource, note_of, upload
from uklimg.store.layout import Layout

_MAX_NESTING = 3  # an index in an index is allowed, and rare
_MAX_MANIFESTS = 4 * MAX_MANIFEST  # bytes of all manifests of an image, which are kept until its blobs are there

BlobStore: TypeAlias = Layout


def connect(
    ref: Reference,
    environ: Mapping[str, str],
    uid: int,
    retry: Retry | None = None,
    *,
    plain_http: bool | None = None,
    credentials: Credentials | None = None,
) -> Transport:
    """To the registry of ``ref`` as Podman and Docker would: their credentials (unless others are given), their
    certificates. A registry on this machine for which there are certificates is asked over TLS, if nothing is said.
    """
    ref = ref.on_registry()
    trust = find_trust(ref.host, certificate_folders(environ))
    if plain_http is None and trust:
        plain_http = False
    return Transport(
        ref,
        credentials or default_credentials(environ, uid),
        retry=retry,
        plain_http=plain_http,
        trust=trust.beside(environ),
    )


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
        puller.hold(root, data)
    puller.finish()
    store.tag(str(ref), root)
    return root


def find_manifest(ref: Reference, transport: Transport, platform: Platform) -> tuple[Descriptor, Manifest]:
    """The manifest that ``ref`` means for ``platform``, verified. Errors: as ``pull``."""
    root, data = _root(ref, transport)
    parsed = parse_index_or_manifest(data, f"image {ref}")
    if isinstance(parsed, Index):
        root = _for_platform(parsed, platform, ref)
        parsed = parse_index_or_manifest(_manifest(root, transport), f"manifest {root.digest}")
    if not isinstance(parsed, Manifest):
        raise CorruptError(f"image {ref} is an index in an index")
    return root, parsed


def fetch_manifests(ref: Reference, store: BlobStore, transport: Transport) -> Descriptor:
    """What ``ref`` means and, if that is an index, the manifests in it into the store, without a name and without
    their blobs. Errors: as ``pull``."""
    root, data = _root(ref, transport)
    _keep(root, data, store)
    parsed = parse_index_or_manifest(data, f"image {ref}")
    for entry in parsed.manifests if isinstance(parsed, Index) else ():
        _keep(entry, _manifest(entry, transport), store)
    return root


def bring_blob(blob: Descriptor, store: BlobStore, transport: Transport, sink: Sink = discard) -> None:
    """One blob of a repository into the store. Errors: as ``pull``."""
    _receive(blob, store, transport, sink)


def push(ref: Reference, root: Descriptor, store: BlobStore, transport: Transport, sink: Sink = discard) -> None:
    """Send the index or manifest ``root`` with all below it, and name it ``ref`` there.

    Blobs that the registry has are not sent. Errors: as ``pull``; a damaged local blob is CORRUPT.
    """
    if ref.digest is not None and ref.digest != root.digest:
        raise UserError(f"{ref} asks for another image than {root.digest}", hint="push to a tag")
    data = send(root, store, transport, sink)
    transport.put_manifest(ref.remote_tag, root, data, f"image {ref}")
    known.remember(store, ref, root)


def send(root: Descriptor, store: BlobStore, transport: Transport, sink: Sink = discard) -> bytes:
    """Send everything below ``root`` and return its own bytes, which the caller sends under a name."""
    pusher = _Pusher(store, transport, sink)
    data = pusher.contents(root, 1)
    pusher.finish()
    return data


def fetch(ref: Reference, manifest: Descriptor, store: BlobStore, transport: Transport, sink: Sink = discard) -> None:
    """Bring ``manifest`` with everything below it into the store, without a name."""
    puller = _Puller(ref, store, transport, sink)
    puller.manifest(manifest, 1)
    puller.finish()


def _root(ref: Reference, transport: Transport) -> tuple[Descriptor, bytes]:
    what = f"image {ref}"
    data, said = transport.manifest(ref.remote_tag, what)
    digest = Digest.of(data)
    if ref.digest is not None and digest != ref.digest:
        raise CorruptError(f"{what}: the registry sends {digest}")
    if said.startswith("sha256:") and said != str(digest):
        raise CorruptError(f"{what}: the registry says {said[:71]} and sends {digest}")
    return Descriptor(parse_index_or_manifest(data, what).media_type, digest, len(data)), data


def _manifest(entry: Descriptor, transport: Transport) -> bytes:
    """What an index lists, verified."""
    data, _ = transport.manifest(str(entry.digest), f"manifest {entry.digest}")
    _check(entry, len(data), Digest.of(data), "from the registry")
    return data


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
    """First all manifests, which say what there is; then blobs, several at once; then manifests get their names,
    those below first. So nothing in the store refers to what is not there."""

    def __init__(self, ref: Reference, store: Layout, transport: Transport, sink: Sink) -> None:
        self._ref = ref
        self._store = store
        self._transport = transport
        self._sink = sink
        self._held: dict[Digest, tuple[Descriptor, bytes]] = {}
        self._blobs: dict[Digest, Descriptor] = {}
        self._room = _MAX_MANIFESTS

    def contents(self, parsed: Index | Manifest, level: int) -> None:
        """Note everything below an index or manifest, but not itself."""
        if level > _MAX_NESTING:
            raise CorruptError(f"image {self._ref} is an index in an index in an index")
        if isinstance(parsed, Index):
            for entry in parsed.manifests:
                self.manifest(entry, level + 1)
        else:
            self._blobs.update((blob.digest, blob) for blob in parsed.blobs())

    def manifest(self, entry: Descriptor, level: int) -> None:
        """An index's entry and everything below it."""
        if entry.digest in self._held:
            return
        what = f"manifest {entry.digest}"
        if entry.media_type not in INDEXES | MANIFESTS:
            raise CorruptError(f"image {self._ref} lists a {entry.media_type!r} as a manifest")
        if self._store.has(entry.digest, entry.size):
            data = self._store.read_blob(entry.digest)
        else:
            data = _manifest(entry, self._transport)
        parsed = parse_index_or_manifest(data, what)
        if parsed.media_type != entry.media_type:
            raise CorruptError(f"{what} is a {parsed.media_type}, listed as {entry.media_type}")
        self.contents(parsed, level)
        self.hold(entry, data)

    def hold(self, descriptor: Descriptor, data: bytes) -> None:
        """Keep what was verified until everything below it is there."""
        self._room -= len(data)
        if self._room < 0:
            raise CorruptError(f"image {self._ref} has more than {_MAX_MANIFESTS} bytes of manifests")
        self._held[descriptor.digest] = (descriptor, data)

    def finish(self) -> None:
        wanted = [blob for blob in self._blobs.values() if not self._skip(blob)]
        each(wanted, self._transport, lambda blob, mine: _receive(blob, self._store, mine, self._sink))
        for descriptor, data in self._held.values():
            _keep(descriptor, data, self._store)

    def _skip(self, blob: Descriptor) -> bool:
        there = self._store.has(blob.digest, blob.size)
        if there:
            self._sink(TransferStarted(str(blob.digest), "pull", _title(blob), blob.size))
            self._sink(TransferFinished(str(blob.digest), skipped=True))
        return there


def _keep(manifest: Descriptor, data: bytes, store: Layout) -> None:
    """Store what was verified already."""
    if not store.has(manifest.digest, manifest.size):
        with store.writer() as writer:
            writer.write(data)
            writer.commit(manifest.digest)


def _receive(blob: Descriptor, store: Layout, transport: Transport, sink: Sink) -> None:
    """Bring a blob into the store, unless it is there, going on with what an earlier attempt left.

    What was put together from several answers and is not the blob is asked for once more, as a whole.
    """
    name = str(blob.digest)
    if store.has(blob.digest, blob.size):
        sink(TransferStarted(name, "pull", _title(blob), blob.size))
        return sink(TransferFinished(name, skipped=True))
    with store.partial(blob.digest) as writer:
        if writer.size > blob.size:
            writer.restart()
        sink(TransferStarted(name, "pull", _title(blob), blob.size - writer.size))
        for last in (False, True):
            begun, download = writer.size, Download(transport, blob, writer.size)
            try:
                for chunk in download if begun < blob.size or not begun else ():
                    writer.write(chunk)
                    sink(TransferProgress(name, len(chunk)))
                _check(blob, writer.size, writer.digest, "from the registry")
                break
            except CorruptError:
                if last or not download.resumed:
                    raise
                sink(TransferProgress(name, begun - writer.size))
                writer.restart()
        writer.commit(blob.digest)
    return sink(TransferFinished(name))


class _Pusher:
    """First all manifests are read; then blobs go, several at once; then manifests, those below first."""

    def __init__(self, store: Layout, transport: Transport, sink: Sink) -> None:
        self._store = store
        self._transport = transport
        self._sink = sink
        self._blobs: dict[Digest, Descriptor] = {}
        self._manifests: dict[Digest, tuple[Descriptor, bytes]] = {}
        self._elsewhere = known.Elsewhere(store, transport.ref)
        self._guard = threading.Lock()

    def contents(self, root: Descriptor, level: int) -> bytes:
        """Note everything below ``root``, and return its own bytes."""
        if level > _MAX_NESTING:
            raise CorruptError(f"{root.digest} is an index in an index in an index")
        if root.size > MAX_MANIFEST:
            raise CorruptError(f"{root.digest} has {root.size} bytes, too many for a manifest")
        data = self._store.read_blob(root.digest)
        _check(root, len(data), root.digest, "in the store")
        parsed = parse_index_or_manifest(data, f"manifest {root.digest}")
        if isinstance(parsed, Manifest):
            self._blobs.update((blob.digest, blob) for blob in parsed.blobs())
            return data
        for entry in parsed.manifests:
            if entry.digest not in self._manifests:
                below = self.contents(entry, level + 1)
                self._manifests[entry.digest] = (entry, below)
        return data

    def finish(self) -> None:
        """Send it all, but the root."""
        each(self._blobs.values(), self._transport, self._blob)
        for entry, data in self._manifests.values():
            if not self._transport.has_manifest(entry.digest):
                self._transport.put_manifest(str(entry.digest), entry, data, f"manifest {entry.digest}")

    def _blob(self, blob: Descriptor, transport: Transport) -> None:
        name = str(blob.digest)
        self._sink(TransferStarted(name, "push", _title(blob), blob.size))
        sent = False
        if not transport.has_blob(blob.digest):
            with self._guard:
                others = self._elsewhere.of(blob.digest)
            with note_of(self._store, transport, blob) as note:
                sent = upload(transport, blob, BlobSource(self._store, blob, self._sink), others, note)
        self._sink(TransferFinished(name, skipped=not sent))


def _title(blob: Descriptor) -> str:
    """What a progress line calls it."""
    role = blob.annotations.get(ROLE, "")
    return f"{role} {blob.digest.short}" if role.isalnum() else blob.digest.short
