"""What a build would do with each step, why, and how long it may take: a graph against what was made before. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from uklimg.digest import JSON, Digest
from uklimg.graph import Graph, Step
from uklimg.keydiff import Change, Fields, Kind, Listing, compare, is_reference, leaves
from uklimg.walk import missing

_WORK = ("action.container.argv", "action.host.params")


@dataclass(frozen=True)
class Earlier:
    """A step that was made once, as its record has it: ``seconds`` it took, None when that was not noted."""

    key: Digest
    step: str
    fields: Fields
    last_used: float = 0
    seconds: float | None = None

    @cached_property
    def leaves(self) -> dict[str, JSON]:
        return leaves(self.fields)


class State(Enum):
    HIT = "hit"  # its result is there
    RUN = "run"
    SKIP = "skip"  # its result is gone, but nothing that runs needs it


class Why(Enum):
    """Why a step would run."""

    NEW = "no result yet"
    CHANGED = "changed"
    LOST = "its result is gone from the store"
    AGAIN = "--no-cache"


@dataclass(frozen=True)
class Outlook:
    """``nearest`` is the earlier step that ``changes`` compares it with; ``seconds`` what it may take. Of a step that
    does not run only the state is known."""

    step: Step
    key: Digest
    state: State
    why: Why | None = None
    nearest: Earlier | None = None
    changes: tuple[Change, ...] = ()
    seconds: float | None = None

    @property
    def reason(self) -> str:
        """Why it would run, in a few words; "" when it would not."""
        if self.why is not Why.CHANGED or not self.changes:
            return self.why.value if self.why else ""
        more = f", and {len(self.changes) - 1} more" if len(self.changes) > 1 else ""
        return f"{self.changes[0].text}{more}"


class Past:
    """What was made before."""

    def __init__(self, earlier: Iterable[Earlier]) -> None:
        self._all = tuple(earlier)

    def of(self, key: Digest) -> Earlier | None:
        return next((one for one in self._all if one.key == key), None)

    def nearest(
        self, step: Step, key: Digest, fields: Fields, fits: Callable[[Earlier], bool] = lambda one: True
    ) -> Earlier | None:
        """Of those with the same id or recipe and another key the one that has most fields in common, then the one
        that was used last. A field that is another step's key counts half: it differs with all that came before.
        Where equally many fields differ, one that differs less is nearer."""
        own = leaves(fields)
        scored: list[tuple[int, Earlier]] = []
        for one in self._all:
            if one.key != key and (one.step == step.id or one.fields.get("recipe") == step.recipe) and fits(one):
                common = [name for name, value in own.items() if one.leaves.get(name, ...) == value]
                different = len(own) + len(one.leaves) - 2 * len(common)
                scored.append((sum(2 - is_reference(name) for name in common) * 1000 - different, one))
        most = max((score for score, _ in scored), default=0)
        best = [one for score, one in scored if score == most]
        return max(
            best, key=lambda one: (_likeness(own, one.leaves), one.step == step.id, one.last_used), default=None
        )


def outlook(
    graph: Graph, hits: frozenset[str], past: Past, *, listing: Listing, again: bool = False
) -> tuple[Outlook, ...]:
    """Every step of the graph, in its order. ``hits`` are those whose result is there; with ``again`` that does not
    count (--no-cache)."""
    there = frozenset(graph.keys[name] for name in hits)
    wanted = missing(graph, lambda key: key in there and not again)
    found = []
    for step in graph.steps:
        key = graph.keys[step.id]
        if step.id in wanted:
            found.append(_runs(graph, step, past, listing, again))
        else:
            found.append(Outlook(step, key, State.HIT if step.id in hits else State.SKIP))
    return tuple(found)


def against(graph: Graph, step: Step, past: Past, listing: Listing) -> tuple[Earlier | None, tuple[Change, ...]]:
    """The nearest earlier step with another key, and what differs from it."""
    fields = step.key_fields(graph.keys)
    nearest = past.nearest(step, graph.keys[step.id], fields)
    if nearest is None:
        return None, ()
    steps = {str(graph.keys[one.id]): one.id for one in reversed(graph.steps)}
    return nearest, compare(nearest.fields, fields, steps, listing)


def roots(found: Sequence[Outlook]) -> tuple[Outlook, ...]:
    """Of the steps that run, those that do not only follow others that run."""
    running = {one.step.id for one in found if one.state is State.RUN}
    return tuple(one for one in found if one.state is State.RUN and not _follows(one, running))


def _follows(one: Outlook, running: set[str]) -> bool:
    return bool(one.changes) and all(change.kind is Kind.STEP and change.step in running for change in one.changes)


def _runs(graph: Graph, step: Step, past: Past, listing: Listing, again: bool) -> Outlook:
    key = graph.keys[step.id]
    same = past.of(key)
    if again or same is not None:
        seconds = same.seconds if same is not None else None
        if seconds is None:
            seconds = _estimate(graph, step, past)
        return Outlook(step, key, State.RUN, Why.AGAIN if again else Why.LOST, seconds=seconds)
    nearest, changes = against(graph, step, past, listing)
    # What does something else under another name is new, though it resembles something.
    same_work = not any(change.field.startswith(_WORK) for change in changes)
    why = Why.CHANGED if nearest is not None and (nearest.step == step.id or same_work) else Why.NEW
    return Outlook(step, key, State.RUN, why, nearest, changes, _estimate(graph, step, past))


def _estimate(graph: Graph, step: Step, past: Past) -> float | None:
    """The time of the nearest earlier step whose time is known."""
    known = past.nearest(step, graph.keys[step.id], step.key_fields(graph.keys), lambda one: one.seconds is not None)
    return known.seconds if known is not None else None


def _likeness(own: Mapping[str, JSON], other: Mapping[str, JSON]) -> float:
    """Of texts that differ, how many of their words are the same: the sum of shares between 0 and 1."""
    total = 0.0
    for name, value in own.items():
        theirs = other.get(name)
        if isinstance(value, str) and isinstance(theirs, str) and value != theirs and not is_reference(name):
            words, others = set(value.split()), set(theirs.split())
            total += len(words & others) / max(1, len(words | others))
    return total
