"""Where a build's files come from: the store, then vendored copies, then the place that the lock names.

Whatever is asked, a file has its name in the store only after its bytes had its digest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import TypeAlias

from uklimg.errors import CorruptError, ExitCode, ToolError, UklimgError
from uklimg.events import Note, Sink, discard
from uklimg.graph import Blob
from uklimg.store import Store
from uklimg.vendor import Place

Download: TypeAlias = Callable[[Blob, Event | None], object]
"""Brings a blob into the store from where its URLs say; KeyboardInterrupt when the event is set meanwhile."""


class Sources:
    """``places`` gives the vendored copies, asked in order; it is called when the first file is missing.
    ``download`` gets what they lack, unless ``offline``. Several threads may call ``fetch`` at once."""

    def __init__(
        self,
        store: Store,
        places: Callable[[], Sequence[Place]],
        download: Download,
        sink: Sink = discard,
        *,
        offline: bool = False,
    ) -> None:
        self._store = store
        self._find_places = places
        self._download = download
        self._sink = sink
        self._offline = offline
        self._guard = threading.Lock()
        self._places: tuple[Place, ...] | None = None

    def fetch(self, blob: Blob, /, cancel: Event | None = None) -> Path:
        """The path of the blob's verified bytes. ToolError NETWORK, NOT_FOUND, CorruptError."""
        if self._store.has(blob.digest, blob.size):
            try:
                return self._store.verified_path(blob.digest)
            except CorruptError as error:
                self._sink(Note(error.message, warning=True))
        for place in self._known_places():
            if self._brought(place, blob):
                return self._store.verified_path(blob.digest)
        if self._offline:
            raise ToolError(
                f"{blob.name} is neither in the store nor vendored, and --offline forbids fetching it",
                hint="build once with a network, or `uklimg vendor DIR` with one and then --vendor DIR",
                exit_code=ExitCode.NETWORK,
            )
        self._download(blob, cancel)
        return self._store.verified_path(blob.digest)

    def _known_places(self) -> tuple[Place, ...]:
        with self._guard:
            if self._places is None:
                self._places = tuple(p for p in self._find_places() if not (self._offline and p.remote))
            return self._places

    def _brought(self, place: Place, blob: Blob) -> bool:
        """Whether the place had it. What is wrong with a place is told, and the next one is asked."""
        try:
            return place.bring(blob, self._store, self._sink)
        except UklimgError as error:
            self._sink(Note(f"{error.line()}; looking elsewhere", warning=True))
            return False
