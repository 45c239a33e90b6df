"""uklimg pull: an image of a registry into the store."""

from __future__ import annotations

import argparse

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.ref import Reference
from uklimg.remote import client

NAME = "pull"
HELP = "bring an image of a registry into the store"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="HOST/NAME[:TAG][@DIGEST]")
    options.add_progress(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    ref = Reference.parse(args.ref).on_registry()
    with console(args.progress, host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            root = client.pull(ref, store, client.connect(ref, host.environ, host.uid), sink)
    host.print(f"{ref} {root.digest}")
    return 0
