"""Tables on standard output, and the same as JSON in a file. Pure but for ``machine``, ``show`` and ``write``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO, TypeAlias

from uklimg.runner.qemu import Qemu

Cell: TypeAlias = "str | int | float | None"


@dataclass(frozen=True)
class Table:
    """``rows`` have a cell for each of ``columns``; None where there is nothing to say. ``note`` goes below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a benchmark found. ``machine`` is what a reader must know of where it was found."""

    benchmark: str
    machine: Mapping[str, Cell]
    tables: tuple[Table, ...] = field(default_factory=tuple)


def machine(env: Mapping[str, str]) -> dict[str, Cell]:
    """Date, processors, load, QEMU; nothing that names this machine."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processors": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "qemu": Qemu().version(env),
    }


def text(cell: Cell) -> str:
    """Numbers with what digits they are worth."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.2f}" if cell < 100 else f"{cell:.0f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def render(table: Table) -> str:
    """The table in Markdown with columns one below the other, so that it can be pasted into a page."""
    lines = [table.columns, *(tuple(text(cell) for cell in row) for row in table.rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(table.columns))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell for cell in zip(cells, widths, strict=True))
        return f"| {first[0]:{first[1]}} |" + "".join(f" {cell:>{width}} |" for cell, width in others)

    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    parts = [f"{table.title}\n", line(lines[0]), rule, *(line(cells) for cells in lines[1:])]
    return "\n".join([*parts, *([f"\n{table.note}"] if table.note else [])])


def show(report: Report, out: TextIO) -> None:
    facts = ", ".join(f"{name} {text(value)}" for name, value in report.machine.items())
    out.write(f"{report.benchmark}: {facts}\n")
    for table in report.tables:
        out.write(f"\n{render(table)}\n")
    out.flush()


def write(report: Report, path: Path) -> None:
    value = {
        "benchmark": report.benchmark,
        "machine": dict(report.machine),
        "tables": [
            {
                "title": table.title,
                "note": table.note,
                "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows],
            }
            for table in report.tables
        ],
    }
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
