"""The guest programs as data, and how each is compiled with an ordinary compiler.

``programs.toml`` says what there is; ``compile_cmd`` is pure. A harness that compiles with another compiler (the UKL
wrapper) passes its names and flags.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

HERE = Path(__file__).parent
WARNINGS = ("-Wall", "-Wextra", "-Werror")
# Where ukl.h is, which a build container has among its headers.
HEADERS = HERE.parents[1] / "uklimg/toolchain"


class Role(Enum):
    PROGRAM = "program"  # on plain Linux and as UKL with equal output
    BESIDE = "beside"  # a UKL program that starts a ring-3 command
    RING3 = "ring3"  # an ordinary program only
    TOOL = "tool"


@dataclass(frozen=True)
class GuestProgram:
    """One table of programs.toml. ``sources`` are absolute; ``memory`` is in MiB, 0 where it does not matter."""

    name: str
    sources: tuple[Path, ...]
    cxx: bool
    libs: tuple[str, ...]
    args: tuple[str, ...]
    needs: frozenset[str]
    memory: int
    role: Role


def load(path: Path = HERE / "programs.toml") -> tuple[GuestProgram, ...]:
    """All programs in the file's order; ValueError for a word that the file may not contain."""
    known = {"proc", "tmp", "busybox", "loopback"}
    programs = []
    for name, table in tomllib.loads(path.read_text())["program"].items():
        if table["language"] not in ("c", "c++"):
            raise ValueError(f"{name}: language {table['language']}")
        sizes = [need.removeprefix("memory=") for need in table["needs"] if need.startswith("memory=")]
        needs = frozenset(need for need in table["needs"] if not need.startswith("memory="))
        if needs - known:
            raise ValueError(f"{name}: needs {sorted(needs - known)}")
        programs.append(
            GuestProgram(
                name=name,
                sources=tuple(path.parent / source for source in table["sources"]),
                cxx=table["language"] == "c++",
                libs=tuple(table["libs"]),
                args=tuple(table["args"]),
                needs=needs,
                memory=int(sizes[0]) if sizes else 0,
                role=Role(table["role"]),
            )
        )
    return tuple(programs)


def compile_cmd(
    program: GuestProgram, output: Path, flags: Sequence[str], *, cc: str = "gcc", cxx: str = "g++"
) -> list[str]:
    """The command that makes ``output`` from the sources at once; ``flags`` choose the kind of executable."""
    compiler, standard = (cxx, "-std=gnu++17") if program.cxx else (cc, "-std=gnu11")
    sources = [str(source) for source in program.sources]
    return [
        compiler,
        standard,
        "-O2",
        "-g",
        *WARNINGS,
        f"-I{HEADERS}",
        *flags,
        "-o",
        str(output),
        *sources,
        *program.libs,
    ]
