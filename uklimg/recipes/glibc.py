"""The recipes of a libc of ours: one TREE step, which any image shares, and its place in build stages. Pure.

The work is done by ``uklimg/inside/glibc.py`` inside the base image's container.
"""

from __future__ import annotations

from collections.abc import Mapping

from uklimg.definitions import SourceFolder
from uklimg.graph import Blob, Container, Inline, InlineFile, Kind, Output, Step
from uklimg.recipes.scripts import HOME, python, scripts
from uklimg.recipes.toolchain import LIBC

RECIPE_VERSION = 1
_KIT = "/in/libc"
# Beside the compiler wrapper, which looks there (uklimg/toolchain/driver.py).
_INSTALL = 'mkdir -p "$2" && cp -R --no-preserve=all "$1/." "$2" && touch --date=@0 "$2"'


def step_id(base: str, version: str) -> str:
    """The step that builds our glibc ``version`` in the base image ``base``."""
    return f"glibc:{base}:{version}"


def glibc_step(step_id: str, below: str, folder: SourceFolder, inside: Mapping[str, bytes]) -> Step:
    """A TREE step: archives and start files.

    ``below`` is the step whose root file system has the compiler and the packages that the build needs.
    """
    definition = folder.definition
    source = f"/in/source/{definition.file.name}"
    return Step(
        id=step_id,
        title=f"glibc {definition.version}",
        recipe="glibc",
        recipe_version=RECIPE_VERSION,
        action=Container(
            rootfs=below,
            argv=python(
                "inside/glibc.py",
                *("--source", source),
                *("--patches", "/in/patches"),
                *("--home", LIBC),
                *("--out", "/out"),
            ),
        ),
        inputs={
            f"{HOME}/inside": scripts(inside, "glibc.py", "source.py"),
            source: Blob(definition.file.name, definition.file.digest, definition.file.size, definition.urls),
            "/in/patches": Inline(tuple(InlineFile(p.name, p.content) for p in folder.patches.patches)),
        },
    )


def libc_step(step_id: str, below: str, kit: str) -> Step:
    """A ROOTFS step: the kit of step ``kit`` where the compiler wrapper of ``below`` finds it."""
    return Step(
        id=step_id,
        title="libc of the build stages",
        recipe="libc",
        recipe_version=RECIPE_VERSION,
        action=Container(rootfs=below, argv=("/bin/sh", "-ec", _INSTALL, "sh", _KIT, LIBC)),
        inputs={_KIT: Output(kit)},
        kind=Kind.ROOTFS,
    )
