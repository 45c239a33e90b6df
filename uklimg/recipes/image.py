"""The recipe of the last step: the OCI image of vmlinux, bzImage and initramfs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uklimg.digest import JSON
from uklimg.errors import InternalError
from uklimg.graph import Host, Output, Step
from uklimg.oci import BZIMAGE, INITRAMFS, VMLINUX, RunConfig

RECIPE_VERSION = 1
FUNCTION = "image"


def image_step(*, app: str, bzimage: str, initramfs: str, run: RunConfig) -> Step:
    """The step ``image``: an OCI layout whose only entry is the image's index.

    ``app``, ``bzimage`` and ``initramfs`` are ids of TREE steps with ``/vmlinux``, ``/bzImage``, ``/initramfs.cpio``.
    """
    return Step(
        id="image",
        title="put the image together",
        recipe="image",
        recipe_version=RECIPE_VERSION,
        action=Host(FUNCTION, params(run)),
        inputs={
            VMLINUX: Output(app, "vmlinux"),
            BZIMAGE: Output(bzimage, "bzImage"),
            INITRAMFS: Output(initramfs, "initramfs.cpio"),
        },
    )


def params(run: RunConfig) -> JSON:
    """``run`` as the step's parameters."""
    return {
        "program": run.program,
        "entrypoint": list(run.entrypoint),
        "cmd": list(run.cmd),
        "env": dict(run.env),
        "workdir": run.workdir,
        "exposed_ports": list(run.exposed_ports),
        "volumes": list(run.volumes),
        "stop_signal": run.stop_signal,
        "memory": run.memory,
        "cpus": run.cpus,
        "cmdline": run.cmdline,
        "ukl_options": list(run.ukl_options),
        "kernel_version": run.kernel_version,
        "libc_version": run.libc_version,
        "target": run.target,
        "boot": list(run.boot),
        "labels": dict(run.labels),
    }


def run_config_of(value: JSON) -> RunConfig:
    """The inverse of ``params``; raises InternalError for anything else, since only we write parameters."""
    try:
        if not isinstance(value, Mapping):
            raise TypeError("no object")
        return RunConfig(
            program=_text(value["program"]),
            entrypoint=_texts(value["entrypoint"]),
            cmd=_texts(value["cmd"]),
            env=_map(value["env"]),
            workdir=_text(value["workdir"]),
            exposed_ports=_texts(value["exposed_ports"]),
            volumes=_texts(value["volumes"]),
            stop_signal=_text(value["stop_signal"]),
            memory=_number(value["memory"]),
            cpus=_number(value["cpus"]),
            cmdline=_text(value["cmdline"]),
            ukl_options=_texts(value["ukl_options"]),
            kernel_version=_text(value["kernel_version"]),
            libc_version=_text(value["libc_version"]),
            target=_text(value["target"]),
            boot=_texts(value["boot"]),
            labels=_map(value["labels"]),
        )
    except (KeyError, TypeError) as error:
        raise InternalError(f"bad parameters of the image step: {error}") from error


def _text(value: JSON) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: JSON) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no number")
    return value


def _texts(value: JSON) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{value!r} is no list")
    return tuple(_text(item) for item in value)


def _map(value: JSON) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no object")
    return {name: _text(item) for name, item in value.items()}
