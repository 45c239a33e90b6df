"""uklimg stop: end guests as `docker stop` ends containers."""

from __future__ import annotations

import argparse

from uklimg.cli.guests import add_guests, guests_of
from uklimg.cli.host import Host
from uklimg.errors import UserError
from uklimg.running import client

NAME = "stop"
HELP = "send guests their stop signal, and wait for their end"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t", "--time", type=int, metavar="SECONDS", default=-1, help="until SIGKILL (--stop-timeout of its run)"
    )
    add_guests(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    if args.time < -1 or args.time > 86400:
        raise UserError("-t wants a number of seconds", hint="0 to 86400")
    guests = guests_of(host)
    for record in [guests.find(name) for name in args.guests]:
        client.stop(guests, record, None if args.time < 0 else args.time)
        host.print(record.name)
    return 0
