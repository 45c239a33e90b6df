"""Build a static library inside a container: its source, patches and recipe in, a prefix of headers and archives out.

    library.py --source FILE --patches DIR --recipe DIR --needs DIR --out DIR

``recipe`` holds recipe.json (see ``uklimg.recipes.library``) and build.sh when that says so; ``needs`` a prefix for
each library it is built with. DIR/include, DIR/lib/*.a, DIR/lib/pkgconfig and DIR/lib/cmake are what comes out, as if
they lay in PREFIX. Standard library only. Exit status: 0; 1 with one line on stderr that starts with
``uklimg-library:``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.inside import depends, source
else:  # in the container there is this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import depends
    import source

PREFIX = Path("/usr/local")
SOURCES = Path("/usr/src")
CFLAGS = "-O2"


class LibraryError(Exception):
    """One line for the user."""


@dataclass(frozen=True)
class Recipe:
    """recipe.json. ``folder`` is where in the source the build system's files are."""

    name: str
    version: str
    build: str
    archives: list[str]
    folder: str
    options: list[str]
    targets: list[str]
    install: list[str]


def commands(recipe: Recipe, script: Path, destination: Path, jobs: int) -> list[list[str]]:
    """What builds and installs below ``destination``, to be run in the source's ``folder``."""
    to = f"DESTDIR={destination}"
    parallel = f"-j{jobs}"
    if recipe.build == "script":
        return [["/bin/sh", "-eux", str(script)]]
    if recipe.build == "cmake":
        cache = {
            "CMAKE_BUILD_TYPE": "None",
            "CMAKE_INSTALL_PREFIX": str(PREFIX),
            "CMAKE_INSTALL_LIBDIR": "lib",
            "BUILD_SHARED_LIBS": "OFF",
        }
        target = ["--target", *recipe.targets] if recipe.targets else []
        return [
            ["cmake", "-S", ".", "-B", "ukl-build", *(f"-D{k}={v}" for k, v in cache.items()), *recipe.options],
            ["cmake", "--build", "ukl-build", parallel, *target],
            ["cmake", "--install", "ukl-build"],
        ]
    variables = recipe.options if recipe.build == "make" else []
    make = ["make", *variables, parallel, *recipe.targets]
    install = ["make", *variables, to, *recipe.install]
    if recipe.build == "make":
        return [make, install]
    return [["./configure", f"--prefix={PREFIX}", *recipe.options], make, install]


def run(argv: list[str], folder: Path, environment: dict[str, str]) -> None:
    print("+ " + " ".join(argv), flush=True)
    done = subprocess.run(argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise LibraryError(f"{argv[0]} failed with status {done.returncode}")


def wanted(installed: Path) -> Iterator[tuple[Path, str]]:
    """Of what was installed the headers, archives, and what pkg-config and CMake read: file → path in the prefix.

    No shared library, libtool file, program or manual.
    """
    for path in sorted(installed.rglob("*")):
        parts = path.relative_to(installed).parts
        if path.is_dir() and not path.is_symlink():
            continue
        if parts[0] == "include" or parts[:2] == ("lib", "cmake") or (parts[:-1] == ("lib",) and path.suffix == ".a"):
            yield path, "/".join(parts)
        elif parts[:-1] in (("lib", "pkgconfig"), ("share", "pkgconfig")) and path.suffix == ".pc":
            yield path, f"lib/pkgconfig/{path.name}"


def collect(installed: Path, out: Path) -> None:
    for path, name in wanted(installed):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target, follow_symlinks=False)
        if not target.is_symlink():
            target.chmod(0o644)
    for path in out.rglob("*"):
        if path.is_symlink() and not path.exists():
            raise LibraryError(f"{path.relative_to(out)} is a link to something that was not installed")
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def settle_archives(folder: Path, names: list[str]) -> None:
    """The archives ``names`` must be there; all lose debugging information and the dates of their members."""
    for name in names:
        if not (folder / name).is_file():
            raise LibraryError(f"the build has not made {name}")
    for archive in sorted(folder.glob("*.a")):
        if not archive.is_symlink():
            run(["strip", "--strip-debug", "--enable-deterministic-archives", str(archive)], folder, dict(os.environ))


def build(args: argparse.Namespace) -> None:
    recipe = Recipe(**json.loads((args.recipe / "recipe.json").read_text()))
    for prefix in sorted(args.needs.iterdir()) if args.needs.is_dir() else []:
        depends.put(prefix, PREFIX)
    depends.lead_gcc(PREFIX)
    tree = SOURCES / f"{recipe.name}-{recipe.version}"
    tree.parent.mkdir(parents=True, exist_ok=True)
    source.unpack(args.source, tree, None)
    if args.patches.is_dir():
        source.apply_patches(args.patches, tree)
    destination = SOURCES / "installed"
    jobs = len(os.sched_getaffinity(0))
    environment = {
        **os.environ,
        "CFLAGS": CFLAGS,
        "CXXFLAGS": CFLAGS,
        "DESTDIR": str(destination),
        "PREFIX": str(PREFIX),
        "JOBS": str(jobs),
    }
    if recipe.build in ("configure", "make"):
        # make hands its variables' values from the environment on; these two are said where they are meant.
        for name in ("DESTDIR", "PREFIX"):
            del environment[name]
    for argv in commands(recipe, args.recipe / "build.sh", destination, jobs):
        run(argv, tree / recipe.folder, environment)
    collect(destination / PREFIX.relative_to("/"), args.out)
    settle_archives(args.out / "lib", recipe.archives)


def main() -> int:
    parser = argparse.ArgumentParser(prog="uklimg-library")
    for name in ("source", "patches", "recipe", "needs", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    try:
        build(parser.parse_args())
    except (LibraryError, source.SourceError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        print(f"uklimg-library: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
