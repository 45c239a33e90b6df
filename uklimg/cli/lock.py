"""uklimg lock: write Uklfile.lock, or move it forward."""

from __future__ import annotations

import argparse
from dataclasses import replace

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.errors import UserError
from uklimg.lock import Lock
from uklimg.project import resolve_project, write_lock

NAME = "lock"
HELP = "write Uklfile.lock with every input by digest"


def add(parser: argparse.ArgumentParser) -> None:
    options.add_project(parser)
    parser.add_argument(
        "--update",
        metavar="NAME",
        nargs="?",
        action="append",
        const="",
        default=None,
        help="look again for NAME (redis, debian-trixie, kernel); without a name for everything",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the lock is not complete")
    options.add_progress(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    with console(args.progress, host.stderr) as sink:
        project = options.project_of(args, host)
        if args.check and args.update is not None:
            raise UserError("--check and --update exclude each other")
        start = project.lock
        if args.update is not None:
            start = Lock() if "" in args.update else project.lock.without(args.update)
        if args.check:
            resolve_project(project, host.data(), None)
            return 0
        store = host.store(sink)
        with store.session(), host.resolver(store, sink) as resolver:
            found = resolve_project(replace(project, lock=start), host.data(), resolver)
        new = found.lock.only(found.used)
        if new != project.lock or not project.lock_path.exists():
            write_lock(project.lock_path, new)
    host.print(f"{project.lock_path}: {len(new.entries)} entries, {len(new.files())} files")
    return 0
