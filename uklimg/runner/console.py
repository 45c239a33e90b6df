"""The guest's console as a stream: what the user sees of it, and what it says about the guest's end. Pure."""

from __future__ import annotations

import re

from uklimg.guest.protocol import Status, error_of_console, final_of_console

_KEEP = 64 << 10
_LONGEST = 256  # a final line is shorter
_FINAL_START = b"uklimg: "
_FINAL_LINE = re.compile(rb"uklimg: (?:exit \d{1,3}|signal \d{1,2} \([^)\r\n]*\))\r?\n")
_LAST_WORDS = re.compile(rb"(?:\[ *\d+\.\d+\] )?reboot: [^\r\n]*\r?")
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")


class Console:
    """Fed with chunks; ``feed`` returns what to show.

    With ``hide_end`` the last ``uklimg: exit N`` line and the kernel's "reboot: …" after it are kept back: they are
    for us. The last 64 KiB stay here for questions.
    """

    def __init__(self, hide_end: bool = True) -> None:
        self._hide_end = hide_end
        self._kept = b""
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        self._kept = (self._kept + data)[-_KEEP:]
        if not self._hide_end:
            return data
        self._held += data
        shown = b""
        while (final := _FINAL_LINE.search(self._held)) and not _may_be_the_end(self._held[final.end() :]):
            # More came after it: the program has written such a line itself.
            shown += self._held[: final.end()]
            self._held = self._held[final.end() :]
        at = final.start() if final else self._doubtful()
        shown += self._held[:at]
        self._held = self._held[at:]
        return shown

    def _doubtful(self) -> int:
        """Where text begins that may yet become the final line."""
        held = self._held
        at = held.rfind(_FINAL_START)
        if at >= 0 and b"\n" not in held[at:] and len(held) - at < _LONGEST:
            return at
        for size in range(min(len(_FINAL_START) - 1, len(held)), 0, -1):
            if held.endswith(_FINAL_START[:size]):
                return len(held) - size
        return len(held)

    def flush(self) -> bytes:
        """What was kept back and turned out not to be the end."""
        held, self._held = self._held, b""
        return b"" if _FINAL_LINE.match(held) else held

    @property
    def final(self) -> Status | None:
        return final_of_console(self._kept)

    @property
    def error(self) -> str | None:
        return error_of_console(self._kept)

    @property
    def panic(self) -> str | None:
        """The kernel's own words when it panicked."""
        found = _PANIC.search(self._kept)
        return found[1].decode(errors="replace").strip() if found else None

    @property
    def tail(self) -> str:
        """The last lines, for an error's detail."""
        lines = self._kept.decode(errors="replace").replace("\r", "").splitlines()
        return "\n".join(lines[-20:])


def _may_be_the_end(text: bytes) -> bool:
    """Whether what follows a final line is nothing, or the kernel's farewell, as far as it has come."""
    *lines, rest = text.split(b"\n")
    whole = all(not line.strip() or _LAST_WORDS.fullmatch(line) for line in lines)
    return whole and (b"reboot: ".startswith(rest[:8]) or rest.startswith(b"["))
