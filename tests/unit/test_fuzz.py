"""Each target of the fuzzer for a moment. `python scripts/fuzz.py --minutes 10` runs them for longer."""

from __future__ import annotations

import pytest
from fuzztargets import TARGETS, Target
from hypothesis import HealthCheck, given, settings

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_parser_does_what_it_must_not(target: Target) -> None:
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def run(value: object) -> None:
        target.check(value)

    run()
