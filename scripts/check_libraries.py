"""Build static libraries of libs/ and run a program of each: ``python scripts/check_libraries.py [--boot] [NAME…]``.

Without names all of them. Each is a build of its own with ``DEPENDS NAME`` and libs/NAME/check.c, which runs in the
build container; with ``--boot`` it also becomes an image and runs as a unikernel. A second run takes from the store
what did not change. Exit status 1 when one fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uklimg import proc
from uklimg.data import Data, find_data
from uklimg.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "scripts/example.lock"
STAGE = "build"


@dataclass(frozen=True)
class Checked:
    """What came out of one library: how long its build took ("" when it was there), and the program's words."""

    name: str
    took: str
    said: str
    failure: str = ""


def uklfile(name: str, program: Path) -> str:
    """A build of ``program``, whose first line names what it is linked with: ``/* link: -lz */``."""
    flags = re.match(r"/\* link: (.*) \*/\n", program.read_text())
    if flags is None:
        raise UserError(f"{program} does not begin with /* link: … */")
    return (
        f"FROM debian:trixie AS {STAGE}\n"
        f"DEPENDS {name}\n"
        "COPY check.c /src/\n"
        f"RUN $CC -O2 -Wall -Werror -o /src/check /src/check.c {flags[1]} && /src/check\n"
        "FROM ukl:6.12\n"
        f"LINK --from={STAGE} /src/check\n"
    )


def check(data: Data, name: str, *, boot: bool = False, options: Sequence[str] = ()) -> Checked:
    """Build the library ``name``, and run its program; ``options`` go before uklimg's command."""
    data.library(name)  # refuses an unknown one with what there is
    uklimg = [sys.executable, "-m", "uklimg", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = data.root / "libs" / name / "check.c"
    with tempfile.TemporaryDirectory(prefix="uklimg-check-") as folder:
        shutil.copy(program, folder)
        shutil.copy(LOCK, f"{folder}/Uklfile.lock")
        Path(folder, "Uklfile").write_text(uklfile(name, program))
        argv = [*uklimg, "build", "--progress", "plain", "--target", STAGE, folder]
        lines: list[str] = []
        done = proc.run(argv, env=env, on_line=lines.append, check=False)
        text = "\n".join(lines)
        seconds = re.search(rf"done in (.+): library {re.escape(name)} ", text)
        took = seconds[1] if seconds else ""
        if done.status or not boot:
            return Checked(name, took, said(text), done.tail if done.status else "")
        tag = f"uklimg-check/{name}"
        for argv in ([*uklimg, "build", "--progress", "plain", "-t", tag, folder], [*uklimg, "run", tag]):
            done = proc.run(argv, env=env, check=False)
            if done.status:
                return Checked(name, took, "", done.tail)
    return Checked(name, took, done.text.strip().splitlines()[-1])


def said(text: str) -> str:
    """The last line that the last step of a build has printed."""
    lines = re.findall(r"^ +\| (.*)$", text, re.MULTILINE)
    return str(lines[-1]) if lines else "ran before"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--boot", action="store_true", help="run each program as a unikernel, too")
    parser.add_argument("names", nargs="*", metavar="NAME", help="libraries (all)")
    args = parser.parse_args()
    data = Data(find_data())
    failed = 0
    for name in args.names or data.libraries():
        try:
            found = check(data, name, boot=args.boot)
        except UserError as error:
            print(error.line(), file=sys.stderr)
            return 1
        took = found.took or "was there"
        print(f"{name:10} {took:>10}  {found.said if not found.failure else 'FAILED'}", flush=True)
        if found.failure:
            failed += 1
            print(found.failure, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
