"""The recipe of PID 1. Pure: the caller reads ``uklimg/guest/init.c`` (the module's SOURCE) and passes its bytes."""

from __future__ import annotations

from uklimg.graph import Container, Inline, InlineFile, Step

RECIPE_VERSION = 1
STEP_ID = "init"
SOURCE = "guest/init.c"  # below the package's folder
OUTPUT = "init"
_FOLDER = "/ukl/init"


def compile_cmd(source: str, output: str, compiler: str = "gcc") -> tuple[str, ...]:
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
        source,
    )


def init_step(base: str, source: bytes) -> Step:
    """A TREE step: ``/init``, built in the rootfs of step ``base`` with that image's own gcc."""
    return Step(
        id=STEP_ID,
        title="compile PID 1",
        recipe="init",
        recipe_version=RECIPE_VERSION,
        action=Container(
            rootfs=base,
            argv=compile_cmd(f"{_FOLDER}/init.c", f"/out/{OUTPUT}"),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        ),
        inputs={_FOLDER: Inline((InlineFile("init.c", source),))},
    )
