"""uklimg rm: forget guests that have ended."""

from __future__ import annotations

import argparse

from uklimg.cli.guests import add_guests, guests_of
from uklimg.cli.host import Host

NAME = "rm"
HELP = "forget guests that have ended, and their logs"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="end what runs, at once")
    add_guests(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    guests = guests_of(host)
    for record in [guests.find(name) for name in args.guests]:
        guests.remove(record, force=args.force)
        host.print(record.name)
    return 0
