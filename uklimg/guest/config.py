"""From an image's RunConfig to what PID 1 is told. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence

from uklimg.errors import UserError
from uklimg.guest.protocol import GuestConfig, Mount, Program
from uklimg.oci import RunConfig

DEFAULT_GRACE = 10
_REAL_TIME = re.compile(r"SIGRTMIN\+([0-9]{1,2})")
_RTMIN = 34  # glibc keeps 32 and 33 to itself


def signal_number(text: str) -> int:
    """``SIGTERM``, ``TERM``, ``SIGRTMIN+3`` or a number, on x86-64 Linux whatever runs here. UserError otherwise."""
    name = text.upper()
    if name.isascii() and name.isdigit() and 0 < int(name) <= 64:
        return int(name)
    name = name if name.startswith("SIG") else f"SIG{name}"
    real_time = _REAL_TIME.fullmatch(name)
    if real_time and _RTMIN + int(real_time[1]) <= 64:
        return _RTMIN + int(real_time[1])
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise UserError(f"{text!r} is not a signal", hint="as in SIGTERM or 15") from None


def guest_config(
    run: RunConfig,
    *,
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    mounts: Sequence[Mount] = (),
    grace: int = DEFAULT_GRACE,
    raw_console: bool = False,
) -> GuestConfig:
    """The image's program, with ``arguments`` in place of its command and ``env`` over its environment.

    ``grace``: seconds between the stop signal and SIGKILL. ``raw_console``: the reader wants LF, not CR LF.
    """
    argv = run.argv_with(arguments)
    program = Program(run.program, argv, keep=max(1, len(run.entrypoint)))
    return GuestConfig(
        programs=(program,),
        mounts=tuple(mounts),
        env={**run.env, **(env or {})},
        workdir=run.workdir,
        stop_signal=signal_number(run.stop_signal),
        grace=grace,
        raw_console=raw_console,
    )
