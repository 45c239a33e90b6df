"""Boot an image with perf beside its program, and bring back what it recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uklimg import cpio
from uklimg.bench.boot import BootFiles, appended
from uklimg.errors import ExitCode, ToolError
from uklimg.guest.protocol import PROGRAMS, Helper, Program
from uklimg.recipes.perf import LIBRARIES, LOADER
from uklimg.recipes.perf import PROGRAM as PERF
from uklimg.runner.launch import launch
from uklimg.runner.machine import DEFAULT_MEMORY, MIB, Accel
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure
from uklimg.runner.stops import Stops
from uklimg.runner.volumes import Bind

# perf, its recording in memory, and the symbols that it reads.
_MORE_MEMORY = 512 * MIB
_TOOLS, _OUT, _RECORDING = "/tools", "/profile", "/tmp/perf.data"
_PROFILER, _CLIENT = "bench/profiler", "bench/client"


@dataclass(frozen=True)
class Tools:
    """``perf``: the folder that ``recipes.perf`` made. ``debug``: the program with its symbols, where it is an
    ordinary one whose symbols are known; None: the kernel knows them, or nobody does."""

    perf: Path
    profiler: Path
    client: Path
    debug: Path | None = None


@dataclass(frozen=True)
class Wanted:
    """``seconds`` at most, or with ``client`` (its arguments) until that has ended. ``frequency``: samples a
    second."""

    seconds: int
    frequency: int
    client: Sequence[str] = ()


def record_cmd(wanted: Wanted, accel: Accel) -> tuple[str, ...]:
    """perf in the guest: all processors, with callers. An emulated processor has no counters to interrupt it."""
    event = () if accel is Accel.KVM else ("-e", "cpu-clock")
    return (*_perf(), "record", "-q", "-a", "-g", "-F", str(wanted.frequency), *event, "-o", _RECORDING)


def script_cmd() -> tuple[str, ...]:
    return (*_perf(), "script", "-i", _RECORDING, "-F", "comm,ip,sym,dso")


def _perf() -> tuple[str, ...]:
    return (f"{_TOOLS}/{LOADER}", "--library-path", f"{_TOOLS}/{LIBRARIES}", f"{_TOOLS}/{PERF}")


def profiler_cmd(wanted: Wanted, accel: Accel) -> tuple[str, ...]:
    record, script = record_cmd(wanted, accel), script_cmd()
    return (f"/{_PROFILER}", str(wanted.seconds), *wanted.client, "--", *record, "--", *script)


def profile(
    files: BootFiles,
    tools: Tools,
    wanted: Wanted,
    options: RunOptions,
    *,
    env: Mapping[str, str],
    show: Callable[[bytes], object],
    stops: Stops | None = None,
) -> str:
    """What `perf script` wrote. ``show`` gets the console. ToolError RUN_FAILED when nothing was recorded."""
    with tempfile.TemporaryDirectory(prefix="uklimg-") as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        binds = (*options.binds, Bind(str(tools.perf), _TOOLS, True), Bind(str(out), _OUT))
        memory = (options.memory or files.run.memory or DEFAULT_MEMORY) + _MORE_MEMORY
        initramfs = appended(files.initramfs, _entries(files, tools), Path(scratch))
        machine, guest = configure(files.run, files.vmlinux, initramfs, replace(options, binds=binds, memory=memory))
        argv = profiler_cmd(wanted, options.accel)
        helper = Helper(Program(argv[0], argv, label="profiler"), wait=True, stop=True)
        guest = replace(guest, beside=(helper,))
        outcome = launch(Qemu(), machine, guest, env=env, show=show, stops=stops)
        script, log = out / "script", out / "log"
        text = script.read_text(errors="replace") if script.is_file() else ""
        if not text:
            said = log.read_text(errors="replace") if log.is_file() else ""
            raise ToolError(
                f"perf recorded nothing; the run ended with status {outcome.code}",
                detail=said,
                exit_code=ExitCode.RUN_FAILED,
            )
    return text


def _entries(files: BootFiles, tools: Tools) -> list[cpio.Entry]:
    entries = [
        cpio.directory("bench"),
        cpio.regular(_PROFILER, tools.profiler.read_bytes(), 0o755),
        cpio.regular(_CLIENT, tools.client.read_bytes(), 0o755),
    ]
    if tools.debug is not None:
        # In place of the program without symbols, so that perf finds them where it looks.
        folder = PROGRAMS.strip("/")
        path = f"{folder}/{files.run.program}"
        entries += [cpio.directory(folder), cpio.regular(path, tools.debug.read_bytes(), 0o755)]
    return entries
