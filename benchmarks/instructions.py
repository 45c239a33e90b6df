"""Instructions that operations take in the guest: as an ordinary process in ring 3, and as part of the kernel.

Both programs are one and the same, run one after the other in one boot under QEMU's ``-icount shift=0,sleep=off``,
where the time stamp counter counts instructions. So the numbers are repeatable to the instruction, on any machine.
``guest/ops.c`` says what each is. QEMU counts ``syscall``, ``sysret`` and ``iretq`` as one instruction each.

The program in the kernel runs twice, in boots of their own: as the base model has it, and linked with the option BYP.
Some operations are also counted with the kernel's called entry in place of the instruction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import bench, byhand, report
from uklimg.bench.boot import BootFiles
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
# Before the name of what is counted with the kernel's called entry.
CALLED = "called-"


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
    bypass = found.graph(GUEST / "Uklfile", GUEST, build_args={"UKL": "BYP"})
    plain = found.host.path(args.kernel) if args.kernel else None
    if args.plain_kernel:
        plain = found.tree(byhand.plain_kernel(graph), byhand.PLAIN) / "vmlinux"
    tables = []
    with found.booted(graph) as files, found.booted(bypass) as others:
        program = Program(files.run.program)
        for name, cmdline in VARIANTS.items():
            both = boot(found, files, files.vmlinux, cmdline, {RING3: TWIN, CPL0: program})
            byp = boot(found, files, others.vmlinux, cmdline, {CPL0: program})
            unpatched = boot(found, files, plain, cmdline, {RING3: TWIN}) if plain else {}
            title = f"{name} ({cmdline or 'no parameter'})"
            tables.append(table(title, unpatched.get(RING3), both[RING3], {"UKL": both[CPL0], "BYP": byp[CPL0]}))
    return report.Report("instructions", report.machine(found.host.env), tuple(tables))


def boot(
    found: bench.Bench, files: BootFiles, kernel: Path, cmdline: str, programs: Mapping[int, Program]
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


def table(title: str, plain: Counts | None, ring3: Counts, ukl: Mapping[str, Counts]) -> report.Table:
    """``ukl``: what the program counted in the kernel, by name; by the instruction and, where known, by calls."""
    rows: list[tuple[report.Cell, ...]] = []
    for name, label in OPERATIONS.items():
        before = ring3.minimum[name]
        row: list[report.Cell] = [label, *((plain.minimum[name],) if plain else ()), before]
        for counts in ukl.values():
            for key in (name, CALLED + name):
                after = counts.minimum.get(key)
                row += [None, None] if after is None else [after, after / before]
        rows.append(tuple(row))
    columns = ["operation", *(("without patches",) if plain else ()), "ring 3"]
    for name in ukl:
        columns += [name, "ratio", f"{name}, called", "ratio"]
    cleared = next(iter(ukl.values())).minimum[CLEAR]
    note = f"{cleared:,} instructions of each fault that writes are `rep stosb`, which clears the page."
    return report.Table(title, tuple(columns), tuple(rows), note)


if __name__ == "__main__":
    sys.exit(main())
