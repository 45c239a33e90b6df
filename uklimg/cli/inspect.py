"""uklimg inspect: what is in an image."""

from __future__ import annotations

import argparse
import shlex

from uklimg import oci
from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console, size

NAME = "inspect"
HELP = "say what an image is and what a runner needs to know of it"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="name or digest of an image of the store")
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        name, root = options.image_of(args.ref, store)
        image = options.read_image(store, root)
    summary = oci.describe(image.index, image.manifests, image.config, root.digest)
    if args.format == "json":
        value = summary.as_json()
        assert isinstance(value, dict)
        options.print_json(host, {"name": name, **value})
        return 0
    for label, text in _lines(name, summary):
        if text:
            host.print(f"{label + ':':13} {text}")
    return 0


def _lines(name: str, summary: oci.Summary) -> list[tuple[str, str]]:
    run = summary.run
    twin = run.target == oci.TARGET_LINUX
    return [
        ("Name", name),
        ("Digest", str(summary.digest)),
        ("Size", size(summary.size)),
        ("Program", run.program),
        ("Kernel", run.kernel_version),
        ("Libc", run.libc_version),
        ("Target", "plain Linux" if twin else ""),
        ("UKL options", "" if twin else " ".join(run.ukl_options) or "none (base model)"),
        ("Command", shlex.join(run.argv)),
        ("Environment", " ".join(f"{key}={value}" for key, value in sorted(run.env.items()))),
        ("Folder", run.workdir),
        ("Ports", " ".join(run.exposed_ports)),
        ("Volumes", " ".join(run.volumes)),
        ("Memory", f"{run.memory >> 20}M" if run.memory else ""),
        ("CPUs", str(run.cpus or "")),
        ("Stop signal", run.stop_signal),
        ("Health check", shlex.join(run.healthcheck.command) if run.healthcheck else ""),
        ("Parameters", run.cmdline),
        *(("Label", f"{key}={value}") for key, value in sorted(run.labels.items())),
        *(("File", f"{file.path}  {size(file.size)}  {file.digest}") for file in summary.files),
        *(("Platform", f"{entry.platform}  {entry.manifest}") for entry in summary.platforms),
        *(("Note", text) for text in summary.notes),
    ]
