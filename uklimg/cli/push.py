"""uklimg push: an image of the store to a registry."""

from __future__ import annotations

import argparse

from uklimg.cli import options, publish
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.ref import Reference

NAME = "push"
HELP = "send an image to a registry"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="an image of the store")
    parser.add_argument("to", metavar="TO", nargs="?", default="", help="HOST/NAME[:TAG], when REF names no registry")
    publish.add(parser)
    options.add_plain_http(parser)
    options.add_progress(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    target = Reference.parse(args.to or args.ref).on_registry()
    wanted = publish.publishing(args, host)
    with console(args.progress, host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            _, root = options.image_of(args.ref, store)
            publish.publish(target, root, wanted, store, host, sink)
    host.print(f"{target.name}@{root.digest}")
    return 0
