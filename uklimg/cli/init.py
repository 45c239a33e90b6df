"""uklimg init: a first Uklfile for a folder with sources."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from uklimg import initialise
from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.context import IGNORE_FILE
from uklimg.errors import UserError
from uklimg.project import replace_file

NAME = "init"
HELP = "write a Uklfile for a folder with a Makefile, configure, CMakeLists.txt or meson.build"

_LARGEST = 1 << 20  # bytes of a build file that is looked at
_MOST = 20_000  # files of a folder that are listed
_BUILD_FILES = {"meson.build", "CMakeLists.txt", "Makefile.am", "Makefile.in", *initialise.FILES}
_SKIPPED = {".git", "build", "node_modules"}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", default=".", help="the folder with the sources (.)")
    parser.add_argument("--force", action="store_true", help="replace a Uklfile and .uklignore that are there")


def run(args: argparse.Namespace, host: Host) -> int:
    folder = host.path(args.folder)
    if not folder.is_dir():
        raise UserError(f"{args.folder!r} is not a folder")
    paths = [folder / options.DEFAULT_FILE, folder / IGNORE_FILE]
    there = [path for path in paths if path.exists() or path.is_symlink()]
    if there and not args.force:
        raise UserError(f"{there[0]} is there already", hint="--force replaces it")
    files, names = _look(folder)
    found = initialise.guess(files, names, folder.resolve().name)
    if found is None:
        known = "Makefile, configure(.ac), CMakeLists.txt or meson.build"
        raise UserError(f"{args.folder!r} has no {known}", hint="docs/uklfile.md says how to write a Uklfile")
    series = max(host.data().kernels(), key=lambda name: [int(part) for part in name.split(".")])
    for path, text in zip(paths, (initialise.uklfile(found, series), initialise.ignore_file(found)), strict=True):
        replace_file(path, text)
        host.print(f"wrote {path}")
    sure = "" if found.certain else " (a guess: see the line with TODO)"
    host.print(f"{found.file} builds {found.program}{sure}; next: uklimg check, uklimg build")
    return 0


def _look(folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Build files with their text, and the names of all files, relative to ``folder``."""
    files: dict[str, str] = {}
    names: list[str] = []
    for current, folders, found in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(found):
            path = Path(current, name)
            relative = path.relative_to(folder).as_posix()
            names.append(relative)
            # A configure script is generated; only that it is there counts.
            if (
                name in _BUILD_FILES
                and path.is_file()
                and ("/" not in relative or relative == "src/Makefile" or name not in initialise.FILES[2:])
            ):
                files[relative] = "" if name == "configure" else _text(path)
        if len(names) > _MOST:
            break
    return files, tuple(names)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode(errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
