"""When a guest is started again, and when it is healthy. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from uklimg.errors import UserError
from uklimg.oci.health import SECOND, HealthCheck

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
# Seconds: the first pause before a start, the longest, and how long a guest must have run for the first one again.
_FIRST, _LONGEST, _STEADY = 0.1, 60.0, 10.0


@dataclass(frozen=True)
class Restart:
    """``--restart``: "no", "always", or "on-failure" with a limit of ``times`` (0: none)."""

    when: str = "no"
    times: int = 0

    def __str__(self) -> str:
        return f"{self.when}:{self.times}" if self.times else self.when

    def wanted(self, code: int, restarts: int) -> bool:
        """Whether a guest that ended with ``code`` after so many restarts, unasked, is started again."""
        if self.when == "always":
            return True
        return self.when == "on-failure" and code != 0 and (not self.times or restarts < self.times)


def parse_restart(text: str) -> Restart:
    """``no``, ``always``, ``on-failure`` or ``on-failure:N``; UserError for anything else."""
    when, colon, times = text.partition(":")
    if when in ("no", "always", "on-failure") and not colon:
        return Restart(when)
    if when == "on-failure" and times.isascii() and times.isdigit() and int(times):
        return Restart(when, int(times))
    raise UserError(f"{text!r} is not a restart policy", hint="no, always, on-failure or on-failure:N")


def pause(before: float, ran: float) -> float:
    """Seconds until the next start, after a pause of ``before`` (0 for none) and ``ran`` seconds of running."""
    if not before or ran >= _STEADY:
        return _FIRST
    return min(before * 2, _LONGEST)


@dataclass(frozen=True)
class Health:
    """``failing`` counts failures in a row."""

    state: str = STARTING
    failing: int = 0

    def after(self, check: HealthCheck, passed: bool, since_start: float) -> Health:
        """What one more result makes of it, ``since_start`` seconds after the program began."""
        if passed:
            return Health(HEALTHY)
        if self.state == STARTING and since_start * SECOND < check.start_period:
            return self
        failing = self.failing + 1
        return replace(self, state=UNHEALTHY if failing >= check.retries else self.state, failing=failing)

    def delay(self, check: HealthCheck, since_start: float) -> float:
        """Seconds until the next check."""
        starting = self.state == STARTING and since_start * SECOND < check.start_period
        return (min(check.start_interval, check.interval) if starting else check.interval) / SECOND
