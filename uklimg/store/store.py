"""The store: blobs, the results of steps by key, unpacked trees, tags.

Below ``root`` lies an OCI image layout (see ``layout``) with ``cache/`` (see ``cache``), and

    trees/sha256/<layer hex>/      an unpacked TREE; <layer hex>.done beside it says that it is complete
    logs/<key hex>-<step>.log      what a step printed

Builds hold ``session`` while they run, so that ``prune`` leaves alone what has no tag or record yet.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from uklimg import locks, oci
from uklimg.digest import JSON, Digest
from uklimg.errors import CorruptError, InternalError
from uklimg.events import Note, Sink, discard
from uklimg.graph import Kind
from uklimg.store import gc, sessions, trees
from uklimg.store.cache import Cache, Record, StepResult, manifest_of
from uklimg.store.layout import Layout, reported
from uklimg.store.sessions import Session
from uklimg.store.usage import ResultUsage, Usage, measure

Fields = Mapping[str, JSON]


class Store(Layout):
    """See the module's text. Safe for several threads and processes at once."""

    def __init__(self, root: Path, sink: Sink = discard) -> None:
        super().__init__(root)
        self._sink = sink
        self._cache = Cache(self)
        self._checked: set[Digest] = set()
        self._trees = self.root / "trees" / "sha256"
        self._logs = self.root / "logs"
        with reported("make the store"):
            for folder in (self._trees, self._logs):
                folder.mkdir(parents=True, exist_ok=True)

    # Living together

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Held by whoever adds to the store, until what it added has a tag or a record. Several may hold it.

        Whoever knows what it needs declares it (``Session.declare``), so that ``prune`` need not wait. Results that
        were declared count as used when the session ends.
        """
        with sessions.session(self.locks) as session:
            self.sweep()
            try:
                yield session
            finally:
                # What others need is touched last, so that it is the last to go.
                for key in reversed(session.keys):
                    self._cache.touch(key)

    @contextmanager
    def key_lock(
        self, key: Digest, cancel: threading.Event | None = None, on_wait: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Held while a step is made. Who had to wait for it looks the key up again. ``cancel`` and ``on_wait`` as for
        a lock."""
        with locks.locked(self.locks / f"{key.hex}.key", cancel=cancel, on_wait=on_wait):
            yield

    @contextmanager
    def import_lock(self, key: Digest, cancel: threading.Event | None = None) -> Iterator[None]:
        """Held while a result is fetched from elsewhere, by who asks for no ``key_lock`` meanwhile."""
        with locks.locked(self.locks / f"{key.hex}.import", cancel=cancel):
            yield

    # Results

    def lookup(self, key: Digest, *, verify: bool = True) -> StepResult | None:
        """The result stored for ``key``, or None.

        With ``verify`` every byte of it is hashed (large blobs once a process), and a result with a corrupt blob is
        no result: the blob is set aside and the step must run again. Without, only names and sizes are looked at,
        which is enough for showing a plan.
        """
        record = self._cache.read(key)
        if record is None:
            return None
        try:
            found = self.verify(record.result.root) if verify else self.closure(record.result.root)
        except CorruptError as error:
            self._sink(Note(f"the stored result of {record.step or key} is of no use: {error.message}", warning=True))
            return None
        if not all(self.has(blob.digest, blob.size) for blob in found):
            return None
        self._cache.touch(key)
        return record.result

    def record(self, key: Digest) -> Record | None:
        """What is noted about ``key``, whether or not its blobs are still there."""
        return self._cache.read(key)

    def records(self) -> Iterator[Record]:
        return self._cache.all()

    def commit_tree(
        self, key: Digest, folder: Path, fields: Fields, *, step: str = "", seconds: float | None = None
    ) -> StepResult:
        """Store the contents of ``folder`` (on the store's file system: see ``scratch``) as the TREE of ``key``.

        ``fields``, ``step`` and ``seconds`` are for the record, here and below. The folder is moved away. ToolError
        STEP when it holds a device, a pipe, or a link that leaves it.
        """
        with self.writer() as writer:
            trees.pack(folder, writer)
            layer = writer.commit(media_type=oci.LAYER)
        result = self._commit(key, Kind.TREE, (layer,), fields, step, seconds)
        trees.settle(folder)
        self._install_tree(folder, layer.digest)
        return result

    def commit_rootfs(
        self,
        key: Digest,
        layer: Path,
        fields: Fields,
        *,
        base: StepResult | None = None,
        drop: Collection[str] = (),
        step: str = "",
        seconds: float | None = None,
    ) -> StepResult:
        """Store ``base`` plus the tar ``layer`` as the ROOTFS of ``key``.

        Without ``base`` the tar is a whole file system and is taken byte for byte; with one it is an OCI layer that
        an engine made, and is rewritten (``trees.canonical_layer``, which explains ``drop``).
        """
        if base is None:
            below: tuple[oci.Descriptor, ...] = ()
            top = self.put_file(layer, oci.LAYER)
        else:
            below = base.layers
            with self.writer() as writer:
                trees.canonical_layer(layer, writer, drop)
                top = writer.commit(media_type=oci.LAYER)
        return self._commit(key, Kind.ROOTFS, (*below, top), fields, step, seconds)

    def commit_layers(
        self, key: Digest, layers: Sequence[Path], fields: Fields, *, step: str = "", seconds: float | None = None
    ) -> StepResult:
        """Store the plain tars ``layers``, bottom first and byte for byte, as the ROOTFS of ``key``."""
        found = tuple(self.put_file(layer, oci.LAYER) for layer in layers)
        return self._commit(key, Kind.ROOTFS, found, fields, step, seconds)

    def commit_image(
        self, key: Digest, layout: Path, fields: Fields, *, step: str = "", seconds: float | None = None
    ) -> StepResult:
        """Store the image that is the only entry of the OCI layout ``layout`` as the result of ``key``."""
        entries = oci.parse_index((layout / "index.json").read_bytes(), "index.json of the image").manifests
        if len(entries) != 1:
            raise InternalError(f"{len(entries)} images in the layout of one")
        for blob in sorted((layout / "blobs" / "sha256").iterdir()):
            self.put_file(blob)
        root = entries[0].bare()
        self.verify(root)
        return self._record(StepResult(key, Kind.TREE, root), fields, step, seconds)

    def borrow(self, other: Store, key: Digest) -> StepResult | None:
        """Take over the result that ``other``, a store on the same disk, has for ``key``; its blobs are shared.

        None, and nothing taken, when it has none or a byte of it is wrong.
        """
        result, record = other.lookup(key), other.record(key)
        if result is None or record is None:
            return None
        for blob in other.closure(result.root):
            if not self.has(blob.digest, blob.size):
                with reported("share a blob between stores"):
                    self.blob_path(blob.digest).hardlink_to(other.blob_path(blob.digest))
        return self._record(result, record.fields, record.step, record.seconds)

    def _commit(
        self,
        key: Digest,
        kind: Kind,
        layers: Sequence[oci.Descriptor],
        fields: Fields,
        step: str,
        seconds: float | None,
    ) -> StepResult:
        config, manifest = manifest_of(key, layers)
        self.put_bytes(config, oci.CONFIG)
        root = self.put_bytes(manifest, oci.MANIFEST)
        return self._record(StepResult(key, kind, root, tuple(layers)), fields, step, seconds)

    def _record(self, result: StepResult, fields: Fields, step: str, seconds: float | None) -> StepResult:
        self._cache.write(Record(result, step, fields, seconds=seconds))
        return result

    def adopt_result(self, record: Record) -> None:
        """Take in a result that was made elsewhere and whose blobs are here. CorruptError when one is not."""
        self.verify(record.result.root)
        self._cache.write(record)

    # Trees

    def tree(self, result: StepResult) -> Path:
        """The unpacked TREE; read-only by agreement. Unpacked again when it is missing, incomplete or changed."""
        if result.kind is not Kind.TREE or len(result.layers) != 1:
            raise InternalError(f"the result {result.key} is no tree")
        return self.unpacked(result.layer.digest, trees.unpack)

    def unpacked(self, digest: Digest, unpack: Callable[[BinaryIO, Path], None]) -> Path:
        """The folder that ``unpack`` made of the blob, which it is given after the blob was hashed.

        Kept as long as the blob. Whoever unpacks one blob in two ways gets what was made first.
        """
        path, marker = self._tree_paths(digest)
        with self._guard:
            if digest in self._checked and path.is_dir():
                return path
        with locks.locked(self.locks / f"{digest.hex}.tree"):
            if not self._is_complete(path, marker):
                self._remove_tree(path, marker)
                with self.scratch() as folder, self.open_blob(digest) as blob:
                    unpacked = folder / "tree"
                    unpacked.mkdir()
                    with reported("unpack into the store"):
                        unpack(blob, unpacked)
                    self._place_tree(unpacked, path, marker)
        with self._guard:
            self._checked.add(digest)
        return path

    def _install_tree(self, folder: Path, digest: Digest) -> None:
        """Make the finished ``folder`` the tree of ``digest``, unless somebody was faster."""
        path, marker = self._tree_paths(digest)
        with locks.locked(self.locks / f"{digest.hex}.tree"):
            if not self._is_complete(path, marker):
                self._remove_tree(path, marker)
                self._place_tree(folder, path, marker)

    def _tree_paths(self, digest: Digest) -> tuple[Path, Path]:
        return self._trees / digest.hex, self._trees / f"{digest.hex}.done"

    def _is_complete(self, path: Path, marker: Path) -> bool:
        try:
            return marker.read_text() == str(trees.fingerprint(path))
        except OSError:
            return False

    def _place_tree(self, folder: Path, path: Path, marker: Path) -> None:
        fingerprint = trees.fingerprint(folder)
        with reported("write to the store"):
            folder.rename(path)
        self.replace(marker, str(fingerprint).encode())

    def _remove_tree(self, path: Path, marker: Path) -> None:
        marker.unlink(missing_ok=True)
        if path.exists():
            with self.scratch() as folder:
                path.rename(folder / "old")

    def rootfs_layout(self, result: StepResult) -> tuple[Path, Digest]:
        """What an engine needs of a ROOTFS: the OCI layout's folder and the digest of the manifest in it."""
        if result.kind is not Kind.ROOTFS:
            raise InternalError(f"the result {result.key} is no root file system")
        return self.root, result.root.digest

    # Logs

    def log_path(self, key: Digest, step: str) -> Path:
        """Where the log of a step goes."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", step)[:60]
        return self._logs / f"{key.short}-{readable}.log"

    # Making room

    def prune(
        self,
        keep: Callable[[Record], bool] = lambda record: True,
        *,
        limit: int | None = None,
        mounts: bool = False,
        dry: bool = False,
        wait: bool = False,
        engine: Callable[[frozenset[Digest]], None] | None = None,
    ) -> gc.Pruned:
        """Remove every blob, tree and log that no tag, no live build and no record that ``keep`` accepts needs.

        See ``gc.Request``. Works beside builds that have declared what they need; while others hold a ``session``, it
        waits or is a BusyError.
        """
        return gc.prune(self, self._cache, gc.Request(keep, limit, mounts, dry, wait, engine))

    def taken(self) -> int:
        """Bytes on disk of everything below the store's folder."""
        return measure(self.root).total

    def du(self) -> Usage:
        """What the store takes on disk."""
        return self.du_results()[0]

    def du_results(self) -> tuple[Usage, tuple[ResultUsage, ...]]:
        """That, and what each result takes, the largest first."""
        return gc.usage(self, self._cache)
