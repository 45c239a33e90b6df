"""The output of a step, which its command writes to a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from uklimg.engine.base import LOG, Job, Line, Mount
from uklimg.proc import TAIL_LINES

_CHUNK = 1 << 16
_LINE_LIMIT = 1 << 16  # bytes after which a line is passed on though it goes on


def log_mount(job: Job) -> Mount:
    """The job's log, made empty, as the step's command finds it."""
    job.log.write_bytes(b"")
    job.log.chmod(0o644 if job.user == "root" else 0o666)
    return Mount(job.log, LOG, read_only=False)


class Follower:
    """Passes on the lines of ``path``, an existing file, as they are added to it; remembers the last ones."""

    def __init__(self, path: Path, on_line: Line) -> None:
        self._file = path.open("r+b")
        self._on_line = on_line
        self._rest = b""
        self._last: deque[str] = deque(maxlen=TAIL_LINES)

    def poll(self) -> None:
        """Pass on what is new."""
        while chunk := self._file.read(_CHUNK):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._send(line)
            if len(self._rest) > _LINE_LIMIT:
                self._flush()

    def add(self, lines: Iterable[str]) -> None:
        """Append ``lines`` to the file and pass them on."""
        if self._rest:
            self._file.write(b"\n")
            self._flush()
        for line in lines:
            data = line.encode()
            self._file.write(data + b"\n")
            self._send(data)

    @property
    def tail(self) -> str:
        """The last lines."""
        return "\n".join(self._last)

    def _flush(self) -> None:
        if self._rest:
            self._send(self._rest)
            self._rest = b""

    def _send(self, data: bytes) -> None:
        line = data.decode("utf-8", "replace").rstrip("\r")
        self._last.append(line)
        self._on_line(line)

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._file.close()
