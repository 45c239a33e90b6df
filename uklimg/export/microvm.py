"""Folders from which Firecracker and Cloud Hypervisor start an image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from uklimg import oci
from uklimg.digest import JSON
from uklimg.export.model import TAP_HOST, TAP_MASK, Job
from uklimg.export.plain import copy_files, write_script
from uklimg.runner.machine import MachineConfig, TapNetwork
from uklimg.runner.qemu import kernel_cmdline
from uklimg.runner.vmconfig import cloud_hypervisor_config, firecracker_config

TAP = "tap0"
FIRECRACKER, CLOUD_HYPERVISOR = "firecracker.json", "vm.json"
SCRIPT = "cloud-hypervisor.sh"


def firecracker(job: Job, out: Path) -> None:
    """Names are relative to the folder in which Firecracker starts."""
    copy_files(job, out, oci.VMLINUX, oci.INITRAMFS)
    _write(out / FIRECRACKER, firecracker_config(job.machine(oci.VMLINUX, TAP)))


def cloud_hypervisor(job: Job, out: Path) -> None:
    """A VmConfig for its API, whose names are absolute, and a script with the same as its command line."""
    copy_files(job, out, oci.VMLINUX, oci.INITRAMFS)
    machine = job.machine(oci.VMLINUX, TAP)
    at = Path(job.wanted.at)
    placed = replace(machine, kernel=at / oci.VMLINUX, initrd=at / oci.INITRAMFS)
    _write(out / CLOUD_HYPERVISOR, cloud_hypervisor_config(placed, TAP_HOST, TAP_MASK))
    write_script(out / SCRIPT, job, cloud_hypervisor_cmd(machine))


def cloud_hypervisor_cmd(machine: MachineConfig) -> list[str]:
    argv = ["cloud-hypervisor", "--kernel", str(machine.kernel), "--initramfs", str(machine.initrd)]
    argv += ["--cmdline", kernel_cmdline(machine), "--cpus", f"boot={machine.cpus}"]
    argv += ["--memory", f"size={machine.memory}", "--rng", "src=/dev/urandom", "--serial", "tty", "--console", "off"]
    network = machine.network
    if isinstance(network, TapNetwork):
        argv += ["--net", f"tap={network.interface},mac={network.mac},ip={TAP_HOST},mask={TAP_MASK}"]
    return argv


def _write(path: Path, value: JSON) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
