"""Events as a user sees them: bars on a terminal, plain lines elsewhere, or one JSON object a line.

Everything goes to one stream (standard error), so that results on standard output stay clean. Passwords in URLs are
masked, and control characters of what build steps print do not reach a terminal.
"""

from __future__ import annotations

import json
import re
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Protocol, TextIO

from uklimg.events import (
    BuildFinished,
    BuildPlanned,
    Event,
    Note,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepOutput,
    StepStarted,
    TransferFinished,
    TransferProgress,
    TransferStarted,
)
from uklimg.turns import Turns

PROGRESS = ("auto", "plain", "json")

_PASSWORD = re.compile(r"(://)[^/@\s]+@")
_CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)|[\x00-\x08\x0b-\x1f\x7f]")
_NOT_TOLD = 4096  # bytes of a transfer that is no line of its own: manifests, signatures
_UNITS = ("B", "kB", "MB", "GB", "TB")


def clean(text: str) -> str:
    """Without passwords in URLs and without control characters."""
    return _CONTROL.sub("", _PASSWORD.sub(r"\1***@", text))


def size(count: float) -> str:
    """``12.3 MB``; powers of 1000."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("no unit is last")


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 05 s``, ``1 h 02 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class Console(Protocol):
    """A sink for events, as a context manager: leaving it takes bars away."""

    def __call__(self, event: Event, /) -> None: ...

    def __enter__(self) -> Console: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def console(progress: str, stream: TextIO) -> Console:
    """``progress`` is one of PROGRESS; auto means bars when ``stream`` is a terminal."""
    if progress == "json":
        return JsonConsole(stream)
    if progress == "auto" and stream.isatty():
        return BarConsole(stream)
    return PlainConsole(stream)


class _Base:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()

    def __enter__(self) -> _Base:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __call__(self, event: Event, /) -> None:
        with self._lock:
            try:
                self.show(event)
            except (OSError, ValueError):
                return  # whoever read us is gone; the build goes on

    def show(self, event: Event) -> None:
        raise NotImplementedError

    def write(self, text: str) -> None:
        self._stream.write(f"{clean(text)}\n")
        self._stream.flush()


class PlainConsole(_Base):
    """Lines, all of them, those of each step together: for logs."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._transfers: dict[str, TransferStarted] = {}
        self._turns = Turns(self.write)

    def __exit__(self, *_: object) -> None:
        with self._lock, suppress(OSError, ValueError):
            self._turns.close()

    def show(self, event: Event) -> None:
        match event:
            case StepStarted(step=step):
                self._turns.start(step, *sentence(event))
            case StepOutput(step=step, line=line):
                self._turns.say(step, f"   | {line}")
            case StepFinished(step=step) | StepFailed(step=step) | StepCancelled(step=step):
                self._turns.end(step, sentence(event))
            case BuildFinished():
                self._turns.close()
                self.write(*sentence(event))
            case TransferStarted():
                self._transfers[event.id] = event
            case TransferProgress():
                pass
            case TransferFinished(id=name, skipped=skipped):
                started = self._transfers.pop(name, None)
                if started is not None and not skipped and not 0 < started.total < _NOT_TOLD:
                    self.write(
                        f"{started.verb} {started.name}" + (f" ({size(started.total)})" if started.total else "")
                    )
            case _:
                for line in sentence(event):
                    self.write(line)


def sentence(event: Event) -> list[str]:
    """What plain lines and bars alike say of an event."""
    match event:
        case BuildPlanned(total=total, cached=cached):
            return [f"{total} steps, {cached} of them cached" if cached else f"{total} steps"]
        case StepCached(title=title):
            return [f"CACHED {title}"]
        case StepStarted(title=title):
            return [f"=> {title}"]
        case StepFinished(title=title, seconds=seconds):
            return [f"   done in {duration(seconds)}: {title}"]
        case StepFailed(title=title, log=log):
            return [f"   FAILED {title}", f"   log: {log}"]
        case StepCancelled(title=title):
            return [f"   cancelled: {title}"]
        case BuildFinished(failed=failed):
            unfinished = "not finished: " if failed else ""
            there = f", {event.cached} cached" if event.cached else ""
            return [f"{unfinished}{event.ran} of {event.total} steps ran{there}, {duration(event.seconds)}"]
        case Note(text=text, warning=warning):
            return [f"warning: {text}" if warning else text]
        case _:
            return []


def event_name(kind: type[Event]) -> str:
    """``step-started`` of StepStarted."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


class JsonConsole(_Base):
    """One object a line: ``{"event": "step-started", …}`` with the event's fields."""

    def show(self, event: Event) -> None:
        fields = {key: clean(value) if isinstance(value, str) else value for key, value in asdict(event).items()}
        self._stream.write(json.dumps({"event": event_name(type(event)), **fields}, ensure_ascii=False) + "\n")
        self._stream.flush()


@dataclass
class _Transfers:
    """All transfers under way with the same verb are one bar of bytes."""

    bar: Any
    active: dict[str, TransferStarted] = field(default_factory=dict)

    def describe(self) -> None:
        if self.active:
            first = next(iter(self.active.values()))
            more = f" +{len(self.active) - 1}" if len(self.active) > 1 else ""
            self.bar.set_description_str(f"{first.verb} {clean(first.name)[:40]}{more}", refresh=False)
        self.bar.refresh()


class BarConsole(_Base):
    """A bar for the steps, with those that run and the latest line of them, and one for transfers with the rate and
    what is left; finished steps stay as lines."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        from tqdm import tqdm  # not free to import, and of use only on a terminal

        self._bar: Any = tqdm
        self._steps: Any = None
        self._running: dict[str, str] = {}
        self._transfers: dict[str, _Transfers] = {}
        self._verbs: dict[str, str] = {}

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._end_steps()
            for transfers in self._transfers.values():
                transfers.bar.close()
            self._transfers.clear()

    def write(self, text: str) -> None:
        self._bar.write(clean(text), file=self._stream)

    def show(self, event: Event) -> None:
        match event:
            case BuildPlanned(total=total):
                self._steps = self._bar(
                    total=total, file=self._stream, unit="step", leave=False, dynamic_ncols=True, position=0,
                    bar_format="{bar:20} {n_fmt}/{total_fmt} [{elapsed}] {desc}{postfix}",
                )  # fmt: skip
            case StepOutput(line=line):
                if self._steps is not None:
                    self._steps.set_postfix_str(clean(line).strip()[:100])
            case TransferStarted():
                self._start(event)
            case TransferProgress(id=name, advanced=advanced):
                if name in self._verbs:
                    self._transfers[self._verbs[name]].bar.update(advanced)
            case TransferFinished(id=name, skipped=skipped):
                self._finish(name, skipped)
            case _:
                self._step(event)
                if not isinstance(event, StepStarted | BuildPlanned):
                    for line in sentence(event):
                        self.write(line)

    def _step(self, event: Event) -> None:
        match event:
            case BuildFinished():
                self._end_steps()
            case StepStarted(step=step, title=title):
                self._running[step] = clean(title)
            case StepFinished(step=step) | StepFailed(step=step) | StepCancelled(step=step):
                self._running.pop(step, None)
        if self._steps is None:
            return
        if isinstance(event, StepCached | StepFinished):
            # A result that turned out to be damaged counts twice.
            self._steps.total = max(self._steps.total, self._steps.n + 1)
            self._steps.update()
        room = 60 // max(1, len(self._running))
        self._steps.set_postfix_str("", refresh=False)
        self._steps.set_description_str(" | ".join(title[:room] for title in self._running.values()))

    def _end_steps(self) -> None:
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _start(self, event: TransferStarted) -> None:
        if event.verb not in self._transfers:
            bar = self._bar(
                total=0, file=self._stream, unit="B", unit_scale=True, leave=False, dynamic_ncols=True, position=1,
                bar_format="{desc} {bar:20} {n_fmt}/{total_fmt} {rate_fmt} {remaining} left",
            )  # fmt: skip
            self._transfers[event.verb] = _Transfers(bar)
        transfers = self._transfers[event.verb]
        transfers.active[event.id] = event
        self._verbs[event.id] = event.verb
        transfers.bar.total += event.total
        transfers.describe()

    def _finish(self, name: str, skipped: bool) -> None:
        verb = self._verbs.pop(name, None)
        if verb is None:
            return
        transfers = self._transfers[verb]
        event = transfers.active.pop(name, None)
        if event is not None and skipped:
            transfers.bar.total -= event.total
        if transfers.active:
            transfers.describe()
        else:
            transfers.bar.close()
            del self._transfers[verb]
