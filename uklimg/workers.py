"""A few functions at once, each in a thread of its own, for work that can be cancelled.

Whatever ends the caller (the failure of one function, Ctrl-C) cancels the others and waits for them. The threads are
daemons: should one not end in time, the process ends without it, and the kernel ends the processes that it started
(``uklimg.proc``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

# Seconds that cancelled work may take to end: a download that waits for a silent server takes longer.
PATIENCE = 30.0


class Workers(Generic[T]):
    """At most ``limit`` at once. ``cancel`` is what the functions look at."""

    def __init__(self, limit: int, cancel: threading.Event, patience: float = PATIENCE) -> None:
        self._limit = limit
        self._cancel = cancel
        self._patience = patience
        self._threads: list[threading.Thread] = []
        self._ended: SimpleQueue[tuple[threading.Thread, T | None, BaseException | None]] = SimpleQueue()

    @property
    def busy(self) -> bool:
        return bool(self._threads)

    @property
    def free(self) -> bool:
        return len(self._threads) < self._limit

    def start(self, function: Callable[[], T]) -> None:
        def work() -> None:
            result, failure = None, None
            try:
                result = function()
            except BaseException as error:  # raised again by ``wait``
                failure = error
            self._ended.put((thread, result, failure))

        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self) -> T:
        """What the first function to end returns; what it raised is raised here."""
        thread, result, failure = self._ended.get()
        thread.join()
        self._threads.remove(thread)
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]  # None is only there beside a failure

    def __enter__(self) -> Workers[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Another Ctrl-C ends the waiting, too."""
        if kind is not None:
            self._cancel.set()
        deadline = time.monotonic() + self._patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
