"""uklimg history: the steps that made an image."""

from __future__ import annotations

import argparse

from uklimg import attachments, blueprints, oci
from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console, duration, size

NAME = "history"
HELP = "show the steps that made an image"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="an image of the store")
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        name, image = options.image_of(args.ref, store)
        carried = blueprints.needed(store, name, attachments.subject_of(store, image).digest)
        blueprint = carried.blueprint
        records = {step.id: store.record(step.key) for step in blueprint.steps}
    # What a step added, where the store still has its result.
    sizes = {id: record.result.layer.size for id, record in records.items() if record and record.result.layers}
    # Without its downloads, on the machine that ran it.
    times = {id: record.seconds for id, record in records.items() if record and record.seconds is not None}
    if args.format == "json":
        options.print_json(
            host,
            {
                "name": name,
                "digest": str(image.digest),
                "uklimg": blueprint.uklimg,
                "build_args": dict(blueprint.build_args),
                "kernel_configs": list(blueprint.kernel_configs),
                "target": oci.TARGET_LINUX if blueprint.twin else oci.TARGET_UKL,
                "steps": [
                    {
                        "step": step.id,
                        "title": step.title,
                        "recipe": step.recipe,
                        "recipe_version": step.recipe_version,
                        "key": str(step.key),
                        "result": str(step.result) if step.result else None,
                        "size": sizes.get(step.id),
                        "milliseconds": round(1000 * times[step.id]) if step.id in times else None,
                        "needs": list(step.needs),
                    }
                    for step in blueprint.steps
                ],
            },
        )
        return 0
    width = max(len(step.id) for step in blueprint.steps)
    host.print(f"{'KEY':12}  {'RESULT':12}  {'SIZE':>9}  {'TIME':>9}  {'STEP':{width}}  TITLE")
    for step in blueprint.steps:
        result = step.result.short if step.result else ""
        amount = size(sizes[step.id]) if step.id in sizes else ""
        took = duration(times[step.id]) if step.id in times else ""
        host.print(f"{step.key.short}  {result:12}  {amount:>9}  {took:>9}  {step.id:{width}}  {step.title}")
    return 0
