"""uklimg prune: make room in the store."""

from __future__ import annotations

import argparse
import time

from uklimg.cli.host import Host
from uklimg.console import console, size
from uklimg.digest import Digest
from uklimg.engine.choose import used_engines
from uklimg.errors import ToolError, UserError
from uklimg.events import Note, Sink
from uklimg.store import BusyError, Pruned, Record, Store
from uklimg.storelimit import parse_age, parse_size

NAME = "prune"
HELP = "remove from the store what no image and no cached step needs"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="the cached results of steps too")
    parser.add_argument(
        "--keep-storage", metavar="SIZE", default="",
        help="and results, the least recently used first, until the store takes no more than SIZE (20GB)",
    )  # fmt: skip
    parser.add_argument("--older-than", metavar="AGE", default="", help="and results not used for AGE (12h, 7d, 4w)")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")


def run(args: argparse.Namespace, host: Host) -> int:
    limit = parse_size(args.keep_storage) if args.keep_storage else None
    before = time.time() - parse_age(args.older_than) if args.older_than else None
    if args.all and (limit is not None or before is not None):
        raise UserError("--all removes every result already", hint="leave out --keep-storage and --older-than")

    def keep(record: Record) -> bool:
        return not args.all and (before is None or record.last_used >= before)

    with console("plain", host.stderr) as sink:
        store = host.store(sink)

        def prune(*, wait: bool) -> Pruned:
            return store.prune(
                keep,
                limit=limit,
                mounts=args.all,
                dry=args.dry_run,
                wait=wait,
                engine=engine(host, store, sink).forget,
            )

        try:
            done = prune(wait=False)
        except BusyError:
            sink(Note("waiting until other commands of uklimg have finished"))
            done = prune(wait=True)
        if done.beside:
            sink(Note("a build is running: what it may need stays, and so do the engine's copies"))
        _warn_above(store, limit, sink, dry=args.dry_run)
    verb = "would remove" if args.dry_run else "removed"
    caches = f", {done.mounts} caches of RUN" if done.mounts else ""
    host.print(f"{verb} {done.records} results, {done.blobs} blobs, {done.trees} trees{caches}: {size(done.freed)}")
    return 0


def keep_within(limit: int | None, host: Host, store: Store, sink: Sink) -> None:
    """After a build that ran something: make room when the store takes more than ``limit`` bytes."""
    if limit is None or store.taken() <= limit:
        return
    try:
        done = store.prune(limit=limit, engine=engine(host, store, sink).forget)
    except BusyError:
        return  # whoever is at work now does it later
    sink(Note(f"the store is limited to {size(limit)}: removed {done.records} results, {size(done.freed)}"))
    if not done.beside:
        _warn_above(store, limit, sink, dry=False)


def _warn_above(store: Store, limit: int | None, sink: Sink, *, dry: bool) -> None:
    if limit is not None and not dry and (total := store.taken()) > limit:
        text = f"the store takes {size(total)}, more than {size(limit)}: images and running builds need it"
        sink(Note(text, warning=True))


class _Forgetful:
    """The engines, made only when they are needed; nothing is to be forgotten when no step ever ran."""

    def __init__(self, host: Host, store: Store, sink: Sink) -> None:
        self._host = host
        self._folder = store.root / "engine"
        self._sink = sink

    def forget(self, roots: frozenset[Digest]) -> None:
        for engine in used_engines(self._folder, self._host.environ):
            try:
                engine.prune(roots)
            except ToolError as error:  # Docker may be gone, and its images with it
                self._sink(Note(f"the images of {engine.name} stay: {error.line()}", warning=True))


def engine(host: Host, store: Store, sink: Sink) -> _Forgetful:
    return _Forgetful(host, store, sink)
