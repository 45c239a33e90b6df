"""The recipe of the bzImage: a vmlinux with its application, packed by the kernel's own commands. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from uklimg.graph import Container, Output, Step
from uklimg.recipes.scripts import HOME, python, scripts

STEP_ID = "bzimage"
RECIPE_VERSION = 1


def bzimage_step(*, base: str, kit: str, app: str, link: Mapping[str, bytes]) -> Step:
    """A TREE step: ``bzImage`` of the ``vmlinux`` of step ``app``, made in the rootfs of step ``base``."""
    argv = python("link/bzimage.py", "--kit", "/in/kit", "--vmlinux", "/in/vmlinux", "--out", "/out/bzImage")
    return Step(
        id=STEP_ID,
        title="pack bzImage",
        recipe="bzimage",
        recipe_version=RECIPE_VERSION,
        action=Container(rootfs=base, argv=argv),
        inputs={
            f"{HOME}/link": scripts(link, "bzimage.py", "elf.py"),
            "/in/kit": Output(kit),
            "/in/vmlinux": Output(app, "vmlinux"),
        },
    )
