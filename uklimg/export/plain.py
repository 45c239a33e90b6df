"""The files as they are, and as a folder that QEMU boots."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from uklimg import oci
from uklimg.export.model import USER, Job
from uklimg.runner.machine import Accel
from uklimg.runner.qemu import kernel_cmdline, qemu_cmd

SCRIPT, CMDLINE = "qemu.sh", "cmdline"


def vmlinux(job: Job, out: Path) -> None:
    shutil.copyfile(job.files[oci.VMLINUX], out)


def bzimage(job: Job, out: Path) -> None:
    shutil.copyfile(job.files[oci.BZIMAGE], out)


def initramfs(job: Job, out: Path) -> None:
    shutil.copyfile(job.files[oci.INITRAMFS], out)


def folder(job: Job, out: Path) -> None:
    """vmlinux, initramfs, the kernel's parameters, and a script that starts QEMU with them."""
    copy_files(job, out, oci.VMLINUX, oci.INITRAMFS)
    machine = job.machine(oci.VMLINUX, USER)
    (out / CMDLINE).write_text(f"{kernel_cmdline(machine)}\n")
    argv = qemu_cmd(machine)
    if job.wanted.accel is None:
        argv = accelerated_if_possible(argv)
    write_script(out / SCRIPT, job, argv)


def copy_files(job: Job, out: Path, *roles: str) -> None:
    for role in roles:
        shutil.copyfile(job.files[role], out / role)


def accelerated_if_possible(argv: list[str]) -> list[str]:
    """QEMU takes the first accelerator that it can have, and "max" is the best processor with each."""
    at = argv.index("-accel")
    cpu = argv.index("-cpu", at)
    kvm, tcg = Accel.KVM.value, Accel.TCG.value
    return [*argv[:at], "-accel", kvm, "-accel", tcg, *argv[at + 2 : cpu], "-cpu", "max", *argv[cpu + 2 :]]


def write_script(path: Path, job: Job, argv: list[str]) -> None:
    """A shell script beside the files that starts ``argv``; what it is given comes after that."""
    lines = [shlex.quote(argv[0])]
    for word in argv[1:]:
        if word.startswith("-") or not lines[-1].startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    command = " \\\n    ".join((*lines, '"$@"'))
    path.write_text(f'#!/bin/sh\n# {job.comment()}\ncd "$(dirname "$0")" || exit 1\nexec {command}\n')
    path.chmod(0o755)
