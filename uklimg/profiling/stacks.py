"""From the text of `perf script` to counted call stacks. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

_FRAME = re.compile(r"\s+([0-9a-f]+) (.+?)(?: \(([^()]*(?:\([^()]*\))?[^()]*)\))?$")
_OFFSET = re.compile(r"\+0x[0-9a-f]+$")
_IDLE = re.compile(r"swapper(/\d+)?|:-1")
# perf and what starts it.
_OURS = ("ld-linux-x86-64", "profiler", "perf")
# Where a kernel with an application has that one's code: from here on; the kernel itself lies below.
APPLICATION = 0xFFFFFFFFC0000000
_KERNEL = 1 << 63


class Kind(Enum):
    """Whose code a frame is."""

    APPLICATION = "application"  # linked with the kernel
    KERNEL = "kernel"
    PROCESS = "process"  # in ring 3
    NAME = "name"  # of a process, at the root


@dataclass(frozen=True)
class Frame:
    name: str
    kind: Kind


Stacks: TypeAlias = Mapping[tuple[Frame, ...], int]
"""How often each stack was seen; frames from the process's name to where it was."""


def stacks(lines: Iterable[str], *, unlinked: bool = False) -> Stacks:
    """Samples of `perf script -F comm,ip,sym,dso`: a line that begins with the process's name, a line a frame from
    the innermost on, an empty line. Idle processors and perf are left out. ``unlinked``: the kernel has no
    application."""
    found: Counter[tuple[Frame, ...]] = Counter()
    name, frames = "", list[Frame]()

    def finish() -> None:
        if name and name not in _OURS and not _IDLE.fullmatch(name):
            found[(Frame(name, Kind.NAME), *reversed(frames))] += 1

    for line in lines:
        frame = _FRAME.fullmatch(line.rstrip("\n"))
        if frame and name:
            address, symbol = int(frame[1], 16), _OFFSET.sub("", frame[2].strip())
            # Without a symbol it is the file that says most.
            shown = symbol if symbol != "[unknown]" else f"[{(frame[3] or 'unknown').strip('[]')}]"
            frames.append(Frame(shown, _kind(address, unlinked)))
        elif line.strip() and not line[0].isspace():
            finish()
            name, frames = line.strip(), []
        elif not line.strip():
            finish()
            name, frames = "", []
    finish()
    return found


def _kind(address: int, unlinked: bool) -> Kind:
    if address < _KERNEL:
        return Kind.PROCESS
    return Kind.APPLICATION if address >= APPLICATION and not unlinked else Kind.KERNEL


def folded(found: Stacks) -> str:
    """A line a stack, as other tools read it: frames joined by ";", the count."""
    lines = (f"{';'.join(frame.name.replace(';', ':') for frame in stack)} {count}" for stack, count in found.items())
    return "".join(f"{line}\n" for line in sorted(lines))
