"""uklimg tag: another name for an image."""

from __future__ import annotations

import argparse

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.errors import UserError
from uklimg.ref import Reference

NAME = "tag"
HELP = "give an image another name"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="an image of the store")
    parser.add_argument("name", metavar="NAME", help="its new name: [HOST/]NAME[:TAG]")


def run(args: argparse.Namespace, host: Host) -> int:
    name = Reference.parse(args.name)
    if name.digest is not None:
        raise UserError(f"{name}: a digest is no name", hint="NAME:TAG")
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            _, root = options.image_of(args.ref, store)
            store.tag(str(name), root.bare())
    return 0
