"""The recipe of PID 1. Pure: the caller reads its sources (the module's SOURCES) and passes their bytes."""

from __future__ import annotations

from collections.abc import Mapping

from uklimg.graph import Container, Inline, InlineFile, Step

RECIPE_VERSION = 1
STEP_ID = "init"
FOLDER = "guest"  # below the package's
SOURCES = ("init.c", "commands.c", "commands.h")
OUTPUT = "init"
_FOLDER = "/ukl/init"


def compile_cmd(folder: str, output: str, compiler: str = "gcc") -> tuple[str, ...]:
    """The compiler's argument list: an ordinary static program, with nothing of the place of building in it."""
    return (
        compiler,
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fno-pie",
        "-no-pie",
        "-static",
        "-s",
        "-Wl,--build-id=none",
        "-Wl,-z,noexecstack",
        "-o",
        output,
        *(f"{folder}/{name}" for name in SOURCES if name.endswith(".c")),
    )


def init_step(base: str, sources: Mapping[str, bytes]) -> Step:
    """A TREE step: ``/init``, built in the rootfs of step ``base`` with that image's own gcc."""
    return Step(
        id=STEP_ID,
        title="compile PID 1",
        recipe="init",
        recipe_version=RECIPE_VERSION,
        action=Container(
            rootfs=base,
            argv=compile_cmd(_FOLDER, f"/out/{OUTPUT}"),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        ),
        inputs={_FOLDER: Inline(tuple(InlineFile(name, sources[name]) for name in SOURCES))},
    )
