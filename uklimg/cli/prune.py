"""uklimg prune: make room in the store."""

from __future__ import annotations

import argparse

from uklimg.cli.host import Host
from uklimg.console import console, size
from uklimg.engine.buildah import BuildahEngine

NAME = "prune"
HELP = "remove from the store what no image and no cached step needs"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="the cached results of steps too")


def run(args: argparse.Namespace, host: Host) -> int:
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        done = store.prune((lambda record: False) if args.all else (lambda record: True))
        if (store.root / "engine").is_dir():
            BuildahEngine(store.root / "engine", host.environ).prune(done.roots)
    host.print(f"removed {done.records} results, {done.blobs} blobs, {done.trees} trees: {size(done.freed)}")
    return 0
