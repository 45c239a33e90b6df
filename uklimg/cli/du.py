"""uklimg du: what the store takes on disk."""

from __future__ import annotations

import argparse

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console, size

NAME = "du"
HELP = "say what the store takes on disk"


def add(parser: argparse.ArgumentParser) -> None:
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    with console("plain", host.stderr) as sink:
        usage = host.store(sink).du()
    values = {"blobs": usage.blobs, "trees": usage.trees, "engine": usage.engine, "other": usage.other}
    if args.format == "json":
        options.print_json(host, {"path": str(host.settings.store), **values, "total": usage.total})
        return 0
    host.print(f"{host.settings.store}")
    for name, count in [*values.items(), ("total", usage.total)]:
        host.print(f"{name:8} {size(count):>10}")
    return 0
