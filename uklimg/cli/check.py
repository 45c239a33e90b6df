"""uklimg check: what will not work as a unikernel, before anything is built."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from uklimg.advice.findings import Finding, Level
from uklimg.advice.objects import ARCHIVE, ELF, THIN, scan_object
from uklimg.advice.sources import SUFFIXES, scan_source
from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.context import open_context
from uklimg.errors import Location, UserError, UserErrors
from uklimg.project import Project

NAME = "check"
HELP = "say what will not work as a unikernel: in the Uklfile, in sources, in objects and archives"

_NAMES = {Level.ERROR: "error", Level.WARNING: "warning", Level.INFO: "remark"}
_LARGEST_SOURCE = 4 << 20  # bytes; larger ones are data that look like C
_LARGEST_OBJECT = 2 << 30


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", metavar="FILE", default="", help="the Uklfile (default: FOLDER/Uklfile)")
    parser.add_argument(
        "--build-arg", metavar="NAME=VALUE", action="append", default=[], help="the value of an ARG of the Uklfile"
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        default=["."],
        help="folders of sources, with their Uklfile if there is one; source files; ELF objects; archives (.)",
    )
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    findings: list[Finding] = []
    read: list[str] = []
    for word in args.paths:
        path = host.path(word)
        if path.is_dir():
            findings += _folder(word, path, args, host, read)
        elif path.is_file():
            read.append(word)
            findings += _file(word, path, False, ())
        else:
            raise UserError(f"{word!r} is not there")
    if not read:
        nothing = "neither a Uklfile nor C, C++ or assembler sources"
        raise UserError(f"{', '.join(map(repr, args.paths))} has {nothing}", hint="uklimg check FOLDER or FILE…")
    _show(findings, len(read), args.format, host)
    return int(any(finding.level is Level.ERROR for finding in findings))


def _show(findings: list[Finding], read: int, form: str, host: Host) -> None:
    if form == "json":
        options.print_json(host, [finding.as_json() for finding in findings])
        return
    for finding in findings:
        host.print(finding.line())
    counts = [(sum(f.level is level for f in findings), level) for level in Level]
    said = ", ".join(f"{count} {_NAMES[level]}{'s' if count > 1 else ''}" for count, level in counts if count)
    host.stderr.write(f"{said or 'nothing found'} in {read} file{'s' if read > 1 else ''}\n")


def _folder(word: str, path: Path, args: argparse.Namespace, host: Host, read: list[str]) -> Iterator[Finding]:
    """The Uklfile of a folder, then its sources without what .uklignore leaves out; ``read`` gets their names."""
    programs = False
    asked: tuple[str, ...] = ()
    uklfile = host.path(args.file) if args.file else path / options.DEFAULT_FILE
    if args.file or uklfile.exists():
        read.append(str(uklfile))
        try:
            project = options.project_of(argparse.Namespace(**{**vars(args), "context": word}), host)
        except UserErrors as errors:
            yield from (_of_uklfile(error) for error in errors.errors)
        except UserError as error:
            yield _of_uklfile(error)
        else:
            programs, asked = _facts(project)
            yield from (
                Finding(Level.WARNING, "uklfile", place, text) for place, text in project.spec.warnings if place.line
            )
    rules = open_context(path, uklfile).rules

    def wanted(relative: Path) -> bool:
        return rules.takes_back or not rules.ignored(relative.as_posix())

    for current, folders, names in os.walk(path):
        inside = Path(current).relative_to(path)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and wanted(inside / name))
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not rules.ignored((inside / name).as_posix()):
                shown = name if word == "." and not inside.parts else str(Path(word) / inside / name)
                read.append(shown)
                yield from _file(shown, Path(current, name), programs, asked)


def _facts(project: Project) -> tuple[bool, tuple[str, ...]]:
    """Whether the image holds other programs, and the kernel options that the Uklfile sets."""
    image = project.spec.image
    return image.userland != "none", tuple(option.name for option in image.kconfig if option.value != "n")


def _of_uklfile(error: UserError) -> Finding:
    return Finding(
        Level.ERROR, "uklfile", error.location or Location(options.DEFAULT_FILE), error.message, error.hint
    )


def _file(shown: str, path: Path, programs: bool, asked: Iterable[str]) -> list[Finding]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith((ELF, ARCHIVE, THIN)) or not path.name.endswith(SUFFIXES):
                if size > _LARGEST_OBJECT:
                    raise UserError(f"{shown} is larger than {_LARGEST_OBJECT >> 30} GiB")
                return scan_object(start + file.read(), shown, programs=programs)
            if size > _LARGEST_SOURCE:
                return []
            text = (start + file.read()).decode(errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error.strerror}") from error
    return list(scan_source(text, shown, programs=programs, options=tuple(asked)))
