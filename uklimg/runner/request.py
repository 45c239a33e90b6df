"""From an image and what the user asked for to a machine and its guest; pure but for looking at volumes' folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from uklimg.errors import UserError
from uklimg.guest.config import DEFAULT_GRACE, guest_config
from uklimg.guest.protocol import GuestConfig
from uklimg.oci import RunConfig
from uklimg.runner.machine import (
    DEFAULT_MEMORY,
    Accel,
    MachineConfig,
    MachineType,
    Network,
    PortForward,
    UserNetwork,
)
from uklimg.runner.volumes import Bind, check_binds, place


@dataclass(frozen=True)
class RunOptions:
    """What ``uklimg run`` was asked for; 0, "" and empty mean the image's own or our default. ``memory`` in bytes,
    ``grace`` in seconds. ``network`` overrides ``forwards`` (tests and benchmarks give a TapNetwork);
    ``no_network`` gives the guest no network device. ``tsc_khz``: this machine's ``accel.host_tsc_khz``."""

    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    forwards: tuple[PortForward, ...] = ()
    binds: tuple[Bind, ...] = ()
    memory: int = 0
    cpus: int = 0
    accel: Accel = Accel.TCG
    type: MachineType = MachineType.Q35
    network: Network = None
    no_network: bool = False
    cmdline: str = ""
    grace: int = DEFAULT_GRACE
    verbose: bool = False
    gdb: str = ""
    paused: bool = False
    icount: int | None = None
    tsc_khz: int = 0
    extra: tuple[str, ...] = ()


def configure(run: RunConfig, kernel: Path, initrd: Path, options: RunOptions) -> tuple[MachineConfig, GuestConfig]:
    """The machine and the guest for the image ``run`` of ``kernel`` (vmlinux or bzImage) and ``initrd``."""
    check_binds(options.binds)
    placed = place(options.binds)
    machine = MachineConfig(
        kernel=kernel,
        initrd=initrd,
        cmdline=_join_cmdline(run.cmdline, options.cmdline),
        memory=options.memory or run.memory or DEFAULT_MEMORY,
        cpus=options.cpus or run.cpus or 1,
        accel=options.accel,
        type=options.type,
        network=_network(options),
        volumes=placed.volumes,
        disks=placed.disks,
        verbose=options.verbose,
        gdb=options.gdb,
        paused=options.paused,
        icount=options.icount,
        # An emulated guest measures its counter against timers that a loaded host starves; a microvm then hangs.
        tsc_khz=_tsc_khz(options),
        extra=options.extra,
    )
    guest = guest_config(
        run,
        arguments=options.arguments,
        env=options.env,
        mounts=placed.mounts,
        grace=options.grace,
        raw_console=True,
    )
    return machine, guest


def _join_cmdline(image: str, user: str) -> str:
    """The user's parameters after the image's, and before what the image may pass to init after a ``--``."""
    own, dashes, rest = image.partition(" -- ")
    joined = " ".join(part for part in (own.strip(), user.strip()) if part)
    return f"{joined}{dashes}{rest}"


def _network(options: RunOptions) -> Network:
    if options.no_network:
        if options.forwards:
            raise UserError("ports can only be forwarded to a guest with a network")
        return None
    return options.network or UserNetwork(options.forwards)


def _tsc_khz(options: RunOptions) -> int:
    """Emulation passes the host's counter on; under instruction counting it runs at 1 GHz."""
    if options.accel is not Accel.TCG:
        return 0
    return 1_000_000 if options.icount is not None else options.tsc_khz
