"""What is exported, and as what machine."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from uklimg import oci
from uklimg.digest import Digest
from uklimg.errors import UserError
from uklimg.runner.fit import memory_needed
from uklimg.runner.machine import MIB, Accel, MachineConfig, Network, PortForward, TapNetwork, UserNetwork
from uklimg.runner.qemu import kernel_cmdline
from uklimg.runner.request import RunOptions, configure

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
NONE, USER = "none", "user"
"""Values of ``Wanted.network`` with a meaning of their own; any other names a network or device of the hypervisor."""

# Addresses of a tap device between this machine and the guest, where nothing gives one by DHCP.
TAP_HOST, TAP_GUEST, TAP_MASK = "172.16.0.1", "172.16.0.2", "255.255.255.252"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; "", 0 and None are the image's own or the format's default.

    ``memory`` in bytes; ``name`` is what the machine is called; ``network`` NONE, USER or a name; ``image`` the
    reference under which a cluster pulls the image; ``at`` the folder (absolute) in which the files will lie;
    ``stub`` systemd's EFI stub.
    """

    cmdline: str = ""
    memory: int = 0
    cpus: int = 0
    name: str = ""
    network: str = ""
    accel: Accel | None = None
    image: str = ""
    at: str = ""
    stub: Path = STUB


@dataclass(frozen=True)
class Job:
    """One export: of the image ``digest`` whose ``files`` (by role) lie unpacked. ``env`` is for host tools;
    ``scratch`` an empty folder that is removed afterwards."""

    digest: Digest
    run: oci.RunConfig
    files: Mapping[str, Path]
    wanted: Wanted
    env: Mapping[str, str] = field(repr=False)
    scratch: Path

    @property
    def name(self) -> str:
        """A name that libvirt and Kubernetes accept (RFC 1123, labels). UserError for another of the user's."""
        if self.wanted.name and not _NAME.fullmatch(self.wanted.name):
            raise UserError(f"{self.wanted.name!r} is no name", hint="lower-case letters, digits, dashes inside")
        return self.wanted.name or re.sub(r"[^a-z0-9]+", "-", self.run.program.lower()).strip("-") or "ukl"

    def guid(self, what: str) -> str:
        """A UUID that depends on the image and ``what`` alone (version 5, RFC 9562)."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.digest}#{what}"))

    def comment(self) -> str:
        """Where a text comes from; one line."""
        return f"From the image {self.digest} ({self.run.program}), by uklimg export."

    def machine(self, kernel: str, network: str) -> MachineConfig:
        """The machine, its files in the current folder; ``kernel``: VMLINUX or BZIMAGE; ``network`` unless the user
        names one. UserError when the image does not fit into its memory."""
        machine = self._machine(kernel, network)
        needed = memory_needed(self.files[kernel], self.files[oci.INITRAMFS])
        if machine.memory < needed:
            hint = f"-m {-(-needed // MIB)}M at least"
            raise UserError(f"the image does not fit into {machine.memory // MIB} MiB of memory", hint=hint)
        return machine

    def _machine(self, kernel: str, network: str) -> MachineConfig:
        wanted = self.wanted
        options = RunOptions(
            memory=wanted.memory, cpus=wanted.cpus, accel=wanted.accel or Accel.KVM, cmdline=wanted.cmdline
        )
        machine, _ = configure(self.run, Path(kernel), Path(oci.INITRAMFS), options)
        return replace(machine, network=self._network(wanted.network or network))

    def _network(self, name: str) -> Network:
        if name == NONE:
            return None
        if name == USER:
            return UserNetwork(tuple(PortForward(_unprivileged(port), port, kind) for port, kind in self.ports()))
        return TapNetwork(name, address=f"{TAP_GUEST}::{TAP_HOST}:{TAP_MASK}::eth0:off")

    def parameters(self, *first: str, network: bool = True) -> str:
        """The kernel's parameters where the address comes by DHCP, with ``first`` before them."""
        machine = self._machine(oci.BZIMAGE, USER)
        if machine.network is not None:
            machine = replace(machine, network=UserNetwork() if network else None)
        return " ".join((*first, kernel_cmdline(machine)))

    def ports(self) -> list[tuple[int, str]]:
        """The ports that the image exposes, with "tcp" or "udp"."""
        pairs = (text.partition("/") for text in self.run.exposed_ports)
        return [(int(number), kind) for number, _, kind in pairs]

    def require_efi(self) -> Path:
        """The bzImage; UserError when firmware cannot start it (its first bytes are no PE file's)."""
        kernel = self.files[oci.BZIMAGE]
        with kernel.open("rb") as file:
            if file.read(2) != b"MZ":
                hint = "build it with KCONFIG CONFIG_EFI_STUB=y"
                raise UserError("UEFI firmware cannot start this image's kernel: it has no EFI stub", hint=hint)
        return kernel


def _unprivileged(port: int) -> int:
    """A port of this machine for one of the guest: 80 becomes 8080, for only root may have the first 1024."""
    return port if port >= 1024 else port + 8000
