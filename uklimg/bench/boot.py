"""Boot one variant of a suite and keep what it prints."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from uklimg import cpio, proc
from uklimg.bench.model import Measure
from uklimg.bench.printed import parse
from uklimg.bench.suites import Booted, Suite
from uklimg.errors import ExitCode, InternalError, ToolError
from uklimg.guest.protocol import Helper, Program
from uklimg.oci import TARGET_LINUX, RunConfig
from uklimg.oci.model import EPOCH
from uklimg.runner.launch import launch
from uklimg.runner.machine import Accel
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure
from uklimg.runner.volumes import Bind, Kind

_FOLDER = "bench"
# Room for the file, its file system's own, and a journal.
_DISK_SIZE = 256 << 20
# Nothing is left to be done in the guest while it is measured; and the same file system each time.
_UUID = "00000000-0000-4000-8000-000000000000"
_EXT4 = f"lazy_itable_init=0,lazy_journal_init=0,nodiscard,hash_seed={_UUID}"
# Time stamps stay in memory. Else one goes to the journal with each tick of the guest's clock, and how many
# operations share it depends on how fast the disk answers.
_MOUNTED = "lazytime"
# While the guest waits for a disk its clock goes as this machine's does; else it would be set to the next timer, and
# the next, until the disk answers. It does so sooner when QEMU's thread that runs the guest hands over the request.
_COUNTED_DISK = ("-icount", "sleep=on", "-global", "virtio-blk-pci.ioeventfd=off")


@dataclass(frozen=True)
class BootFiles:
    """An image's files, unpacked, and what it says of how to run it."""

    run: RunConfig
    vmlinux: Path
    bzimage: Path
    initramfs: Path


@dataclass(frozen=True)
class How:
    """``programs``: files of what runs beside suites, by name. ``cmdline`` are kernel parameters beyond the image's;
    ``tsc_khz`` as of ``accel.host_tsc_khz``; ``samples`` 0 for what is enough."""

    measure: Measure
    accel: Accel
    env: Mapping[str, str]
    programs: Mapping[str, Path] = field(default_factory=dict)
    cmdline: str = ""
    tsc_khz: int = 0
    samples: int = 0


def boot(suite: Suite, files: BootFiles, how: How) -> Booted:
    """Run the suite once on the image. ToolError RUN_FAILED when it does not end as it should, with its console."""
    words = suite.helper(how.measure, suite.count(how.measure, how.samples))
    console = bytearray()
    with tempfile.TemporaryDirectory(prefix="uklimg-") as name:
        folder = Path(name)
        binds = (_disk(suite.disk, folder, how.env),) if suite.disk else ()
        helper = _helper(suite, how) if words else None
        initramfs = _with_program(files.initramfs, helper, folder) if helper else files.initramfs
        machine, guest = configure(files.run, files.vmlinux, initramfs, run_options(suite, how, binds))
        if helper:
            path = f"/{_FOLDER}/{helper.name}"
            program = Program(path, (path, *words), label=helper.name)
            # SIGKILL: some programs make something else of SIGTERM than their death.
            guest = replace(guest, beside=(Helper(program, wait=True, stop=True),), stop_signal=int(signal.SIGKILL))
        outcome = launch(Qemu(), machine, guest, env=how.env, show=console.extend)
    text = console.decode(errors="replace").replace("\r\n", "\n")
    if outcome.code:
        raise ToolError(
            f"the workload {suite.name} ended with status {outcome.code}", detail=text, exit_code=ExitCode.RUN_FAILED
        )
    level = parse(text).facts.get("cpl")
    if not words and level not in (None, 3 if files.run.target == TARGET_LINUX else 0):
        raise ToolError(f"the workload {suite.name} ran at privilege level {level}", exit_code=ExitCode.RUN_FAILED)
    sizes = {role: path.stat().st_size for role, path in _roles(files).items()}
    return Booted(text, {**sizes, "memory": machine.memory})


def run_options(suite: Suite, how: How, binds: tuple[Bind, ...] = ()) -> RunOptions:
    counted = how.measure is Measure.INSTRUCTIONS
    return RunOptions(
        arguments=suite.command(how.measure, suite.count(how.measure, how.samples)),
        binds=binds,
        no_network=True,
        # Counting with several processors is neither repeatable nor quick.
        cpus=1 if counted else suite.cpus,
        accel=how.accel,
        cmdline=how.cmdline,
        icount=0 if counted else None,
        tsc_khz=how.tsc_khz,
        extra=_COUNTED_DISK if counted and suite.disk else (),
    )


def _roles(files: BootFiles) -> Mapping[str, Path]:
    return {"vmlinux": files.vmlinux, "bzImage": files.bzimage, "initramfs": files.initramfs}


def _helper(suite: Suite, how: How) -> Path:
    found = how.programs.get(suite.beside.program) if suite.beside else None
    if found is None:
        raise InternalError(f"the suite {suite.name} needs a program beside it")
    return found


def _with_program(initramfs: Path, program: Path, folder: Path) -> Path:
    name = f"{_FOLDER}/{program.name}"
    return appended(initramfs, [cpio.directory(_FOLDER), cpio.regular(name, program.read_bytes(), 0o755)], folder)


def _disk(target: str, folder: Path, env: Mapping[str, str]) -> Bind:
    """A new disk in ``folder`` with a file system that the guest mounts on ``target``."""
    path = folder / "disk.img"
    with path.open("wb") as file:
        file.truncate(_DISK_SIZE)
    proc.run(mkfs_cmd(path), env=env)
    return Bind(str(path), target, kind=Kind.BLOCK, options=_MOUNTED)


def mkfs_cmd(disk: Path) -> list[str]:
    return ["mkfs.ext4", "-q", "-F", "-U", _UUID, "-E", _EXT4, str(disk)]


def appended(initramfs: Path, entries: Sequence[cpio.Entry], folder: Path) -> Path:
    """A file in ``folder``: an archive of ``entries`` behind the image's own. The kernel unpacks one after the other,
    and files of the same name are those of the later one."""
    out = folder / "initramfs.cpio"
    with out.open("wb") as file:
        file.write(initramfs.read_bytes())
        file.write(bytes(-file.tell() % 4))
        cpio.write(entries, file, mtime=EPOCH)
    return out
