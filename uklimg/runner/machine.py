"""What a virtual machine is to us, whatever hypervisor runs it. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeAlias

from uklimg.digest import JSON
from uklimg.errors import InternalError, UserError

MIB = 1 << 20
DEFAULT_MEMORY = 256 * MIB


class Accel(Enum):
    KVM = "kvm"
    TCG = "tcg"  # QEMU's own translation: slow, and works everywhere


class MachineType(Enum):
    Q35 = "q35"  # a PC: PCI, ACPI
    MICROVM = "microvm"  # virtio-mmio, no PCI


@dataclass(frozen=True)
class PortForward:
    """``address``:``host`` on this machine leads to ``guest`` in the virtual one. ``protocol``: tcp or udp."""

    host: int
    guest: int
    protocol: str = "tcp"
    address: str = "127.0.0.1"

    def __str__(self) -> str:
        return f"{self.address}:{self.host}:{self.guest}/{self.protocol}"


@dataclass(frozen=True)
class UserNetwork:
    """The hypervisor's own NAT: needs no privilege, gives an address by DHCP; loses connections under load."""

    forwards: tuple[PortForward, ...] = ()


@dataclass(frozen=True)
class TapNetwork:
    """An existing tap ``interface``, inside the network name space ``netns`` unless that is "".

    ``address`` is what ``ip=`` on the kernel's command line says (Documentation/admin-guide/nfs/nfsroot.rst).
    """

    interface: str
    netns: str = ""
    address: str = "dhcp"
    mac: str = "52:54:00:75:6b:6c"


Network: TypeAlias = "UserNetwork | TapNetwork | None"


class Sharing(Enum):
    """How a guest gets at a folder: served by the hypervisor, or by a virtiofsd of its own."""

    NINE_P = "9p"
    VIRTIOFS = "virtiofs"


@dataclass(frozen=True)
class Volume:
    """A folder of this machine (absolute ``path``) that the guest mounts by ``tag``. ``socket``: where its virtiofsd
    listens."""

    path: str
    tag: str
    read_only: bool = False
    sharing: Sharing = Sharing.NINE_P
    socket: str = ""


@dataclass(frozen=True)
class Disk:
    """A file as a virtio block device (/dev/vda, vdb, … in order). ``format``: raw or qcow2."""

    path: str
    format: str = "raw"
    read_only: bool = False


@dataclass(frozen=True)
class MachineConfig:
    """One virtual machine.

    ``cmdline`` is added to the parameters that the machine itself needs. ``memory`` in bytes. ``control``: an open
    file descriptor (a stream socket) for the port of ``uklimg.guest.protocol``, -1 for none; ``console``: the same
    for the serial console, -1 for standard input and output; ``commands``: the same for each port of
    ``uklimg.guest.commands``, which need ``control``. ``verbose`` shows the kernel's messages. ``gdb``: where
    the debugger's stub listens (``tcp:127.0.0.1:1234``, ``unix:/path``), with ``paused`` the guest waits for it.
    ``icount`` makes time a function of instructions executed (2**icount nanoseconds each; TCG only). ``tsc_khz``:
    what the guest is told about its time stamp counter, 0 to let it measure. ``extra``: arguments of the hypervisor
    as they are. ``folder``: where the hypervisor's own files and sockets are, None when it has none.
    """

    kernel: Path
    initrd: Path | None = None
    cmdline: str = ""
    memory: int = DEFAULT_MEMORY
    cpus: int = 1
    accel: Accel = Accel.TCG
    type: MachineType = MachineType.Q35
    network: Network = None
    volumes: tuple[Volume, ...] = ()
    disks: tuple[Disk, ...] = ()
    control: int = -1
    console: int = -1
    commands: tuple[int, ...] = ()
    verbose: bool = False
    gdb: str = ""
    paused: bool = False
    icount: int | None = None
    tsc_khz: int = 0
    extra: tuple[str, ...] = ()
    folder: Path | None = None


class Feature(Enum):
    """What not every hypervisor can do."""

    CONTROL = "port for the guest's PID 1"
    COMMANDS = "commands beside the program"
    EMULATION = "emulation"
    MACHINE_TYPES = "machine types"
    USER_NETWORK = "network of its own"
    NINE_P = "folders over 9p"
    VIRTIOFS = "folders over virtiofs"
    QCOW2 = "qcow2 images"
    BZIMAGE = "way to boot a bzImage"
    DEBUGGING = "debugger's stub"


@dataclass(frozen=True)
class Call:
    """A request to a hypervisor's API: PUT ``path`` with ``body`` as JSON, over its Unix socket."""

    socket: Path
    path: str
    body: JSON = None


class Machine(Protocol):
    """A hypervisor. Its process is the machine: it ends when the guest powers off, SIGTERM ends it."""

    @property
    def name(self) -> str: ...

    @property
    def features(self) -> frozenset[Feature]: ...

    def command(self, config: MachineConfig) -> list[str]:
        """The argument list that starts ``config``. UserError for what this hypervisor cannot do."""
        ...

    def files(self, config: MachineConfig) -> Mapping[str, bytes]:
        """What must lie in ``config.folder`` before that, by name."""
        ...

    def stop(self, config: MachineConfig) -> Call | None:
        """How the guest is told to end where there is no port for PID 1."""
        ...

    def version(self, env: Mapping[str, str]) -> str:
        """One line; ToolError HOST when it is not installed."""
        ...


# What a configuration asks for, the feature that it takes, and what to do where there is none.
_WANTED: tuple[tuple[Feature, Callable[[MachineConfig], bool], str], ...] = (
    (Feature.EMULATION, lambda c: c.accel is Accel.TCG, "it needs KVM; --hypervisor qemu works without"),
    (Feature.MACHINE_TYPES, lambda c: c.type is not MachineType.Q35, "leave out --machine"),
    (Feature.USER_NETWORK, lambda c: isinstance(c.network, UserNetwork), "--tap NAME, or --no-network"),
    (
        Feature.NINE_P,
        lambda c: any(v.sharing is Sharing.NINE_P for v in c.volumes),
        "a disk image: -v disk.img:/data",
    ),
    (Feature.VIRTIOFS, lambda c: any(v.sharing is Sharing.VIRTIOFS for v in c.volumes), "a disk image"),
    (Feature.QCOW2, lambda c: any(disk.format != "raw" for disk in c.disks), "qemu-img convert -O raw"),
    (Feature.DEBUGGING, lambda c: bool(c.gdb or c.paused or c.icount is not None), "--hypervisor qemu"),
    (Feature.EMULATION, lambda c: bool(c.extra), "its arguments are QEMU's"),
)


def refuse(machine: Machine, config: MachineConfig) -> None:
    """UserError for the first thing in ``config`` that ``machine`` cannot do."""
    for feature, asked, hint in _WANTED:
        if feature not in machine.features and asked(config):
            if feature is Feature.NINE_P and Feature.VIRTIOFS in machine.features:
                hint = "virtiofs: -v HOST:GUEST:virtiofs"
            raise UserError(f"{machine.name} has no {feature.value}", hint=hint)


def folder_of(config: MachineConfig) -> Path:
    if config.folder is None:
        raise InternalError("a hypervisor without a folder for its files")
    return config.folder
