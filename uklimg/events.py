"""What happens during a build, download, push or run, as values that an observer renders.

Nothing below ``console`` prints: it sends events to the sink that it was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True)
class BuildPlanned:
    """``total`` steps, of which ``cached`` need not run."""

    total: int
    cached: int


@dataclass(frozen=True)
class StepCached:
    step: str
    title: str
    key: str


@dataclass(frozen=True)
class StepStarted:
    step: str
    title: str
    key: str


@dataclass(frozen=True)
class StepOutput:
    """One line of what a step's command prints, without its newline."""

    step: str
    line: str


@dataclass(frozen=True)
class StepFinished:
    step: str
    title: str
    seconds: float


@dataclass(frozen=True)
class StepFailed:
    step: str
    title: str
    log: str  # path of the whole log


@dataclass(frozen=True)
class StepCancelled:
    """It was ended because another one failed, or because the build was interrupted."""

    step: str
    title: str


@dataclass(frozen=True)
class BuildFinished:
    """The end of a build, whether or not it made what was wanted. Of ``total`` steps ``ran`` were made and ``cached``
    were there."""

    ran: int
    cached: int
    total: int
    seconds: float
    failed: bool = False


@dataclass(frozen=True)
class TransferStarted:
    """``id`` names the transfer in later events; ``total`` bytes, 0 when unknown; ``verb`` as in "fetch", "push"."""

    id: str
    verb: str
    name: str
    total: int


@dataclass(frozen=True)
class TransferProgress:
    id: str
    advanced: int  # bytes since the last event of this transfer


@dataclass(frozen=True)
class TransferFinished:
    id: str
    skipped: bool = False  # it was there already


@dataclass(frozen=True)
class Note:
    """A line for the user that is neither result nor error. ``warning`` ones are shown in quiet mode too."""

    text: str
    warning: bool = False


Event: TypeAlias = (
    BuildPlanned
    | StepCached
    | StepStarted
    | StepOutput
    | StepFinished
    | StepFailed
    | StepCancelled
    | BuildFinished
    | TransferStarted
    | TransferProgress
    | TransferFinished
    | Note
)


class Sink(Protocol):
    """Takes events, from any thread; must not raise."""

    def __call__(self, event: Event, /) -> None: ...


def discard(event: Event, /) -> None:
    """A sink for callers that do not care."""
