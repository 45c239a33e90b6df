"""What the benchmarks share: command line, the parts of uklimg wired together, and steps that are run anew.

A step runs anew under a key that no store has, with its inputs from the store; so a benchmark needs no empty store,
and what a store holds is not touched. A step's command can be replaced, which is how the same work "by hand" happens
in the same container with the same inputs.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks import report
from uklimg import oci
from uklimg.bench.boot import BootFiles
from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.cli.run import boot_file
from uklimg.console import PROGRESS, console
from uklimg.errors import InternalError, UklimgError
from uklimg.events import Event, Sink, StepFinished, StepOutput
from uklimg.graph import Blob, Container, Graph, Kind, Step
from uklimg.lock import parse_lock
from uklimg.plan import Options
from uklimg.project import open_project, plan_project, resolve_project
from uklimg.settings import read_settings
from uklimg.store import StepResult, Store

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "Uklfile.example"
LOCK = ROOT / "Uklfile.lock"
# The versions of the demo and the tests.
EXAMPLE_LOCK = ROOT / "scripts/example.lock"

# Prints how long the command took, without the start of its container, and the processor time of all that it started.
_TIMED = 'a=$(date +%s%N); "$@"; s=$?; b=$(date +%s%N); echo "benchmark-ns $((b - a))"; times; exit $s'
_CLOCK = re.compile(r"benchmark-ns (\d+)")
_CPU = re.compile(r"(\d+)m([\d.]+)s (\d+)m([\d.]+)s")


def parser(module: str, text: str) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks."""
    top = argparse.ArgumentParser(prog=f"python -m {module}", description=text, allow_abbrev=False)
    top.add_argument("--store", metavar="DIR", default="", help="the store to use, as for uklimg")
    top.add_argument("--json", metavar="FILE", default="", help="also write what was measured to this file")
    top.add_argument("--progress", choices=PROGRESS, default="auto", help="how builds show progress")
    return top


def run(args: argparse.Namespace, measure: Callable[[Bench], report.Report]) -> int:
    """Measure, print and write; returns an exit status as uklimg's."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with opened(store=args.store, progress=args.progress) as bench:
            found = measure(bench)
        report.show(found, sys.stdout)
        if args.json:
            report.write(found, bench.host.path(args.json))
    except UklimgError as error:
        sys.stderr.write(f"{error.detail}\n" if error.detail else "")
        sys.stderr.write(f"{error.line()}\n")
        return int(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


@contextmanager
def opened(*, store: str = "", progress: str = "plain", lock: Path = LOCK) -> Iterator[Bench]:
    """A Bench on the user's store, or on ``store``; ``lock`` is asked for versions where it exists."""
    settings = read_settings(os.environ, Path.cwd(), store=store)
    host = Host(os.environ, Path.cwd(), os.getuid(), sys.stdout, sys.stderr, settings)
    with console(progress, sys.stderr) as sink:
        yield Bench(host, sink, lock)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """However we are ended, steps are stopped and guests too."""
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Timing:
    """Seconds of a step: ``whole`` from its inputs to its result in the store; of its command alone where they are
    known, ``command`` on the clock and ``cpu`` on all processors. The last hardly depends on what else runs here."""

    whole: float
    command: float | None = None
    cpu: float | None = None


@dataclass(frozen=True)
class Command:
    """Seconds of a command, as in Timing."""

    seconds: float
    cpu: float


class _Recorder:
    """Passes events on, and keeps what a benchmark wants to know of them."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.seconds: dict[str, float] = {}
        self.command: dict[str, Command] = {}
        self._clock: dict[str, float] = {}

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, StepFinished):
            self.seconds[event.step] = event.seconds
        if not isinstance(event, StepOutput) or not self._timing(event):
            self._sink(event)

    def take(self, name: str) -> Command | None:
        """What was seen last of the step's command."""
        self._clock.pop(name, None)
        return self.command.pop(name, None)

    def _timing(self, event: StepOutput) -> bool:
        """Whether the line is one of the three that _TIMED prints; the last is the processor time of its children."""
        if found := _CLOCK.fullmatch(event.line):
            self._clock[event.step] = int(found[1]) / 1e9
            return True
        found = _CPU.fullmatch(event.line)
        if event.step not in self._clock or not found:
            return False
        cpu = 60 * (int(found[1]) + int(found[3])) + float(found[2]) + float(found[4])
        self.command[event.step] = Command(self._clock[event.step], cpu)
        return True


class Bench:
    """The builder as a benchmark uses it."""

    def __init__(self, host: Host, sink: Sink, lock: Path) -> None:
        self.host = host
        self._lock = lock if lock.exists() else EXAMPLE_LOCK
        self._events = _Recorder(sink)
        self.store: Store = host.store(self._events)

    def graph(
        self, uklfile: Path, context: Path, *, twin: bool = False, build_args: Mapping[str, str] | None = None
    ) -> Graph:
        """The steps of a Uklfile's image, or of its plain-Linux twin's, with the versions of the lock, or of the
        tests' own. Writes no lock."""
        data = self.host.data()
        project = open_project(uklfile, context, build_args or {}, data)
        text = self._lock.read_text(encoding="utf-8")
        project = replace(project, lock=parse_lock(text, str(self._lock)))
        with self.host.resolver(self.store, self._events) as resolver:
            found = resolve_project(project, data, resolver)
        return plan_project(project, found, Options(twin=twin)).graph

    def example(self) -> Graph:
        """The steps of Uklfile.example."""
        return self.graph(EXAMPLE, ROOT)

    def make(self, graph: Graph, at_once: int = 1) -> StepResult:
        """The graph's target, from the store where that has it; one step at a time, so that none disturbs another."""
        executor = self.host.executor(self.store, self._events, offline=False, at_once=at_once)
        with self.store.session():
            return executor.run(graph).result

    def fetch(self, graph: Graph) -> float:
        """Get every file that steps start from; the seconds it took."""
        fetch = self.host.fetch(self.store, self._events, offline=False)
        began = time.monotonic()
        with self.store.session():
            for step in graph.steps:
                for item in step.inputs.values():
                    if isinstance(item, Blob):
                        fetch(item)
        return time.monotonic() - began

    def again(
        self, graph: Graph, name: str, script: str = "", *, kind: Kind | None = None, from_nothing: bool = True
    ) -> Timing:
        """Run the step ``name`` anew, with all it needs from the store, and say how long it took.

        ``script``, for /bin/sh, takes the place of its command; ``kind`` that of its kind. ``from_nothing``: it finds
        nothing that earlier runs left (the trees of kernels).
        """
        return self.remade(graph, name, script, kind=kind, from_nothing=from_nothing)[0]

    def remade(
        self, graph: Graph, name: str, script: str = "", *, kind: Kind | None = None, from_nothing: bool = True
    ) -> tuple[Timing, StepResult]:
        """As ``again``, with the result."""
        step = without_mounts(graph.step(name)) if from_nothing else graph.step(name)
        action = step.action
        if isinstance(action, Container):
            argv = ("/bin/sh", "-ec", script) if script else action.argv
            action = replace(action, argv=("/bin/sh", "-c", _TIMED, "sh", *argv))
        elif script:
            raise InternalError(f"{name} runs in no container")
        new = replace(step, action=action, kind=kind or step.kind, recipe_version=time.time_ns())
        result = self.make(replace_step(graph, new))
        whole = self._events.seconds[name]
        command = self._events.take(name)
        return Timing(whole, command.seconds, command.cpu) if command else Timing(whole), result

    def cold(self, graph: Graph, name: str) -> Timing:
        """How long the step ``name`` takes. Where the store lacks its result, that is made and not made again."""
        with self.store.session():
            there = self.store.lookup(graph.keys[name], verify=False) is not None
        if there:
            return self.again(graph, name)
        self.make(Graph.of(graph.steps, name))
        return Timing(self._events.seconds[name])

    def command(self, graph: Graph, name: str, script: str) -> Command:
        """Run ``script`` in the place of the command of the step ``name``; leaves no result."""
        timing = self.again(graph, name, script, kind=Kind.TREE)
        if timing.command is None or timing.cpu is None:
            raise InternalError(f"{name} runs no command")
        return Command(timing.command, timing.cpu)

    def tree(self, graph: Graph, name: str) -> Path:
        """The folder that the step ``name`` made."""
        return self.store.tree(self.make(Graph.of(graph.steps, name)))

    @contextmanager
    def booted(self, graph: Graph) -> Iterator[BootFiles]:
        """The files of the image that ``graph`` makes."""
        root = self.make(graph).root
        image = options.read_image(self.store, root)
        with self.store.session():
            files = {role: boot_file(self.store, image, role) for role in oci.PATHS}
            yield BootFiles(image.run, files[oci.VMLINUX], files[oci.BZIMAGE], files[oci.INITRAMFS])


def without_mounts(step: Step) -> Step:
    """Without the folders that runs share: trees of kernels, caches of RUN --mount."""
    return replace(step, action=replace(step.action, mounts=())) if isinstance(step.action, Container) else step


def replace_step(graph: Graph, step: Step) -> Graph:
    """The graph with another step in the place of that with the same id, which becomes the target."""
    return Graph.of([step, *(other for other in graph.steps if other.id != step.id)], step.id)


def median(values: Sequence[float]) -> float:
    """The upper one of two."""
    return sorted(values)[len(values) // 2]
