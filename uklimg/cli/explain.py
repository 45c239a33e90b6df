"""uklimg explain: what differs between a step and the nearest one that was made before."""

from __future__ import annotations

import argparse

from uklimg.cli import options, outlooks
from uklimg.cli.host import Host
from uklimg.cli.outlooks import Looked
from uklimg.digest import JSON
from uklimg.errors import ExitCode, UserError
from uklimg.keydiff import Change, Kind
from uklimg.outlook import Earlier, Outlook, State, Why, against, roots
from uklimg.uklfile.parser import did_you_mean

NAME = "explain"
HELP = "say what changed since a step was made last, so that it must run again"

# Lines of one step when all steps are shown.
_LINES = 12
# Names of steps in a line.
_NAMES = 5


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "step",
        metavar="STEP",
        nargs="?",
        default="",
        help="only this one, as `plan` names it, also when it need not run (a lone argument with a / is the CONTEXT)",
    )
    outlooks.add(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    if "/" in args.step or args.step in (".", ".."):
        args.step, args.context = "", args.step
    looked = outlooks.look(args, host)
    if args.format == "json":
        options.print_json(host, [_json(one) for one in chosen(looked, args.step)])
    else:
        host.print(text(looked, args.step))
    return 0


def chosen(looked: Looked, step: str) -> tuple[Outlook, ...]:
    """The steps to explain: ``step``, or all that would run, those first that do not only follow others."""
    if step:
        return (one(looked, step),)
    first = roots(looked.found)
    return (*first, *(other for other in looked.found if other.state is State.RUN and other not in first))


def one(looked: Looked, step: str) -> Outlook:
    """The step's outlook; of one that need not run with what differs, too. UserError when there is no such step."""
    found = next((other for other in looked.found if other.step.id == step), None)
    if found is None:
        names = [other.step.id for other in looked.found]
        hint = did_you_mean(step, names) or f"there is {', '.join(names)}"
        raise UserError(f"no step {step!r}", hint=hint, exit_code=ExitCode.NOT_FOUND)
    if found.nearest is not None:
        return found
    nearest, changes = against(looked.graph, found.step, looked.past, looked.listing)
    return Outlook(found.step, found.key, found.state, found.why, nearest, changes, found.seconds)


def text(looked: Looked, step: str = "") -> str:
    shown = chosen(looked, step)
    lines = [line for other in shown for line in _lines(other, None if step else _LINES)]
    if step:
        return "\n".join(lines)
    return "\n".join([*lines, f"{len(shown)} of {len(looked.found)} steps would run{_begin(looked)}"])


def _begin(looked: Looked) -> str:
    """The steps with which it begins, unless that is all that run."""
    names = [other.step.id for other in roots(looked.found)]
    if len(names) == len([other for other in looked.found if other.state is State.RUN]):
        return ""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"; it begins with {', '.join(names[:_NAMES])}{more}"


def _lines(one: Outlook, limit: int | None) -> list[str]:
    state = {State.HIT: ": the store has its result", State.SKIP: ": nothing that runs needs it", State.RUN: ""}
    lines = [f"{one.step.id}  {one.step.title}{state[one.state]}"]
    if one.why in (Why.LOST, Why.AGAIN):
        lines.append(f"  {one.why.value}")
    if one.nearest is None:
        if one.why not in (Why.LOST, Why.AGAIN):
            lines.append("  none like it was made before")
        return lines
    lines.append(f"  compared with {one.nearest.key.short} ({one.nearest.step})")
    changes = [f"  {_line(change)}" for change in one.changes] or ["  nothing differs"]
    if limit is not None and len(changes) > limit:
        more = f"  and {len(changes) - limit} more: uklimg explain {one.step.id}"
        changes = [*changes[:limit], more]
    return [*lines, *changes]


def _line(change: Change) -> str:
    return f"{change.text}, which see" if change.kind is Kind.STEP else change.text


def _json(one: Outlook) -> JSON:
    return {
        "step": one.step.id,
        "title": one.step.title,
        "key": str(one.key),
        "state": one.state.value,
        "why": one.reason,
        "nearest": _nearest(one.nearest),
        "changes": [
            {
                "field": change.field,
                "kind": change.kind.value,
                "file": change.file,
                "step": change.step,
                "before": change.before,
                "after": change.after,
                "text": change.text,
            }
            for change in one.changes
        ],
    }


def _nearest(nearest: Earlier | None) -> JSON:
    return None if nearest is None else {"step": nearest.step, "key": str(nearest.key)}
