"""uklimg load: images of a file into the store."""

from __future__ import annotations

import argparse
import sys

from uklimg import archive
from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.errors import UserError

NAME = "load"
HELP = "read images from a file that `save`, skopeo or podman wrote (an OCI archive)"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--input", metavar="FILE", default="", help="the file (default: standard input)")
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    if not args.input and sys.stdin.isatty():
        raise UserError("an archive does not come from a terminal", hint="-i FILE")
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            if args.input:
                try:
                    with host.path(args.input).open("rb") as file:
                        loaded = archive.load(store, file)
                except OSError as error:
                    raise UserError(f"cannot read {args.input}: {error.strerror}") from error
            else:
                loaded = archive.load(store, sys.stdin.buffer)
    if args.format == "json":
        options.print_json(host, [{"name": found.name, "digest": str(found.root.digest)} for found in loaded])
        return 0
    for found in loaded:
        host.print(" ".join(filter(None, (found.name, str(found.root.digest)))))
    return 0
