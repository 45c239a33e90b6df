"""The paper's figures: reading of workloads/paper.toml. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uklimg.bench.model import CaseName, Measure, Variant
from uklimg.errors import InternalError


@dataclass(frozen=True)
class Figure:
    """``ratio``: what is left of what Linux takes; of a throughput, its inverse. ``measure``: what alone it compares
    with, None where the paper measured but one thing."""

    source: str
    suite: str
    case: CaseName
    options: frozenset[str]
    ratio: float
    measure: Measure | None = None


def parse_paper(text: str) -> tuple[Figure, ...]:
    """InternalError for what cannot be right: the file is ours."""
    try:
        return tuple(_figure(item) for item in tomllib.loads(text)["paper"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise InternalError(f"the paper's figures: {error!r}") from error


def _figure(item: Mapping[str, object]) -> Figure:
    size = item.get("size")
    if not (size is None or isinstance(size, int)):
        raise TypeError("size")
    if "improvement" in item:
        ratio = 1 - float(str(item["improvement"]))
    else:
        linux, ukl = float(str(item["linux"])), float(str(item["ukl"]))
        ratio = {"less": ukl / linux, "more": linux / ukl}[str(item["better"])]
    name, options = CaseName(str(item["case"]), size), frozenset(str(item["variant"]).split())
    measure = Measure(str(item["measure"])) if "measure" in item else None
    return Figure(str(item["source"]), str(item["suite"]), name, options, ratio, measure)


def beside(
    figures: Sequence[Figure], suite: str, case: CaseName, variants: Sequence[Variant], measure: Measure
) -> dict[str, tuple[float, str]]:
    """What the paper has for a case of ours, by our variants' names; the C library does not matter for it."""
    return {
        variant.name: (figure.ratio, figure.source)
        for variant in variants
        for figure in figures
        if not variant.twin
        and figure.measure in (None, measure)
        and (figure.suite, figure.case, figure.options) == (suite, case, frozenset(variant.ukl))
    }
