"""uklimg plan: every step's key, whether the store has its result, why it would run. Runs nothing, writes no lock."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from uklimg.cli import options, outlooks
from uklimg.cli.host import Host
from uklimg.console import duration
from uklimg.outlook import Outlook, State

NAME = "plan"
HELP = "show the steps of a build, which would run, why, and how long they may take"


def add(parser: argparse.ArgumentParser) -> None:
    outlooks.add(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    found = outlooks.look(args, host).found
    if args.format == "json":
        options.print_json(
            host,
            [
                {
                    "step": one.step.id,
                    "title": one.step.title,
                    "key": str(one.key),
                    "state": one.state.value,
                    "hit": one.state is State.HIT,
                    "runs": one.state is State.RUN,
                    "why": one.reason,
                    "milliseconds": None if one.seconds is None else round(one.seconds * 1000),
                }
                for one in found
            ],
        )
    else:
        host.print(text(found))
    return 0


def text(found: Sequence[Outlook]) -> str:
    width = max(len(one.step.id) for one in found)
    lines = []
    for one in found:
        lines.append(f"{one.state.value:4} {one.key.short}  {one.step.id:{width}}  {one.step.title}")
        if one.state is State.RUN:
            time = "" if one.seconds is None else f" (about {duration(one.seconds)})"
            lines.append(f"     {one.reason}{time}")
    return "\n".join([*lines, total(found)])


def total(found: Sequence[Outlook]) -> str:
    """How many would run, and the time that they may take."""
    runs = [one for one in found if one.state is State.RUN]
    known = [one.seconds for one in runs if one.seconds is not None]
    line = f"{len(runs)} of {len(found)} steps would run"
    if not known:
        return line
    unknown = len(runs) - len(known)
    rest = f", and what {unknown} of them take that never ran" if unknown else ""
    return f"{line}: about {duration(sum(known))} one after the other{rest}"
