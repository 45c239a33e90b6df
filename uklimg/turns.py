"""Steps that run at once take turns in being heard, so that what they print never mixes.

One step is live and its lines are shown at once. What the others say is held back in files, and shown in one piece
when the live step has ended: those that ended meanwhile first, then the one that is live next, as far as it has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO

# Bytes of a step that are held back in memory; beyond that they go to a file in the folder for temporary ones.
_MEMORY = 1 << 16


@dataclass
class _Held:
    """What one step has said, and whether it has ended."""

    lines: IO[str]
    ended: bool = False


class Turns:
    """``write`` shows a line. Not safe for several threads: the caller holds a lock."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._live: str | None = None
        self._held: dict[str, _Held] = {}

    def start(self, step: str, line: str) -> None:
        """The step has begun; ``line`` is how it is introduced."""
        if self._live is None:
            self._live = step
        else:
            from tempfile import SpooledTemporaryFile  # not free to import

            # Closed when it was shown.
            lines = SpooledTemporaryFile(_MEMORY, "w+", encoding="utf-8", errors="replace", newline="\n")  # noqa: SIM115
            self._held[step] = _Held(lines)
        self.say(step, line)

    def say(self, step: str, line: str) -> None:
        """A line of the step; one that never began is shown at once."""
        held = self._held.get(step)
        if held is None:
            self._write(line)
        else:
            held.lines.write(f"{line}\n")

    def end(self, step: str, lines: Iterable[str]) -> None:
        """The step has ended; ``lines`` are the last ones about it."""
        for line in lines:
            self.say(step, line)
        if step in self._held:
            self._held[step].ended = True
        elif step == self._live:
            self._live = None
            for other in [name for name, held in self._held.items() if held.ended]:
                self._show(other)
            if self._held:
                self._live = next(iter(self._held))
                self._show(self._live)

    def close(self) -> None:
        """Show what is held back, come what may."""
        for step in list(self._held):
            self._show(step)

    def _show(self, step: str) -> None:
        with self._held.pop(step).lines as lines:
            lines.seek(0)
            for line in lines:
                self._write(line.removesuffix("\n"))
