"""What `explain` and `plan` say of a changed Uklfile: expected texts in tests/golden/explain.

UPDATE_GOLDEN=1 writes the expected files anew; look at the difference before committing it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from test_plan import ASSETS, SERIES
from test_resolve import Archive, Folders

from uklimg import context
from uklimg.cli import explain
from uklimg.cli import plan as plan_verb
from uklimg.cli.outlooks import Looked
from uklimg.context import open_context
from uklimg.digest import JSON, Digest
from uklimg.errors import ExitCode, Location, UserError
from uklimg.graph import ContextTree, Graph
from uklimg.lock import Lock
from uklimg.outlook import Earlier, Past
from uklimg.plan import Assets, Options, Selected, plan
from uklimg.project import selected
from uklimg.resolve import resolve
from uklimg.spec import SeriesInfo, build_spec
from uklimg.uklfile.parser import parse

pytestmark = pytest.mark.golden

HERE = Path(__file__).parents[1] / "golden/explain"
UKLFILE = """FROM debian:trixie AS build
ENV CFLAGS=-O2
COPY src /src/
COPY fix.patch /src/
RUN make -C /src PREFIX=/usr all
FROM ukl:6.12
KCONFIG EXT4_FS=y
LINK --from=build /src/server
COPY --from=build /src/server.conf /etc/
CMD ["server", "--port", "80"]
"""
FILES = {
    "src/main.c": "int main;",
    "src/lib/util.c": "int util;",
    "src/configure": "#!/bin/sh",
    "fix.patch": "-a\n+b\n",
}


@dataclass
class World:
    """A build context, and what was built of it before."""

    folder: Path
    past: list[Earlier] = field(default_factory=list)
    listings: dict[str, JSON] = field(default_factory=dict)
    hits: dict[Digest, bool] = field(default_factory=dict)

    def write(self, files: Mapping[str, str | None]) -> None:
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            else:
                path.write_text(content)

    def graph(self, text: str, assets: Assets = ASSETS, options: Options | None = None) -> Graph:
        opened = open_context(self.folder)

        def select(sources: Sequence[str], exclude: Sequence[str], place: Location) -> Selected:
            return selected(opened.select(sources, exclude=exclude, location=place), sources)

        series = {"6.12": SeriesInfo("6.12", ("NSS",))}
        spec = build_spec(parse(text, "Uklfile"), build_args={}, base_images=["debian-trixie"], series=series)
        kernels = replace(SERIES, configs={"base": b"CONFIG_A=y\n"})
        return plan(resolve(spec, Lock(), Folders(series=kernels), Archive()), select, assets, options).graph

    def build(self, text: str = UKLFILE, when: float = 1, *, listed: bool = True, assets: Assets = ASSETS) -> Graph:
        """As if it had been built: each step has a record, and took as many seconds as its number."""
        graph = self.graph(text, assets)
        for number, step in enumerate(graph.steps, 1):
            fields = json.loads(json.dumps(step.key_fields(graph.keys)))
            self.past.append(Earlier(graph.keys[step.id], step.id, fields, when, float(number)))
            self.hits[graph.keys[step.id]] = True
            for item in step.inputs.values():
                if isinstance(item, ContextTree) and listed:
                    self.listings[str(item.digest)] = json.loads(context.listing(item))
        return graph

    def look(self, text: str = UKLFILE, *, again: bool = False, assets: Assets = ASSETS) -> Looked:
        graph = self.graph(text, assets)
        hits = frozenset(step.id for step in graph.steps if self.hits.get(graph.keys[step.id]))
        now = {str(i.digest): i for step in graph.steps for i in step.inputs.values() if isinstance(i, ContextTree)}

        def listing(digest: str) -> JSON:
            found: JSON = json.loads(context.listing(now[digest])) if digest in now else self.listings.get(digest)
            return found

        return Looked(graph, hits, listing, lambda: Past(self.past), again)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.write(FILES)
    return made


def edit(old: str, new: str) -> Callable[[World], Looked]:
    def change(world: World) -> Looked:
        world.build()
        assert old in UKLFILE
        return world.look(UKLFILE.replace(old, new))

    return change


def files(world: World) -> Looked:
    world.build()
    world.write(
        {"src/main.c": "int main2;", "src/lib/util.c": None, "src/lib/new.c": "x", "src/configure": "#!/bin/sh"}
    )
    (world.folder / "src/configure").chmod(0o755)
    return world.look()


def unlisted(world: World) -> Looked:
    world.build(listed=False)
    world.write({"src/main.c": "int main2;"})
    return world.look()


def two_causes(world: World) -> Looked:
    world.build()
    world.write({"fix.patch": "-a\n+c\n"})
    return world.look(UKLFILE.replace("EXT4_FS=y", "EXT4_FS=y VIRTIO_BLK=y"))


def nearest_of_two_projects(world: World) -> Looked:
    """Another project was built later, with the same names of steps."""
    world.build(when=1)
    world.build(UKLFILE.replace("RUN make -C /src PREFIX=/usr all", "RUN cmake -B /out /src && ninja"), when=2)
    return world.look(UKLFILE.replace("PREFIX=/usr all", "PREFIX=/usr/local all"))


def first_build(world: World) -> Looked:
    return world.look()


def other_stage(world: World) -> Looked:
    world.build()
    return world.look(UKLFILE.replace("build", "compile").replace("-O2", "-O3"))


def inserted(world: World) -> Looked:
    world.build()
    return world.look(UKLFILE.replace("RUN make", "RUN ./src/configure\nRUN make"))


def lost(world: World) -> Looked:
    graph = world.build()
    for step in ("image", "initramfs", "init"):
        world.hits[graph.keys[step]] = False
    return world.look()


def again(world: World) -> Looked:
    world.build()
    return world.look(again=True)


def nothing(world: World) -> Looked:
    world.build()
    return world.look()


def scripts(world: World) -> Looked:
    world.build()
    return world.look(assets=replace(ASSETS, link={**ASSETS.link, "kit.py": b"new"}))


LONG = "RUN set -eux; ./configure --prefix=/usr --disable-shared --enable-static; make -j$(nproc); make install"


def long_command(world: World) -> Looked:
    text = UKLFILE.replace("RUN make -C /src PREFIX=/usr all", LONG)
    world.build(text)
    return world.look(text.replace("--disable-shared", "--disable-shared --without-x"))


CASES: Mapping[str, Callable[[World], Looked]] = {
    "env": edit("-O2", "-O3"),
    "kconfig": edit("EXT4_FS=y", "EXT4_FS=m"),
    "command": edit('"80"', '"80", "-v"'),
    "no-kconfig": edit("KCONFIG EXT4_FS=y\n", ""),
    "option": edit("KCONFIG", "UKL NSS\nKCONFIG"),
    "files": files,
    "unlisted": unlisted,
    "two-causes": two_causes,
    "nearest": nearest_of_two_projects,
    "first": first_build,
    "other-stage": other_stage,
    "inserted": inserted,
    "lost": lost,
    "again": again,
    "nothing": nothing,
    "scripts": scripts,
    "long": long_command,
}


def check(name: str, text: str) -> None:
    # Keys change with whatever recipes say.
    text = re.sub(r"\b[0-9a-f]{12}\b", "KEY", text) + "\n"
    path = HERE / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("case", CASES)
def test_explain_and_plan(world: World, case: str) -> None:
    looked = CASES[case](world)
    check(f"{case}.txt", explain.text(looked))
    check(f"{case}.plan.txt", plan_verb.text(looked.found))


def test_a_step_that_need_not_run_is_compared_too(world: World) -> None:
    edit("-O2", "-O3")(world)
    world.build(UKLFILE.replace("-O2", "-O3"))
    looked = world.look()
    check("one.txt", explain.text(looked, "stage:build:3"))


def test_a_step_that_is_not_there(world: World) -> None:
    with pytest.raises(UserError) as caught:
        explain.text(nothing(world), "stage:build:33")
    assert caught.value.line() == "no step 'stage:build:33' (did you mean stage:build:3?)"
    assert caught.value.exit_code is ExitCode.NOT_FOUND


def test_every_golden_file_has_a_case() -> None:
    expected = {"one.txt", *(f"{name}{end}" for name in CASES for end in (".txt", ".plan.txt"))}
    assert {path.name for path in HERE.iterdir()} == expected
