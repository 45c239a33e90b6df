"""A program of this container as the plain-Linux twin runs it: what the compiler wrapper linked, without symbols.

    program.py PROGRAM --out FILE

PROGRAM may be a script of libtool's, as for app.py, and must be one that a kernel could be linked with: the twin has
what the unikernel has. FILE is the program without symbols, FILE.debug with them. Exit status: 0, or that of
``ukl-find``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.inside.app import behind_libtool
else:  # in the container there is this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from app import behind_libtool


def main() -> int:
    parser = argparse.ArgumentParser(prog="ukl-link", allow_abbrev=False)
    parser.add_argument("program", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not args.program.is_file():
        print(f"ukl-link: {args.program} is not there; did the build stage make it?", file=sys.stderr)
        return 1
    program = behind_libtool(args.program)
    found = subprocess.run(["ukl-find", str(program)], stdout=subprocess.DEVNULL, check=False)
    if found.returncode:
        return found.returncode
    debug = args.out.with_name(f"{args.out.name}.debug")
    shutil.copy(program, debug)
    debug.chmod(0o755)
    done = subprocess.run(["strip", "--strip-all", "-o", str(args.out), str(debug)], check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
