"""What `plan` and `explain` share: the steps of a build against what the store knows of earlier ones."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from uklimg import context
from uklimg.cli import caching, options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.digest import JSON, Digest
from uklimg.errors import CorruptError
from uklimg.events import Note
from uklimg.graph import ContextTree, Graph
from uklimg.keydiff import Listing
from uklimg.outlook import Earlier, Outlook, Past, outlook
from uklimg.store import Store


@dataclass(frozen=True)
class Looked:
    """``found`` has an outlook for each step of the graph; ``past`` is read when it is wanted first."""

    graph: Graph
    hits: frozenset[str]
    listing: Listing
    read_past: Callable[[], Past]
    again: bool

    @cached_property
    def past(self) -> Past:
        return self.read_past()

    @cached_property
    def found(self) -> tuple[Outlook, ...]:
        whole = self.graph.target in self.hits and not self.again
        past = Past(()) if whole else self.past
        return outlook(self.graph, self.hits, past, listing=self.listing, again=self.again)


def add(parser: argparse.ArgumentParser) -> None:
    options.add_build(parser)
    caching.add_from(parser)
    options.add_progress(parser)
    options.add_format(parser)


def look(args: argparse.Namespace, host: Host) -> Looked:
    """Plan the build that the options describe. Runs nothing, and writes no lock."""
    with console(args.progress, host.stderr) as sink:
        project = options.project_of(args, host)
        store = host.store(sink)
        with store.session():
            found = options.resolved(args, project, host, store, sink, write=False)
            plan = options.planned(args, project, found)
            for place, text in plan.warnings:
                sink(Note(f"{place}: {text}", warning=True))
            graph = plan.graph
            has = caching.finder(args, host, store, sink)
            hits = {step.id for step in graph.steps if has(graph.keys[step.id])}
    return Looked(graph, frozenset(hits), listing_of(graph, store), lambda: past_of(store), args.no_cache)


def past_of(store: Store) -> Past:
    return Past(
        Earlier(record.key, record.step, record.fields, record.last_used, record.seconds)
        for record in store.records()
    )


def listing_of(graph: Graph, store: Store) -> Listing:
    """What is noted of files of the build context: the graph's as they are, earlier ones as the store has them."""
    now = {str(i.digest): i for step in graph.steps for i in step.inputs.values() if isinstance(i, ContextTree)}

    def find(digest: str) -> JSON:
        if digest in now:
            found: JSON = json.loads(context.listing(now[digest]))
            return found
        blob = Digest.parse(digest)
        if not store.has(blob):
            return None
        try:
            found = json.loads(store.read_blob(blob))
        except CorruptError:
            return None
        return found

    return find
