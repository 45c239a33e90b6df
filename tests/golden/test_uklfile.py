"""Uklfiles against what they mean (spec.json) or what is wrong with them (errors.txt), a folder each.

UPDATE_GOLDEN=1 writes the expected files anew; look at the difference before committing it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from uklimg.digest import Digest
from uklimg.errors import Location, UserErrors
from uklimg.spec import SeriesInfo, build_spec
from uklimg.uklfile import ast
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
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        kept = {name: dump(item) for name, item in fields.items() if item not in ((), "", None, False)}
        return {"": type(value).__name__, **kept}
    return value


def result(text: str) -> tuple[str, str]:
    """The name of the expected file, and what it should hold."""
    try:
        tree = parse(text, "Uklfile")
        spec = build_spec(tree, build_args={"GIVEN": "given"}, base_images=BASES, series=SERIES)
    except UserErrors as error:
        return "errors.txt", error.line() + "\n"
    return "spec.json", json.dumps(dump(spec), indent=1, ensure_ascii=False) + "\n"


def check(folder: Path, name: str, text: str) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        for stale in ("spec.json", "errors.txt"):
            (folder / stale).unlink(missing_ok=True)
        (folder / name).write_text(text, newline="")
    assert (folder / name).is_file(), f"not {name} was expected, but this is: {text}"
    assert text == (folder / name).read_text()


@pytest.mark.parametrize("case", CASES)
def test_uklfile(case: str) -> None:
    folder = HERE / case
    text = (folder / "Uklfile").read_text(encoding="utf-8") if case != "example" else EXAMPLE.read_text()
    check(folder, *result(text))


def test_tree_keeps_everything_as_written() -> None:
    """The syntax tree of the largest case: places, flags, quotes, heredocs."""
    tree: ast.Uklfile = parse((HERE / "everything" / "Uklfile").read_text(), "Uklfile")
    text = json.dumps(dump(tree), indent=1, ensure_ascii=False) + "\n"
    expected = HERE / "everything" / "ast.json"
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(text)
    assert text == expected.read_text()
