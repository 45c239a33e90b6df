"""HEALTHCHECK: how a runner finds out that a guest is well. Pure.

In an image it is the label ``org.uklimg.healthcheck``: JSON with the names of Docker's image configuration, whose
field it is there, and not in OCI's.
"""

from __future__ import annotations

from dataclasses import dataclass

from uklimg.digest import JSON, canonical_json
from uklimg.errors import CorruptError
from uklimg.oci.parse import parse_json

SECOND = 10**9
_LIMIT = 1 << 62
_SHELL, _EXEC = "CMD-SHELL", "CMD"
_NAMES = {
    "Interval": "interval",
    "Timeout": "timeout",
    "StartPeriod": "start_period",
    "StartInterval": "start_interval",
    "Retries": "retries",
}


@dataclass(frozen=True)
class HealthCheck:
    """A command of the guest's that ends with 0 when all is well. Times in nanoseconds, the defaults are Docker's:
    failures within ``start_period`` of the start do not count, and the pause until then is ``start_interval``.
    ``shell``: ``argv`` is one text for /bin/sh."""

    argv: tuple[str, ...]
    shell: bool = False
    interval: int = 30 * SECOND
    timeout: int = 30 * SECOND
    start_period: int = 0
    start_interval: int = 5 * SECOND
    retries: int = 3

    @property
    def command(self) -> tuple[str, ...]:
        return ("/bin/sh", "-c", *self.argv) if self.shell else self.argv


_DEFAULT = HealthCheck(())


def encode_health(check: HealthCheck) -> str:
    """The label's value."""
    return canonical_json(health_fields(check)).decode()


def health_fields(check: HealthCheck) -> dict[str, JSON]:
    """What the label says, as JSON; defaults are left out."""
    values: dict[str, JSON] = {"Test": [_SHELL if check.shell else _EXEC, *check.argv]}
    for name, field in _NAMES.items():
        value = getattr(check, field)
        if value != getattr(_DEFAULT, field):
            values[name] = value
    return values


def decode_health(text: str) -> HealthCheck | None:
    """The inverse; None for "". CorruptError for anything else."""
    if not text:
        return None
    value = parse_json(text.encode(errors="replace"), "the image's health check")
    test = value.get("Test")
    words = test if isinstance(test, list) else []
    kind, *argv = [word for word in words if isinstance(word, str)] or [""]
    numbers = {field: value.get(name, getattr(_DEFAULT, field)) for name, field in _NAMES.items()}
    bad = [field for field, number in numbers.items() if type(number) is not int or not 0 <= number < _LIMIT]
    if (
        kind not in (_SHELL, _EXEC)
        or not argv
        or len(argv) + 1 != len(words)
        or (kind == _SHELL and len(argv) > 1)
        or bad
    ):
        raise CorruptError(f"the image's health check is {text[:60]!r}")
    return HealthCheck(tuple(argv), kind == _SHELL, **numbers)  # type: ignore[arg-type]
