"""In which order the steps of a graph are taken: what can be done now, given what is done. Pure.

Nothing is asked of a step before another one that must run needs it, so that a build in which nothing changed looks
at its target alone. Steps with one key are one: the first in the graph's order is made, the others get its result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

from uklimg.digest import Digest
from uklimg.errors import InternalError
from uklimg.graph import Graph

T = TypeVar("T")


def missing(graph: Graph, has: Callable[[Digest], bool]) -> frozenset[str]:
    """The steps that a build must run when ``has`` says which keys have a result: those without one that the target
    leads to through others without one."""
    found: set[str] = set()
    todo = [graph.target]
    while todo:
        step = graph.step(todo.pop())
        if step.id not in found and not has(graph.keys[step.id]):
            found.add(step.id)
            todo.extend(step.needs())
    return frozenset(found)


@dataclass(frozen=True)
class Task:
    """What to do next: look whether the step's result is whole, or ``make`` it, all that it needs being there."""

    step: str
    make: bool


class Walk(Generic[T]):
    """The state of one walk; T is what a step leaves. ``wanted`` are steps known to have no result (``missing``)."""

    def __init__(self, graph: Graph, wanted: frozenset[str]) -> None:
        self._graph = graph
        self._wanted = wanted
        self._order = {step.id: number for number, step in enumerate(graph.steps)}
        first: dict[Digest, str] = {}
        self._one = {step.id: first.setdefault(graph.keys[step.id], step.id) for step in graph.steps}
        self._results: dict[str, T] = {}
        self._asked: set[str] = set()
        self._lacks: dict[str, set[str]] = {}
        self._ready: list[tuple[int, Task]] = []
        self._ask(self._one[graph.target])

    def next(self) -> Task | None:
        """A task that nobody has yet; None when all must wait for tasks that others have, or everything is done."""
        return heappop(self._ready)[1] if self._ready else None

    def done(self, step: str, result: T) -> None:
        """The task of ``step`` has ended with its result."""
        self._results[step] = result
        for other, lacks in self._lacks.items():
            if step in lacks:
                lacks.remove(step)
                if not lacks:
                    self._push(Task(other, make=True))

    def lost(self, step: str) -> None:
        """The step has no result after all."""
        needs = {self._one[need] for need in self._graph.step(step).needs()}
        self._lacks[step] = {need for need in needs if need not in self._results}
        for need in needs:
            self._ask(need)
        if not self._lacks[step]:
            self._push(Task(step, make=True))

    def result(self, step: str) -> T:
        """What a step left whose task has ended, or the step that has the same key."""
        one = self._one[step]
        if one not in self._results:
            raise InternalError(f"the step {step} was not made")
        return self._results[one]

    def twins(self, step: str) -> tuple[str, ...]:
        """The other steps that must run and have the same key."""
        return tuple(s for s, one in self._one.items() if one == step and s != step and s in self._wanted)

    def _ask(self, step: str) -> None:
        if step in self._asked:
            return
        self._asked.add(step)
        if step in self._wanted:
            self.lost(step)
        else:
            self._push(Task(step, make=False))

    def _push(self, task: Task) -> None:
        heappush(self._ready, (2 * self._order[task.step] + task.make, task))
