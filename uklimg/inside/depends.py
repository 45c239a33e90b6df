"""Put static libraries where compilers and build systems look for them, inside a container.

    depends.py --libraries DIR [--packages NAME...]

DIR has a prefix (include/, lib/) for each library of ours; NAME are Debian packages that were just installed for
their static archives. Standard library only. Exit status: 0; 1 with one line on stderr that starts with
``uklimg-depends:``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

PREFIX = Path("/usr/local")
# gcc looks here before all of Debian's own folders, and hands it to the linker.
GCC_FIRST = Path("/usr/x86_64-linux-gnu/lib")
LIBRARY_FOLDERS = [f"{root}/lib{folder}" for root in ("", "/usr") for folder in ("", "/x86_64-linux-gnu")]


class DependsError(Exception):
    """One line for the user."""


def put(library: Path, prefix: Path) -> None:
    """Lay a library's prefix over ``prefix``. Symbolic links stay links."""
    shutil.copytree(library, prefix, symlinks=True, dirs_exist_ok=True)


def lead_gcc(prefix: Path, first: Path = GCC_FIRST) -> None:
    """Make gcc take archives of ``prefix`` before those of Debian, as it takes headers from there first, and as
    pkg-config and CMake do. Otherwise -lz with our header would be linked with the base image's library."""
    libraries = prefix / "lib"
    libraries.mkdir(parents=True, exist_ok=True)
    if not first.exists():
        first.parent.mkdir(parents=True, exist_ok=True)
        first.symlink_to(libraries)
    elif first.resolve() != libraries.resolve():
        for archive in sorted(libraries.glob("*.a")):
            link = first / archive.name
            link.unlink(missing_ok=True)
            link.symlink_to(archive)


def shared_objects(files: Iterable[str]) -> dict[str, str]:
    """Of a package's files (absolute paths) the shared objects that a linker may find, each with the path that its
    static archive would have: lib….so is libfoo-dev's, lib….so.1 is that of a package without -dev."""
    found: dict[str, str] = {}
    for file in sorted(files):
        folder, _, name = file.rpartition("/")
        stem, dot, _ = name.partition(".so")
        if folder in LIBRARY_FOLDERS and dot and stem.startswith("lib"):
            found[stem] = f"{folder}/{stem}.a"
    return found


def check_packages(names: Iterable[str]) -> None:
    """DependsError for a package of which no library can be linked statically; a warning for single ones."""
    for name in names:
        done = subprocess.run(["dpkg", "--listfiles", name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise DependsError(f"{name} is not installed")
        objects = shared_objects(done.stdout.splitlines())
        gone = [library for library, archive in objects.items() if not os.path.lexists(archive)]
        if gone and len(gone) == len(objects):
            raise DependsError(
                f"{name} has no static archive of {', '.join(gone)}, and a unikernel is linked statically; "
                "build the library from its SOURCE, or use PACKAGES if only its headers are wanted"
            )
        if gone:
            print(f"uklimg-depends: warning: {name} has no static archive of {', '.join(gone)}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="uklimg-depends")
    parser.add_argument("--libraries", type=Path, required=True)
    parser.add_argument("--packages", nargs="*", default=[])
    args = parser.parse_args()
    try:
        check_packages(args.packages)
        if args.libraries.is_dir():
            for library in sorted(args.libraries.iterdir()):
                put(library, PREFIX)
            lead_gcc(PREFIX)
    except (DependsError, OSError, shutil.Error) as error:
        print(f"uklimg-depends: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
