"""The kernel after each patch of the series: it must build without a warning, and boot. That is what bisecting needs.

The configuration is a small one; CONFIG_UKL is on as soon as a patch brings it. Each kernel boots on two processors
and runs a program in ring 3.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import bench, byhand, report
from benchmarks.instructions import GUEST, TWIN
from uklimg.bench.boot import BootFiles
from uklimg.errors import ExitCode, ToolError
from uklimg.runner.launch import launch
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure

MODULE = "benchmarks.prefixes"
TROUBLE = ("WARNING", "BUG:", "Oops", "Call Trace")


def main() -> int:
    args = bench.parser(MODULE, "Build and boot the kernel after each of its patches.").parse_args()
    return bench.run(args, measure)


def measure(found: bench.Bench) -> report.Report:
    graph = found.graph(GUEST / "Uklfile", GUEST)
    kernels = found.tree(byhand.prefixes(graph), byhand.PREFIXES)
    rows: list[tuple[report.Cell, ...]] = []
    with found.booted(graph) as files:
        for number, name in enumerate((kernels / "names").read_text().splitlines()):
            warnings = (kernels / f"{number}.warnings").read_text()
            if warnings:
                raise ToolError(f"{name}: the kernel builds with warnings", detail=warnings)
            begin = time.monotonic()
            boot(found, files, kernels / f"{number}.vmlinux", name)
            rows.append((name, time.monotonic() - begin))
    table = report.Table(
        "Kernels that build without a warning and boot", ("up to patch", "boot and run, s"), tuple(rows)
    )
    return report.Report("prefixes", report.machine(found.host.env), (table,))


def boot(found: bench.Bench, files: BootFiles, kernel: Path, name: str) -> None:
    """Boot, run a program in ring 3, and look at the log; ToolError when something is wrong."""
    wanted = RunOptions(no_network=True, cpus=2, verbose=True)
    machine, guest = configure(files.run, kernel, files.initramfs, wanted)
    console = bytearray()
    outcome = launch(Qemu(), machine, replace(guest, programs=(TWIN,)), env=found.host.env, show=console.extend)
    text = console.decode(errors="replace")
    if outcome.code or "ops cpl 3" not in text or any(word in text for word in TROUBLE):
        raise ToolError(f"{name}: the kernel does not boot as it should", detail=text, exit_code=ExitCode.RUN_FAILED)


if __name__ == "__main__":
    sys.exit(main())
