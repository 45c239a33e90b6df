"""The recipe that makes an application part of a kernel: link it at its place in the kernel's half, embed it. Pure.

The work is done by ``uklimg/inside/app.py`` and ``uklimg/link/link.py`` inside the build stage's container.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uklimg.graph import Container, Output, Step
from uklimg.recipes.scripts import HOME, python, scripts
from uklimg.recipes.toolchain import LIBC

RECIPE_VERSION = 1
LINK_FILES = ("app.lds", "elf.py", "embed.py", "frames.py", "functions.py", "link.py", "ret.s")


_FOREIGN = "was not linked by ukl-gcc"  # what toolchain/find.py says


def advice(output: str) -> str:
    """What to do when the step fails with ``output``; "" where that says it itself."""
    return "make the build use our compiler, as in RUN make CC=ukl-gcc CXX=ukl-g++" if _FOREIGN in output else ""


def step_id(name: str) -> str:
    return f"app:{name}"


def app_step(
    *,
    name: str,
    program: str,
    stage: str,
    kit: str,
    link: Mapping[str, bytes],
    inside: Mapping[str, bytes],
    ukl: Sequence[str] = (),
    libc: bool = False,
) -> Step:
    """A TREE step: ``vmlinux`` (the kernel with the application inside), ``<name>.debug``, ``info.json``.

    ``stage`` is the step whose root file system has ``program`` and the object that the wrapper kept of it; ``kit``
    a step of ``recipes.kernel``; ``link`` and ``inside`` the contents of the package's folders of these names;
    ``ukl`` the words of the options that the kernel turns on for it (``OPTIONS`` of ``uklimg/link/embed.py``).
    ``libc``: ``stage`` has a libc of ours.
    """
    options = [word for option in sorted(set(ukl)) for word in ("--ukl", option)]
    options += ["--libc", LIBC] if libc else []
    argv = python("inside/app.py", program, "--kit", "/in/kit", "--name", name, *options, "--out", "/out")
    return Step(
        id=step_id(name),
        title=f"LINK {program}",
        recipe="app",
        recipe_version=RECIPE_VERSION,
        action=Container(rootfs=stage, argv=argv),
        inputs={
            f"{HOME}/inside": scripts(inside, "app.py"),
            f"{HOME}/link": scripts(link, *LINK_FILES),
            "/in/kit": Output(kit),
        },
    )
