"""How much room a store may take: sizes and ages as users write them, and the limit of uklimg.toml."""

from __future__ import annotations

import re
from pathlib import Path

from uklimg.errors import Location, UserError
from uklimg.mirror import read_section

SECTION, NAME = "store", "limit"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", re.IGNORECASE)
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """Bytes: ``20GB``, ``20G``, ``1.5TB`` in powers of 1000, ``20GiB`` in powers of 1024, or a bare number."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UserError(f"{text!r} is not a size", hint="as in 20GB, 500MB or 20GiB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])


def parse_age(text: str) -> float:
    """Seconds: ``30m``, ``12h``, ``7d``, ``4w``."""
    found = _AGE.fullmatch(text.strip())
    if not found:
        raise UserError(f"{text!r} is not an age", hint="as in 12h, 7d or 4w")
    return float(found[1]) * _SECONDS[found[2]]


def configured_limit(config: Path) -> int | None:
    """``[store] limit`` of a uklimg.toml in bytes; None when it is not there."""
    value = read_section(config, SECTION).get(NAME)
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UserError("no text and no number", hint='as in "20GB"')
        return parse_size(str(value))
    except UserError as error:
        raise UserError(
            f"[{SECTION}] {NAME}: {error.message}", hint=error.hint, location=Location(str(config))
        ) from None
