"""Requests to stop, from signals or other threads, as something a select loop can wait for."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any


class Stops:
    """Counts requests. As a context manager it also turns SIGINT, SIGTERM and SIGHUP into requests while the block
    lasts (in the main thread; elsewhere signals are not ours to take). ``grace``: seconds in place of the guest's own
    between the stop signal and SIGKILL, for the first request."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._count = 0
        self.grace: int | None = None
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def request(self) -> None:
        """Safe in a signal handler and in any thread."""
        self.asked = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"x")

    def fileno(self) -> int:
        """Readable when there are requests that ``count`` has not seen."""
        return self._reader

    def count(self) -> int:
        """Requests so far."""
        with contextlib.suppress(BlockingIOError):
            self._count += len(os.read(self._reader, 4096))
        return self._count

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            for number in self._SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        self.close()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.request()
