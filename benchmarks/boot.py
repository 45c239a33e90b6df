"""From the start of QEMU to a Redis that answers PING, for each of the image's kernel files in turn."""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import bench, report
from uklimg.bench.boot import BootFiles
from uklimg.errors import ExitCode, ToolError
from uklimg.guest.protocol import Report, ReportKind
from uklimg.runner.accel import find_accel
from uklimg.runner.launch import launch
from uklimg.runner.machine import Accel, MachineType, PortForward
from uklimg.runner.network import free_port
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure
from uklimg.runner.stops import Stops

MODULE = "benchmarks.boot"
PORT = 6379
# Seconds. QEMU accepts a connection before the guest has a network, and such a one comes to nothing: so each is given
# up soon, and a new one tried.
_PATIENCE = 0.2
_PAUSE = 0.01
_LIMIT = 120.0


def main() -> int:
    top = bench.parser(MODULE, "Time the boot of Uklfile.example's image to the first answer.")
    top.add_argument("--repeat", type=int, default=5, help="boots of each kernel file (5)")
    top.add_argument("--accel", choices=("auto", *(accel.value for accel in Accel)), default="auto")
    args = top.parse_args()
    return bench.run(args, lambda found: measure(found, args))


def measure(found: bench.Bench, args: argparse.Namespace) -> report.Report:
    with found.booted(found.example()) as files:
        accel = choose(found, files.vmlinux, args.accel)
        kernels = {"vmlinux, PVH": files.vmlinux, "bzImage": files.bzimage}
        times: dict[str, list[Boot]] = {name: [] for name in kernels}
        for _ in range(args.repeat):
            for name, kernel in kernels.items():
                times[name].append(boot(found, files, kernel, accel))
    first = bench.median([one.answered for one in next(iter(times.values()))])
    rows = []
    for name, boots in times.items():
        answered = bench.median([one.answered for one in boots])
        started = bench.median([one.started for one in boots])
        rows.append((name, started, answered, min(one.answered for one in boots), answered / first))
    columns = ("kernel", "program started, s", "PING answered, s", "fastest, s", "ratio")
    note = "Medians. The kernel gets its address by DHCP before the program starts."
    title = f"Boot of Redis on q35 with {accel.value}, {args.repeat} times each"
    facts = report.machine(found.host.env)
    return report.Report("boot", facts, (report.Table(title, columns, tuple(rows), note),))


def choose(found: bench.Bench, kernel: Path, wanted: str) -> Accel:
    if wanted != "auto":
        return Accel(wanted)
    state = found.host.settings.state / "accel.json"
    return find_accel(Qemu(), kernel, state=state, env=found.host.env).accel


@dataclass(frozen=True)
class Boot:
    """Seconds from QEMU's start until PID 1 started the program, and until the program answered."""

    started: float
    answered: float


def boot(found: bench.Bench, files: BootFiles, kernel: Path, accel: Accel) -> Boot:
    """Boot once; the guest is stopped as soon as it has answered. ToolError when it does not."""
    port = free_port()
    wanted = RunOptions(forwards=(PortForward(port, PORT),), accel=accel, type=MachineType.Q35)
    machine, guest = configure(files.run, kernel, files.initramfs, wanted)
    stops, over = Stops(), threading.Event()
    started: list[float] = []
    answered: list[float] = []

    def on_report(what: Report) -> None:
        if what.kind is ReportKind.BEGIN:
            started.append(time.monotonic())

    def ask() -> None:
        if ping(port, over):
            answered.append(time.monotonic())
        stops.request()

    asking = threading.Thread(target=ask)
    began = time.monotonic()
    asking.start()
    console = bytearray()
    try:
        launch(Qemu(), machine, guest, env=found.host.env, show=console.extend, stops=stops, on_report=on_report)
    finally:
        over.set()
        asking.join()
        stops.close()
    if not started or not answered:
        text = console.decode(errors="replace")
        raise ToolError("Redis does not answer", detail=text, exit_code=ExitCode.RUN_FAILED)
    return Boot(started[0] - began, answered[0] - began)


def ping(port: int, over: threading.Event) -> bool:
    """Ask until there is an answer; False when there is none in time or ``over`` is set."""
    deadline = time.monotonic() + _LIMIT
    while not over.is_set() and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as connection,
        ):
            connection.sendall(b"PING\r\n")
            if connection.recv(64).startswith(b"+PONG"):
                return True
        time.sleep(_PAUSE)
    return False


if __name__ == "__main__":
    sys.exit(main())
