"""Fuzz everything that reads text: ``python scripts/fuzz.py [--minutes N] [--seed N] [TARGET…]``.

The targets are those of tests/unit/fuzztargets.py, which the unit tests run for a moment each. They take turns here,
each turn with a seed of its own, until the time is over or one fails; the failure is shown with the smallest input
that shows it, and with the seed that finds it again. Exit status 1 then.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

ROOT = Path(__file__).resolve().parents[1]
ROUND = 400  # examples a turn


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the parsers of uklimg.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="the first turn's seed (chance)")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]
    targets: list[Any] = list(importlib.import_module("fuzztargets").TARGETS)
    chosen = [target for target in targets if not args.targets or target.name in args.targets]
    if not chosen:
        parser.error(f"the targets are {', '.join(target.name for target in targets)}")
    number = random.randrange(1 << 32) if args.seed is None else args.seed
    end = time.monotonic() + args.minutes * 60
    counts: Counter[str] = Counter()
    while time.monotonic() < end:
        target = chosen[number % len(chosen)]
        try:
            counts[target.name] += turn(target, number)
        except Exception:
            traceback.print_exc()
            print(f"fuzz: {target.name} failed; --seed {number} {target.name} finds it again", file=sys.stderr)
            return 1
        number += 1
    total = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    print(f"fuzz: {sum(counts.values())} inputs in {args.minutes:g} minutes, nothing found ({total})")
    return 0


def turn(target: Any, number: int) -> int:
    """Run one turn; how many inputs it had. Raises what the target raised, for the smallest input."""
    ran = 0

    @seed(number)
    @settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def run(value: object) -> None:
        nonlocal ran
        ran += 1
        target.check(value)

    run()
    return ran


if __name__ == "__main__":
    sys.exit(main())
