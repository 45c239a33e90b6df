"""How large what we make is: the image's files, the application in it, and the kernel patches."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import bench, report
from uklimg.link.elf import PF_X, PT_LOAD, Elf
from uklimg.recipes import app as app_recipe
from uklimg.recipes import kernel as kernel_recipe

MODULE = "benchmarks.sizes"


def main() -> int:
    top = bench.parser(MODULE, "Sizes of Uklfile.example's image and of the kernel patches.")
    args = top.parse_args()
    return bench.run(args, measure)


def measure(found: bench.Bench) -> report.Report:
    graph = found.example()
    with found.booted(graph) as files:
        app = next(step.id for step in graph.steps if step.id.startswith(app_recipe.step_id("")))
        rows = [
            ("vmlinux with the application", _size(files.vmlinux)),
            ("bzImage with the application", _size(files.bzimage)),
            ("initramfs", _size(files.initramfs)),
            *_application(found.tree(graph, app)),
            ("kernel without it: what is loaded", _loaded(found.tree(graph, kernel_recipe.STEP_ID) / "vmlinux")),
        ]
    tables = [report.Table("Image of Redis", ("what", "bytes"), tuple(rows))]
    data = found.host.data()
    tables += [patches(series, data.kernel(series).patches.added_lines()) for series in data.kernels()]
    return report.Report("sizes", report.machine(found.host.env), tuple(tables))


def patches(series: str, added: Mapping[str, int]) -> report.Table:
    """Lines that the patches of ``series`` add, by file."""
    rows = (*added.items(), (f"{len(added)} files", sum(added.values())))
    return report.Table(f"Lines that the patches of Linux {series} add", ("file", "lines"), tuple(rows))


def _size(path: Path) -> int:
    return path.stat().st_size


def _application(folder: Path) -> list[tuple[str, int]]:
    """Of the linked ELF file: code, what lies at user addresses in the file, and what is zero at the start."""
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    program = Elf((folder / f"{info['name']}.debug").read_bytes())
    loads = [segment for segment in program.segments() if segment.type == PT_LOAD and not segment.flags & PF_X]
    return [
        ("application: code", int(info["text_size"])),
        ("application: constants and data", sum(segment.filesz for segment in loads)),
        ("application: zero at the start (bss)", sum(segment.memsz - segment.filesz for segment in loads)),
    ]


def _loaded(vmlinux: Path) -> int:
    """Bytes of its segments in the file, without the room for an application."""
    program = Elf(vmlinux.read_bytes())
    room = program.section(".ukl_app")
    loads = [s for s in program.segments() if s.type == PT_LOAD and s.vaddr != room.addr]
    return sum(segment.filesz for segment in loads)


if __name__ == "__main__":
    sys.exit(main())
