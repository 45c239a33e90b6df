"""uklimg vendor: every file that the lock names, kept where builds look first."""

from __future__ import annotations

import argparse

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.errors import UserError
from uklimg.lock import LOCK_NAME
from uklimg.project import resolve_project
from uklimg.ref import Reference
from uklimg.vendor import is_folder, vendor_folder, vendor_registry

NAME = "vendor"
HELP = "keep every locked file in a folder or a registry"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="DIR|REF", help="a folder, or HOST/NAME[:TAG] of a registry")
    options.add_project(parser)
    parser.add_argument("--offline", action="store_true", help="take what is in the store, and use no network")
    options.add_vendor(parser)
    options.add_progress(parser)
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    with console(args.progress, host.stderr) as sink:
        project = options.project_of(args, host)
        if not project.lock_path.exists():
            raise UserError(f"there is no {LOCK_NAME} whose files could be kept", hint="uklimg lock")
        found = resolve_project(project, host.data(), None)
        files = found.lock.files()
        store = host.store(sink)
        with store.session():
            fetch = host.fetch(store, sink, offline=args.offline, vendor=args.vendor)
            if is_folder(args.place):
                done = vendor_folder(host.path(args.place), files, fetch, sink)
            else:
                ref = Reference.parse(args.place)
                done = vendor_registry(ref, files, fetch, store, host.connect(ref), sink)
    if args.format == "json":
        options.print_json(
            host, {"place": args.place, "files": done.files, "added": list(done.added), "bytes": done.size}
        )
    else:
        host.print(f"{args.place}: {done.files} files, {done.size >> 20} MiB; {len(done.added)} of them new")
    return 0
