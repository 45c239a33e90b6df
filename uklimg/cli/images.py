"""uklimg images: the images of the store."""

from __future__ import annotations

import argparse

from uklimg import oci
from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console, size
from uklimg.errors import UklimgError
from uklimg.store import Store

NAME = "images"
HELP = "list the images of the store"


def add(parser: argparse.ArgumentParser) -> None:
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        rows = [_row(store, name, root) for name, root in store.tags().items()]
    if args.format == "json":
        options.print_json(
            host,
            [
                {"name": name, "digest": str(root.digest), "size": total, "program": program, "kernel": kernel}
                for name, root, total, program, kernel in rows
            ],
        )
        return 0
    width = max([len(name) for name, *_ in rows] + [4])
    host.print(f"{'NAME':{width}}  {'DIGEST':12}  {'SIZE':>9}  {'KERNEL':10}  PROGRAM")
    for name, root, total, program, kernel in rows:
        host.print(f"{name:{width}}  {root.digest.short}  {size(total):>9}  {kernel:10}  {program}")
    return 0


def _row(store: Store, name: str, root: oci.Descriptor) -> tuple[str, oci.Descriptor, int, str, str]:
    """Name, image, bytes, program and kernel; the last two empty for what is no image of ours or damaged."""
    try:
        image = options.read_image(store, root)
        summary = oci.describe(image.index, image.manifests, image.config, root.digest)
    except UklimgError:
        return name, root, root.size, "", ""
    return name, root, summary.size, summary.run.program, summary.run.kernel_version
