"""uklimg rmi: forget an image's name; `prune` then frees what nothing else needs."""

from __future__ import annotations

import argparse

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.errors import ExitCode, ToolError
from uklimg.ref import Reference
from uklimg.store import Store

NAME = "rmi"
HELP = "remove an image's name from the store; by digest, all its names"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("refs", metavar="REF", nargs="+", help="an image of the store")


def run(args: argparse.Namespace, host: Host) -> int:
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        for name in dict.fromkeys(name for text in args.refs for name in _names(text, store)):
            store.untag(name)
            host.print(name)
    return 0


def _names(text: str, store: Store) -> list[str]:
    """What ``text`` names: a name, or all names of what has a digest. ToolError NOT_FOUND when that has none."""
    name, root = options.image_of(text, store)
    tags = store.tags()
    if name in tags and not text.startswith("sha256:") and name == str(Reference.parse(text)):
        return [name]
    # NAME@DIGEST: those of this repository.
    within = Reference.parse(text).name if "@" in text else ""
    names = [n for n, e in tags.items() if e.digest == root.digest and within in ("", Reference.parse(n).name)]
    if not names:
        raise ToolError(
            f"{text} has no name here", hint="`uklimg prune` frees what has none", exit_code=ExitCode.NOT_FOUND
        )
    return names
