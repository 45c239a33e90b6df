"""Boot one variant of a suite and keep what it prints."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uklimg import cpio
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

_CLIENT = "bench/client"


@dataclass(frozen=True)
class BootFiles:
    """An image's files, unpacked, and what it says of how to run it."""

    run: RunConfig
    vmlinux: Path
    bzimage: Path
    initramfs: Path


@dataclass(frozen=True)
class How:
    """``client`` is the packaged client's file. ``cmdline`` are kernel parameters beyond the image's; ``tsc_khz`` as
    of ``accel.host_tsc_khz``; ``samples`` 0 for what is enough."""

    measure: Measure
    accel: Accel
    env: Mapping[str, str]
    client: Path | None = None
    cmdline: str = ""
    tsc_khz: int = 0
    samples: int = 0


def boot(suite: Suite, files: BootFiles, how: How) -> Booted:
    """Run the suite once on the image. ToolError RUN_FAILED when it does not end as it should, with its console."""
    counted = how.measure is Measure.INSTRUCTIONS
    samples = suite.count(how.measure, how.samples)
    options = RunOptions(
        arguments=suite.command(how.measure, samples),
        no_network=True,
        # Counting with several processors is neither repeatable nor quick.
        cpus=1 if counted else suite.cpus,
        accel=how.accel,
        cmdline=how.cmdline,
        icount=0 if counted else None,
        tsc_khz=how.tsc_khz,
    )
    console = bytearray()
    with tempfile.TemporaryDirectory(prefix="uklimg-") as folder:
        client = suite.client(how.measure, samples)
        initramfs = files.initramfs
        if client:
            initramfs = _with_client(files.initramfs, how.client, Path(folder))
        machine, guest = configure(files.run, files.vmlinux, initramfs, options)
        if client:
            program = Program(f"/{_CLIENT}", (f"/{_CLIENT}", *client), label="client")
            guest = replace(guest, beside=(Helper(program, wait=True, stop=True),))
        outcome = launch(Qemu(), machine, guest, env=how.env, show=console.extend)
    text = console.decode(errors="replace").replace("\r\n", "\n")
    if outcome.code:
        raise ToolError(
            f"the workload {suite.name} ended with status {outcome.code}", detail=text, exit_code=ExitCode.RUN_FAILED
        )
    level = parse(text).facts.get("cpl")
    if not client and level not in (None, 3 if files.run.target == TARGET_LINUX else 0):
        raise ToolError(f"the workload {suite.name} ran at privilege level {level}", exit_code=ExitCode.RUN_FAILED)
    sizes = {role: path.stat().st_size for role, path in _roles(files).items()}
    return Booted(text, {**sizes, "memory": machine.memory})


def _roles(files: BootFiles) -> Mapping[str, Path]:
    return {"vmlinux": files.vmlinux, "bzImage": files.bzimage, "initramfs": files.initramfs}


def _with_client(initramfs: Path, client: Path | None, folder: Path) -> Path:
    if client is None:
        raise InternalError("the suite needs a client")
    entries = [cpio.directory("bench"), cpio.regular(_CLIENT, client.read_bytes(), 0o755)]
    return appended(initramfs, entries, folder)


def appended(initramfs: Path, entries: Sequence[cpio.Entry], folder: Path) -> Path:
    """A file in ``folder``: an archive of ``entries`` behind the image's own. The kernel unpacks one after the other,
    and files of the same name are those of the later one."""
    out = folder / "initramfs.cpio"
    with out.open("wb") as file:
        file.write(initramfs.read_bytes())
        file.write(bytes(-file.tell() % 4))
        cpio.write(entries, file, mtime=EPOCH)
    return out
