"""How many steps may run at once on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

# What is reckoned for a compiler. C takes less, C++ and the link of a large program now and then more.
COMPILER_MEMORY = 512 << 20
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)


def steps_at_once(jobs: int, memory: int) -> int:
    """``jobs`` is the number of processors that steps see, ``memory`` what there is in bytes, 0 when unknown.

    A step may start as many compilers as it sees processors. So that all of them together have the memory they take,
    no more steps run at once than there is room for that; one always may.
    """
    if memory == 0:
        return jobs
    return max(1, min(jobs, memory // (jobs * COMPILER_MEMORY)))


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_available(root: Path = Path("/")) -> int:
    """Bytes that programs may still take here, by the kernel's reckoning, and no more than the limit of the control
    group that a container is; 0 when nobody says. ``root`` is for tests."""
    known = []
    found = _AVAILABLE.search(_text(root / "proc/meminfo"))
    if found:
        known.append(int(found[1]) << 10)
    limit = _text(root / "sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        known.append(int(limit))
    return min(known, default=0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
