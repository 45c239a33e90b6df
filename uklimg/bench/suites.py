"""The suites: what each boots, and how what it prints becomes cases. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uklimg.bench.model import CaseName, Measure, Value
from uklimg.bench.printed import parse
from uklimg.errors import ExitCode, ToolError, UserError

BYTES = "bytes"
CLEAR = "clear"  # not of the kernel's: what part of a fault it is
_DISK = "/data"
Found = Mapping[CaseName, tuple[str, Value]]
"""Cases of one variant: unit and value."""


@dataclass(frozen=True)
class Booted:
    """What one boot gave: its console, and the bytes of the image's files by role."""

    console: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Beside:
    """The program of workloads/``program`` runs beside the suite's, as an ordinary process; its end ends the suite.
    ``arguments``: what it is told, () where it is not needed."""

    program: str
    arguments: Callable[[Measure, int], tuple[str, ...]]


@dataclass(frozen=True)
class Suite:
    """``uklfile`` and ``context`` are below the data folders. ``command``: what the image runs, () for its own;
    ``disk``: where it has an ext4 file system on a disk, "" for none. ``read`` makes cases of what was printed.
    ``note`` is for readers of the result, by what is measured."""

    name: str
    title: str
    uklfile: str
    context: str
    command: Callable[[Measure, int], tuple[str, ...]]
    read: Callable[[Booted, Measure], Found]
    beside: Beside | None = None
    disk: str = ""
    cpus: int = 1
    samples: Mapping[Measure, int] | None = None
    note: Mapping[Measure, str] | None = None

    def count(self, measure: Measure, wanted: int) -> int:
        """How many samples: ``wanted``, or where that is 0 what is enough."""
        return wanted or (self.samples or {}).get(measure, 1)

    def helper(self, measure: Measure, samples: int) -> tuple[str, ...]:
        """What the program beside is told, () for none."""
        return self.beside.arguments(measure, samples) if self.beside else ()


_COUNTED = {Measure.INSTRUCTIONS: 500, Measure.TIME: 10_000}


def _sampled(booted: Booted, measure: Measure) -> Found:
    printed = parse(booted.console)
    return {name: (measure.value, printed.value(name, measure)) for name in printed.samples if name.name != CLEAR}


def _read_boot(booted: Booted, measure: Measure) -> Found:
    printed = parse(booted.console)
    scale, facts = printed.scale(measure), printed.facts
    if "main-ticks" not in facts:
        raise _nothing("boot")
    used = facts["memory-total"] - facts["memory-free"]
    return {
        CaseName("machine's start to main()"): (measure.value, Value(facts["main-ticks"] * scale)),
        CaseName("memory in use at main()"): (BYTES, Value(float(used))),
        CaseName("memory the kernel took before"): (
            BYTES,
            Value(float(booted.sizes["memory"] - facts["memory-total"])),
        ),
        **{
            CaseName(f"size of {role}"): (BYTES, Value(float(booted.sizes[role])))
            for role in ("vmlinux", "bzImage", "initramfs")
        },
    }


def _requests(label: Callable[[str, int, int], CaseName]) -> Callable[[Booted, Measure], Found]:
    """Cases of the client's: the server's processor time a request where instructions are counted (then that time is
    their number), else the time that a request took, and its latency's percentiles."""

    def read(booted: Booted, measure: Measure) -> Found:
        printed = parse(booted.console)
        scale = printed.scale(measure)
        found: dict[CaseName, tuple[str, Value]] = {}
        for (case, what), (total, count) in printed.costs.items():
            operation, connections, pipeline = case.split("/")
            name = label(operation.upper(), int(connections), int(pipeline))
            if measure is Measure.TIME:
                if what == "all":
                    latency = printed.value(CaseName(case), measure).percentiles
                    found[name] = measure.value, Value(total * scale / count, latency)
            else:
                here = name if what == "server" else CaseName(f"{name.name} with client", name.size)
                found[here] = measure.value, Value(total / count)
        return found

    return read


def _redis_name(operation: str, _connections: int, pipeline: int) -> CaseName:
    return CaseName(f"{operation}, pipeline {pipeline}")


def _memcached_name(operation: str, connections: int, _pipeline: int) -> CaseName:
    return CaseName(operation, connections)


def _read_fio(booted: Booted, measure: Measure) -> Found:
    """Where instructions are counted what the watcher saw, else fio's own report: the time that it waited."""
    if measure is Measure.INSTRUCTIONS:
        return _read_watched(booted, measure)
    try:
        text = booted.console[booted.console.index("{\n") : booted.console.rindex("\n}") + 2]
        (job,) = json.loads(text)["jobs"]
        return {CaseName(way): (measure.value, _latency(job[way])) for way in ("read", "write")}
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise _nothing("fio") from error


def _read_watched(booted: Booted, measure: Measure) -> Found:
    printed = parse(booted.console)
    printed.scale(measure)
    found: dict[CaseName, tuple[str, Value]] = {}
    for what, name in (("program", "read or write"), ("all", "read or write with interrupts")):
        total, count = printed.costs.get(("disk", what), (0, 0))
        if not count:
            raise _nothing("fio")
        found[CaseName(name)] = measure.value, Value(total / count)
    return found


def _latency(way: Mapping[str, Any]) -> Value:
    clat = way["clat_ns"]["percentile"]
    wanted = {"p50": "50.000000", "p90": "90.000000", "p99": "99.000000", "p99.9": "99.900000"}
    return Value(way["runtime"] * 1e6 / way["total_ios"], {name: float(clat[key]) for name, key in wanted.items()})


def _nothing(suite: str) -> ToolError:
    return ToolError(f"the workload {suite} printed no result", exit_code=ExitCode.RUN_FAILED)


def _fio_command(measure: Measure, samples: int) -> tuple[str, ...]:
    """Without end where the watcher says when it is enough."""
    amount = "1t" if measure is Measure.INSTRUCTIONS else str(samples * 4096)
    return (
        *("fio", "--name=bench", f"--filename={_DISK}/bench", "--size=64m", "--ioengine=psync", "--rw=randrw"),
        *("--bs=4k", "--direct=1", "--iodepth=1", "--norandommap", "--randseed=1", f"--io_size={amount}"),
        *("--output-format=json", "--eta=never", "--disk_util=0", "--thread"),
    )


def _fio_watcher(measure: Measure, samples: int) -> tuple[str, ...]:
    return ("vda", "500", str(samples)) if measure is Measure.INSTRUCTIONS else ()


def _redis_client(_measure: Measure, samples: int) -> tuple[str, ...]:
    # A request in a pipeline is short: more of them, or a timer's interrupt more or less shows.
    many = ((pipeline, samples * min(pipeline, 8)) for pipeline in (1, 16))
    cases = (f"{operation}/30/{pipeline}/{count}" for pipeline, count in many for operation in ("set", "get"))
    return ("redis", "6379", *cases)


def _memcached_client(_measure: Measure, samples: int) -> tuple[str, ...]:
    cases = (f"{operation}/{count}/1/{samples}" for count in (4, 8, 20, 40) for operation in ("set", "get"))
    return ("memcached", "11211", *cases)


_INSIDE = (
    "The client is a process beside the server; the figure is the server's own processor time, with the interrupts "
    "that came meanwhile. With the client: everything from the first request to the last reply."
)
_ONE_EACH = (
    "syscall, sysret and iretq count as one instruction each, as any other. The paper's figures are times, in which "
    "they are dear: what going without them saves shows there, not here."
)
_ON_DISK = "A file of 64 MB on ext4, on a virtio disk whose blocks are a file of this machine, and so in its memory."
_TIMED = "The client is a process beside the server, on another processor, over the loopback interface."

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "syscall",
            "system calls",
            "workloads/syscall/Uklfile",
            "workloads",
            lambda _measure, samples: ("syscall", str(samples)),
            _sampled,
            samples=_COUNTED,
            note={Measure.INSTRUCTIONS: _ONE_EACH},
        ),
        Suite(
            "fault",
            "page faults, by pages",
            "workloads/fault/Uklfile",
            "workloads",
            lambda _measure, samples: ("fault", str(samples)),
            _sampled,
            samples=_COUNTED,
            note={Measure.INSTRUCTIONS: _ONE_EACH},
        ),
        Suite(
            "fio",
            "random reads and writes of 4 KB, direct, one at a time",
            "apps/fio/Uklfile",
            "apps/fio",
            _fio_command,
            _read_fio,
            beside=Beside("watch", _fio_watcher),
            disk=_DISK,
            samples={Measure.INSTRUCTIONS: 15_000, Measure.TIME: 300_000},
            note={
                Measure.INSTRUCTIONS: f"{_ON_DISK} The figure is fio's own processor time; with interrupts: all that "
                "the processor does for an operation, from the disk's answer to fio's waking up, too. The paper's "
                "figure is of operations in 30 seconds.",
                Measure.TIME: f"{_ON_DISK} The paper's disk is an NVMe of the machine itself.",
            },
        ),
        Suite(
            "redis",
            "a request, 30 connections",
            "apps/redis/Uklfile",
            "apps/redis",
            lambda _measure, _samples: ("redis-server", "/etc/redis.conf", "--save", ""),
            _requests(_redis_name),
            beside=Beside("client", _redis_client),
            cpus=2,
            samples={Measure.INSTRUCTIONS: 6_000, Measure.TIME: 300_000},
            note={Measure.INSTRUCTIONS: _INSIDE, Measure.TIME: _TIMED},
        ),
        Suite(
            "memcached",
            "a request, 4 threads, by connections",
            "apps/memcached/Uklfile",
            "apps/memcached",
            lambda _measure, _samples: ("memcached", "-u", "root", "-m", "64", "-t", "4"),
            _requests(_memcached_name),
            beside=Beside("client", _memcached_client),
            cpus=2,
            # Fewer would do, were it not that threads share a processor now in one order, now in another.
            samples={Measure.INSTRUCTIONS: 12_000, Measure.TIME: 100_000},
            note={
                Measure.INSTRUCTIONS: f"{_INSIDE} The paper's figures are latencies.",
                Measure.TIME: f"{_TIMED} The paper's figures are 99th percentiles.",
            },
        ),
        Suite(
            "boot",
            "start, sizes, memory",
            "workloads/boot/Uklfile",
            "workloads",
            lambda _measure, _samples: (),
            _read_boot,
        ),
    )
}


def named_suites(names: tuple[str, ...]) -> tuple[Suite, ...]:
    """In the order given, each once; ``all`` is every one. UserError for an unknown name."""
    wanted = tuple(SUITES) if "all" in names else tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in SUITES:
            raise UserError(f"no suite {name!r}", hint=f"there is {', '.join(SUITES)}, and all")
    return tuple(SUITES[name] for name in wanted)
