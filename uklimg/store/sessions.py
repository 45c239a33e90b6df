"""Who works in a store right now, so that ``prune`` can work beside builds.

Whoever adds to a store holds ``live.lock`` together with others, and ``prune`` waits until nobody holds it. A build
that knows its steps writes them to a hold and lets go of that lock: from then on ``prune`` knows what it needs, and
besides leaves alone whatever is newer than the build.

    locks/live.lock      shared by sessions that have not said what they need
    locks/<id>.hold      what a build needs, locked as long as the build lives
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from uklimg import locks
from uklimg.digest import Digest

LIVE = "live.lock"
_HOLD = ".hold"
# Clocks of files are coarser than that of processes.
_SLACK = 2.0


@dataclass(frozen=True)
class Hold:
    """``keys`` and ``blobs`` are needed by a live build; it may also rely on what changed ``since`` (seconds)."""

    keys: frozenset[Digest]
    blobs: frozenset[Digest]
    since: float


class Session:
    """Of one build or other command; made by ``session``."""

    def __init__(self, folder: Path, held: ExitStack) -> None:
        self._folder = folder
        self._held = held
        self._since = time.time() - _SLACK
        self._path: Path | None = None
        self._fd = -1
        self.keys: tuple[Digest, ...] = ()

    def declare(self, keys: Iterable[Digest], blobs: Iterable[Digest]) -> None:
        """Say what this build needs: the results of ``keys``, whether or not they are there, and ``blobs``.

        Before the first lookup; what was looked up earlier may go. Once a session.
        """
        self.keys = tuple(keys)
        value = {
            "keys": [key.hex for key in self.keys],
            "blobs": [blob.hex for blob in blobs],
            "since": int(self._since),
        }
        self._path = self._folder / f"{uuid.uuid4().hex}{_HOLD}"
        self._fd = locks.create_locked(self._path)
        with os.fdopen(os.dup(self._fd), "w", encoding="utf-8") as file:
            json.dump(value, file)
        self._held.close()

    def close(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._path = None


@contextmanager
def session(folder: Path) -> Iterator[Session]:
    """Live in the store whose locks are in ``folder``."""
    with ExitStack() as held:
        held.enter_context(locks.locked(folder / LIVE, shared=True))
        found = Session(folder, held)
        try:
            yield found
        finally:
            found.close()


def live_holds(folder: Path) -> tuple[Hold, ...]:
    """What live builds need. The caller holds ``live.lock`` alone; holds of dead builds are removed."""
    found = []
    for path in sorted(folder.glob(f"*{_HOLD}")):
        try:
            value = json.loads(path.read_bytes() or b"{}")
        except FileNotFoundError:
            continue  # it ended just now
        with locks.abandoned(path) as abandoned:
            if abandoned:
                path.unlink(missing_ok=True)
                continue
        keys, blobs = (frozenset(Digest(text) for text in value[name]) for name in ("keys", "blobs"))
        found.append(Hold(keys, blobs, float(value["since"])))
    return tuple(found)
