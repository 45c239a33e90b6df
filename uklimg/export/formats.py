"""The table of formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from uklimg import proc
from uklimg.errors import UserError
from uklimg.export import firmware, kubernetes, libvirt, microvm, netboot, plain
from uklimg.export.firmware import MTOOLS
from uklimg.export.model import NONE, Job

Write: TypeAlias = Callable[[Job, Path], None]
"""Writes the file ``out``, or into the empty folder ``out``."""

# Names of Wanted's fields: what a format pays heed to.
_GUEST = frozenset({"cmdline", "network", "accel"})
_MACHINE = _GUEST | {"memory", "cpus"}
_DISK = _GUEST | {"stub", "name"}
_NAMED = _MACHINE | {"name"}
_MICROVM = _MACHINE - {"accel"}  # both need KVM


@dataclass(frozen=True)
class Format:
    """``what`` for people; ``options`` the fields of Wanted that it heeds; ``tools`` programs of this machine;
    ``networks`` whether --network may be more than "none"."""

    what: str
    write: Write
    folder: bool = False
    options: frozenset[str] = frozenset()
    tools: tuple[str, ...] = ()
    networks: bool = False


FORMATS: Mapping[str, Format] = {
    "vmlinux": Format("the kernel as ELF", plain.vmlinux),
    "bzimage": Format("the kernel as bzImage", plain.bzimage),
    "initramfs": Format("the initramfs", plain.initramfs),
    "folder": Format("vmlinux, initramfs and a script that starts QEMU", plain.folder, True, _MACHINE, networks=True),
    "uki": Format("a unified kernel image for UEFI (.efi)", firmware.uki, False, _DISK),
    "raw": Format("a disk with an EFI system partition", firmware.raw, False, _DISK, ("sfdisk", *MTOOLS)),
    "qcow2": Format("the same for QEMU", firmware.qcow2, False, _DISK, ("qemu-img", "sfdisk", *MTOOLS)),
    "iso": Format("a CD or USB stick for UEFI", firmware.iso, False, _DISK, ("xorriso", *MTOOLS)),
    "pxe": Format("files for network boot (iPXE, PXELINUX)", netboot.pxe, True, _GUEST | {"name"}),
    "libvirt": Format("a domain of libvirt", libvirt.libvirt, True, _NAMED | {"at"}, networks=True),
    "firecracker": Format("Firecracker's configuration", microvm.firecracker, True, _MICROVM, networks=True),
    "cloud-hypervisor": Format(
        "Cloud Hypervisor's configuration", microvm.cloud_hypervisor, True, _MICROVM | {"at"}, networks=True
    ),
    "kubevirt": Format("a VirtualMachine of KubeVirt", kubernetes.kubevirt, False, _NAMED | {"image"}),
    "urunc": Format("a pod for urunc", kubernetes.urunc, False, frozenset({"memory", "cpus", "name", "image"})),
}


def check_options(name: str, given: frozenset[str]) -> None:
    """UserError for an option that does nothing in this format: better than to leave the user wondering."""
    for option in sorted(given - FORMATS[name].options):
        fitting = ", ".join(other for other, form in FORMATS.items() if option in form.options)
        raise UserError(f"--{option} does nothing for {name}", hint=f"it is for {fitting}")


def check_network(name: str, network: str) -> None:
    """UserError for a value of --network that cannot be, or not with this format."""
    if network in ("", NONE):
        return
    if not FORMATS[name].networks:
        raise UserError(f"--network is not chosen in {name}", hint="only --network none")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", network):
        raise UserError(f"{network!r} names no network")


def check_tools(name: str, env: Mapping[str, str]) -> None:
    """ToolError HOST for the first program that is missing, with its package."""
    for program in FORMATS[name].tools:
        proc.find(program, env)
