"""docs/uklfile.md: every example is sound, together they show every directive. (test_docs_build.py builds some.)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from test_plan import ASSETS
from test_plan import SERIES as KERNEL
from test_resolve import Archive, Folders

from uklimg.data import Data, find_data
from uklimg.definitions import SourceFolder
from uklimg.digest import Digest
from uklimg.errors import Location, UserErrors
from uklimg.graph import ContextTree
from uklimg.lock import Lock
from uklimg.plan import Selected, plan
from uklimg.resolve import resolve
from uklimg.spec import SeriesInfo, read_spec
from uklimg.uklfile.directives import RULES

pytestmark = pytest.mark.unit

DOC = Path(__file__).parents[2] / "docs/uklfile.md"
BUILD = "FROM debian:trixie AS build\n{}FROM ukl:6.12\nLINK --from=build /p\n"
IMAGE = "FROM debian:trixie AS build\nRUN x\nFROM ukl:6.12\n{}"


class Recipes(Folders):
    """With the libraries that there are."""

    def library(self, name: str, /) -> SourceFolder:
        return Data(find_data()).library(name)


@dataclass(frozen=True)
class Example:
    """``kind``: "" for a whole Uklfile, "build" or "image" for lines of a stage. ``built``: a test builds it."""

    line: int
    kind: str
    built: bool
    body: str

    @property
    def text(self) -> str:
        if self.kind == "build":
            return BUILD.format(self.body)
        if self.kind == "image":
            return IMAGE.format(self.body if "LINK" in self.body else f"{self.body}LINK --from=build /p\n")
        return self.body


def examples() -> list[Example]:
    text = DOC.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```uklfile([ a-z]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        words = match[1].split()
        kind = next((word for word in words if word in ("build", "image")), "")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Example(line, kind, "run" in words, match[2]))
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda example: f"line-{example.line}")
def test_every_example_is_sound(example: Example) -> None:
    data = Data(find_data())
    series = {name: SeriesInfo(name, tuple(data.kernel(name).definition.ukl)) for name in data.kernels()}
    spec = read_spec(example.text, "f", build_args={}, base_images=data.base_images(), series=series)
    odd = [text for _, text in spec.warnings if "cache" not in text and "not kept to" not in text]
    assert not odd

    def select(sources: Sequence[str], exclude: Sequence[str], place: Location) -> Selected:
        return Selected(ContextTree(Digest.of_json([*sources]), "/context", tuple(sources)), tuple(sources))

    try:
        kernel = replace(KERNEL, definition=replace(KERNEL.definition, ukl=data.kernel("6.12").definition.ukl))
        plan(resolve(spec, Lock(), Recipes(series=kernel), Archive()), select, ASSETS)
    except UserErrors as errors:
        # The page says itself what is refused so far.
        assert "refused" in DOC.read_text(encoding="utf-8")
        assert all(error.message.startswith("this version of uklimg") for error in errors.errors), errors.line()


def test_every_directive_is_shown() -> None:
    shown = {word for example in examples() for word in re.findall(r"^([A-Z]+)\b", example.text, re.MULTILINE)}
    assert set(RULES) <= shown
    text = DOC.read_text(encoding="utf-8")
    for name in RULES:
        assert f"`{name}" in text


def test_links_lead_somewhere() -> None:
    text = DOC.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert target in headings
    for target in re.findall(r"\]\(([^#)][^)]*\.md)\)", text):
        assert (DOC.parent / target).is_file()
