"""A cold build with one step at a time and with several, against the sum of the same steps one by one.

Every step runs anew under a key that no store has, but those that ``--keep`` names. ``--hand`` also does the work of
the steps by hand, where there is such a thing, as ``benchmarks.build`` does.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace

from benchmarks import bench, byhand, report
from benchmarks.build import choose
from uklimg.errors import UserError
from uklimg.graph import Graph

MODULE = "benchmarks.parallel"


def main() -> int:
    top = bench.parser(MODULE, "Time a cold build with --jobs 1 and more against its steps one by one.")
    top.add_argument("--jobs", type=int, metavar="N", nargs="+", default=[1, 2], help="numbers of jobs (1 2)")
    top.add_argument("--keep", metavar="STEP", nargs="+", default=[], help="take these from the store (kernel-kit)")
    top.add_argument("--hand", action="store_true", help="do the work by hand, too")
    args = top.parse_args()
    return bench.run(args, lambda found: measure(found, args))


def measure(found: bench.Bench, args: argparse.Namespace) -> report.Report:
    graph = found.example()
    kept = set(choose(graph, args.keep)) if args.keep else set()
    there = sorted(os.sched_getaffinity(0))
    if min(args.jobs) < 1 or max(args.jobs) > len(there):
        raise UserError(f"--jobs wants numbers from 1 to {len(there)}, the processors here")
    facts = report.machine(found.host.env)
    found.fetch(graph)
    for name in sorted(kept):
        found.make(Graph.of(graph.steps, name))
    rows: list[tuple[report.Cell, ...]] = []
    for jobs in args.jobs:
        os.sched_setaffinity(0, there[:jobs])
        new = anew(graph, kept)
        ran = [step.id for step in new.steps if step.id not in kept]
        began = time.monotonic()
        found.make(new, at_once=jobs)
        whole = time.monotonic() - began
        # What one at a time takes on as many processors: the steps beside others are slower, so they run again.
        each = whole if jobs == 1 else sum(found.again(graph, name).whole for name in ran)
        hand = by_hand(found, graph, ran) if args.hand else None
        rows.append((jobs, whole, each, whole / each, hand, whole / hand if hand else None))
    os.sched_setaffinity(0, there)
    columns = ("--jobs", "build, s", "its steps one by one, s", "ratio", "by hand, s", "ratio")
    note = "All with as many processors as jobs. By hand: steps without a counterpart count as they are."
    return report.Report("parallel", facts, (report.Table("A cold build", columns, tuple(rows), note),))


def anew(graph: Graph, kept: set[str]) -> Graph:
    """The same steps under other keys, without what earlier runs left; of ``kept`` ones the keys stay, which must not
    need others."""
    stamp = time.time_ns()
    for name in kept:
        if not kept.issuperset(graph.step(name).needs()):
            raise UserError(f"{name} needs {', '.join(graph.step(name).needs())}", hint="--keep them, too")
    steps = [
        step if step.id in kept else replace(bench.without_mounts(step), recipe_version=stamp) for step in graph.steps
    ]
    return Graph.of(steps, graph.target)


def by_hand(found: bench.Bench, graph: Graph, names: list[str]) -> float:
    """Seconds of the steps' work by hand; of those that nobody would do by hand, of the step."""
    total = 0.0
    for name in names:
        script = byhand.script(graph.step(name))
        total += found.command(graph, name, script).seconds if script else found.again(graph, name).whole
    return total


if __name__ == "__main__":
    sys.exit(main())
