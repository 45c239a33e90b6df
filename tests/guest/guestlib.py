"""Run the guest programs in one boot: each in ring 3 and as UKL, in the same kernel."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from guestprograms import GuestProgram, Role, load

from uklimg import proc
from uklimg.errors import ToolError
from uklimg.guest.protocol import Program, Report
from uklimg.oci import RunConfig
from uklimg.runner.launch import launch
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure

SUITE = "suite"
LINUX, UKL = "linux", "ukl"
# A program's share of a slow, loaded, emulated machine.
LIMIT = 240
# What a clean kernel log does not have. The programs' own faults are reported at KERN_INFO ("segfault at").
TROUBLE = re.compile(
    r"WARNING|\bBUG\b|\bOops\b|Call Trace|general protection|stack guard|lockdep|DEBUG_LOCKS|"
    r"inconsistent lock|possible circular|RCU.*stall|soft lockup|Insecure W\+X|"
    r"unable to handle|scheduling while atomic|sleeping function|hung_task|blocked for more than"
)
# About one boot in two hundred of two processors under QEMU 7.2, in Linux' own code, in an idle task: one processor
# executes an int3 that another one has already taken back after patching code. Only that is tried again, and once.
STALE = "Oops: int3:"
# Lines of a sane boot that the pattern above would take.
HARMLESS = re.compile(
    r"Checked W\+X mappings: passed|[Ll]ock dependency validator|lockdep:.*|Running RCU|RCU lockdep|"
    r"Speculative Return Stack Overflow: WARNING: See"
)


@dataclass(frozen=True)
class Image:
    """A built image's boot files."""

    run: RunConfig
    vmlinux: Path
    bzimage: Path
    initramfs: Path


BuildImage = Callable[[str], Image]

# For a shell: the suite as the program {} in the background, its process id as p.
RUN = "EXPECT_UKL=1 HOME=/root UKL_PROGRAM={} /ukl/suite >/tmp/out 2>&1 & p=$!; "

# Where the guest finds a Debian with tools, and what a chroot to it needs.
TOOLS = "/tools"


@dataclass(frozen=True)
class Ended:
    """How one program of a boot ended; ``output`` is what it wrote on the console."""

    output: str
    status: str


def guest_programs() -> tuple[GuestProgram, ...]:
    return tuple(p for p in load() if p.role is Role.PROGRAM)


def program(name: str, mode: str, args: Sequence[str] = ()) -> Program:
    """``name`` of the suite; ``mode`` is LINUX or UKL."""
    path = f"/{mode}/{SUITE}"
    env = {"UKL_PROGRAM": name, "EXPECT_UKL": "1" if mode == UKL else "0", "PATH": "/bin", "HOME": "/root"}
    argv = (path, *(arg.replace("@attack@", "/linux/attack") for arg in args))
    return Program(path, argv, env=env, workdir="/tmp", timeout=LIMIT, label=f"{mode}:{name}")


def shell(command: str, label: str) -> Program:
    argv = ("sh", "-c", command)
    return Program("/bin/busybox", argv, env={"PATH": "/bin"}, timeout=LIMIT, label=label)


PREPARE_TOOLS = shell(
    f"cd {TOOLS}; mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t tmpfs tmpfs tmp;"
    " mount -t devtmpfs dev dev; mount -o bind /ukl ukl",
    "prepare",
)


def boot(
    image: Image,
    programs: Sequence[Program],
    options: RunOptions,
    *,
    kernel: str = "vmlinux",
    show: Callable[[bytes], object] = lambda _: None,
    on_report: Callable[[Report], object] = lambda _: None,
) -> str:
    """Boot and run ``programs`` in order; the console's text, which ``show`` gets as it comes.

    ``kernel`` is ``vmlinux`` or, with KASLR, ``bzimage``.
    """
    console: list[bytes] = []

    def keep(data: bytes) -> None:
        console.append(data)
        show(data)

    file = image.bzimage if kernel == "bzimage" else image.vmlinux
    machine, guest = configure(image.run, file, image.initramfs, options)
    guest = replace(guest, programs=tuple(programs), markers=True, raw_console=True)
    for attempt in range(2):
        try:
            launch(Qemu(), machine, guest, env=proc.host_env(os.environ), show=keep, on_report=on_report)
            break
        except ToolError as error:  # a panic is of no use without what the kernel said of it
            said = b"".join(console).decode("utf-8", "replace")
            error.add_note(said[-20_000:])
            if attempt or STALE not in said:
                raise
            console.clear()
    return b"".join(console).decode("utf-8", "replace").replace("\r\n", "\n")


def sections(console: str) -> Mapping[str, Ended]:
    """What each program wrote and how it ended, by label, from the markers of PID 1."""
    pattern = re.compile(r"@@BEGIN (\S+)\n(.*?)@@END \1 ([^\n]*)\n", re.DOTALL)
    return {label: Ended(output, status) for label, output, status in pattern.findall(console)}


def trouble(log: str) -> list[str]:
    """Lines of a kernel log that should not be there."""
    return [line for line in log.splitlines() if TROUBLE.search(line) and not HARMLESS.search(line)]


class NmiStorm:
    """Sends NMIs to a QEMU all the time, by its monitor at the socket ``path``; ``options`` start the monitor.

    It begins with the first report: a kernel that is still starting has no handler for NMIs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.options = ("-qmp", f"unix:{path},server=on,wait=off")

    def __enter__(self) -> NmiStorm:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._begin.set()
        self._thread.join(10)

    def on_report(self, _: Report) -> None:
        self._begin.set()

    def _run(self) -> None:
        self._begin.wait()
        try:
            with socket.socket(socket.AF_UNIX) as monitor:
                monitor.connect(str(self._path))
                with monitor.makefile("rw") as stream:
                    stream.readline()
                    self._send(stream.write, stream.flush, stream.readline, "qmp_capabilities")
                    while not self._over.is_set():
                        self._send(stream.write, stream.flush, stream.readline, "inject-nmi")
                        time.sleep(0.002)
        except OSError:
            return  # the machine is gone, and with it the storm

    @staticmethod
    def _send(
        write: Callable[[str], object], flush: Callable[[], object], read: Callable[[], str], command: str
    ) -> None:
        write(json.dumps({"execute": command}) + "\n")
        flush()
        if not read():
            raise OSError("the monitor is closed")
