"""uklimg ps: guests that run by themselves."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

from uklimg.cli import options
from uklimg.cli.guests import age, guests_of
from uklimg.cli.host import Host
from uklimg.console import clean
from uklimg.digest import JSON
from uklimg.running.record import Record, Status, encode

NAME = "ps"
HELP = "list the guests that `run -d` started"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also those that have ended")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    guests = guests_of(host)
    shown = [record for record in guests.all() if args.all or not record.ended]
    for folder in guests.damaged():
        host.stderr.write(f"uklimg: {folder} does not say what runs; remove it\n")
    if args.format == "json":
        options.print_json(host, [_json(record) for record in shown])
    elif args.quiet:
        for record in shown:
            host.print(record.id)
    else:
        rows = [("NAME", "ID", "IMAGE", "STATUS", "PORTS")]
        rows += [(r.name, r.id, clean(r.image), state(r, time.time()), ", ".join(r.ports)) for r in shown]
        widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
        for row in rows:
            host.print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def state(record: Record, now: float) -> str:
    """In words; ``now`` in seconds since 1970."""
    if record.dead:
        return "dead (its supervisor was killed)"
    if record.status is Status.EXITED:
        why = f": {clean(record.error)}" if record.error else ""
        return f"exited ({record.exit}) {age(now - record.finished)} ago{why}"
    if record.status is Status.RESTARTING:
        return f"restarting (ended with {record.exit})"
    if record.status is Status.STARTING:
        return "starting"
    return f"up {age(now - record.started)}" + (f" ({record.health})" if record.health else "")


def _json(record: Record) -> JSON:
    """The record, with what its state is in truth."""
    fields: dict[str, JSON] = json.loads(encode(dataclasses.replace(record)))
    del fields["version"]
    return {**fields, "status": "dead" if record.dead else record.status.value}
