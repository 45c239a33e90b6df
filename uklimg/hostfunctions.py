"""The functions of ``graph.Host`` steps: what needs no container, from inputs as paths to an output folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import TypeAlias

from uklimg import proc
from uklimg.digest import JSON
from uklimg.errors import InternalError
from uklimg.oci import EPOCH
from uklimg.recipes import base_image as base_image_recipe
from uklimg.recipes import image as image_recipe
from uklimg.recipes import initramfs as initramfs_recipe
from uklimg.recipes import parameters, registry_image

ROOTFS_TAR = "rootfs.tar"
"""What a function of kind ROOTFS leaves in its output folder: a whole file system."""


@dataclass(frozen=True)
class HostJob:
    """``inputs`` by name; ``out`` and ``work`` (for what is temporary) are empty folders on the store's disk.

    ``cancel`` is set when the step is to end early, which leaves as KeyboardInterrupt; what takes long looks at it.
    """

    params: JSON
    inputs: Mapping[str, Path]
    out: Path
    work: Path
    on_line: Callable[[str], None]
    cancel: Event = field(default_factory=Event)


HostFunction: TypeAlias = Callable[[HostJob], None]


def host_functions(env: Mapping[str, str]) -> Mapping[str, HostFunction]:
    """All of them by name; ``env`` is the host environment for tools. Each imports what it needs when it runs, since
    most builds run none."""
    return {
        base_image_recipe.FUNCTION: partial(_base_image, env),
        initramfs_recipe.FUNCTION: _initramfs,
        image_recipe.FUNCTION: _image,
        registry_image.LAYERS: _layers,
        registry_image.PICK: _pick,
    }


def _base_image(env: Mapping[str, str], job: HostJob) -> None:
    from uklimg.basechild import build_as_user
    from uklimg.baseimage import BaseParams, build_base_image

    build = build_base_image if os.geteuid() == 0 else build_as_user
    build(
        BaseParams.of(job.params),
        job.inputs.values(),
        job.out / ROOTFS_TAR,
        job.work,
        run=partial(proc.run, cancel=job.cancel),
        env=env,
        epoch=EPOCH,
        on_line=job.on_line,
    )


def _initramfs(job: HostJob) -> None:
    from uklimg.initramfsbuild import initramfs

    initramfs(job.inputs, job.out, job.params)


def _image(job: HostJob) -> None:
    from uklimg.imagebuild import image

    image(job.inputs, job.out, job.params)


def _layers(job: HostJob) -> None:
    from uklimg.registryimage import layer_inputs, unpack_layers

    unpack_layers(job.inputs["config"], layer_inputs(job.inputs), job.out)


def _pick(job: HostJob) -> None:
    from uklimg.registryimage import pick

    if not isinstance(job.params, Mapping):
        raise InternalError("registry-pick wants parameters")
    sources, into = parameters.texts(job.params["sources"]), parameters.text(job.params["into"])
    pick(sorted(job.inputs["layers"].iterdir()), sources, into, job.out / ROOTFS_TAR)
