"""docs/reference.md says what is so."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from uklimg import events
from uklimg.console import event_name

pytestmark = pytest.mark.unit

REFERENCE = Path(__file__).parents[2] / "docs/reference.md"


def test_every_event_is_documented_with_its_fields() -> None:
    table = REFERENCE.read_text(encoding="utf-8").partition("| event | fields |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \|", table, re.MULTILINE)
    documented = {name: tuple(re.findall(r"`(\w+)`", fields)) for name, fields in rows}
    assert documented == {
        event_name(kind): tuple(field.name for field in dataclasses.fields(kind)) for kind in get_args(events.Event)
    }
