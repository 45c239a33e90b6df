"""Instructions that operations take in the guest: as an ordinary process in ring 3, and as part of the kernel.

Both programs are one and the same, run one after the other in one boot under QEMU's ``-icount shift=0,sleep=off``,
where the time stamp counter counts instructions. So the numbers are repeatable to the instruction, on any machine.
``guest/ops.c`` says what each is. QEMU counts ``syscall``, ``sysret`` and ``iretq`` as one instruction each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import bench, byhand, report
from uklimg.errors import ExitCode, ToolError
from uklimg.guest.protocol import Program
from uklimg.runner.launch import launch
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure

MODULE = "benchmarks.instructions"
GUEST = Path(__file__).resolve().parent / "guest"
CPL0, RING3 = 0, 3
TWIN = Program("/bench/ops", ("ops",))
VARIANTS = {
    "no mitigations": "mitigations=off pti=off",
    "default": "",
    "page table isolation": "pti=on",
}
# The method is wrong when these are not so: one tick an instruction.
NOPS, NOPS_COUNT = "nops1000", 1000
OPERATIONS = {
    "getppid": "getppid",
    "write": "write, 1 byte to /dev/null",
    "read": "read, 1 byte of /dev/zero",
    "pipe": "pipe, write and read 1 byte",
    "switch": "to a child and back, by pipes",
    "clock_gettime": "clock_gettime",
    "fault-read": "page fault, reading",
    "fault-write": "page fault, writing",
    "fault-kernel": "read, whose buffer faults, writing",
    "timer": "timer interrupt",
}
CLEAR = "clear-page"


@dataclass(frozen=True)
class Counts:
    """Of one run of the program: its privilege level, and the minimum by operation."""

    cpl: int
    minimum: Mapping[str, int]


def main() -> int:
    top = bench.parser(MODULE, "Count the instructions of operations, ring 3 against UKL.")
    top.add_argument("--plain-kernel", action="store_true", help="also build the kernel without patches, and count")
    top.add_argument("--kernel", metavar="VMLINUX", default="", help="the same with a vmlinux that is there already")
    args = top.parse_args()
    return bench.run(args, lambda found: measure(found, args))


def measure(found: bench.Bench, args: argparse.Namespace) -> report.Report:
    graph = found.graph(GUEST / "Uklfile", GUEST)
    plain = found.host.path(args.kernel) if args.kernel else None
    if args.plain_kernel:
        plain = found.tree(byhand.plain_kernel(graph), byhand.PLAIN) / "vmlinux"
    tables = []
    with found.booted(graph) as files:
        for name, cmdline in VARIANTS.items():
            both = boot(found, files, files.vmlinux, cmdline, {RING3: TWIN, CPL0: Program(files.run.program)})
            unpatched = boot(found, files, plain, cmdline, {RING3: TWIN}) if plain else {}
            tables.append(
                table(f"{name} ({cmdline or 'no parameter'})", unpatched.get(RING3), both[RING3], both[CPL0])
            )
    return report.Report("instructions", report.machine(found.host.env), tuple(tables))


def boot(
    found: bench.Bench, files: bench.BootFiles, kernel: Path, cmdline: str, programs: Mapping[int, Program]
) -> dict[int, Counts]:
    """Boot once and run ``programs``, by the privilege level at which each must run; what they counted, by it."""
    wanted = RunOptions(no_network=True, cmdline=cmdline, cpus=1, icount=0)
    machine, guest = configure(files.run, kernel, files.initramfs, wanted)
    console = bytearray()
    outcome = launch(
        Qemu(), machine, replace(guest, programs=tuple(programs.values())), env=found.host.env, show=console.extend
    )
    text = console.decode(errors="replace")
    runs = {run.cpl: run for run in parse(text)}
    if outcome.code or runs.keys() != programs.keys():
        raise ToolError("the program did not run as it should", detail=text, exit_code=ExitCode.RUN_FAILED)
    for run in runs.values():
        if run.minimum.get(NOPS) != NOPS_COUNT:
            raise ToolError(
                f"QEMU does not count instructions here: {NOPS_COUNT} nops are {run.minimum.get(NOPS)}", detail=text
            )
    return runs


def parse(text: str) -> list[Counts]:
    """The runs in a console's text; each begins with its privilege level."""
    runs: list[tuple[int, dict[str, int]]] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 5 and words[0] == "ops" and all(word.isdigit() for word in words[2:]):
            name, value = words[1], int(words[2])
            if name == "cpl":
                runs.append((value, {}))
            elif runs:
                runs[-1][1][name] = value
    return [Counts(cpl, minimum) for cpl, minimum in runs]


def table(title: str, plain: Counts | None, ring3: Counts, ukl: Counts) -> report.Table:
    rows: list[tuple[report.Cell, ...]] = []
    for name, label in OPERATIONS.items():
        before, after = ring3.minimum[name], ukl.minimum[name]
        unpatched = (plain.minimum[name],) if plain else ()
        rows.append((label, *unpatched, before, after, after - before, after / before))
    columns = ("operation", *(("without patches",) if plain else ()), "ring 3", "UKL", "difference", "ratio")
    note = f"{ukl.minimum[CLEAR]:,} instructions of each fault that writes are `rep stosb`, which clears the page."
    return report.Table(title, columns, tuple(rows), note)


if __name__ == "__main__":
    sys.exit(main())
