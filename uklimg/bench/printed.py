"""What workloads print (workloads/bench.h) as values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uklimg.bench.model import CaseName, Measure, Value
from uklimg.errors import ExitCode, ToolError

PERCENTILES = ("p0", "p50", "p90", "p99", "p99.9")
# One tick an instruction, or the method is wrong.
NOPS, NOPS_COUNT = "nops1000", 1000


@dataclass(frozen=True)
class Sample:
    """Ticks by percentile, of ``count`` samples."""

    ticks: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Printed:
    """``costs`` by case and what was counted: the total and of how many operations."""

    samples: Mapping[CaseName, Sample]
    costs: Mapping[tuple[str, str], tuple[int, int]]
    facts: Mapping[str, int]

    def scale(self, measure: Measure) -> float:
        """Instructions or nanoseconds of a tick. ToolError when ticks are not instructions where they should be."""
        if measure is Measure.INSTRUCTIONS:
            if self.facts.get(NOPS) != NOPS_COUNT:
                raise ToolError(
                    f"QEMU does not count instructions here: {NOPS_COUNT} nops are {self.facts.get(NOPS)}",
                    exit_code=ExitCode.RUN_FAILED,
                )
            return 1.0
        khz = self.facts.get("tsc-khz", 0)
        if khz <= 0:
            raise ToolError("the guest does not say how fast its counter is", exit_code=ExitCode.RUN_FAILED)
        return 1e6 / khz

    def value(self, name: CaseName, measure: Measure) -> Value:
        """Of samples the minimum where instructions are counted: what is more is an interrupt. Else the median."""
        scale, ticks = self.scale(measure), self.samples[name].ticks
        found = {label: tick * scale for label, tick in zip(PERCENTILES, ticks, strict=True)}
        return Value(found["p0" if measure is Measure.INSTRUCTIONS else "p50"], found)


def parse(text: str) -> Printed:
    """Lines of other kinds are passed over: the console has them from the kernel and from servers. A size of 0 is
    none."""
    samples: dict[CaseName, Sample] = {}
    costs: dict[tuple[str, str], tuple[int, int]] = {}
    facts: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 + len(PERCENTILES) + 1 and words[0] == "bench" and _numbers(words[2:]):
            size, *ticks, count = (int(word) for word in words[2:])
            samples[CaseName(words[1], size or None)] = Sample(tuple(ticks), count)
        elif len(words) == 5 and words[0] == "bench-cost" and _numbers(words[3:]):
            costs[words[1], words[2]] = int(words[3]), int(words[4])
        elif len(words) == 3 and words[0] == "bench-fact" and _numbers(words[2:]):
            facts[words[1]] = int(words[2])
    return Printed(samples, costs, facts)


def _numbers(words: list[str]) -> bool:
    return all(word.isascii() and word.isdigit() for word in words)
