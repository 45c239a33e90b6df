"""uklimg rmi: forget an image's name; `prune` then frees what nothing else needs."""

from __future__ import annotations

import argparse

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console

NAME = "rmi"
HELP = "remove an image's name from the store"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("refs", metavar="REF", nargs="+", help="an image of the store")


def run(args: argparse.Namespace, host: Host) -> int:
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        for name, _ in [options.image_of(text, store) for text in args.refs]:
            store.untag(name)
            host.print(name)
    return 0
