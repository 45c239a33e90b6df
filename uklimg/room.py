"""What this machine has: processors, memory, and how many steps may run at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

# What is reckoned for a compiler. C takes less, C++ and the link of a large program now and then more.
COMPILER_MEMORY = 512 << 20
_TOTAL = re.compile(r"^(?:MemTotal|SwapTotal):\s+(\d+) kB$", re.MULTILINE)
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
    found = _AVAILABLE.search(_text(root / "proc/meminfo"))
    return _within_limit([int(found[1]) << 10] if found else [], root)


def memory_total(root: Path = Path("/")) -> int:
    """Bytes of memory and swap, and no more than that limit; 0 when nobody says. ``root`` is for tests."""
    total = sum(int(found) << 10 for found in _TOTAL.findall(_text(root / "proc/meminfo")))
    return _within_limit([total] if total else [], root)


def _within_limit(known: list[int], root: Path) -> int:
    limit = _text(root / "sys/fs/cgroup/memory.max").strip()
    return min([*known, int(limit)] if limit.isdigit() else known, default=0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
