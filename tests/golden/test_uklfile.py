"""Uklfiles against what they mean (spec.json, plan.txt, ast.json) or what is wrong with them (errors.txt).

A folder each; README.md says what is in it. UPDATE_GOLDEN=1 writes the expected files anew.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_plan import ASSETS
from test_plan import SERIES as KERNEL
from test_resolve import Archive, Folders

from uklimg.digest import Digest
from uklimg.errors import Location, UserErrors
from uklimg.graph import ContextTree
from uklimg.lock import Lock
from uklimg.plan import Selected, plan
from uklimg.resolve import resolve
from uklimg.spec import SeriesInfo, Spec, read_spec
from uklimg.uklfile.parser import parse

pytestmark = pytest.mark.golden

HERE = Path(__file__).parent / "uklfile"
EXAMPLE = Path(__file__).parents[2] / "Uklfile.example"
CASES = sorted(path.name for path in HERE.iterdir() if path.is_dir())
SERIES = {
    "6.12": SeriesInfo("6.12", ("BYP", "RET", "NSS", "NSS_PS", "PF_DF", "PF_SS", "SHORTCUT", "RTC")),
    "6.6": SeriesInfo("6.6", ()),
}
BASES = ("debian-trixie", "debian-bookworm")
EMPTY: tuple[object, ...] = ((), "", None, False, frozenset())


def dump(value: object) -> object:
    """A structure for JSON: dataclasses with their names and without empty fields, places as line:column."""
    if isinstance(value, Location):
        return f"{value.line}:{value.column}"
    if isinstance(value, Digest):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, tuple):
        return [dump(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(map(str, value))
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        kept = {name: dump(item) for name, item in fields.items() if item not in EMPTY}
        return {"": type(value).__name__, **kept}
    return value


def as_json(value: object) -> str:
    return json.dumps(dump(value), indent=1, ensure_ascii=False) + "\n"


def steps(spec: Spec) -> str:
    """The plan as text: a step a line, and below it what it needs."""

    def select(sources: Sequence[str], exclude: Sequence[str], place: Location) -> Selected:
        return Selected(ContextTree(Digest.of_json([*sources]), "/context", tuple(sources)), tuple(sources))

    try:
        made = plan(resolve(spec, Lock(), Folders(series=KERNEL), Archive()), select, ASSETS)
    except UserErrors as error:
        return error.line() + "\n"
    lines = []
    for step in sorted(made.graph.steps, key=lambda step: step.id):
        needs = f"\n    needs {', '.join(step.needs())}" if step.needs() else ""
        lines.append(f"{step.id}: {step.title}{needs}\n")
    return "".join(lines) + "".join(f"warning {place}: {text}\n" for place, text in made.warnings)


def result(text: str) -> tuple[str, str, Spec | None]:
    """The name of the expected file, what it should hold, and the Spec."""
    try:
        spec = read_spec(text, "Uklfile", build_args={"GIVEN": "given"}, base_images=BASES, series=SERIES)
    except UserErrors as error:
        return "errors.txt", error.line() + "\n", None
    return "spec.json", as_json(spec), spec


def check(folder: Path, name: str, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        (folder / name).write_text(text, encoding="utf-8", newline="")
    assert (folder / name).is_file(), f"not {name} was expected, but this is: {text}"
    assert text == (folder / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_uklfile(case: str) -> None:
    folder = HERE / case
    path = folder / "Uklfile" if case != "example" else EXAMPLE
    text = path.read_bytes().decode()
    name, expected, spec = result(text)
    if os.environ.get("UPDATE_GOLDEN"):
        for stale in {"spec.json", "errors.txt"} - {name}:
            (folder / stale).unlink(missing_ok=True)
    check(folder, name, expected)
    if (folder / "plan.txt").exists():
        assert spec is not None, f"only a sound Uklfile has a plan: {expected}"
        check(folder, "plan.txt", steps(spec))
    if (folder / "ast.json").exists():
        check(folder, "ast.json", as_json(parse(text, "Uklfile")))


def test_every_error_has_its_place_and_a_hint() -> None:
    lines = [line for path in HERE.glob("*/errors.txt") for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 150
    assert not [line for line in lines if not re.match(r"Uklfile:[1-9][0-9]*:[1-9][0-9]*: \S", line)]
    assert not [line for line in lines if not line.endswith(")")]


def test_the_catalogue_is_a_good_one() -> None:
    assert len(CASES) >= 60
    assert sum((HERE / case / "plan.txt").exists() for case in CASES) >= 8
