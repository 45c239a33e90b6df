"""virtiofsd: a process for each folder that a guest mounts over virtiofs. ``virtiofsd_cmd`` is pure."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from uklimg import proc
from uklimg.errors import ExitCode, ToolError
from uklimg.runner.machine import Sharing, Volume

PROGRAM = "virtiofsd"
# Where Debian 12's qemu-system-common and Debian 13's virtiofsd keep it.
_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
_READ_ONLY = "--readonly"


def virtiofsd_cmd(program: str, volume: Volume, fd: int, *, root: bool) -> list[str]:
    """What serves ``volume`` to whoever connects to the listening socket ``fd``. These options are those that QEMU's
    own one and the later one in Rust share; an ordinary user has no sandbox in the first."""
    argv = [program, f"--fd={fd}", "-o", f"source={volume.path}", "-o", f"sandbox={'chroot' if root else 'none'}"]
    return [*argv, _READ_ONLY] if volume.read_only else argv


def find_virtiofsd(env: Mapping[str, str]) -> str:
    """ToolError HOST when it is not installed."""
    for place in _PLACES:
        if os.access(place, os.X_OK):
            return place
    return str(proc.find(PROGRAM, env))


@contextlib.contextmanager
def shared(volumes: Sequence[Volume], folder: Path, env: Mapping[str, str]) -> Iterator[tuple[Volume, ...]]:
    """``volumes`` with the sockets of running daemons, for as long as the block lasts; others stay as they are.

    ``folder`` takes the sockets. Call it from the thread that stays. ToolError HOST or RUN_FAILED.
    """
    with contextlib.ExitStack() as stack:
        ready: list[Volume] = []
        for number, volume in enumerate(volumes):
            if volume.sharing is Sharing.VIRTIOFS:
                path = folder / f"fs{number}"
                _serve(volume, path, stack, env)
                volume = replace(volume, socket=str(path))
            ready.append(volume)
        yield tuple(ready)


def _serve(volume: Volume, path: Path, stack: contextlib.ExitStack, env: Mapping[str, str]) -> None:
    program = find_virtiofsd(env)
    if volume.read_only and _READ_ONLY not in proc.run([program, "--help"], env=env, check=False, merge=False).tail:
        message = f"this machine's virtiofsd cannot keep {volume.path} read-only"
        raise ToolError(message, hint="leave out virtiofs: 9p can", exit_code=ExitCode.RUN_FAILED)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        os.set_inheritable(server.fileno(), True)
        argv = virtiofsd_cmd(program, volume, server.fileno(), root=os.geteuid() == 0)
        process = stack.enter_context(proc.spawn(argv, env=env, pass_fds=(server.fileno(),)))
    if process.ended(0.05):  # as for an option that it does not know
        raise process.error(f"virtiofsd {proc.describe(process.completed().status)}", exit_code=ExitCode.RUN_FAILED)
