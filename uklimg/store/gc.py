"""Making room: mark what tags, live builds and kept records reach, sweep the rest.

Beside live builds nothing goes that they named, and nothing that is newer than the oldest of them: they may rely on
it without a record or tag yet. Making a file new and removing an old one exclude each other (``layout.SWEEPING``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from uklimg import locks, oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ToolError
from uklimg.store import lru, sessions
from uklimg.store.cache import Cache, Record
from uklimg.store.layout import SWEEPING, Layout, reported
from uklimg.store.usage import ResultUsage, Sizes, Usage, measure, size_of


class BusyError(ToolError):
    """Somebody else adds to the store, and has not said what it needs."""

    def __init__(self) -> None:
        super().__init__("the store is in use by another uklimg", hint="try again when it has finished")


@dataclass(frozen=True)
class Pruned:
    """What ``prune`` removed, or would have; ``freed`` in bytes. ``roots`` are the manifests of results that stay.
    With ``beside``, builds are going on, and the engine's copies were left alone."""

    records: int
    blobs: int
    trees: int
    mounts: int
    freed: int
    roots: frozenset[Digest]
    beside: bool

    def after(self, earlier: Pruned) -> Pruned:
        """Both together; ``roots`` are this one's."""
        counts = ("records", "blobs", "trees", "mounts", "freed")
        return replace(self, **{name: getattr(self, name) + getattr(earlier, name) for name in counts})


@dataclass(frozen=True)
class Request:
    """``keep``: records that it refuses go. ``limit``: then the least recently used ones go until the store has so
    many bytes. ``mounts``: folders of RUN --mount=type=cache go. ``dry``: nothing goes, it is only counted. ``wait``:
    for other commands that add to the store, instead of a BusyError. ``engine`` makes an engine forget all images but
    those of the manifests that it is given; it is called only when no build runs."""

    keep: Callable[[Record], bool]
    limit: int | None = None
    mounts: bool = False
    dry: bool = False
    wait: bool = False
    engine: Callable[[frozenset[Digest]], None] | None = None


@dataclass(frozen=True)
class _Marked:
    """What stays: records, digests of blobs, names of mounts; and since when (seconds) files are too new to go."""

    kept: tuple[Record, ...]
    dropped: tuple[Record, ...]
    digests: frozenset[Digest]
    mounts: frozenset[str]
    since: float | None


def prune(layout: Layout, cache: Cache, request: Request) -> Pruned:
    """See ``Store.prune``."""
    with _alone(layout, request.wait):
        layout.sweep()
        holds = sessions.live_holds(layout.locks)
        if request.dry:
            return _would_remove(layout, cache, request, holds)
        done = _remove(layout, cache, replace(request, limit=None), holds)
        done = _forget(layout, request, done, done.roots)
        if request.limit is not None and measure(layout.root).total > request.limit:
            # The engine can make its copies anew from ours.
            done = _forget(layout, request, done, frozenset())
            done = _remove(layout, cache, request, holds).after(done)
        return done


def _remove(layout: Layout, cache: Cache, request: Request, holds: tuple[sessions.Hold, ...]) -> Pruned:
    marked = _mark(layout, cache, request, holds)
    for record in marked.dropped:
        cache.remove(record.key)
    with reported("remove files from the store"):
        _drop_nameless(layout, marked)
        blobs, freed = _sweep_blobs(layout, marked)
        trees, more = _sweep_trees(layout, marked)
        mounts, still_more = _sweep_mounts(layout, marked)
        _sweep_small(layout, marked, frozenset(key for hold in holds for key in hold.keys))
    roots = frozenset(record.result.root.digest for record in marked.kept)
    return Pruned(len(marked.dropped), blobs, trees, mounts, freed + more + still_more, roots, beside=bool(holds))


def _forget(layout: Layout, request: Request, done: Pruned, roots: frozenset[Digest]) -> Pruned:
    """Let the engine keep copies of ``roots`` alone, unless a build may be using others."""
    if request.engine is None or done.beside:
        return done
    folder = layout.root / "engine"
    before = size_of(folder)
    request.engine(roots)
    return replace(done, freed=done.freed + max(0, before - size_of(folder)))


@contextmanager
def _alone(layout: Layout, wait: bool) -> Iterator[None]:
    live = layout.locks / sessions.LIVE
    if wait:
        with locks.locked(live):
            yield
        return
    with locks.try_locked(live) as alone:
        if not alone:
            raise BusyError
        yield


# Marking


def _mark(layout: Layout, cache: Cache, request: Request, holds: tuple[sessions.Hold, ...]) -> _Marked:
    held = {key for hold in holds for key in hold.keys}
    since = min((hold.since for hold in holds), default=None)
    records = list(cache.all())
    kept = [record for record in records if record.key in held or request.keep(record)]
    fixed = {blob for hold in holds for blob in hold.blobs}
    fixed |= _named(layout)
    for record in kept:
        if record.key in held:
            fixed |= reach(layout, record)
    mounts = frozenset() if request.mounts else frozenset(path.name for path in mount_folders(layout.root))
    if request.limit is not None:
        free = [record for record in kept if record.key not in held]
        gone = _least_used(layout, free, kept, mounts, fixed, request.limit)
        kept = [record for record in kept if record.key.hex not in gone]
        mounts = frozenset(name for name in mounts if f"mounts/{name}" not in gone)
    stay = {record.key for record in kept}
    digests = frozenset(fixed).union(*(reach(layout, record) for record in kept))
    dropped = tuple(record for record in records if record.key not in stay)
    return _Marked(tuple(kept), dropped, _with_referrers(layout, digests), mounts, since)


def _least_used(
    layout: Layout,
    free: Iterable[Record],
    kept: Iterable[Record],
    mounts: Iterable[str],
    fixed: Iterable[Digest],
    limit: int,
) -> frozenset[str]:
    """Which of ``free`` and ``mounts`` must go, by key or as ``mounts/NAME``."""
    sizes = measure(layout.root)
    pieces = pieces_of(sizes)
    candidates = [candidate(layout, record) for record in free]
    for name in mounts:
        path = layout.root / "mounts" / name
        candidates.append(lru.Candidate(f"mounts/{name}", path.stat().st_mtime, frozenset({f"mounts/{name}"})))
    pinned = {digest.hex for digest in fixed}
    staying = pinned.union(*(item.reach for item in candidates))
    for record in kept:
        staying |= {digest.hex for digest in reach(layout, record)}
    taken = sum(size for piece, size in pieces.items() if piece in staying) + sizes.engine + sizes.other
    return lru.choose(candidates, pinned, pieces, taken - limit)[0]


def candidate(layout: Layout, record: Record) -> lru.Candidate:
    return lru.Candidate(record.key.hex, record.last_used, frozenset(d.hex for d in reach(layout, record)))


def pieces_of(sizes: Sizes) -> dict[str, int]:
    """Blobs with their unpacked trees by digest, and mounts as ``mounts/NAME``: bytes."""
    pieces = dict(sizes.blobs)
    for name, size in sizes.trees.items():
        pieces[name] = pieces.get(name, 0) + size
    pieces.update({f"mounts/{name}": size for name, size in sizes.mounts.items()})
    return pieces


def reach(layout: Layout, record: Record) -> set[Digest]:
    """The blobs that a record keeps: its result and what its step read."""
    return _closure(layout, record.result.root) | set(record.sources())


def _closure(layout: Layout, root: oci.Descriptor) -> set[Digest]:
    """The closure of ``root``; of one with missing or corrupt manifests, at least ``root``."""
    try:
        return {blob.digest for blob in layout.closure(root)}
    except CorruptError:
        return {root.digest}


def _named(layout: Layout) -> set[Digest]:
    """What index.json's names need."""
    found: set[Digest] = set()
    for entry in layout.index().manifests:
        if oci.REF_NAME in entry.annotations:
            found |= _closure(layout, entry)
    return found


def _referrers(layout: Layout, marked: frozenset[Digest]) -> tuple[list[oci.Descriptor], list[oci.Descriptor]]:
    """index.json's nameless entries: those about something that stays, and the others."""
    nameless = [entry for entry in layout.index().manifests if oci.REF_NAME not in entry.annotations]
    staying: list[oci.Descriptor] = []
    digests = set(marked)
    # A referrer may be about a referrer.
    while found := [e for e in nameless if e.digest in digests or _subject(layout, e) in digests]:
        for entry in found:
            digests |= _closure(layout, entry)
            nameless.remove(entry)
            staying.append(entry)
    return staying, nameless


def _with_referrers(layout: Layout, marked: frozenset[Digest]) -> frozenset[Digest]:
    staying, _ = _referrers(layout, marked)
    return marked.union(*(_closure(layout, entry) for entry in staying))


def _subject(layout: Layout, entry: oci.Descriptor) -> Digest | None:
    try:
        subject = oci.parse_index_or_manifest(layout.read_blob(entry.digest), str(entry.digest)).subject
    except CorruptError:
        return None
    return subject.digest if subject else None


# Sweeping


def _would_remove(layout: Layout, cache: Cache, request: Request, holds: tuple[sessions.Hold, ...]) -> Pruned:
    """What ``prune`` would remove; of the engine's copies, all or none."""
    sizes = measure(layout.root)
    engine = 0
    if request.limit is not None and request.engine is not None and not holds and sizes.total > request.limit:
        engine = sizes.engine
        request = replace(request, limit=request.limit + engine)
    found = _count(sizes, _mark(layout, cache, request, holds))
    return replace(found, freed=found.freed + engine)


def _count(sizes: Sizes, marked: _Marked) -> Pruned:
    names = {digest.hex for digest in marked.digests}
    blobs = {name: size for name, size in sizes.blobs.items() if name not in names}
    trees = {name: size for name, size in sizes.trees.items() if name not in names}
    mounts = {name: size for name, size in sizes.mounts.items() if name not in marked.mounts}
    freed = sum(size for group in (blobs, trees, mounts) for size in group.values())
    roots = frozenset(record.result.root.digest for record in marked.kept)
    return Pruned(len(marked.dropped), len(blobs), len(trees), len(mounts), freed, roots, marked.since is not None)


def _drop_nameless(layout: Layout, marked: _Marked) -> None:
    """Take index.json's nameless entries away when what they are about goes."""
    _, going = _referrers(layout, marked.digests)
    if going:
        with layout.editing() as entries:
            entries[:] = [entry for entry in entries if entry not in going]


def _is_new(status: os.stat_result, since: float | None) -> bool:
    return since is not None and max(status.st_ctime, status.st_mtime) >= since


def _sweep_blobs(layout: Layout, marked: _Marked) -> tuple[int, int]:
    count = freed = 0
    names = {digest.hex for digest in marked.digests}
    folders = ((layout.root / "blobs" / "sha256", names, marked.since), (layout.root / "corrupt", set[str](), None))
    for folder, wanted, since in folders:
        for path in sorted(folder.iterdir()):
            if path.name in wanted:
                continue
            with locks.locked(layout.locks / SWEEPING):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # set aside just now
                if _is_new(status, since):
                    continue
                path.unlink()
            freed += status.st_blocks * 512
            count += 1
    return count, freed


def _sweep_trees(layout: Layout, marked: _Marked) -> tuple[int, int]:
    """Trees go after their blobs. Nobody looks at one meanwhile: whoever begins to has its lock."""
    count = freed = 0
    names = {digest.hex for digest in marked.digests}
    for path in sorted((layout.root / "trees" / "sha256").iterdir()):
        if path.stem in names:
            continue
        with locks.locked(layout.locks / f"{path.stem}.tree"):
            if marked.since is not None and (layout.root / "blobs" / "sha256" / path.stem).exists():
                continue
            if path.suffix == ".done":
                path.unlink(missing_ok=True)
            elif path.is_dir():
                path.with_suffix(".done").unlink(missing_ok=True)
                freed += size_of(path)
                shutil.rmtree(path)
                count += 1
    return count, freed


def mount_folders(root: Path) -> list[Path]:
    """The folders of RUN --mount=type=cache; each has a lock beside it."""
    folder = root / "mounts"
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _sweep_mounts(layout: Layout, marked: _Marked) -> tuple[int, int]:
    count = freed = 0
    for path in mount_folders(layout.root):
        if path.name in marked.mounts:
            continue
        with locks.try_locked(path.with_name(f"{path.name}.lock")) as free:
            if free:
                freed += size_of(path)
                shutil.rmtree(path)
                count += 1
    return count, freed


def _sweep_small(layout: Layout, marked: _Marked, held: frozenset[Digest]) -> None:
    short = {record.key.short for record in marked.kept} | {key.short for key in held}
    for path in (layout.root / "logs").iterdir():
        if path.name.partition("-")[0] not in short:
            path.unlink(missing_ok=True)
    if marked.since is not None:
        return
    for path in layout.locks.iterdir():
        # Nobody waits for these: whoever uses them is in a session.
        if path.suffix in (".key", ".tree", ".import"):
            path.unlink()


# Counting


def usage(layout: Layout, cache: Cache) -> tuple[Usage, tuple[ResultUsage, ...]]:
    """See ``Store.du_results``."""
    sizes = measure(layout.root)
    pieces = pieces_of(sizes)
    records = list(cache.all())
    named = {digest.hex for digest in _with_referrers(layout, frozenset(_named(layout)))}
    made = {digest.hex for record in records for digest in _closure(layout, record.result.root)} - named
    read = {digest.hex for record in records for digest in record.sources()} - named - made
    images, results, sources = (
        sum(size for name, size in sizes.blobs.items() if name in group) for group in (named, made, read)
    )
    found = Usage(
        images=images,
        results=results,
        sources=sources,
        unused=sum(sizes.blobs.values()) - images - results - sources,
        trees=sum(sizes.trees.values()),
        mounts=sum(sizes.mounts.values()),
        engine=sizes.engine,
        other=sizes.other,
    )
    candidates = {record.key.hex: candidate(layout, record) for record in records}
    alone = lru.frees(candidates.values(), named, pieces)
    each = [
        ResultUsage(
            key=record.key.hex,
            step=record.step,
            last_used=record.last_used,
            size=sum(pieces.get(piece, 0) for piece in candidates[record.key.hex].reach),
            frees=alone[record.key.hex],
        )
        for record in records
    ]
    return found, tuple(sorted(each, key=lambda one: (-one.frees, -one.size, one.key)))
