"""uklimg export: an image in the form in which other hypervisors, firmware and orchestrators boot it."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from uklimg import oci
from uklimg.cli import options, pull, trust
from uklimg.cli.host import Host
from uklimg.cli.run import boot_file
from uklimg.cli.save import binary_output
from uklimg.console import console
from uklimg.digest import CHUNK
from uklimg.errors import UserError
from uklimg.export.formats import FORMATS, check_network, check_options, check_tools
from uklimg.export.model import STUB, Job, Wanted
from uklimg.export.output import check, placed
from uklimg.ref import Reference
from uklimg.runner.machine import Accel
from uklimg.spec.values import BadValueError, memory

NAME = "export"
HELP = "write an image as a disk, a UKI, an ISO or what a hypervisor reads"
STDOUT = "-"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=tuple(FORMATS), required=True, help="what to write (docs/export.md)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the file or folder (-: standard output)"
    )
    parser.add_argument("--force", action="store_true", help="replace what an earlier export wrote")
    parser.add_argument("--cmdline", metavar="TEXT", default="", help="further kernel parameters")
    parser.add_argument("-m", "--memory", metavar="SIZE", default="", help="memory, as in 512M (the image's)")
    parser.add_argument("--cpus", type=int, metavar="N", default=None, help="processors (the image's)")
    parser.add_argument("--name", metavar="NAME", default="", help="what the machine is called (the program)")
    parser.add_argument(
        "--network", metavar="none|user|NAME", default="", help="none, or a network or tap device of the hypervisor"
    )
    parser.add_argument(
        "--accel", choices=tuple(accel.value for accel in Accel), default="", help="kvm, or tcg where there is none"
    )
    parser.add_argument("--image", metavar="REF", default="", help="the name under which a cluster pulls it (REF)")
    parser.add_argument(
        "--at", metavar="DIR", default="", help="where the files will lie when they boot (the output)"
    )
    parser.add_argument("--stub", metavar="FILE", default="", help=f"systemd's EFI stub ({STUB})")
    trust.add_verify(parser)
    parser.add_argument("ref", metavar="REF", help="name or digest of an image")


def run(args: argparse.Namespace, host: Host) -> int:
    form = FORMATS[args.format]
    out = _output(args, host)
    wanted = _wanted(args, host, out)
    check_tools(args.format, host.env)
    signed = trust.check_of(args, host)
    with console("auto", host.stderr) as sink:
        store = host.store(sink)
        with store.session(), store.scratch() as scratch:
            name, root = pull.find_or_pull(args.ref, host, store, sink, signed)
            if not wanted.image and not name.startswith("sha256:"):
                wanted = replace(wanted, image=name)
            image = options.read_image(store, root)
            files = {file.role: boot_file(store, image, file.role) for file in oci.FILES}
            job = Job(root.digest, image.run, files, wanted, host.env, scratch)
            if out is None:
                whole = scratch / "output"
                form.write(job, whole)
                _send(whole, host)
                return 0
            with placed(out, folder=form.folder, force=args.force) as path:
                form.write(job, path)
    host.print(str(out))
    return 0


def _output(args: argparse.Namespace, host: Host) -> Path | None:
    """The file or folder to write; None for standard output. UserError for what cannot be written."""
    form = FORMATS[args.format]
    if args.output == STDOUT:
        if form.folder:
            raise UserError(f"{args.format} is a folder of files", hint="-o DIR")
        if host.stdout.isatty():
            raise UserError("this is not for a terminal", hint="-o FILE")
        return None
    out = Path(os.path.normpath(host.path(args.output)))
    check(out, folder=form.folder, force=args.force)
    return out


def _wanted(args: argparse.Namespace, host: Host, out: Path | None) -> Wanted:
    """What the command line asks for; UserError for a bad value or an option that the format does not heed."""
    names = ("cmdline", "memory", "cpus", "name", "network", "accel", "image", "at", "stub")
    check_options(args.format, frozenset(name for name in names if getattr(args, name)))
    check_network(args.format, args.network)
    cpus = options.at_least_one(args.cpus, "--cpus")
    if not args.cmdline.isprintable():
        raise UserError("--cmdline has control characters")
    try:
        size = memory(args.memory) if args.memory else 0
    except BadValueError as error:
        raise UserError(f"-m: {error}", hint=error.hint) from error
    return Wanted(
        cmdline=args.cmdline,
        memory=size,
        cpus=cpus,
        name=args.name,
        network=args.network,
        accel=Accel(args.accel) if args.accel else None,
        image=str(Reference.parse(args.image).on_registry()) if args.image else "",
        at=os.path.normpath(host.path(args.at)) if args.at else str(out or ""),
        stub=host.path(args.stub) if args.stub else STUB,
    )


def _send(path: Path, host: Host) -> None:
    binary = binary_output(host.stdout)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            binary.write(chunk)
    binary.flush()
