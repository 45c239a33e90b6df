"""From a program in this container to its kernel: find the object that the compiler wrapper kept, and link it.

    app.py PROGRAM LINK-ARGUMENT...

Runs link.py (in the folder ``link`` beside this file's) with ``--object`` and ``--info`` in front of the
arguments. Exit status: that of ``ukl-find`` or link.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    program, *arguments = sys.argv[1:]
    if not Path(program).is_file():
        print(f"ukl-link: {program} is not there; did the build stage make it?", file=sys.stderr)
        return 1
    found = subprocess.run(["ukl-find", program], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        return found.returncode
    obj = Path(found.stdout.strip())
    link = Path(__file__).resolve().parent.parent / "link" / "link.py"
    inputs = ["--object", str(obj), "--info", str(obj.with_suffix(".json"))]
    return subprocess.run([sys.executable, "-B", str(link), *inputs, *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
