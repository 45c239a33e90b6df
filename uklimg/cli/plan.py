"""uklimg plan: every step's key, and whether the store has its result; nothing runs, and no lock is written."""

from __future__ import annotations

import argparse

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.walk import missing

NAME = "plan"
HELP = "show the steps of a build, and which would run"


def add(parser: argparse.ArgumentParser) -> None:
    options.add_build(parser)
    options.add_progress(parser)
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    with console(args.progress, host.stderr) as sink:
        project = options.project_of(args, host)
        store = host.store(sink)
        with store.session():
            found = options.resolved(args, project, host, store, sink, write=False)
            graph = options.planned(args, project, found).graph
            hits = {step.id: store.lookup(graph.keys[step.id], verify=False) is not None for step in graph.steps}
    wanted = missing(graph, lambda key: any(hits[name] for name, other in graph.keys.items() if other == key))
    if args.format == "json":
        options.print_json(
            host,
            [
                {
                    "step": step.id,
                    "title": step.title,
                    "key": str(graph.keys[step.id]),
                    "hit": hits[step.id],
                    "runs": step.id in wanted,
                }
                for step in graph.steps
            ],
        )
        return 0
    width = max(len(step.id) for step in graph.steps)
    for step in graph.steps:
        state = "run " if step.id in wanted else "hit " if hits[step.id] else "skip"
        host.print(f"{state} {graph.keys[step.id].short}  {step.id:{width}}  {step.title}")
    host.print(f"{len(wanted)} of {len(graph.steps)} steps would run")
    return 0
