"""--cache-to and --cache-from: shared caches around a build."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from uklimg.cli.host import Host
from uklimg.digest import Digest
from uklimg.errors import UklimgError, UserError
from uklimg.events import Note, Sink
from uklimg.ref import Reference
from uklimg.sharedcache.exporter import export
from uklimg.sharedcache.importer import Cache, Importer
from uklimg.sharedcache.location import CacheLocation, parse_location
from uklimg.sharedcache.places import FolderSource, FolderTarget, Source, Target
from uklimg.store import Store

if TYPE_CHECKING:
    from uklimg.sharedcache.registry import Repository

TO, FROM = "--cache-to", "--cache-from"
_WHERE = "HOST/NAME in a registry, or dir:PATH"


def add(parser: argparse.ArgumentParser) -> None:
    add_from(parser)
    parser.add_argument(
        TO, metavar="CACHE", action="append", default=[], help="afterwards send there what it lacks of the results"
    )


def add_from(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        FROM, metavar="CACHE", action="append", default=[], help=f"look for results there, too: {_WHERE}"
    )


def locations(args: argparse.Namespace) -> tuple[tuple[CacheLocation, ...], tuple[CacheLocation, ...]]:
    """Caches to read and caches to write. UserError for what is none, and for a registry with --offline."""
    found = (
        tuple(parse_location(text, FROM) for text in args.cache_from),
        tuple(parse_location(text, TO) for text in getattr(args, "cache_to", ())),
    )
    for option, places in zip((FROM, TO), found, strict=True):
        for place in places:
            if place.ref and args.offline:
                raise UserError(f"--offline forbids {option} {place}", hint="leave one out, or use dir:PATH")
    return found


@contextmanager
def sharing(
    host: Host,
    store: Store,
    args: argparse.Namespace,
    keys: Iterable[Digest],
    sink: Sink,
) -> Iterator[Importer | None]:
    """Around a build whose steps have ``keys``. Gives what to look results up with, None without a cache to read.

    Afterwards results are exported, also those of a build that failed later; not after an interruption. A cache that
    cannot be written is an error, unless its ignore-error is set or the build has one itself: then it is a warning.
    """
    writable = locations(args)[1]
    found = importer(args, host, store, sink)
    try:
        yield found
    except UklimgError:
        _export(host, store, writable, keys, found, sink, strict=False)
        raise
    _export(host, store, writable, keys, found, sink, strict=True)


def finder(args: argparse.Namespace, host: Host, store: Store, sink: Sink) -> Callable[[Digest], bool]:
    """Whether a key has a result, here or in a cache to read: for planning; nothing is fetched."""
    lookup = (importer(args, host, store, sink) or store).lookup
    return lambda key: lookup(key, verify=False) is not None


def importer(args: argparse.Namespace, host: Host, store: Store, sink: Sink) -> Importer | None:
    """What to look results up with; None without a cache to read."""
    readable = locations(args)[0]
    return Importer(store, [_cache(host, place) for place in readable], sink) if readable else None


def _cache(host: Host, place: CacheLocation) -> Cache:
    return Cache(str(place), lambda: _source(host, place))


def _source(host: Host, place: CacheLocation) -> Source:
    # A build can do without it, so it does not wait long for a registry that is away.
    return FolderSource(host.path(place.folder)) if place.ref is None else _repository(host, place.ref, 2)


def _target(host: Host, place: CacheLocation) -> Target:
    return FolderTarget(host.path(place.folder)) if place.ref is None else _repository(host, place.ref, 4)


def _repository(host: Host, ref: Reference, attempts: int) -> Repository:
    # Imported here: its library takes long to load, and most builds need none.
    from uklimg.remote.client import connect
    from uklimg.remote.failures import Retry
    from uklimg.sharedcache.registry import Repository

    return Repository(lambda: connect(ref, host.environ, host.uid, Retry(attempts)))


def _export(
    host: Host,
    store: Store,
    places: Sequence[CacheLocation],
    keys: Iterable[Digest],
    importer: Importer | None,
    sink: Sink,
    *,
    strict: bool,
) -> None:
    keys = tuple(keys)
    for place in places:
        again = importer.rejected(str(place)) if importer else frozenset()
        try:
            sent = export(store, keys, _target(host, place), sink, again=again)
        except UklimgError as error:
            error.message = f"the cache {place} could not be written: {error.message}"
            if strict and not place.ignore_error:
                raise
            sink(Note(error.line(), warning=True))
        else:
            sink(Note(f"cache {place}: {sent} of {len(keys)} results sent"))
