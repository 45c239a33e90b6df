"""Kernels of other configurations, built from what earlier builds left, and the same from nothing.

The results must be equal to the byte: a difference is an error. With the trees of a store that has built the base
configuration, or after this script has; each kernel from nothing takes minutes.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import bench, report
from uklimg.assets import read_assets
from uklimg.data import Data, find_data
from uklimg.errors import CorruptError, InternalError
from uklimg.graph import Container, Graph
from uklimg.recipes.kernel import STEP_ID, KernelConfig, kernel_step

MODULE = "benchmarks.kernels"
SERIES = "6.12"
BASE = KernelConfig()
# In the order in which they are built. The last is the first again, in a tree that has been another one meanwhile.
ONE_OPTION = KernelConfig(options=(("FUSE_FS", "y"),))
CONFIGS = {"base": BASE, "base and FUSE_FS=y": ONE_OPTION, "base after that": BASE}
DEBUG = {"debug, after base": KernelConfig(extras=("debug",))}
COLUMNS = ("kernel", "from a tree, s", "from nothing, s", "ratio", "CPU, s", "from nothing, CPU s", "CPU ratio")


def main() -> int:
    top = bench.parser(MODULE, "Time kernels built from the trees of earlier ones, and compare their bytes.")
    top.add_argument("--debug", action="store_true", help="the debug configuration, too")
    args = top.parse_args()
    return bench.run(args, lambda found: measure(found, args))


def measure(found: bench.Bench, args: argparse.Namespace) -> report.Report:
    graph = found.example()
    facts = report.machine(found.host.env)
    found.make(Graph.of(graph.steps, STEP_ID))
    clean: dict[KernelConfig, tuple[bench.Timing, object]] = {}
    rows: list[tuple[report.Cell, ...]] = []
    for name, config in {**CONFIGS, **(DEBUG if args.debug else {})}.items():
        wanted = configured(graph, config)
        timing, result = found.remade(wanted, STEP_ID, from_nothing=False)
        if config not in clean:
            again, other = found.remade(wanted, STEP_ID)
            clean[config] = again, other.layer.digest
        nothing, digest = clean[config]
        if digest != result.layer.digest:
            raise CorruptError(f"{name}: the kernel built from a tree is not the one built from nothing")
        rows.append(row(name, timing, nothing))
    table = report.Table(
        "Kernels from a tree and from nothing", COLUMNS, tuple(rows), "Each pair has the same bytes."
    )
    return report.Report("kernels", facts, (table,))


def row(name: str, tree: bench.Timing, nothing: bench.Timing) -> tuple[report.Cell, ...]:
    cpu = tree.cpu / nothing.cpu if tree.cpu and nothing.cpu else None
    return name, tree.whole, nothing.whole, tree.whole / nothing.whole, tree.cpu, nothing.cpu, cpu


def configured(graph: Graph, config: KernelConfig) -> Graph:
    """The graph with a kernel of that configuration as its target."""
    action = graph.step(STEP_ID).action
    if not isinstance(action, Container):
        raise InternalError("the kernel's recipe has changed")
    folder = Data(find_data()).kernel(SERIES)
    return bench.replace_step(graph, kernel_step(action.rootfs, folder, config, read_assets().link))


if __name__ == "__main__":
    sys.exit(main())
