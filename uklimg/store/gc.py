"""Making room: mark what tags and kept records reach, sweep the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from uklimg import locks, oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ToolError
from uklimg.store.cache import Cache, Record
from uklimg.store.layout import Layout, reported


@dataclass(frozen=True)
class Pruned:
    """What ``prune`` removed; ``freed`` in bytes. ``roots`` are the manifests of ROOTFS results that stay, for the
    engine, which keeps copies of its own."""

    records: int
    blobs: int
    trees: int
    freed: int
    roots: frozenset[Digest]


@dataclass(frozen=True)
class Usage:
    """Bytes on disk."""

    blobs: int
    trees: int
    engine: int
    other: int

    @property
    def total(self) -> int:
        return self.blobs + self.trees + self.engine + self.other


def prune(layout: Layout, cache: Cache, live: Path, keep: Callable[[Record], bool]) -> Pruned:
    """See ``Store.prune``. ``live`` is the lock that sessions share."""
    with locks.try_locked(live) as alone:
        if not alone:
            raise ToolError("the store is in use by another uklimg", hint="prune again when it has finished")
        layout.sweep()
        kept, dropped = _sort_out(cache, keep)
        for record in dropped:
            cache.remove(record.key)
        marked = _mark(layout, kept)
        with reported("remove files from the store"):
            blobs, freed = _sweep_blobs(layout, marked)
            trees, more = _sweep_trees(layout, marked)
            _sweep_small(layout, kept)
        roots = frozenset(record.result.root.digest for record in kept)
        return Pruned(len(dropped), blobs, trees, freed + more, roots)


def _sort_out(cache: Cache, keep: Callable[[Record], bool]) -> tuple[list[Record], list[Record]]:
    kept: list[Record] = []
    dropped: list[Record] = []
    for record in cache.all():
        (kept if keep(record) else dropped).append(record)
    return kept, dropped


def _mark(layout: Layout, records: Iterable[Record]) -> set[Digest]:
    """Digests that must stay. Takes index.json's nameless entries away when what they are about goes."""
    marked: set[Digest] = set()
    for record in records:
        marked |= _reach(layout, record.result.root)
        marked.update(record.sources())
    with layout.editing() as entries:
        nameless = [entry for entry in entries if oci.REF_NAME not in entry.annotations]
        for entry in entries:
            if oci.REF_NAME in entry.annotations:
                marked |= _reach(layout, entry)
        # A referrer may be about a referrer.
        while found := [e for e in nameless if e.digest in marked or _subject(layout, e) in marked]:
            for entry in found:
                marked |= _reach(layout, entry)
                nameless.remove(entry)
        entries[:] = [entry for entry in entries if entry not in nameless]
    return marked


def _reach(layout: Layout, root: oci.Descriptor) -> set[Digest]:
    """The closure of ``root``; of one with missing or corrupt manifests, at least ``root``."""
    try:
        return {blob.digest for blob in layout.closure(root)}
    except CorruptError:
        return {root.digest}


def _subject(layout: Layout, entry: oci.Descriptor) -> Digest | None:
    try:
        subject = oci.parse_index_or_manifest(layout.read_blob(entry.digest), str(entry.digest)).subject
    except CorruptError:
        return None
    return subject.digest if subject else None


def _sweep_blobs(layout: Layout, marked: set[Digest]) -> tuple[int, int]:
    count = freed = 0
    for folder, wanted in ((layout.root / "blobs" / "sha256", marked), (layout.root / "corrupt", set[Digest]())):
        names = {digest.hex for digest in wanted}
        for path in sorted(folder.iterdir()):
            if path.name not in names:
                freed += path.stat().st_size
                path.unlink()
                count += 1
    return count, freed


def _sweep_trees(layout: Layout, marked: set[Digest]) -> tuple[int, int]:
    count = freed = 0
    names = {digest.hex for digest in marked}
    for path in sorted((layout.root / "trees" / "sha256").iterdir()):
        if path.stem in names:
            continue
        if path.suffix == ".done":
            path.unlink(missing_ok=True)
        else:
            path.with_suffix(".done").unlink(missing_ok=True)
            freed += _size(path)
            shutil.rmtree(path)
            count += 1
    return count, freed


def _sweep_small(layout: Layout, kept: Iterable[Record]) -> None:
    short = {record.key.short for record in kept}
    for path in (layout.root / "logs").iterdir():
        if path.name.partition("-")[0] not in short:
            path.unlink()
    for path in layout.locks.iterdir():
        # Nobody waits for these: whoever uses them holds a session.
        if path.suffix in (".key", ".tree", ".import"):
            path.unlink()


def usage(root: Path) -> Usage:
    """What lies below ``root``, by kind."""
    blobs, trees, engine = (_size(root / name) for name in ("blobs", "trees", "engine"))
    other = sum(
        _size(path) if path.is_dir() else path.lstat().st_size
        for path in root.iterdir()
        if path.name not in ("blobs", "trees", "engine")
    )
    return Usage(blobs, trees, engine, other)


def _size(folder: Path) -> int:
    """Bytes on disk of the files below ``folder``, each hard link once; what vanishes meanwhile does not count."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(f"{path}/{name}")
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total
