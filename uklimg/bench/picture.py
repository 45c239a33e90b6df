"""A report as bars: what is left of what plain Linux takes. Drawn with matplotlib, imported when it is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uklimg.bench.model import Report, SuiteResult
from uklimg.errors import ToolError, UserError

SUFFIXES = (".svg", ".png")
_PAPER = "the paper"


def check(path: Path) -> None:
    """Say before the measurement what would fail after it. UserError, ToolError."""
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path} is no picture that could be drawn", hint=f"a name that ends in {' or '.join(SUFFIXES)}"
        )
    _library()


def _library() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ToolError("a picture needs matplotlib", hint="pip install 'uklimg[bench]'") from error
    return matplotlib


def draw(report: Report, path: Path) -> None:
    """Write ``path``, a .svg or .png. The bytes depend on the report and on matplotlib's version alone."""
    matplotlib = _library()
    from matplotlib.figure import Figure

    results = [result for result in report.suites if result.cases]
    with matplotlib.rc_context({"svg.hashsalt": "uklimg", "font.size": 8}):
        height = sum(0.9 + 0.16 * _bars(result, report) for result in results) or 1.0
        figure = Figure(figsize=(8.0, height), layout="constrained")
        ratios = [0.9 + 0.16 * _bars(result, report) for result in results]
        axes = figure.subplots(len(results) or 1, 1, squeeze=False, height_ratios=ratios or [1.0])
        for axis, result in zip(axes[:, 0], results, strict=False):
            _suite(axis, result, report)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        try:
            figure.savefig(path, metadata=metadata, dpi=150)
        except OSError as error:
            raise ToolError(f"cannot write {path}: {error.strerror}") from error


def _bars(result: SuiteResult, report: Report) -> int:
    return len(result.cases) * len(report.variants)


def _suite(axis: Any, result: SuiteResult, report: Report) -> None:
    """Horizontal bars, a group for each case, the first case on top; the paper's ratio is a mark on its bar."""
    variants = [variant for variant in report.variants if not variant.twin]
    thickness = 0.8 / max(1, len(variants))
    for number, variant in enumerate(variants):
        places, lengths, names, marks = [], [], [], []
        for row, case in enumerate(result.cases):
            ratio, place = case.ratio(variant.name), row + (number - (len(variants) - 1) / 2) * thickness
            if ratio is not None:
                places.append(place)
                lengths.append(ratio)
                names.append(f"{result.suite}-{variant.name}-{case.name.label}")
            if variant.name in case.paper:
                name = f"{result.suite}-{variant.name}-{case.name.label}"
                marks.append((case.paper[variant.name][0], place, name))
        bars = axis.barh(places, lengths, thickness, label=variant.name)
        axis.bar_label(bars, [f"{length:.3f}" for length in lengths], padding=2, fontsize=6)
        for bar, name in zip(bars, names, strict=True):
            bar.set_gid(f"bar-{name}")
        for x, y, name in marks:
            (mark,) = axis.plot([x], [y], marker="D", markersize=3, color="black", linestyle="none")
            mark.set_gid(f"paper-{name}")
    if any(case.paper for case in result.cases):
        axis.plot([], [], marker="D", markersize=3, color="black", linestyle="none", label=_PAPER)
    axis.axvline(1.0, color="grey", linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(result.cases)), [case.name.label for case in result.cases])
    axis.margins(y=0.01)
    axis.invert_yaxis()
    units = ", ".join(dict.fromkeys(case.unit for case in result.cases))
    axis.set_title(f"{result.suite}: {result.title} (linux = 1, {units})", fontsize=9, loc="left")
    axis.set_xlim(left=0)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
