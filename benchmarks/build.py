"""A cold build step by step, and the same work by hand in the same container with the same inputs.

Downloads are measured apart. Every step is run anew, with what it needs from the store; with an empty store
(``--store``) that is what a first build does. The kernel is built twice: give ``--steps`` or ``--no-hand`` for less.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import bench, byhand, report
from uklimg.errors import UserError
from uklimg.graph import Graph

MODULE = "benchmarks.build"
COLUMNS = ("step", "its command, s", "the step, s", "by hand, s", "step / by hand")


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
    steps: dict[str, bench.Timing] = {}
    hands: dict[str, float] = {}
    for name in names:
        steps[name] = found.cold(graph, name)
        script = "" if args.no_hand else byhand.script(graph.step(name))
        if script:
            hands[name] = found.command(graph, name, script)
    rows = [row(f"{name}: {graph.step(name).title}", steps[name], hands.get(name)) for name in names]
    rows.append(("all of these", None, sum(one.whole for one in steps.values()), None, None))
    if hands:
        both = bench.Timing(sum(steps[name].whole for name in hands))
        rows.append(row("what was done both ways", both, sum(hands.values())))
    note = f"Downloads: {report.text(downloads)} s (near 0 when the store has the files)."
    table = report.Table("Steps of a cold build", COLUMNS, tuple(rows), note)
    return report.Report("build", facts, (table,))


def row(label: str, step: bench.Timing, hand: float | None) -> tuple[report.Cell, ...]:
    return label, step.command, step.whole, hand, step.whole / hand if hand else None


def choose(graph: Graph, wanted: list[str]) -> list[str]:
    """Names of steps in the order of the build; all of them unless some are wanted."""
    there = [step.id for step in graph.steps]
    for name in wanted:
        if name not in there:
            raise UserError(f"no step {name!r}", hint=f"there is {', '.join(there)}")
    return [name for name in there if not wanted or name in wanted]


if __name__ == "__main__":
    sys.exit(main())
