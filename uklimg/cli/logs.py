"""uklimg logs: what a guest printed."""

from __future__ import annotations

import argparse

from uklimg.cli.guests import guests_of
from uklimg.cli.host import Host
from uklimg.cli.run import writer
from uklimg.errors import UserError
from uklimg.running import logs

NAME = "logs"
HELP = "print what a guest printed"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the guest has ended")
    parser.add_argument("--tail", metavar="N", default="all", help="only the last N lines (all)")
    parser.add_argument("guest", metavar="GUEST", help="name or id of a guest")


def run(args: argparse.Namespace, host: Host) -> int:
    if args.tail != "all" and not (args.tail.isascii() and args.tail.isdigit()):
        raise UserError(f"--tail {args.tail}: not a number of lines", hint="as in --tail 100, or all")
    guests = guests_of(host)
    record = guests.find(args.guest)

    def ended() -> bool:
        now = guests.again(record)
        return now is None or now.ended

    show = writer(host)
    tail = -1 if args.tail == "all" else int(args.tail)
    for data in logs.read(guests.folder(record), tail=tail, ended=ended if args.follow else None):
        show(data)
    return 0
