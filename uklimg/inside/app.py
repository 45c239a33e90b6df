"""From a program in this container to its kernel: find the object that the compiler wrapper kept, and link it.

    app.py PROGRAM LINK-ARGUMENT...

PROGRAM may be the script that libtool leaves in place of a program that is not installed yet. Runs link.py (in the
folder ``link`` beside this file's) with ``--object`` and ``--info`` in front of the arguments. Exit status: that of
``ukl-find`` or link.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# The second line of such a script (build-aux/ltmain.sh, func_emit_wrapper).
LIBTOOL = b"temporary wrapper script for .libs/"


def behind_libtool(program: Path) -> Path:
    """The program itself where ``program`` is libtool's script, else ``program``."""
    with program.open("rb") as file:
        start = file.read(4096)
    real = program.parent / ".libs" / program.name
    return real if start.startswith(b"#!") and LIBTOOL in start and real.is_file() else program


def main() -> int:
    program, *arguments = sys.argv[1:]
    if not Path(program).is_file():
        print(f"ukl-link: {program} is not there; did the build stage make it?", file=sys.stderr)
        return 1
    argv = ["ukl-find", str(behind_libtool(Path(program)))]
    found = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        return found.returncode
    obj = Path(found.stdout.strip())
    link = Path(__file__).resolve().parent.parent / "link" / "link.py"
    inputs = ["--object", str(obj), "--info", str(obj.with_suffix(".json"))]
    return subprocess.run([sys.executable, "-B", str(link), *inputs, *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
