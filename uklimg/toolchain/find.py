"""ukl-find: from a program (moved, copied or stripped) to the relocatable object kept when it was linked.

The rule: the program's NT_GNU_BUILD_ID note names the files in the folder of kept objects.
"""

from __future__ import annotations

import sys
from pathlib import Path

from uklimg.toolchain import elf, store

USAGE = "usage: ukl-find PROGRAM…   (prints the path of each program's relocatable object)"


class NotFound(Exception):
    """There is no object; the message says why and what to do."""


def find(program: Path, folder: Path) -> Path:
    """The path of ``program``'s relocatable object; its facts are beside it with the suffix .json.

    Raises NotFound.
    """
    try:
        build_id = elf.build_id(program)
    except OSError as error:
        raise NotFound(f"{program}: {error.strerror}") from error
    except elf.NotElf as error:
        script = " (a script: name the program that it starts, with libtool often .libs/ beside it)"
        is_script = program.read_bytes()[:2] == b"#!"
        raise NotFound(f"{program}: {error}{script if is_script else ''}") from error
    if not build_id:
        raise NotFound(f"{program} has no build ID: it was not linked by ukl-gcc, or the note was removed")
    found = folder / f"{build_id}.o"
    if found.exists() and found.with_suffix(".json").exists():
        return found
    reason = folder / f"{build_id}.error"
    if reason.exists():
        raise NotFound(f"{program} cannot become a unikernel: {reason.read_text(errors='replace').rstrip()}")
    raise NotFound(
        f"{program} was not linked by ukl-gcc or ukl-g++ (build ID {build_id} is unknown); "
        "is its build using CC and CXX of the environment?"
    )


def main() -> None:
    programs = sys.argv[1:]
    if not programs or programs[0] in ("-h", "--help"):
        (sys.stdout if programs else sys.stderr).write(f"{USAGE}\n")
        sys.exit(0 if programs else 2)
    status = 0
    for program in programs:
        try:
            print(find(Path(program), store.folder()))
        except NotFound as error:
            sys.stderr.write(f"ukl-find: {error}\n")
            status = 1
    sys.exit(status)
