"""Port forwards as users write them, whether their ports are free, and networks of a tap in a name space."""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from uklimg import proc
from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.runner.machine import PortForward, TapNetwork

_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def parse_forward(text: str) -> PortForward:
    """``[ADDRESS:]HOST:GUEST[/tcp|udp]``; the address is 127.0.0.1 unless given. UserError for anything else."""
    ports, _, protocol = text.partition("/")
    *address, host, guest = ports.rsplit(":", 2) if ports.count(":") else ("", "")
    if not host or not guest or (protocol or "tcp") not in _TYPES or (address and not address[0]):
        raise UserError(f"{text!r} is not a port forward", hint="HOST:GUEST, as in -p 8080:80 or 0.0.0.0:53:53/udp")
    forward = PortForward(_port(host, text), _port(guest, text), protocol or "tcp")
    if not address:
        return forward
    try:
        ipaddress.IPv4Address(address[0])
    except ValueError:
        raise UserError(f"{address[0]!r} in {text!r} is not an IPv4 address") from None
    return PortForward(forward.host, forward.guest, forward.protocol, address[0])


def parse_tap(interface: str, address: str) -> TapNetwork:
    """``--tap`` and ``--ip``: a tap device that is there, and the guest's ``ADDRESS/PREFIX[,GATEWAY]``, "" for DHCP.
    UserError for anything else."""
    if not interface or len(interface) > 15 or "/" in interface or any(char.isspace() for char in interface):
        raise UserError(f"{interface!r} cannot be a network device", hint="ip tuntap add NAME mode tap")
    # One that stays, and that other guests on the same bridge do not have.
    last = hashlib.sha256(interface.encode()).digest()
    mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in last[:3])
    if not address:
        return TapNetwork(interface, mac=mac)
    own, _, gateway = address.partition(",")
    try:
        guest = ipaddress.IPv4Interface(own)
        router = str(ipaddress.IPv4Address(gateway)) if gateway else ""
    except ValueError:
        hint = "ADDRESS/PREFIX[,GATEWAY], as in 10.0.0.2/24,10.0.0.1"
        raise UserError(f"{address!r} is not an address of a guest", hint=hint) from None
    return TapNetwork(interface, address=f"{guest.ip}::{router}:{guest.netmask}::eth0:off", mac=mac)


def check_tap(network: TapNetwork) -> None:
    """UserError when there is no such device: QEMU would make one that nothing is connected to."""
    name = network.interface
    try:
        socket.if_nametoindex(name)
    except OSError:
        hint = f"ip tuntap add {name} mode tap user $USER"
        raise UserError(f"there is no network device {name}", hint=hint) from None


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise UserError(f"{text!r} in {whole!r} is not a port", hint="1 to 65535")
    return int(text)


def check_forwards(forwards: Iterable[PortForward]) -> None:
    """ToolError RUN_FAILED when a port of this machine cannot be had, UserError when one is named twice."""
    seen: set[tuple[str, int, str]] = set()
    for forward in forwards:
        key = (forward.address, forward.host, forward.protocol)
        if key in seen:
            raise UserError(f"port {forward.host} is forwarded twice")
        seen.add(key)
        _check_free(forward)


def _check_free(forward: PortForward) -> None:
    with socket.socket(socket.AF_INET, _TYPES[forward.protocol]) as probe:
        if forward.protocol == "tcp":
            # As QEMU does: a connection that lingers in TIME_WAIT does not make the port taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((forward.address, forward.host))
            if forward.protocol == "tcp":
                probe.listen(1)
        except OSError as error:
            where = f"{forward.protocol} port {forward.host} of {forward.address}"
            if error.errno == errno.EADDRINUSE:
                raise ToolError(
                    f"{where} is in use",
                    hint=f"choose another: -p HOST:{forward.guest}",
                    exit_code=ExitCode.RUN_FAILED,
                ) from None
            raise ToolError(f"{where}: {error.strerror}", exit_code=ExitCode.RUN_FAILED) from None


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody has at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class TapPlan:
    """A network name space with a tap device. ``host`` and ``guest`` are addresses of the same /24."""

    netns: str
    interface: str = "tap0"
    host: str = "10.75.0.1"
    guest: str = "10.75.0.2"

    @property
    def network(self) -> TapNetwork:
        """What a MachineConfig wants; the guest's address comes from the kernel's command line."""
        return TapNetwork(self.interface, self.netns, f"{self.guest}::{self.host}:255.255.255.0::eth0:off")


def inside_cmd(plan: TapPlan, argv: Iterable[str]) -> list[str]:
    """``argv`` inside the name space: a client of the guest."""
    return ["ip", "netns", "exec", plan.netns, *argv]


def tap_cmds(plan: TapPlan) -> list[list[str]]:
    """The commands that make the name space, its loopback and its tap, in order."""
    return [
        ["ip", "netns", "add", plan.netns],
        ["ip", "-n", plan.netns, "link", "set", "lo", "up"],
        ["ip", "-n", plan.netns, "tuntap", "add", plan.interface, "mode", "tap"],
        ["ip", "-n", plan.netns, "addr", "add", f"{plan.host}/24", "dev", plan.interface],
        ["ip", "-n", plan.netns, "link", "set", plan.interface, "up"],
    ]


@contextmanager
def tap(plan: TapPlan, env: Mapping[str, str]) -> Iterator[TapPlan]:
    """The network of ``plan`` for as long as the block lasts. Needs root; ToolError HOST otherwise."""
    first, *others = tap_cmds(plan)
    proc.run(first, env=env)
    try:
        for argv in others:
            proc.run(argv, env=env)
        yield plan
    finally:
        proc.run(["ip", "netns", "delete", plan.netns], env=env, check=False)
