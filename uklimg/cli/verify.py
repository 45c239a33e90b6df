"""uklimg verify: build an image again from what it carries, and compare."""

from __future__ import annotations

import argparse

from uklimg import blueprints, oci
from uklimg.cli import options, pull
from uklimg.cli.host import Host
from uklimg.cli.secrets import read_secrets
from uklimg.compare import Difference, diffoscope
from uklimg.console import Console, console
from uklimg.digest import JSON
from uklimg.errors import CorruptError, ToolError
from uklimg.events import Note
from uklimg.rebuild import Pair, Rebuilt, pairs, plan_again, rebuild
from uklimg.room import memory_available, processors, steps_at_once
from uklimg.store import Store

NAME = "verify"
HELP = "build an image again from what it carries, and compare"
SHOWN = 20


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="an image of the store, or of a registry")
    parser.add_argument(
        "--reuse",
        metavar="STEP",
        action="append",
        default=[],
        help="take the results of these steps from the store, as in 'kernel-kit' or 'base:*' (default: make all)",
    )
    parser.add_argument("--context", metavar="DIR", default="", help="the build context, in place of what is carried")
    parser.add_argument(
        "--secret",
        metavar="id=ID,src=FILE",
        action="append",
        default=[],
        help="a secret that a step reads",
    )
    parser.add_argument("--offline", action="store_true", help="use no network: all sources are in the store")
    parser.add_argument("--no-diffoscope", action="store_true", help="do not ask diffoscope what differs")
    options.add_vendor(parser)
    options.add_engine(parser)
    options.add_progress(parser)
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    secrets = read_secrets(args.secret, host.environ, host.cwd)
    with console(args.progress, host.stderr) as sink:
        store = host.store(sink)
        with store.session(), store.scratch() as scratch:
            name, image = pull.find_or_pull(args.ref, host, store, sink)
            store.verify(image)
            carried = blueprints.needed(store, name, image.digest)
            (scratch / "project").mkdir()
            context = host.path(args.context).resolve() if args.context else None
            made = plan_again(
                store, carried, scratch / "project", host.data(), context=context, secrets=secrets.keys()
            )
            at_once = steps_at_once(processors(), memory_available())
            private = Store(scratch / "store", sink)
            with private.session():
                executor = host.executor(
                    private,
                    sink,
                    offline=args.offline,
                    vendor=args.vendor,
                    secrets=secrets,
                    at_once=at_once,
                    sources=store,
                )
                found = rebuild(store, private, carried, made, executor, reuse=args.reuse, sink=sink)
                same = found.image.digest == image.digest
                looked_at = [] if same else pairs(store, private, carried, image, found)
                differences = {pair.name: pair.differences() for pair in looked_at}
                report = "" if same or args.no_diffoscope else _diffoscope(looked_at, host, sink)
    if args.format == "json":
        options.print_json(host, _json(name, image, carried, found, differences, report))
    elif same:
        host.print(f"{name} is what its Uklfile makes: {image.digest}")
        host.print(_counts(found))
    else:
        _print(host, found, differences, report)
    if same:
        return 0
    where = f"; the first step that differs is {found.diverged.id}" if found.diverged else ""
    raise CorruptError(f"{name} is {image.digest}, and what its Uklfile makes is {found.image.digest}{where}")


def _counts(found: Rebuilt) -> str:
    reused = f", {len(found.reused)} taken from the store: {' '.join(found.reused)}" if found.reused else ""
    return f"{len(found.steps) - len(found.reused)} of {len(found.steps)} steps were made again{reused}"


def _diffoscope(looked_at: list[Pair], host: Host, sink: Console) -> str:
    reports = []
    for pair in looked_at:
        try:
            reports.append(diffoscope(pair.before, pair.after, host.env))
        except ToolError as error:
            sink(Note(error.line(), warning=True))
    return "\n".join(report for report in reports if report)


def _print(host: Host, found: Rebuilt, differences: dict[str, tuple[Difference, ...]], report: str) -> None:
    host.print(_counts(found))
    if found.diverged is not None:
        host.print(f"the first step that differs: {found.diverged.id}  {found.diverged.title}")
    for name, items in differences.items():
        host.print(f"{name}:")
        for item in items[:SHOWN]:
            host.print(f"  {item.line()}")
        if len(items) > SHOWN:
            host.print(f"  and {len(items) - SHOWN} more")
    if report:
        host.print(report)


def _json(
    name: str,
    image: oci.Descriptor,
    carried: blueprints.Carried,
    found: Rebuilt,
    differences: dict[str, tuple[Difference, ...]],
    report: str,
) -> JSON:
    was = {step.id: step.result for step in carried.blueprint.steps}
    return {
        "name": name,
        "digest": str(image.digest),
        "rebuilt": str(found.image.digest),
        "same": found.image.digest == image.digest,
        "uklimg": carried.blueprint.uklimg,
        "first_difference": found.diverged.id if found.diverged else None,
        "planned_otherwise": found.planned_otherwise.id if found.planned_otherwise else None,
        "steps": [
            {
                "step": step.id,
                "title": step.title,
                "key": str(step.key),
                "before": str(was[step.id]) if was.get(step.id) else None,
                "after": str(step.result) if step.result else None,
                "reused": step.id in found.reused,
            }
            for step in found.steps
        ],
        "files": {name: [item.as_json() for item in items] for name, items in differences.items()},
        "diffoscope": report,
    }
