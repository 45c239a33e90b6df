"""uklimg run: boot an image, and end as its program ends."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TextIO

from uklimg import oci
from uklimg.cli import guests, options, pull, trust
from uklimg.cli.host import Host
from uklimg.console import Console, console
from uklimg.errors import ToolError, UserError
from uklimg.events import Note
from uklimg.guest.config import DEFAULT_GRACE
from uklimg.guest.protocol import GuestConfig
from uklimg.oci import layer
from uklimg.runner.accel import DEVICE, find_accel, host_tsc_khz
from uklimg.runner.hypervisors import HYPERVISORS
from uklimg.runner.launch import check, launch
from uklimg.runner.machine import Accel, Feature, Machine, MachineConfig, MachineType, TapNetwork
from uklimg.runner.network import check_tap, parse_forward, parse_tap
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure
from uklimg.runner.stops import Stops
from uklimg.runner.volumes import parse_bind, parse_mount
from uklimg.running import client
from uklimg.running.policy import parse_restart
from uklimg.running.supervisor import Task
from uklimg.spec.values import BadValueError, memory
from uklimg.store import Store

NAME = "run"
HELP = "boot an image in a virtual machine"
VMLINUX, BZIMAGE = "vmlinux", "bzimage"
# Signals that end a program without a word of its own.
FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS)
# What QEMU serves a debugger on, without options.
GDB = re.compile(r"tcp:[^,\s]*:[0-9]{1,5}|unix:[^,\s]+")
# Remembers in the state folder whether KVM works.
ACCEL = "accel.json"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--publish", metavar="HOST:GUEST", action="append", default=[], help="forward a port")
    parser.add_argument("-m", "--memory", metavar="SIZE", default="", help="memory, as in 512M (the image's)")
    parser.add_argument("--cpus", type=int, metavar="N", default=None, help="processors (the image's)")
    parser.add_argument(
        "-v", "--volume", metavar="HOST:GUEST", action="append", default=[], help="mount a folder or a disk image"
    )
    parser.add_argument(
        "--mount", metavar="type=…,source=…,target=…", action="append", default=[], help="the same, said at length"
    )
    parser.add_argument("-e", "--env", metavar="NAME=VALUE", action="append", default=[], help="set a variable")
    parser.add_argument("--boot", choices=(VMLINUX, BZIMAGE), default=VMLINUX, help="which kernel file (vmlinux)")
    add_machine(parser)
    parser.add_argument("--no-network", action="store_true", help="give the guest no network device")
    parser.add_argument("--tap", metavar="DEVICE", default="", help="connect it to a tap device that is there")
    parser.add_argument("--ip", metavar="ADDRESS/PREFIX", default="", help="its address there (by DHCP)")
    parser.add_argument(
        "--hypervisor", choices=tuple(HYPERVISORS), default=Qemu().name, help=f"what runs it ({Qemu().name})"
    )
    parser.add_argument("--cmdline", metavar="TEXT", default="", help="further kernel parameters")
    parser.add_argument(
        "--stop-timeout",
        type=int,
        metavar="SECONDS",
        default=DEFAULT_GRACE,
        help=f"from the stop signal to the kill ({DEFAULT_GRACE})",
    )
    parser.add_argument("-i", "--interactive", action="store_true", help="connect standard input to the console")
    # Who writes `run -it` is told, and not that -i takes no "t".
    parser.add_argument("-t", "--tty", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--verbose", action="store_true", help="show the kernel's messages")
    parser.add_argument("--gdb", metavar="ADDRESS", default="", help="serve a debugger, as in tcp:127.0.0.1:1234")
    trust.add_verify(parser)
    guests.add_detached(parser)
    options.add_plain_http(parser)
    parser.add_argument("ref", metavar="REF", help="name or digest of an image")
    options.add_arguments(parser, "in place of the image's command")


def add_accel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accel",
        choices=("auto", *(accel.value for accel in Accel)),
        default="auto",
        help="KVM or emulation (auto: KVM if a kernel boots under it)",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """What kind of virtual machine; also for `uklimg test`."""
    add_accel(parser)
    parser.add_argument(
        "--machine",
        choices=tuple(kind.value for kind in MachineType),
        default=MachineType.Q35.value,
        help=f"what the virtual machine is like ({MachineType.Q35.value})",
    )


def run(args: argparse.Namespace, host: Host) -> int:
    wanted = run_options(args, host)
    if isinstance(wanted.network, TapNetwork):
        check_tap(wanted.network)
    hypervisor, env = HYPERVISORS[args.hypervisor](), host.env
    check = trust.check_of(args, host)
    with console("auto", host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            _, root = pull.find_or_pull(args.ref, host, store, sink, check)
        image = options.read_image(store, root)
        if doubt := _about_arguments(args, image):
            sink(Note(doubt, warning=True))
        vmlinux, initrd = boot_file(store, image, oci.VMLINUX), boot_file(store, image, oci.INITRAMFS)
        kernel = vmlinux if args.boot == VMLINUX else boot_file(store, image, oci.BZIMAGE)
        accel = accel_of(args.accel, host, vmlinux, sink) if hypervisor.name == Qemu().name else _kvm(args.accel)
    if args.boot == BZIMAGE and Feature.BZIMAGE not in hypervisor.features:
        raise UserError(f"{hypervisor.name} has no {Feature.BZIMAGE.value}", hint="leave out --boot")
    machine, guest = configure(image.run, kernel, initrd, replace(wanted, accel=accel))
    if args.detach:
        return _detach(args, host, image, hypervisor, machine, guest)
    with Stops() as stops:
        stdin = sys.stdin.fileno() if args.interactive else None
        outcome = launch(hypervisor, machine, guest, env=env, show=writer(host), stops=stops, stdin=stdin)
    if outcome.status.signal in FAULTS:
        how = signal.Signals(outcome.status.signal).name
        more = "" if args.verbose else " (--verbose shows where)"
        host.stderr.write(f"uklimg: the program was ended by {how}{more}\n")
    return outcome.code


def _about_arguments(args: argparse.Namespace, image: oci.Image) -> str:
    """What to say of arguments that begin with an option, which would be the program's name; "" of others."""
    name = args.arguments[0] if args.arguments and not image.run.entrypoint else ""
    if not name.startswith("-"):
        return ""
    option = f"uklimg run {args.ref} {image.run.program} {name}"
    return f"{name} is the program's name here, not an option; that would be: {option}"


def _detach(
    args: argparse.Namespace,
    host: Host,
    image: oci.Image,
    hypervisor: Machine,
    machine: MachineConfig,
    guest: GuestConfig,
) -> int:
    """Start it under a supervisor; prints its id."""
    health = guests.health_of(args, image.run.healthcheck)
    if health is not None and Feature.COMMANDS not in hypervisor.features:
        raise UserError(f"{hypervisor.name} has no {Feature.COMMANDS.value}", hint="--no-healthcheck")
    record = guests.new_record(args, image, hypervisor, machine, guest.programs[0].argv, health)
    check(hypervisor, machine, host.env)
    task = Task(record, hypervisor, machine, guest, host.env, parse_restart(args.restart), health)
    client.start(guests.guests_of(host), task)
    host.print(record.id)
    return 0


def run_options(args: argparse.Namespace, host: Host) -> RunOptions:
    """What the command line asks for; raises UserError."""
    cpus = options.at_least_one(args.cpus, "--cpus")
    if args.stop_timeout < 0:
        raise UserError("--stop-timeout wants a number of seconds")
    if args.tty:
        raise UserError("run has no -t", hint="the program's console is a terminal; -i connects standard input to it")
    if args.gdb and not GDB.fullmatch(args.gdb):
        raise UserError(f"--gdb {args.gdb}: not an address", hint="as in tcp:127.0.0.1:1234 or unix:/run/gdb.sock")
    if args.detach and args.interactive:
        raise UserError("-d leaves no standard input to connect", hint="uklimg exec -i")
    if args.tap and (args.publish or args.no_network):
        raise UserError(
            "--tap and -p or --no-network exclude one another", hint="the guest has an address of its own"
        )
    if args.ip and not args.tap:
        raise UserError("--ip is the guest's address on a tap device", hint="--tap DEVICE")
    lonely = {"--name": args.name, "--restart": args.restart != "no", **guests.health_options(args)}
    for option, given in lonely.items():
        if given and not args.detach:
            raise UserError(f"{option} is for guests that run by themselves", hint="add -d")
    return RunOptions(
        arguments=tuple(args.arguments),
        env=variables(args.env, host),
        forwards=tuple(parse_forward(text) for text in args.publish),
        binds=(
            *(parse_bind(text, host.cwd) for text in args.volume),
            *(parse_mount(text, host.cwd) for text in args.mount),
        ),
        memory=_memory(args.memory) if args.memory else 0,
        cpus=cpus,
        type=MachineType(args.machine),
        no_network=args.no_network,
        network=parse_tap(args.tap, args.ip) if args.tap else None,
        cmdline=args.cmdline,
        grace=args.stop_timeout,
        verbose=args.verbose,
        gdb=args.gdb,
        tsc_khz=host_tsc_khz(cpuinfo()),
    )


def accel_of(wanted: str, host: Host, vmlinux: Path, sink: Console) -> Accel:
    """What --accel asks for; "auto" tries KVM with the kernel ``vmlinux``, once on a machine."""
    if wanted != "auto":
        return Accel(wanted)
    state = host.settings.state / ACCEL
    return find_accel(Qemu(), vmlinux, state=state, env=host.env, note=lambda text: sink(Note(text))).accel


def _kvm(wanted: str) -> Accel:
    """For hypervisors that have nothing else. What they do with --accel tcg they say themselves."""
    if wanted == "auto" and not os.access(DEVICE, os.R_OK | os.W_OK):
        raise ToolError(f"it needs KVM, and {DEVICE} cannot be opened", hint="--hypervisor qemu works without")
    return Accel.KVM if wanted == "auto" else Accel(wanted)


def cpuinfo() -> str:
    """What the kernel says about this machine's processors, "" where it says nothing."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _memory(text: str) -> int:
    try:
        return memory(text)
    except BadValueError as error:
        raise UserError(f"-m: {error}", hint=error.hint) from error


def variables(words: Sequence[str], host: Host) -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` for this machine's value, and nothing where it has none, as Docker has it."""
    found: dict[str, str] = {}
    for text in words:
        name, equals, value = text.partition("=")
        if not name or "\0" in text:
            raise UserError(f"{text!r} is not a variable", hint="-e NAME=VALUE")
        if equals:
            found[name] = value
        elif name in host.environ:
            found[name] = host.environ[name]
    return found


def boot_file(store: Store, image: oci.Image, role: str) -> Path:
    """A file of the image, unpacked once in the store. The layer's bytes are checked each time: CorruptError."""
    blob, path = image.file(role), oci.PATHS[role]

    def unpack(stream: BinaryIO, folder: Path) -> None:
        with (folder / role).open("wb") as file:
            file.writelines(layer.file_chunks(stream, path, blob.size))

    store.verified_path(blob.digest)
    return store.unpacked(blob.digest, unpack) / role


def writer(host: Host, stream: TextIO | None = None) -> Callable[[bytes], object]:
    """Where the guest's bytes go: standard output as it is, or ``stream``."""
    stream = stream or host.stdout
    binary = getattr(stream, "buffer", None)

    def show(data: bytes) -> None:
        if binary is None:
            stream.write(data.decode("utf-8", "replace"))
        else:
            binary.write(data)
        stream.flush()

    return show
