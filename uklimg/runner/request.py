"""From an image and what the user asked for to a machine and its guest; pure but for looking at volumes' folders."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uklimg.errors import UserError
from uklimg.guest.config import DEFAULT_GRACE, guest_config
from uklimg.guest.protocol import GuestConfig, Mount
from uklimg.oci import RunConfig
from uklimg.runner.machine import (
    DEFAULT_MEMORY,
    Accel,
    MachineConfig,
    MachineType,
    Network,
    PortForward,
    UserNetwork,
    Volume,
)

# msize: fewer and larger messages; cache=mmap: shared writable mappings work.
_9P = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap"


@dataclass(frozen=True)
class Bind:
    """``-v``: a folder of this machine, absolute, at ``target`` in the guest."""

    path: str
    target: str
    read_only: bool = False


def parse_bind(text: str, base: Path) -> Bind:
    """``HOST:GUEST[:ro|rw]``; a relative HOST is below ``base``. UserError for anything else."""
    host, colon, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not host or not colon or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise UserError(f"{text!r} is not a volume", hint="HOST:GUEST[:ro], GUEST absolute, as in -v ./data:/data")
    path = posixpath.normpath(target)
    if path == "/":
        raise UserError("a volume cannot be mounted on /")
    return Bind(str((base / Path(host).expanduser()).resolve()), path, mode == "ro")


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
    machine = MachineConfig(
        kernel=kernel,
        initrd=initrd,
        cmdline=_join_cmdline(run.cmdline, options.cmdline),
        memory=options.memory or run.memory or DEFAULT_MEMORY,
        cpus=options.cpus or run.cpus or 1,
        accel=options.accel,
        type=options.type,
        network=_network(options),
        volumes=tuple(Volume(b.path, f"uklimg{n}", b.read_only) for n, b in enumerate(options.binds)),
        verbose=options.verbose,
        gdb=options.gdb,
        paused=options.paused,
        icount=options.icount,
        # An emulated guest measures its counter against timers that a loaded host starves; a microvm then hangs.
        tsc_khz=_tsc_khz(options),
        extra=options.extra,
    )
    mounts = [Mount(b.target, f"uklimg{n}", options=_9P, read_only=b.read_only) for n, b in enumerate(options.binds)]
    guest = guest_config(
        run,
        arguments=options.arguments,
        env=options.env,
        mounts=mounts,
        grace=options.grace,
        raw_console=True,
    )
    return machine, guest


def check_binds(binds: Sequence[Bind]) -> None:
    """UserError for a folder that is not there or a target named twice."""
    targets: set[str] = set()
    for bind in binds:
        if not Path(bind.path).is_dir():
            raise UserError(f"no folder {bind.path} for the volume {bind.target}", hint=f"mkdir -p {bind.path}")
        if bind.target in targets:
            raise UserError(f"two volumes for {bind.target}")
        targets.add(bind.target)


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
