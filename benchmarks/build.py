"""A cold build step by step, and the same work by hand in the same container with the same inputs.

Downloads are measured apart. Every step is run anew, with what it needs from the store; with an empty store
(``--store``) that is what a first build does. The kernel is built twice: give ``--steps`` or ``--no-hand`` for less.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import bench, byhand, report
from uklimg.errors import UserError
from uklimg.graph import Graph, Kind

MODULE = "benchmarks.build"


def main() -> int:
    top = bench.parser(MODULE, "Time the steps of a build against the same work by hand.")
    top.add_argument("--steps", metavar="STEP", nargs="+", default=[], help="only these (uklimg plan lists them)")
    top.add_argument("--no-hand", action="store_true", help="do not repeat the work by hand")
    args = top.parse_args()
    return bench.run(args, lambda found: measure(found, args))


def measure(found: bench.Bench, args: argparse.Namespace) -> report.Report:
    graph = found.example()
    names = choose(graph, args.steps)
    facts = report.machine(found.host.env)
    downloads = found.fetch(graph)
    rows: list[tuple[report.Cell, ...]] = []
    totals: dict[str, float] = {}
    hands: dict[str, float] = {}
    for name in names:
        step = graph.step(name)
        totals[name] = found.cold(graph, name).whole
        script = "" if args.no_hand else byhand.script(step)
        if script:
            # As a TREE, so that nothing of it is stored: its time is that of the command alone.
            hands[name] = found.again(graph, name, script, kind=Kind.TREE).command
    ratio = byhand.ratios(totals, hands)
    for name in names:
        rows.append((f"{name}: {graph.step(name).title}", totals[name], hands.get(name), ratio.get(name)))
    rows.append(("all of these", sum(totals.values()), None, None))
    if hands:
        both = sum(totals[name] for name in hands)
        by_hand = sum(hands.values())
        rows.append(("what was done both ways", both, by_hand, both / by_hand))
    note = f"Downloads: {report.text(downloads)} s (near 0 when the store has the files)."
    table = report.Table("Steps of a cold build", ("step", "uklimg, s", "by hand, s", "ratio"), tuple(rows), note)
    return report.Report("build", facts, (table,))


def choose(graph: Graph, wanted: list[str]) -> list[str]:
    """Names of steps in the order of the build; all of them unless some are wanted."""
    there = [step.id for step in graph.steps]
    for name in wanted:
        if name not in there:
            raise UserError(f"no step {name!r}", hint=f"there is {', '.join(there)}")
    return [name for name in there if not wanted or name in wanted]


if __name__ == "__main__":
    sys.exit(main())
