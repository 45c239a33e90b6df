"""What goes first when room is needed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uklimg.store.lru import Candidate, choose, frees

pytestmark = pytest.mark.unit

SIZES = {"a": 10, "b": 20, "c": 40, "shared": 100}


def one(name: str, used: float, *reach: str) -> Candidate:
    return Candidate(name, used, frozenset(reach))


def oldest(items: list[Candidate], pinned: set[str], sizes: dict[str, int], excess: int) -> tuple[set[str], int]:
    gone, freed = choose(items, pinned, sizes, excess)
    return set(gone), freed


def test_the_least_recently_used_go_until_it_is_enough() -> None:
    items = [one("new", 3, "a"), one("old", 1, "b"), one("middle", 2, "c")]
    assert oldest(items, set(), SIZES, 0) == (set(), 0)
    assert oldest(items, set(), SIZES, 1) == ({"old"}, 20)
    assert oldest(items, set(), SIZES, 20) == ({"old"}, 20)
    assert oldest(items, set(), SIZES, 21) == ({"old", "middle"}, 60)
    assert oldest(items, set(), SIZES, 1000) == ({"old", "middle", "new"}, 70)


def test_what_two_need_goes_with_the_second() -> None:
    items = [one("old", 1, "a", "shared"), one("new", 2, "b", "shared")]
    assert oldest(items, set(), SIZES, 5) == ({"old"}, 10)
    assert oldest(items, set(), SIZES, 11) == ({"old", "new"}, 130)


def test_what_is_pinned_stays_and_so_does_who_would_free_nothing() -> None:
    items = [one("tagged", 1, "shared"), one("old", 2, "a", "shared"), one("new", 3, "b")]
    assert oldest(items, {"shared"}, SIZES, 30) == ({"old", "new"}, 30)
    # Both use the same: nothing is won by forgetting one.
    items = [one("old", 1, "a"), one("twin", 3, "a"), one("middle", 2, "b")]
    assert oldest(items, set(), SIZES, 20) == ({"middle"}, 20)


def test_what_each_frees_alone() -> None:
    items = [one("old", 1, "a", "shared"), one("new", 2, "b", "shared")]
    assert frees(items, {"b"}, SIZES) == {"old": 10, "new": 0}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.frozensets(st.sampled_from("abcdef"), min_size=1)), max_size=8),
    st.frozensets(st.sampled_from("abcdef"), max_size=3),
    st.integers(0, 80),
)
def test_it_frees_what_it_says(found: list[tuple[int, frozenset[str]]], pinned: frozenset[str], excess: int) -> None:
    sizes = dict(zip("abcdef", (1, 2, 4, 8, 16, 32), strict=True))
    items = [Candidate(str(number), used, reach) for number, (used, reach) in enumerate(found)]
    gone, freed = choose(items, pinned, sizes, excess)
    left = frozenset().union(*(item.reach for item in items if item.name not in gone)) | pinned
    everything = frozenset().union(*(item.reach for item in items)) | pinned
    assert sum(sizes[piece] for piece in everything - left) == freed
    assert freed >= excess or not any(item.reach - pinned for item in items if item.name not in gone)
