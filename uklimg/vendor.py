"""Copies of all locked files where one has them oneself: in a folder or in a repository of a registry.

Both hold the same thing, one OCI artifact: a manifest whose layers are the files, by digest, each annotated with its
name and where it first came from. The folder is an OCI image layout, so that it goes to a registry and back with
skopeo or oras, every byte of it is named by its digest, and a file that two projects share is there once;
``files.txt`` beside it is for people. A build asks these places before it asks anybody else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from uklimg import oci
from uklimg.digest import CHUNK, Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.events import Sink, TransferFinished, TransferProgress, TransferStarted, discard
from uklimg.graph import Blob
from uklimg.lock import LockedFile
from uklimg.ref import Reference
from uklimg.store import BlobWriter, Layout
from uklimg.store.layout import reported

if TYPE_CHECKING:
    from uklimg.remote.transport import Transport

ARTIFACT = "application/vnd.uklimg.vendor.v1"
TITLE = "org.opencontainers.image.title"
ORIGIN = "org.uklimg.origin"
TAG = "vendor"
LISTING = "files.txt"
_FILE = "application/octet-stream"
_EMPTY = b"{}"


# --- the artifact


def artifact(files: Iterable[oci.Descriptor], before: oci.Manifest | None = None) -> oci.Manifest:
    """The manifest of ``files`` (as ``entry`` makes them) and of what ``before`` lists; sorted, each once."""
    listed = {
        (layer.annotations.get(TITLE, ""), layer.digest): layer
        for layer in (*(before.layers if before else ()), *files)
    }
    layers = tuple(listed[key] for key in sorted(listed))
    return oci.Manifest(oci.Descriptor.of(oci.EMPTY, _EMPTY), layers, artifact_type=ARTIFACT)


def entry(file: LockedFile, size: int) -> oci.Descriptor:
    """A file of the lock as a layer; ``size`` is its real one in bytes, which a lock may leave open."""
    return oci.Descriptor(_FILE, file.digest, size, {TITLE: file.name, ORIGIN: file.origin})


def listing(manifest: oci.Manifest) -> str:
    """``files.txt``: a line a file."""
    lines = ["# size in bytes, name, digest (its path is blobs/sha256/DIGEST), where it came from"]
    for layer in manifest.layers:
        notes = layer.annotations
        lines.append(f"{layer.size:>11}  {notes.get(TITLE, ''):60}  {layer.digest.hex}  {notes.get(ORIGIN, '')}")
    return "\n".join(lines) + "\n"


def parse_artifact(data: bytes, what: str) -> oci.Manifest:
    """The manifest in ``data``; UserError when it is of something else, CorruptError when it is none."""
    parsed = oci.parse_index_or_manifest(data, what)
    if not isinstance(parsed, oci.Manifest) or parsed.artifact_type != ARTIFACT:
        raise UserError(f"{what} holds no vendored files", hint="`uklimg vendor` makes such a place")
    return parsed


# --- writing


@dataclass(frozen=True)
class Vendored:
    """What ``vendor`` did. ``added`` are names; ``size`` is of all files there, in bytes."""

    files: int
    added: tuple[str, ...]
    size: int


def vendor_folder(
    root: Path, files: Sequence[LockedFile], fetch: Callable[[Blob], Path], sink: Sink = discard
) -> Vendored:
    """Bring ``files`` into the folder ``root``, which is made when missing; what is there is hashed and kept.

    A file that is there with other bytes is replaced. The listing is written last: a kill leaves whole files only.
    """
    if root.exists() and not (root / "index.json").exists() and any(root.iterdir()):
        raise UserError(f"{root} is a folder with other things in it", hint="name an empty one")
    layout = Layout(root)
    entries: list[oci.Descriptor] = []
    added: list[str] = []
    for file in files:
        try:
            path = layout.verified_path(file.digest)
        except CorruptError:
            with layout.writer() as writer:
                _copy(fetch(file.blob()), writer)
                writer.commit(file.digest)
            path = layout.blob_path(file.digest)
            added.append(file.name)
        entries.append(entry(file, path.stat().st_size))
    before = _read_folder(root)
    manifest = artifact(entries, before)
    layout.put_bytes(_EMPTY, oci.EMPTY)
    layout.tag(TAG, replace(layout.put_bytes(manifest.encode(), oci.MANIFEST), artifact_type=ARTIFACT))
    if before is not None and before != manifest:
        layout.blob_path(Digest.of(before.encode())).unlink(missing_ok=True)
    layout.replace(root / LISTING, listing(manifest).encode())
    (root / LISTING).chmod(0o644)
    return Vendored(len(files), tuple(added), sum(item.size for item in entries))


def _copy(source: Path, writer: BlobWriter) -> None:
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            writer.write(chunk)


def _read_folder(root: Path) -> oci.Manifest | None:
    """What is vendored in a folder; None when nothing is. Reads only, and nothing but the listing."""
    try:
        index = oci.parse_index((root / "index.json").read_bytes(), f"{root}/index.json")
    except FileNotFoundError:
        return None
    for item in index.manifests:
        if item.annotations.get(oci.REF_NAME) == TAG:
            data = (root / "blobs" / "sha256" / item.digest.hex).read_bytes()
            if Digest.of(data) != item.digest:
                raise CorruptError(f"the listing of {root} is damaged", hint="remove the folder and vendor again")
            return parse_artifact(data, str(root))
    return None


def vendor_registry(
    ref: Reference,
    files: Sequence[LockedFile],
    fetch: Callable[[Blob], Path],
    store: Layout,
    transport: Transport,
    sink: Sink = discard,
) -> Vendored:
    """Bring ``files`` into the repository of ``ref``, and name their artifact as ``ref`` says.

    What the tag has already stays listed. Files go through ``store``; those that the registry has are not sent.
    """
    from uklimg.remote import client

    before = _read_registry(ref, transport)
    have = {layer.digest for layer in before.layers} if before else set()
    entries: list[oci.Descriptor] = []
    added: list[str] = []
    for file in files:
        known = next((layer.size for layer in before.layers if layer.digest == file.digest), None) if before else None
        if known is None:
            known = fetch(file.blob()).stat().st_size
        if file.digest not in have:
            added.append(file.name)
        entries.append(entry(file, known))
    manifest = artifact(entries, before)
    store.put_bytes(_EMPTY, oci.EMPTY)
    client.push(ref, store.put_bytes(manifest.encode(), oci.MANIFEST), store, transport, sink)
    return Vendored(len(files), tuple(added), sum(item.size for item in entries))


def _read_registry(ref: Reference, transport: Transport) -> oci.Manifest | None:
    """What ``ref`` lists; None when there is no such tag."""
    what = f"{ref}"
    try:
        data, _ = transport.manifest(ref.remote_tag, what)
    except ToolError as error:
        if error.exit_code == ExitCode.NOT_FOUND:
            return None
        raise
    if ref.digest is not None and Digest.of(data) != ref.digest:
        raise CorruptError(f"{what}: the registry sends {Digest.of(data)}")
    return parse_artifact(data, what)


# --- reading


class Place(Protocol):
    """A place with vendored files; several threads may ask at once."""

    @property
    def name(self) -> str: ...

    @property
    def remote(self) -> bool:
        """Whether asking it needs a network."""
        ...

    def bring(self, blob: Blob, into: Layout, sink: Sink) -> bool:
        """Put the blob into ``into``; False when the place does not have it. CorruptError when it has other bytes."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder that ``vendor_folder`` made; it may be read-only."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    @property
    def remote(self) -> bool:
        return False

    def check(self) -> None:
        """UserError unless it is such a folder."""
        if not (self.root / "blobs" / "sha256").is_dir():
            raise UserError(f"{self.root} is no folder of vendored files", hint=f"uklimg vendor {self.root} makes it")

    def bring(self, blob: Blob, into: Layout, sink: Sink) -> bool:
        path = self.root / "blobs" / "sha256" / blob.digest.hex
        if not path.is_file():
            return False
        with reported(f"read the vendored {blob.name}"), into.writer() as writer:
            _copy(path, writer)
            try:
                writer.commit(blob.digest)
            except CorruptError as error:
                raise CorruptError(f"the vendored {blob.name} is damaged ({path}): {error.message}") from None
        sink(TransferStarted(str(blob.digest), "vendor", blob.name, writer.size))
        sink(TransferFinished(str(blob.digest), skipped=True))
        return True


class Repository:
    """A repository of a registry that ``vendor_registry`` filled. ``connect`` opens a connection to it."""

    def __init__(self, ref: Reference, connect: Callable[[Reference], Transport]) -> None:
        self._ref = ref.on_registry()
        self._connect = connect
        self._guard = threading.Lock()
        self._transport: Transport | None = None
        self._known: Mapping[Digest, oci.Descriptor] | None = None

    @property
    def name(self) -> str:
        return str(self._ref)

    @property
    def remote(self) -> bool:
        return True

    def bring(self, blob: Blob, into: Layout, sink: Sink) -> bool:
        with self._guard:  # a connection is for one thread
            if self._known is None:
                self._known = {}  # who does not answer is asked once
                self._transport = self._connect(self._ref)
                manifest = _read_registry(self._ref, self._transport)
                if manifest is None:
                    raise ToolError(f"there is no {self._ref}", exit_code=ExitCode.NOT_FOUND)
                self._known = {layer.digest: layer for layer in manifest.layers}
            found = self._known.get(blob.digest)
            if found is None or self._transport is None:
                return False
            self._receive(found, blob, into, sink, self._transport)
        return True

    def _receive(self, found: oci.Descriptor, blob: Blob, into: Layout, sink: Sink, transport: Transport) -> None:
        name = str(blob.digest)
        sink(TransferStarted(name, "vendor", blob.name, found.size))
        with into.writer() as writer:
            for chunk in transport.blob_chunks(found):
                writer.write(chunk)
                sink(TransferProgress(name, len(chunk)))
            try:
                writer.commit(blob.digest)
            except CorruptError as error:
                raise CorruptError(f"{blob.name} in {self.name} is damaged: {error.message}") from None
        sink(TransferFinished(name))


def is_folder(text: str) -> bool:
    """Whether a place is a folder: it begins as a path does, or names no registry."""
    if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
        return True
    host, slash, _ = text.partition("/")
    return not slash or not (host == "localhost" or host.startswith("[") or "." in host or ":" in host)


def place_of(text: str, base: Path, connect: Callable[[Reference], Transport]) -> Place:
    """The place that ``--vendor`` or a configuration names; relative folders start at ``base``. UserError."""
    if not text or "\0" in text:
        raise UserError("--vendor without a folder or registry")
    if is_folder(text):
        folder = Folder(base / Path(text).expanduser())
        folder.check()
        return folder
    return Repository(Reference.parse(text), connect)
