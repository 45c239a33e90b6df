"""What UEFI firmware starts: a unified kernel image, and disks and a CD that hold one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from uklimg import oci, proc
from uklimg.digest import CHUNK
from uklimg.errors import ToolError, UserError
from uklimg.export.model import STUB, Job
from uklimg.export.pe import Section, add_sections

MIB = 1 << 20
SECTOR = 512
LOADER = "/EFI/BOOT/BOOTX64.EFI"  # UEFI specification, 3.5.1.1: what starts from a medium that nothing is known of
ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
START = MIB // SECTOR  # first sector of the partition
LABEL = "UKL"
MTOOLS = ("mformat", "mmd", "mcopy")
_SMALLEST = 40  # MiB; FAT32 has at least 65525 clusters, of a sector each here


def uki(job: Job, out: Path) -> None:
    """A unified kernel image: systemd's stub, with kernel, initramfs, parameters and what they are as sections."""
    stub = read_stub(job.wanted.stub)
    kernel = job.require_efi()
    # The kernel's is the last: older stubs unpack it in place.
    parts: dict[str, bytes | Path] = {
        ".osrel": os_release(job).encode(),
        ".cmdline": job.parameters("console=tty0").encode(),
        ".uname": job.run.kernel_version.encode(),
        ".initrd": job.files[oci.INITRAMFS],
        ".linux": kernel,
    }
    sizes = [Section(n, len(p) if isinstance(p, bytes) else p.stat().st_size) for n, p in parts.items() if p]
    layout = add_sections(stub, sizes)
    with out.open("wb") as file:
        file.write(layout.head)
        for section in sizes:
            part = parts[section.name]
            if isinstance(part, bytes):
                file.write(part)
            else:
                with part.open("rb") as source:
                    while chunk := source.read(CHUNK):
                        file.write(chunk)
            file.write(bytes(-section.size % layout.alignment))


def read_stub(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "apt-get install systemd-boot-efi, or --stub FILE"
        if path != STUB:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        raise ToolError("systemd's EFI stub is not installed", hint=hint) from None


def os_release(job: Job) -> str:
    """What boot loaders show of it (os-release(5))."""
    version = job.run.kernel_version or "0"
    fields = {
        "ID": job.name,
        "NAME": job.run.program,
        "VERSION_ID": version,
        "PRETTY_NAME": f"{job.run.program} (Linux {version})",
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in fields.items())


def raw(job: Job, out: Path) -> None:
    """A disk: GPT, one EFI system partition with the unified kernel image where firmware looks for it."""
    loader = job.scratch / "loader.efi"
    uki(job, loader)
    sectors = partition_sectors(loader)
    with out.open("wb") as file:
        file.truncate(sectors * SECTOR + 2 * MIB)
    proc.run(sfdisk_cmd(out), env=tool_env(job), stdin=partition_table(job, sectors).encode())
    fill(job, f"{out}@@{START * SECTOR}", sectors, loader)


def qcow2(job: Job, out: Path) -> None:
    """The same disk in QEMU's format."""
    disk = job.scratch / "disk.img"
    raw(job, disk)
    proc.run(convert_cmd(disk, out), env=tool_env(job))


def iso(job: Job, out: Path) -> None:
    """A CD with an El Torito entry for EFI; written to a USB stick, a disk with an EFI system partition."""
    loader, esp = job.scratch / "loader.efi", job.scratch / "esp.img"
    uki(job, loader)
    sectors = partition_sectors(loader)
    with esp.open("wb") as file:
        file.truncate(sectors * SECTOR)
    fill(job, str(esp), sectors, loader)
    empty = job.scratch / "iso"
    empty.mkdir()
    proc.run(xorriso_cmd(job, empty, esp, out), env=tool_env(job))


def partition_sectors(loader: Path) -> int:
    """A FAT32 with clusters of a sector has 8 bytes of tables for each."""
    needed = loader.stat().st_size * (SECTOR + 8) // SECTOR
    return max(_SMALLEST, -(-needed // MIB) + 2) * MIB // SECTOR


def tool_env(job: Job) -> Mapping[str, str]:
    # mtools takes an image whose size is no whole number of tracks only when told not to look.
    return {**job.env, "SOURCE_DATE_EPOCH": str(oci.EPOCH), "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}


def fill(job: Job, image: str, sectors: int, loader: Path) -> None:
    """Make a FAT file system in ``image`` (mtools' FILE@@OFFSET) with ``loader`` in it."""
    for argv in fat_cmds(image, sectors, job.digest.hex[:8], loader):
        proc.run(argv, env=tool_env(job))


def fat_cmds(image: str, sectors: int, serial: str, loader: Path) -> list[list[str]]:
    geometry = ["-T", str(sectors), "-h", "16", "-s", "63", "-c", "1"]
    return [
        ["mformat", "-i", image, "-F", *geometry, "-N", serial, "-v", LABEL, "::"],
        ["mmd", "-i", image, "::/EFI", "::/EFI/BOOT"],
        ["mcopy", "-i", image, str(loader), f"::{LOADER}"],
    ]


def sfdisk_cmd(disk: Path) -> list[str]:
    return ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(disk)]


def partition_table(job: Job, sectors: int) -> str:
    """sfdisk(8)'s script for one EFI system partition of ``sectors``."""
    entry = f"start={START}, size={sectors}, type={ESP_TYPE}, uuid={job.guid('esp')}, name={LABEL}"
    return f"label: gpt\nlabel-id: {job.guid('disk')}\n{entry}\n"


def convert_cmd(disk: Path, out: Path) -> list[str]:
    return ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(disk), str(out)]


def xorriso_cmd(job: Job, tree: Path, esp: Path, out: Path) -> list[str]:
    """The file system itself is empty: what boots lies in the appended partition, for CDs and for disks alike."""
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-V", LABEL, "-o", str(out)]
    # SOURCE_DATE_EPOCH is for all dates but those of files, of which the root folder is one.
    argv += ["--set_all_file_dates", "2025010100000000"]
    argv += ["--gpt_disk_guid", job.guid("disk").replace("-", ""), "-partition_offset", "16"]
    argv += ["-append_partition", "2", ESP_TYPE, str(esp), "-appended_part_as_gpt"]
    return [*argv, "-e", "--interval:appended_partition_2:all::", "-no-emul-boot", str(tree)]
