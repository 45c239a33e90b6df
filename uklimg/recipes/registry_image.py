"""The recipes for images of a registry: as the file system of build stages, and as what COPY --from takes from. Pure.

The functions are in ``uklimg.registryimage``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from uklimg.errors import InternalError
from uklimg.graph import Container, Host, Input, Kind, Output, Step
from uklimg.lock import LockedImage
from uklimg.recipes import toolchain
from uklimg.recipes.stage import PICKED, title

LAYERS = "registry-image"
PICK = "registry-pick"
RECIPE_VERSION = 1

# What the compiler wrapper and the application's link run; a C library without libc.a links nothing static.
# A shell's own `ar`, as busybox has it, is none.
_WRAPPED = """\
there() (
    IFS=:
    for folder in $PATH; do [ -x "$folder/$1" ] && return 0; done
    return 1
)
missing=
[ -x /usr/bin/python3 ] || missing=" /usr/bin/python3"
for tool in gcc ld ar; do there "$tool" || missing="$missing $tool"; done
if there gcc && [ "$(gcc -print-file-name=libc.a)" = libc.a ]; then
    missing="$missing libc.a"
fi
if [ -x /usr/bin/python3 ]; then
    /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || missing="$missing python3>=3.11"
fi
if [ -n "$missing" ]; then
    echo "uklimg: $1 lacks:$missing"
    echo "uklimg: LINK needs them in its build stage; use an image that has them, or debian:trixie and COPY --from=$1"
    exit 1
fi
shift
exec "$@"
"""
_GUARD = """\
if [ ! -x /usr/bin/python3 ]; then
    echo "uklimg: $1 lacks /usr/bin/python3, which COPY, ADD and SOURCE into it need"
    echo "uklimg: use an image that has it, or debian:trixie and COPY --from=$1"
    exit 1
fi
shift
exec "$@"
"""


def image_step(step_id: str, locked: LockedImage) -> Step:
    """A ROOTFS step: the image's layers as plain tars, each with the digest that the image's configuration states."""
    config, *layers = locked.files
    inputs: dict[str, Input] = {"config": config.blob()}
    for number, file in enumerate(layers):
        inputs[f"layer-{number:03}"] = file.blob()
    return Step(
        id=step_id,
        title=f"image {locked.reference}",
        recipe=LAYERS,
        recipe_version=RECIPE_VERSION,
        action=Host(LAYERS, {"layers": len(layers)}),
        inputs=inputs,
        kind=Kind.ROOTFS,
    )


def wrapper_step(base: str, modules: Mapping[str, bytes], reference: str, step_id: str) -> Step:
    """The compiler wrapper on an image; says what the image lacks for it."""
    step = toolchain.step(base, modules, step_id)
    action = Container(rootfs=base, argv=("/bin/sh", "-c", _WRAPPED, "sh", reference, *toolchain.install_cmd()))
    return replace(step, title=f"compiler wrapper on {reference}", recipe="registry-toolchain", action=action)


def guarded(step: Step, reference: str) -> Step:
    """A step that runs a script of ours in an image that may lack what runs it."""
    if not isinstance(step.action, Container):
        raise InternalError(f"{step.id} runs in no container")
    argv = ("/bin/sh", "-c", _GUARD, "sh", reference, *step.action.argv)
    return replace(step, action=replace(step.action, argv=argv))


def pick_step(step_id: str, below: str, name: str, sources: Sequence[str]) -> Step:
    """As ``recipes.stage.pick_step``, for a file system in which nothing of ours might run."""
    sources = [f"/{source.lstrip('/')}" for source in sources]
    return Step(
        id=step_id,
        title=title(f"take {' '.join(sources)} from {name}"),
        recipe=PICK,
        recipe_version=RECIPE_VERSION,
        action=Host(PICK, {"sources": list(sources), "into": PICKED}),
        inputs={"layers": Output(below)},
        kind=Kind.ROOTFS,
    )


def environment(locked: LockedImage) -> Mapping[str, str]:
    """The image's own variables."""
    return dict(text.split("=", 1) for text in locked.env if "=" in text)
