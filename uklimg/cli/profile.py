"""uklimg profile: what an image's guest does, as a flame graph."""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path

from uklimg import blueprints, oci
from uklimg.bench.model import Measure
from uklimg.bench.suites import SUITES
from uklimg.cli import options, pull
from uklimg.cli import run as booting
from uklimg.cli.host import Host
from uklimg.cli.workshop import Workshop
from uklimg.console import Console, console
from uklimg.errors import ToolError, UserError
from uklimg.events import Note
from uklimg.profiling.boot import Tools, Wanted, profile
from uklimg.profiling.flame import flame
from uklimg.profiling.stacks import folded, stacks
from uklimg.recipes.program import step_id
from uklimg.runner.accel import host_tsc_khz
from uklimg.runner.machine import MachineType
from uklimg.runner.network import parse_forward
from uklimg.runner.request import RunOptions
from uklimg.runner.stops import Stops
from uklimg.store import Store

NAME = "profile"
HELP = "run an image under perf and draw what it does as a flame graph"
# What perf's own clock gives without measuring itself more than the program.
_FREQUENCY = 999
_SECONDS = 10
_REQUESTS = 20_000
_CLIENT = "client"


def add(parser: argparse.ArgumentParser) -> None:
    servers = [suite.name for suite in SUITES.values() if suite.beside and suite.beside.program == _CLIENT]
    parser.add_argument("-o", "--output", metavar="FILE", default="profile.svg", help="the picture (profile.svg)")
    parser.add_argument("--folded", metavar="FILE", default="", help="also write the counted stacks, a line each")
    parser.add_argument("--seconds", type=int, metavar="N", default=_SECONDS, help=f"how long to record ({_SECONDS})")
    parser.add_argument(
        "--frequency", type=int, metavar="HZ", default=_FREQUENCY, help=f"samples a second ({_FREQUENCY})"
    )
    parser.add_argument(
        "--client", choices=servers, default="", help="load it with the client of this suite of `bench`"
    )
    parser.add_argument(
        "--requests", type=int, metavar="N", default=_REQUESTS, help=f"of the client, a case ({_REQUESTS})"
    )
    parser.add_argument("-p", "--publish", metavar="HOST:GUEST", action="append", default=[], help="forward a port")
    parser.add_argument("--cpus", type=int, metavar="N", default=None, help="processors (the image's)")
    parser.add_argument("--cmdline", metavar="TEXT", default="", help="further kernel parameters")
    booting.add_machine(parser)
    options.add_engine(parser)
    options.add_progress(parser)
    parser.add_argument("ref", metavar="REF", help="name or digest of an image")
    options.add_arguments(parser, "in place of the image's command")


def run(args: argparse.Namespace, host: Host) -> int:
    cpus = options.at_least_one(args.cpus, "--cpus")
    if min(args.seconds, args.frequency, args.requests) < 1:
        raise UserError("--seconds, --frequency and --requests want a number greater than 0")
    with console(args.progress, host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            name, root = pull.find_or_pull(args.ref, host, store, sink)
            shop = Workshop(host, store, sink)
            files = shop.files(root)
            debug = _debug(store, root, files.run.program)
            tools = Tools(shop.perf, shop.program("profiler"), shop.program(_CLIENT), debug)
            wanted = RunOptions(
                arguments=tuple(args.arguments),
                forwards=tuple(parse_forward(text) for text in args.publish),
                no_network=not args.publish,
                cpus=cpus,
                cmdline=args.cmdline,
                accel=booting.accel_of(args.accel, host, files.vmlinux, sink),
                type=MachineType(args.machine),
                tsc_khz=host_tsc_khz(booting.cpuinfo()),
            )
            client = SUITES[args.client].helper(Measure.TIME, args.requests) if args.client else ()
            sink(Note(f"booting {name} with perf beside it"))
            show = partial(_show, sink)
            with Stops() as stops:
                what = Wanted(args.seconds, args.frequency, client)
                text = profile(files, tools, what, wanted, env=host.env, show=show, stops=stops)
    twin = files.run.target == oci.TARGET_LINUX
    found = stacks(text.splitlines(), unlinked=twin)
    if not found:
        raise ToolError("the guest did nothing while perf recorded", hint="--client, or --publish and load from here")
    title = f"{name}: {shlex.join(files.run.argv_with(tuple(args.arguments)))}"
    options.write_result(host.path(args.output), flame(found, title))
    if args.folded:
        options.write_result(host.path(args.folded), folded(found))
    host.print(f"{args.output}: {sum(found.values())} samples")
    return 0


def _debug(store: Store, root: oci.Descriptor, program: str) -> Path | None:
    """The plain-Linux twin's program with its symbols, where this store built it. A kernel knows its own."""
    carried = blueprints.read(store, root.digest)
    if carried is None or not carried.blueprint.twin:
        return None
    key = next((step.key for step in carried.blueprint.steps if step.id == step_id(program)), None)
    result = store.lookup(key) if key is not None else None
    return store.tree(result) / f"{program}.debug" if result is not None else None


def _show(sink: Console, data: bytes) -> None:
    for line in data.decode(errors="replace").replace("\r", "").splitlines():
        if line.strip():
            sink(Note(line))
