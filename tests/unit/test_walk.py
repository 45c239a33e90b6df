"""The order of a walk over any graph: everything once, nothing before what it needs, nothing that is not needed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uklimg.errors import InternalError
from uklimg.graph import Graph, Host, Output, Step
from uklimg.walk import Task, Walk, missing

pytestmark = pytest.mark.unit


def step(number: int, needs: frozenset[int], command: int) -> Step:
    inputs = {f"i{other}": Output(f"s{other}") for other in needs}
    return Step(f"s{number}", "", "r", 1, Host("f", command), inputs)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Some steps that need earlier ones; few commands, so that some have equal keys."""
    count = draw(st.integers(1, 9))
    steps = []
    for number in range(count):
        needs = draw(st.frozensets(st.integers(0, number - 1), max_size=3)) if number else frozenset()
        steps.append(step(number, needs, draw(st.integers(0, 2))))
    return Graph.of(steps, f"s{count - 1}")


@settings(deadline=None)
@given(graphs(), st.data())
def test_any_walk(graph: Graph, data: st.DataObject) -> None:
    keys = sorted({graph.keys[one.id] for one in graph.steps})
    there = {key for key in keys if data.draw(st.booleans())}
    damaged = {key for key in there if data.draw(st.booleans())}
    walk = Walk[str](graph, missing(graph, lambda key: key in there))
    running: list[Task] = []
    made = []
    looked = []
    while True:
        while (data.draw(st.booleans()) or not running) and (task := walk.next()):
            running.append(task)
        if not running:
            break
        task = running.pop(data.draw(st.integers(0, len(running) - 1)))
        key = graph.keys[task.step]
        if task.make:
            assert all(walk.result(need) for need in graph.step(task.step).needs())
            assert key not in there or key in damaged
            made.append(key)
            walk.done(task.step, str(key))
        else:
            looked.append(key)
            if key in there - damaged:
                walk.done(task.step, str(key))
            else:
                walk.lost(task.step)
    assert walk.result(graph.target) == str(graph.keys[graph.target])
    assert len(made) == len(set(made))
    assert len(looked) == len(set(looked))
    assert set(made) == {graph.keys[name] for name in missing(graph, lambda key: key in there - damaged)}


def test_what_was_not_made_has_no_result() -> None:
    graph = Graph.of([step(0, frozenset(), 0)], "s0")
    with pytest.raises(InternalError, match="s0 was not made"):
        Walk[str](graph, frozenset({"s0"})).result("s0")
