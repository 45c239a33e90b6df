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
COLUMNS = ("step", "step, s", "its command, s", "by hand, s", "ratio", "CPU, s", "by hand, CPU s", "CPU ratio")


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
    hands: dict[str, bench.Command] = {}
    for name in names:
        steps[name] = found.cold(graph, name)
        script = "" if args.no_hand else byhand.script(graph.step(name))
        if script:
            hands[name] = found.command(graph, name, script)
    rows = [row(f"{name}: {graph.step(name).title}", steps[name], hands.get(name)) for name in names]
    rows.append(row("all of these", bench.Timing(sum(one.whole for one in steps.values()))))
    if hands:
        both = bench.Timing(sum(steps[name].whole for name in hands))
        by_hand = [sum(one.seconds for one in hands.values()), sum(one.cpu for one in hands.values())]
        rows.append(row("what was done both ways", both, bench.Command(*by_hand)))
    note = (
        f"Downloads: {report.text(downloads)} s (near 0 when the store has the files). Ratio: the step to the work "
        "by hand. CPU: the commands' processor time, which what else runs on the machine hardly changes."
    )
    table = report.Table("Steps of a cold build", COLUMNS, tuple(rows), note)
    return report.Report("build", facts, (table,))


def row(label: str, step: bench.Timing, hand: bench.Command | None = None) -> tuple[report.Cell, ...]:
    if hand is None:
        return label, step.whole, step.command, None, None, step.cpu, None, None
    cpu = step.cpu / hand.cpu if step.cpu and hand.cpu else None
    return label, step.whole, step.command, hand.seconds, step.whole / hand.seconds, step.cpu, hand.cpu, cpu


def choose(graph: Graph, wanted: list[str]) -> list[str]:
    """Names of steps in the order of the build; all of them unless some are wanted."""
    there = [step.id for step in graph.steps]
    for name in wanted:
        if name not in there:
            raise UserError(f"no step {name!r}", hint=f"there is {', '.join(there)}")
    return [name for name in there if not wanted or name in wanted]


if __name__ == "__main__":
    sys.exit(main())
