"""Several blobs at once, each over a connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from uklimg.remote.transport import Transport
from uklimg.workers import Workers

T = TypeVar("T")

AT_ONCE = 4
# Seconds that the others may take to notice that one failed; then the process goes on without them.
_PATIENCE = 5.0


def each(items: Iterable[T], transport: Transport, action: Callable[[T, Transport], None]) -> None:
    """``action`` for every item, AT_ONCE of them at a time. The first failure cancels the others and is raised."""
    waiting = list(items)
    if len(waiting) == 1:
        return action(waiting[0], transport)
    waiting.reverse()
    cancel = threading.Event()
    idle: list[Transport] = []

    def work(item: T) -> Callable[[], None]:
        mine = idle.pop() if idle else transport.sibling(cancel)

        def run() -> None:
            action(item, mine)
            idle.append(mine)

        return run

    with Workers[None](AT_ONCE, cancel, _PATIENCE) as workers:
        while waiting or workers.busy:
            while waiting and workers.free:
                workers.start(work(waiting.pop()))
            workers.wait()
    for mine in idle:
        mine.close()
    return None
