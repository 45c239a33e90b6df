"""uklimg lock: write Uklfile.lock, move it forward and say what moved, or see whether it is complete."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.digest import JSON
from uklimg.errors import ExitCode, UserError, UserErrors
from uklimg.lock import Lock
from uklimg.lockdiff import Change, changes, runtime
from uklimg.project import Project, resolve_project, write_lock
from uklimg.resolve import advise_update

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
        help="look again for NAME (redis, debian-trixie, kernel), also several times; without a name for everything",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; say what is missing or out of date, and fail then"
    )
    options.add_progress(parser)
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    if args.check and args.update is not None:
        raise UserError("--check and --update exclude each other")
    with console(args.progress, host.stderr) as sink:
        project = options.project_of(args, host)
        if args.check:
            return _check(args, host, project)
        start = project.lock
        if args.update is not None:
            start = Lock() if "" in args.update else project.lock.without(args.update)
        store = host.store(sink)
        with store.session(), host.resolver(store, sink) as resolver:
            try:
                found = resolve_project(replace(project, lock=start), host.data(), resolver)
            except UserErrors as errors:
                advise_update(errors.errors, args.update or ())
                raise
        new = found.lock.only(found.used)
        if new != project.lock or not project.lock_path.exists():
            write_lock(project.lock_path, new)
    _report(args, host, project, new, changes(project.lock, new))
    return 0


def _check(args: argparse.Namespace, host: Host, project: Project) -> int:
    """Exit status USER when a build would have to look something up, or would refuse the lock."""
    problems: tuple[UserError, ...] = ()
    unused: list[str] = []
    try:
        found = resolve_project(project, host.data(), None)
    except UserErrors as errors:
        problems = errors.errors
        if args.format == "text":
            raise
    else:
        unused = [" ".join(entry.key) for entry in project.lock.entries if entry.key not in found.used]
    if args.format == "json":
        lines: list[JSON] = [problem.line() for problem in problems]
        options.print_json(
            host,
            {"lock": str(project.lock_path), "complete": not problems, "problems": lines, "unused": list(unused)},
        )
        return ExitCode.USER if problems else 0
    host.print(f"{project.lock_path} is complete: {_size(project.lock)}")
    for name in unused:
        host.print(f"not used any more: {name} (uklimg lock drops it)")
    return 0


def _report(args: argparse.Namespace, host: Host, project: Project, new: Lock, moved: Sequence[Change]) -> None:
    if args.format == "json":
        options.print_json(
            host,
            {
                "lock": str(project.lock_path),
                "entries": len(new.entries),
                "files": len(new.files()),
                "runtime": runtime(new),
                "changes": [change.fields() for change in moved],
            },
        )
        return
    for change in moved:
        host.print(change.line())
    for base, versions in runtime(new).items():
        host.print(f"{base}: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    host.print(f"{project.lock_path}: {_size(new)}" + ("" if moved else "; nothing moved"))


def _size(lock: Lock) -> str:
    return f"{len(lock.entries)} entries, {len(lock.files())} files"
