"""The recipe of a base image: the file system in which build steps run, made of locked Debian packages. Pure."""

from __future__ import annotations

from uklimg.definitions import BaseDefinition
from uklimg.errors import InternalError
from uklimg.graph import Host, Kind, Step
from uklimg.lock import LockedBase

FUNCTION = "base-image"
RECIPE_VERSION = 1


def step_id(name: str) -> str:
    """The step that makes the base image of the folder ``name`` (``debian-trixie``)."""
    return f"base:{name}"


def base_image_step(definition: BaseDefinition, locked: LockedBase) -> Step:
    """The step for ``definition`` with exactly the packages of ``locked``.

    Every package is an input under its file's name, so the key changes with each of them and with nothing else that
    a mirror may do. The function is ``uklimg.baseimage.build_base_image``.
    """
    if definition.name != locked.name or definition.digest != locked.definition:
        raise InternalError(f"the lock's {locked.name} is of another definition")
    return Step(
        id=step_id(definition.name),
        title=f"base image {definition.name}",
        recipe="base-image",
        recipe_version=RECIPE_VERSION,
        action=Host(
            FUNCTION,
            {
                "suite": definition.suite,
                "architecture": definition.architecture,
                "exclude": list(definition.exclude),
                "include": list(definition.include),
            },
        ),
        inputs={package.file.name: package.file.blob() for package in sorted(locked.packages)},
        kind=Kind.ROOTFS,
    )
