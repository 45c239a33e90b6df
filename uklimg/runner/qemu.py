"""QEMU's command line. ``qemu_cmd`` is pure; ``Qemu`` is the Machine.

The kernel boots directly (-kernel): an ELF vmlinux through its PVH note, a bzImage through the Linux boot protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from uklimg import proc
from uklimg.errors import UserError
from uklimg.guest.commands import port_name
from uklimg.guest.protocol import PORT
from uklimg.runner.machine import (
    Accel,
    Call,
    Disk,
    Feature,
    MachineConfig,
    MachineType,
    Sharing,
    TapNetwork,
    UserNetwork,
    Volume,
)

PROGRAM = "qemu-system-x86_64"
_KIB = 1024


class Qemu:
    """The Machine that is QEMU; ``program`` may be a path."""

    def __init__(self, program: str = PROGRAM) -> None:
        self._program = program

    @property
    def name(self) -> str:
        return "qemu"

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset(Feature)

    def command(self, config: MachineConfig) -> list[str]:
        return qemu_cmd(config, self._program)

    def files(self, _config: MachineConfig) -> Mapping[str, bytes]:
        return {}

    def stop(self, _config: MachineConfig) -> Call | None:
        return None

    def version(self, env: Mapping[str, str]) -> str:
        return proc.run([self._program, "--version"], env=env).text.partition("\n")[0]


def qemu_cmd(config: MachineConfig, program: str = PROGRAM) -> list[str]:
    """The argument list. QEMU ends when the guest powers off or resets."""
    if config.icount is not None and config.accel is not Accel.TCG:
        raise UserError("instruction counting needs emulation", hint="--accel tcg")
    argv = [program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-machine", _machine(config), "-accel", config.accel.value, "-cpu", _cpu(config)]
    argv += ["-smp", str(config.cpus), "-m", f"{config.memory // _KIB}k", *_memory(config)]
    argv += ["-kernel", str(config.kernel)]
    if config.initrd is not None:
        argv += ["-initrd", str(config.initrd)]
    argv += ["-append", kernel_cmdline(config)]
    console = "stdio,id=console,signal=off" if config.console < 0 else f"socket,id=console,fd={config.console}"
    argv += ["-chardev", console, "-serial", "chardev:console"]
    for part in (
        _random(config),
        _control(config),
        _network(config),
        _volumes(config),
        _disks(config),
        _debugging(config),
    ):
        argv += part
    argv += config.extra
    if isinstance(config.network, TapNetwork) and config.network.netns:
        return ["ip", "netns", "exec", config.network.netns, *argv]
    return argv


def kernel_cmdline(config: MachineConfig) -> str:
    """The kernel's parameters: what the machine needs, then the image's own, which so win."""
    own = config.cmdline.partition(" -- ")[0].split()
    words = ["console=ttyS0", "panic=-1"]
    if not config.verbose:
        # A microvm has no PCI, which the kernel reports as an error (level 3).
        words.append("loglevel=3" if config.type is MachineType.MICROVM else "quiet")
    if config.accel is Accel.TCG:
        words.append("no_timer_check")  # a loaded host makes the check fail; under KVM the kernel skips it by itself
    if config.network is not None and not any(word.startswith("ip=") for word in own):
        words.append(f"ip={config.network.address if isinstance(config.network, TapNetwork) else 'dhcp'}")
    if config.tsc_khz:
        words.append(f"tsc_early_khz={config.tsc_khz}")
    if config.cmdline:
        words.append(config.cmdline)
    return " ".join(words)


def _machine(config: MachineConfig) -> str:
    shared = ",memory-backend=memory" if _is_shared(config) else ""
    return f"{'microvm,rtc=on' if config.type is MachineType.MICROVM else 'q35'}{shared}"


def _is_shared(config: MachineConfig) -> bool:
    """Whether another process, a virtiofsd, reads and writes the guest's memory."""
    return any(volume.sharing is Sharing.VIRTIOFS for volume in config.volumes)


def _memory(config: MachineConfig) -> list[str]:
    if not _is_shared(config):
        return []
    return ["-object", f"memory-backend-memfd,id=memory,size={config.memory // _KIB}k,share=on"]


def _cpu(config: MachineConfig) -> str:
    if config.accel is Accel.KVM:
        return "host"
    # Random numbers are the one thing that instruction counting does not make repeatable.
    return "max,-rdrand,-rdseed" if config.icount is not None else "max"


def _device(config: MachineConfig, name: str, *options: str) -> str:
    bus = "device" if config.type is MachineType.MICROVM else "pci"
    return ",".join((f"{name}-{bus}", *options))


def _random(config: MachineConfig) -> Iterator[str]:
    if config.icount is None:
        yield from ("-object", "rng-random,id=rng,filename=/dev/urandom")
        yield from ("-device", _device(config, "virtio-rng", "rng=rng"))


def _control(config: MachineConfig) -> Iterator[str]:
    if config.type is MachineType.MICROVM:
        # Without it virtio-mmio speaks the draft from before virtio 1.0.
        yield from ("-global", "virtio-mmio.force-legacy=false")
    if config.control < 0:
        return
    yield from ("-chardev", f"socket,id=control,fd={config.control}")
    yield from ("-device", _device(config, "virtio-serial"))
    yield from ("-device", f"virtserialport,chardev=control,name={PORT}")
    for number, fd in enumerate(config.commands):
        yield from ("-chardev", f"socket,id=command{number},fd={fd}")
        yield from ("-device", f"virtserialport,chardev=command{number},name={port_name(number)}")


def _network(config: MachineConfig) -> Iterator[str]:
    network = config.network
    if network is None:
        return
    rom = () if config.type is MachineType.MICROVM else ("romfile=",)
    if isinstance(network, UserNetwork):
        forwards = "".join(f",hostfwd={f.protocol}:{f.address}:{f.host}-:{f.guest}" for f in network.forwards)
        yield from ("-netdev", f"user,id=net0{forwards}")
        yield from ("-device", _device(config, "virtio-net", "netdev=net0", *rom))
    else:
        yield from ("-netdev", f"tap,id=net0,ifname={_escape(network.interface)},script=no,downscript=no")
        yield from ("-device", _device(config, "virtio-net", "netdev=net0", f"mac={network.mac}", *rom))


def _volumes(config: MachineConfig) -> Iterator[str]:
    for number, volume in enumerate(config.volumes):
        tag = _escape(volume.tag)
        if volume.sharing is Sharing.VIRTIOFS:
            yield from ("-chardev", f"socket,id=fs{number},path={_escape(volume.socket)}")
            yield from ("-device", _device(config, "vhost-user-fs", f"chardev=fs{number}", f"tag={tag}"))
        else:
            yield from ("-fsdev", _fsdev(f"fs{number}", volume))
            yield from ("-device", _device(config, "virtio-9p", f"fsdev=fs{number}", f"mount_tag={tag}"))


def _fsdev(name: str, volume: Volume) -> str:
    # "none": owners and modes go through where this user may set them, and fail silently where not.
    options = f"local,id={name},path={_escape(volume.path)},security_model=none,multidevs=remap"
    return options + (",readonly=on" if volume.read_only else "")


def _disks(config: MachineConfig) -> Iterator[str]:
    for number, disk in enumerate(config.disks):
        yield from ("-drive", _drive(f"disk{number}", disk))
        yield from ("-device", _device(config, "virtio-blk", f"drive=disk{number}"))


def _drive(name: str, disk: Disk) -> str:
    options = f"if=none,id={name},file={_escape(disk.path)},format={disk.format}"
    return options + (",readonly=on" if disk.read_only else "")


def _debugging(config: MachineConfig) -> Iterator[str]:
    if config.gdb:
        # QEMU makes a tcp: one a server that does not wait by itself.
        yield from ("-gdb", config.gdb if config.gdb.startswith("tcp:") else f"{config.gdb},server=on,wait=off")
    if config.paused:
        yield "-S"
    if config.icount is not None:
        yield from ("-icount", f"shift={config.icount},sleep=off")
        yield from ("-rtc", "base=2025-01-01T00:00:00,clock=vm")


def _escape(value: str) -> str:
    """A comma inside a value of QEMU's option syntax is written twice."""
    return value.replace(",", ",,")
