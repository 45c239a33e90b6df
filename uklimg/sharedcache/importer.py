"""Looks results up in the store, then in shared caches, and brings what it finds there into the store.

A build asks for the target first and for what that needs only when it is missing, so nothing is fetched below a
result that is there. A cache is never trusted to be whole: what is damaged or odd costs a warning, and the step runs.
"""

from __future__ import annotations

import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from uklimg import oci, tarread
from uklimg.digest import Digest
from uklimg.errors import CorruptError, InternalError, UklimgError
from uklimg.events import Note, Sink, TransferFinished, TransferProgress, TransferStarted
from uklimg.graph import Kind
from uklimg.sharedcache.entry import Entry, is_image, read_entry, read_manifest
from uklimg.sharedcache.places import Source
from uklimg.store import StepResult, Store, manifest_of
from uklimg.store.trees import check_name

# What the disk must keep free.
_RESERVE = 64 << 20


@dataclass
class Cache:
    """A cache to ask, by the ``name`` that the user gave it. ``open`` makes the source when it is first needed.
    ``rejected`` are keys whose entries there are of no use."""

    name: str
    open: Callable[[], Source]
    rejected: set[Digest] = field(default_factory=set)
    broken: bool = False
    source: Source | None = None


class Importer:
    """``lookup`` takes the place of ``Store.lookup``. Safe for several threads."""

    def __init__(self, store: Store, caches: Sequence[Cache], sink: Sink) -> None:
        self._store = store
        self._caches = tuple(caches)
        self._sink = sink
        self._guard = threading.Lock()
        self._found: dict[Digest, tuple[Cache, Entry] | None] = {}

    def lookup(
        self, key: Digest, /, *, verify: bool = True, cancel: threading.Event | None = None
    ) -> StepResult | None:
        """The store's result, or a cache's, which with ``verify`` is brought into the store and checked.

        Without it, only the entry was looked at. Setting ``cancel`` from another thread ends a transfer, which leaves
        as KeyboardInterrupt.
        """
        here = self._store.lookup(key, verify=verify)
        if here is not None:
            return here
        if not verify:
            found = self._find(key)
            return found[1].record.result if found else None
        if self._find(key) is None:
            return None
        with self._store.import_lock(key, cancel):
            # Another thread or build may have brought it meanwhile.
            here = self._store.lookup(key)
            while here is None and (found := self._find(key)):
                here = self._bring(key, *found, cancel)
        return here

    def rejected(self, name: str) -> frozenset[Digest]:
        """The keys of useless entries of the cache ``name``, which may be written again."""
        return frozenset(key for cache in self._caches if cache.name == name for key in cache.rejected)

    # Finding

    def _find(self, key: Digest) -> tuple[Cache, Entry] | None:
        """The first cache with a good entry of ``key``. Each is asked once."""
        with self._guard:
            if key in self._found:
                return self._found[key]
        found = None
        for cache in self._caches:
            if not cache.broken and key not in cache.rejected:
                entry = self._ask(cache, key)
                if entry is not None:
                    found = (cache, entry)
                    break
        with self._guard:
            self._found[key] = found
        return found

    def _ask(self, cache: Cache, key: Digest) -> Entry | None:
        what = f"the entry of {key.short}"
        try:
            with self._guard:
                if cache.source is None:
                    cache.source = cache.open()
            data = cache.source.manifest(key)
            if data is None:
                return None
            manifest = read_manifest(data, what)
            record = b"".join(cache.source.chunks(manifest.config))
            return read_entry(key, manifest, record, what)
        except UklimgError as error:
            self._refuse(cache, key, error)
            return None

    def _refuse(self, cache: Cache, key: Digest, error: UklimgError, step: str = "") -> None:
        """Warn, and ask no more: for this key, or where the place itself fails, for any."""
        if isinstance(error, InternalError):
            raise error
        with self._guard:
            self._found.pop(key, None)
            if isinstance(error, CorruptError):
                cache.rejected.add(key)
                about = f" of {step}" if step else ""
                text = f"cache {cache.name}: an entry{about} is of no use: {error.message}"
            elif not cache.broken:
                cache.broken = True
                text = f"cache {cache.name} is not used: {error.line()}"
            else:
                return
        self._sink(Note(text, warning=True))

    # Bringing

    def _bring(self, key: Digest, cache: Cache, entry: Entry, cancel: threading.Event | None) -> StepResult | None:
        """The result, now in the store; None when it turned out to be of no use."""
        result = entry.record.result
        try:
            assert cache.source is not None
            self._check_room(entry)
            if is_image(entry.record):
                self._fetch(cache.source, entry.record.step, entry.blobs, cancel)
                self._check_image(entry)
            else:
                self._fetch(cache.source, entry.record.step, result.layers, cancel)
                for data in manifest_of(key, result.layers):
                    self._store.put_bytes(data)
                self._check_layers(result)
            self._store.adopt_result(entry.record)
        except UklimgError as error:
            self._refuse(cache, key, error, entry.record.step)
            return None
        return result

    def _check_room(self, entry: Entry) -> None:
        wanted = sum(blob.size for blob in entry.blobs if not self._store.has(blob.digest, blob.size))
        free = shutil.disk_usage(self._store.root).free
        if wanted + _RESERVE > free:
            raise CorruptError(f"it has {wanted} bytes, and the disk has {free} free")

    def _fetch(
        self, source: Source, step: str, blobs: Iterable[oci.Descriptor], cancel: threading.Event | None
    ) -> None:
        for blob in blobs:
            # What is kept but has no record or tag yet must look new to who makes room.
            if self._store.keep_blob(blob.digest, blob.size):
                continue
            label = f"import {blob.digest}"
            self._sink(TransferStarted(label, "import", f"{step} {blob.digest.short}", blob.size))
            with self._store.writer() as writer:
                for chunk in source.chunks(blob):
                    if cancel is not None and cancel.is_set():
                        raise KeyboardInterrupt
                    writer.write(chunk)
                    self._sink(TransferProgress(label, len(chunk)))
                if writer.size != blob.size:
                    raise CorruptError(f"blob {blob.digest} has {writer.size} bytes instead of {blob.size}")
                writer.commit(blob.digest)
            self._sink(TransferFinished(label))

    def _check_image(self, entry: Entry) -> None:
        root = entry.record.result.root
        closure = {blob.digest: blob.size for blob in self._store.verify(root)}
        if closure != {blob.digest: blob.size for blob in entry.blobs}:
            raise CorruptError("the image is not what the entry lists")
        oci.read_image(lambda blob: self._store.read_blob(blob.digest), root)

    def _check_layers(self, result: StepResult) -> None:
        """That what runs next can use them: a tree is unpacked, which it must be anyway; a file system's tars are
        read through."""
        if result.kind is Kind.TREE:
            self._store.tree(result)
            return
        for layer in result.layers:
            try:
                with (
                    self._store.open_blob(layer.digest) as file,
                    tarread.opened(file) as archive,
                ):
                    for info in tarread.members(archive):
                        check_name(info.name, CorruptError)
            except tarfile.TarError as error:
                raise CorruptError(f"layer {layer.digest} is no tar archive: {error}") from None
