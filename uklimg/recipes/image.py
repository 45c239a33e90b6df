"""The recipe of the last step: the OCI image of vmlinux, bzImage and initramfs."""

from __future__ import annotations

from collections.abc import Mapping

from uklimg.digest import JSON
from uklimg.errors import InternalError
from uklimg.graph import Host, Output, Step
from uklimg.oci import BZIMAGE, INITRAMFS, VMLINUX, RunConfig
from uklimg.oci.health import decode_health, encode_health
from uklimg.recipes import parameters

RECIPE_VERSION = 3
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
        # Only where it is not, so that the keys of all others stay.
        **({} if run.reproducible else {"reproducible": False}),
        **({"healthcheck": encode_health(run.healthcheck)} if run.healthcheck else {}),
    }


def run_config_of(value: JSON) -> RunConfig:
    """The inverse of ``params``; raises InternalError for anything else, since only we write parameters."""
    try:
        if not isinstance(value, Mapping):
            raise TypeError("no object")
        return RunConfig(
            program=parameters.text(value["program"]),
            entrypoint=parameters.texts(value["entrypoint"]),
            cmd=parameters.texts(value["cmd"]),
            env=parameters.text_map(value["env"]),
            workdir=parameters.text(value["workdir"]),
            exposed_ports=parameters.texts(value["exposed_ports"]),
            volumes=parameters.texts(value["volumes"]),
            stop_signal=parameters.text(value["stop_signal"]),
            memory=parameters.number(value["memory"]),
            cpus=parameters.number(value["cpus"]),
            cmdline=parameters.text(value["cmdline"]),
            ukl_options=parameters.texts(value["ukl_options"]),
            kernel_version=parameters.text(value["kernel_version"]),
            libc_version=parameters.text(value["libc_version"]),
            target=parameters.text(value["target"]),
            boot=parameters.texts(value["boot"]),
            labels=parameters.text_map(value["labels"]),
            reproducible="reproducible" not in value,
            healthcheck=decode_health(parameters.text(value.get("healthcheck", ""))),
        )
    except (KeyError, TypeError) as error:
        raise InternalError(f"bad parameters of the image step: {error}") from error
