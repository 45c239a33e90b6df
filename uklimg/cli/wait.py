"""uklimg wait: until guests have ended; prints how."""

from __future__ import annotations

import argparse

from uklimg.cli.guests import add_guests, guests_of
from uklimg.cli.host import Host
from uklimg.errors import ExitCode, ToolError
from uklimg.running import client

NAME = "wait"
HELP = "wait until guests have ended, and print their exit statuses"


def add(parser: argparse.ArgumentParser) -> None:
    add_guests(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    guests = guests_of(host)
    for record in [guests.find(name) for name in args.guests]:
        now = client.wait(guests, record)
        if now is None or now.dead:
            why = "was removed" if now is None else "was killed together with its supervisor"
            raise ToolError(f"{record.name} {why}: its status is not known", exit_code=ExitCode.RUN_FAILED)
        host.print(str(now.exit))
        host.stdout.flush()
    return 0
