"""Which results go so that a store fits: the least recently used ones first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """Something that may go. ``reach`` are the pieces that it needs, which others may need, too."""

    name: str
    last_used: float
    reach: frozenset[str]


def choose(
    candidates: Iterable[Candidate], pinned: Set[str], sizes: Mapping[str, int], excess: int
) -> tuple[frozenset[str], int]:
    """Names of those that go, and the bytes which that frees: at least ``excess``, or all there is.

    A piece goes when nothing needs it any more; ``pinned`` ones never do. Of what would go, whatever has all its
    pieces kept by others stays: it takes no room.
    """
    oldest = sorted(candidates, key=lambda item: (item.last_used, item.name))
    needed = Counter(piece for item in oldest for piece in item.reach)
    gone: list[Candidate] = []
    freed = 0
    for item in oldest:
        if freed >= excess:
            break
        gone.append(item)
        for piece in item.reach:
            needed[piece] -= 1
            if not needed[piece] and piece not in pinned:
                freed += sizes.get(piece, 0)
    return frozenset(item.name for item in gone if any(not needed[p] and p not in pinned for p in item.reach)), freed


def frees(candidates: Iterable[Candidate], pinned: Set[str], sizes: Mapping[str, int]) -> Mapping[str, int]:
    """What each alone would free, by name."""
    items = list(candidates)
    needed = Counter(piece for item in items for piece in item.reach)
    return {
        item.name: sum(sizes.get(p, 0) for p in item.reach if needed[p] == 1 and p not in pinned) for item in items
    }
