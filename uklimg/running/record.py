"""What is known of a guest that runs by itself, as a value and as JSON. Reads /proc and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from uklimg.errors import CorruptError

VERSION = 1
_PROC = Path("/proc")


@dataclass(frozen=True)
class Identity:
    """A process, and no other one that gets its number later: ``start`` is field 22 of /proc/PID/stat (clock ticks
    after boot), ``boot`` the kernel's boot id."""

    pid: int
    start: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """None when there is no such process, or only its remains."""
        try:
            stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # The name, in parentheses, may hold anything; field 3 is the state.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]), boot_id())

    @classmethod
    def own(cls) -> Identity:
        found = cls.of(os.getpid())
        assert found is not None
        return found

    @property
    def alive(self) -> bool:
        return Identity.of(self.pid) == self


def boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Status(Enum):
    """What the supervisor wrote last; ``Record.dead`` says whether it still can be so."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    EXITED = "exited"


@dataclass(frozen=True)
class Record:
    """One guest. Times are seconds since 1970, 0.0 for never; ``exit`` as ``uklimg run`` would return it, -1 while it
    is not known; ``error`` why there is no status of the program's own. ``supervisor`` owns the guest; ``machine`` is
    its hypervisor. ``health``: "", "starting", "healthy" or "unhealthy"; ``failing`` checks in a row; ``checked`` is
    the end of what the last one printed. ``remove``: nothing stays after its end."""

    id: str
    name: str
    image: str
    digest: str
    command: tuple[str, ...]
    hypervisor: str
    memory: int
    cpus: int
    created: float
    supervisor: Identity
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    restart: str = "no"
    remove: bool = False
    status: Status = Status.STARTING
    machine: Identity | None = None
    started: float = 0.0
    finished: float = 0.0
    exit: int = -1
    error: str = ""
    restarts: int = 0
    health: str = ""
    failing: int = 0
    checked: str = ""

    @property
    def ended(self) -> bool:
        return self.status is Status.EXITED or self.dead

    @property
    def dead(self) -> bool:
        """Its supervisor ended without saying so: it was killed, or this machine restarted."""
        return self.status is not Status.EXITED and not self.supervisor.alive


def encode(record: Record) -> bytes:
    def plain(value: object) -> object:
        if isinstance(value, Enum):
            return value.value
        raise TypeError(f"{type(value).__name__} in a record")

    fields = {"version": VERSION, **dataclasses.asdict(record)}
    return json.dumps(fields, default=plain, indent=1).encode() + b"\n"


def decode(data: bytes, where: str) -> Record:
    """CorruptError when it is not what ``encode`` wrote."""
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or value.get("version") != VERSION:
            raise ValueError("another version")
        found = _structure(value, Record)
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptError(f"{where} does not say what runs: {error}") from error
    assert isinstance(found, Record)
    return found


def _structure(value: Any, kind: Any) -> Any:
    """``value`` of JSON as ``kind``, a type that Record uses; raises ValueError, TypeError or KeyError."""
    if isinstance(kind, UnionType):
        (some,) = (arm for arm in get_args(kind) if arm is not type(None))
        return None if value is None else _structure(value, some)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise TypeError("no list")
        return tuple(_structure(item, get_args(kind)[0]) for item in value)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError("no object")
        hints = get_type_hints(kind)
        fields = dataclasses.fields(kind)
        return kind(**{field.name: _structure(value[field.name], hints[field.name]) for field in fields})  # type: ignore[operator]
    if issubclass(kind, Enum):
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{value!r:.40} is not {kind.__name__}")
    return value
