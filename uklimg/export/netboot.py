"""A folder that a TFTP or HTTP server hands to network boot: iPXE's script, and PXELINUX's menu."""

from __future__ import annotations

from pathlib import Path

from uklimg import oci
from uklimg.errors import UserError
from uklimg.export.model import Job
from uklimg.export.plain import copy_files

SCRIPT, PXELINUX = "boot.ipxe", "pxelinux.cfg/default"


def pxe(job: Job, out: Path) -> None:
    copy_files(job, out, oci.BZIMAGE, oci.INITRAMFS)
    line = job.parameters("console=tty0")
    check_ipxe(line)
    (out / SCRIPT).write_text(ipxe_script(job, line))
    (out / PXELINUX).parent.mkdir()
    (out / PXELINUX).write_text(pxelinux_config(job, line))


def check_ipxe(line: str) -> None:
    """UserError for parameters that iPXE would take for its own words: it knows no quoting."""
    words = line.split()
    wrong = [word for word in words if word in ("&&", "||") or word.startswith("#") or "${" in word]
    if wrong:
        raise UserError(f"iPXE cannot pass {wrong[0]!r} on to the kernel")


def ipxe_script(job: Job, line: str) -> str:
    """Names are relative to where the script came from. ``initrd=`` is for kernels started by UEFI."""
    return (
        f"#!ipxe\n# {job.comment()}\n"
        f"kernel {oci.BZIMAGE} initrd={oci.INITRAMFS} {line}\n"
        f"initrd --name {oci.INITRAMFS} {oci.INITRAMFS}\n"
        "boot\n"
    )


def pxelinux_config(job: Job, line: str) -> str:
    return (
        f"# {job.comment()}\nDEFAULT {job.name}\nLABEL {job.name}\n"
        f"  KERNEL {oci.BZIMAGE}\n  INITRD {oci.INITRAMFS}\n  APPEND {line}\n"
    )
