"""A report as JSON and as text. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from uklimg.bench.model import Case, Measure, Report, SuiteResult, Value, Variant

VERSION = 1
_WIDTH = 118
_SAYS = {
    Measure.INSTRUCTIONS: "guest instructions (emulated, counted by QEMU: no time is measured)",
    Measure.TIME: "nanoseconds",
}


def as_json(report: Report) -> Mapping[str, object]:
    """By docs/bench.schema.json."""
    return {
        "version": VERSION,
        "measure": report.measure.value,
        "facts": dict(report.facts),
        "variants": [
            {
                "name": variant.name,
                "target": "linux" if variant.twin else "ukl",
                "ukl": list(variant.ukl),
                "glibc": variant.glibc,
            }
            for variant in report.variants
        ],
        "suites": [_suite(result, report.variants) for result in report.suites],
    }


def _suite(result: SuiteResult, variants: Sequence[Variant]) -> object:
    return {
        "name": result.suite,
        "title": result.title,
        "note": result.note,
        "cases": [
            {
                "case": case.name.name,
                "size": case.name.size,
                "unit": case.unit,
                "values": {
                    variant.name: _value(case, variant.name, case.values[variant.name])
                    for variant in variants
                    if variant.name in case.values
                },
                "paper": {name: {"ratio": ratio, "source": source} for name, (ratio, source) in case.paper.items()},
            }
            for case in result.cases
        ],
    }


def _value(case: Case, variant: str, value: Value) -> object:
    return {"value": value.value, "ratio": case.ratio(variant), "percentiles": dict(value.percentiles)}


def as_text(report: Report) -> str:
    """Tables in Markdown, with columns one below the other."""
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items() if value != "")
    parts = [f"Measured: {_SAYS[report.measure]}. Less is better; ratios are to plain Linux (linux = 1.00).\n{facts}"]
    for result in report.suites:
        parts.append(f"{result.suite}: {result.title}\n\n{_table(result, report)}")
        if result.note:
            parts.append(textwrap.fill(result.note, _WIDTH))
        if report.measure is Measure.TIME and any(v.percentiles for c in result.cases for v in c.values.values()):
            parts.append(_percentiles(result, report.variants))
    return "\n\n".join(parts)


def _table(result: SuiteResult, report: Report) -> str:
    """What is of another unit than the report says so; a column of the paper's figures where there are any."""
    others = [variant for variant in report.variants if not variant.twin]
    columns = ["", "linux", *(word for variant in others for word in (variant.name, "ratio"))]
    rows = []
    for case in result.cases:
        linux = case.values.get("linux")
        label = case.name.label + ("" if case.unit == report.measure.value else f" ({case.unit})")
        row = [label, _number(linux.value if linux else None)]
        for variant in others:
            value = case.values.get(variant.name)
            row += [_number(value.value if value else None), _ratio(case.ratio(variant.name))]
        rows.append(row)
    if any(case.paper for case in result.cases):
        columns.append("the paper")
        rows = [[*row, _paper(case.paper)] for row, case in zip(rows, result.cases, strict=True)]
    return markdown(columns, rows)


def _percentiles(result: SuiteResult, variants: Sequence[Variant]) -> str:
    """Of the samples of each case: median and tail, by variant."""
    labels = ("p50", "p90", "p99", "p99.9")
    rows = [
        [case.name.label, variant.name, *(_number(value.percentiles.get(label)) for label in labels)]
        for case in result.cases
        for variant in variants
        if (value := case.values.get(variant.name)) is not None and value.percentiles
    ]
    return markdown(["latency", "", *labels], rows)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _paper(figures: Mapping[str, tuple[float, str]]) -> str:
    return "; ".join(f"{name} {ratio:.2f} ({source})" for name, (ratio, source) in figures.items())


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[at]) for line in lines)) for at in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {first[0]:{first[1]}} |" + "".join(f" {cell:>{width}} |" for cell, width in others)

    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return "\n".join([line(lines[0]), rule, *(line(cells) for cells in lines[1:])])
