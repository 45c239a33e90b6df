"""What a benchmark found, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from uklimg.digest import JSON


class Measure(Enum):
    """What is compared. Emulation tells nothing of time, and can count: then it is instructions of the guest."""

    INSTRUCTIONS = "instructions"
    TIME = "nanoseconds"


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared: ``twin`` is plain Linux, else an image with the options ``ukl``.
    ``glibc``: the GLIBC of the image, "" for the base image's libc."""

    name: str
    twin: bool = False
    ukl: tuple[str, ...] = ()
    glibc: str = ""


LINUX = Variant("linux", twin=True)


@dataclass(frozen=True)
class Value:
    """``value`` is what ratios are of; ``percentiles`` of the samples by name ("p99"), in the same unit, where there
    are samples."""

    value: float
    percentiles: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, order=True)
class CaseName:
    """``size``: bytes of a system call, pages, connections; None where a case has none."""

    name: str
    size: int | None = None

    @property
    def label(self) -> str:
        return self.name if self.size is None else f"{self.name} {self.size}"


@dataclass(frozen=True)
class Case:
    """Less is better. ``values`` by the variant's name; a variant that lacks the case is not among them. ``paper``:
    the paper's ratio to Linux, by our variant's name, and where it stands."""

    name: CaseName
    unit: str
    values: Mapping[str, Value]
    paper: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    def ratio(self, variant: str) -> float | None:
        """The variant's part of what Linux takes; None where one of the two is unknown."""
        base, own = self.values.get(LINUX.name), self.values.get(variant)
        return None if base is None or own is None or not base.value else own.value / base.value


@dataclass(frozen=True)
class SuiteResult:
    """``note``: what a reader must know of how it was measured."""

    suite: str
    title: str
    note: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Report:
    """``facts`` is what a reader must know of where it was found: accelerator, QEMU, versions, kernel parameters."""

    measure: Measure
    facts: Mapping[str, JSON]
    variants: tuple[Variant, ...]
    suites: tuple[SuiteResult, ...]
