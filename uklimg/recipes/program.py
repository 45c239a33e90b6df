"""The recipe of the plain-Linux twin's program: an ordinary process in ring 3. Pure.

The work is done by ``uklimg/inside/program.py`` inside the build stage's container.
"""

from __future__ import annotations

from collections.abc import Mapping

from uklimg.graph import Container, Output, Step
from uklimg.recipes.scripts import HOME, python, scripts

RECIPE_VERSION = 1


def step_id(name: str) -> str:
    return f"program:{name}"


def program_step(*, name: str, program: str, stage: str, inside: Mapping[str, bytes]) -> Step:
    """A TREE step: ``<name>`` as it is run, ``<name>.debug`` with its symbols.

    ``stage`` is the step whose root file system has ``program``, which the compiler wrapper linked; ``inside`` the
    contents of the package's folder of this name.
    """
    return Step(
        id=step_id(name),
        title=f"take {program} as an ordinary program",
        recipe="program",
        recipe_version=RECIPE_VERSION,
        action=Container(rootfs=stage, argv=python("inside/program.py", program, "--out", f"/out/{name}")),
        inputs={f"{HOME}/inside": scripts(inside, "program.py", "app.py")},
    )


def executable(name: str) -> Output:
    """The program, as an input of another step."""
    return Output(step_id(name), name)
