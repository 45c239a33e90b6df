"""uklimg test: build an image, boot it, and run the commands of its TEST lines against it."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence
from functools import partial

from uklimg import oci, trial
from uklimg.cli import caching, options
from uklimg.cli import run as booting
from uklimg.cli.host import Host
from uklimg.cli.secrets import read_secrets
from uklimg.console import Console, clean, console
from uklimg.digest import JSON
from uklimg.engine.base import Rootfs
from uklimg.errors import ExitCode, UserError
from uklimg.events import BuildFinished, BuildPlanned, Event, Note, Sink, StepCached
from uklimg.project import Project
from uklimg.runner.accel import host_tsc_khz
from uklimg.runner.launch import launch
from uklimg.runner.machine import MachineType, PortForward
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure
from uklimg.spec.model import ImageTest
from uklimg.store import StepResult, Store
from uklimg.uklfile.parser import did_you_mean

NAME = "test"
HELP = "build an image, boot it and run its tests"


def add(parser: argparse.ArgumentParser) -> None:
    options.add_build(parser)
    parser.add_argument("tests", metavar="NAME", nargs="*", help="the tests to run (all)")
    parser.add_argument(
        "--timeout", type=int, metavar="SECONDS", default=trial.TIMEOUT, help=f"for each test ({trial.TIMEOUT})"
    )
    options.add_jobs(parser)
    caching.add_from(parser)
    booting.add_machine(parser)
    options.add_engine(parser)
    options.add_progress(parser)
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    if args.timeout < 1:
        raise UserError("--timeout wants a number greater than 0")
    options.limit_processors(args)
    if options.stage_of(args):
        raise UserError("an image is tested, not a build stage", hint="leave out --target")
    project = options.project_of(args, host)
    tests = _wanted(project, args.tests)
    digest, done = _build_and_test(args, host, project, tests)
    if args.format == "json":
        options.print_json(host, _json(digest, done))
    elif done.broken:
        host.print(f"FAIL the end of the machine: {clean(done.broken)}")
    else:
        failed = sum(bool(result.problem) for result in done.results)
        host.print(f"{len(done.results) - failed} passed, {failed} failed; {clean(done.ending)}")
    return int(ExitCode.OK if done.passed else ExitCode.STEP)


def _wanted(project: Project, names: Sequence[str]) -> Sequence[ImageTest]:
    """The tests of those names, in the order of the file; all of them when there are no names."""
    image = project.spec.image
    there = [test.name for test in image.tests]
    if not there:
        hint = "TEST name command, in the last stage"
        raise UserError("there is no TEST in this Uklfile", hint=hint, location=image.location)
    for name in names:
        if name not in there:
            hint = did_you_mean(name, there) or f"there is {', '.join(there)}"
            raise UserError(f"the Uklfile has no test {name!r}", hint=hint)
    return [test for test in image.tests if not names or test.name in names]


class News:
    """A sink for several builds that passes on all of the first, and of later ones only those that make something."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._first = True
        self._held: list[Event] = []
        self._lock = threading.Lock()

    def __call__(self, event: Event, /) -> None:
        with self._lock:
            if self._first:
                self._first = not isinstance(event, BuildFinished)
                self._sink(event)
            elif isinstance(event, BuildPlanned | StepCached):
                self._held.append(event)
            else:
                held, self._held = self._held, []
                if not (held and isinstance(event, BuildFinished)):
                    for earlier in held:
                        self._sink(earlier)
                    self._sink(event)


def _build_and_test(
    args: argparse.Namespace, host: Host, project: Project, tests: Sequence[ImageTest]
) -> tuple[str, trial.Trial]:
    """The image's digest and how it went."""
    image = project.spec.image
    secrets = read_secrets(args.secret, host.environ, host.cwd)
    with console(args.progress, host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            found = options.resolved(args, project, host, store, sink, write=not args.locked)
            importer = caching.importer(args, host, store, sink)
            executor = host.executor(
                store,
                sink if args.progress == "json" else News(sink),
                offline=args.offline,
                vendor=args.vendor,
                secrets=secrets,
                lookup=importer.lookup if importer else None,
            )

            def built(target: str) -> StepResult:
                made = options.planned(argparse.Namespace(**{**vars(args), "target": target}), project, found)
                return executor.run(made.graph, made.places).result

            root = built(args.target).root
            containers = {}
            for name in sorted({test.stage or image.link.stage for test in tests}):
                rootfs = Rootfs(*store.rootfs_layout(built(name)))
                containers[name] = trial.Container(project.spec.stage(name), rootfs)
            forwards = trial.choose_forwards(image.ports)
            boot = _boot(args, host, store, root, forwards, sink)
            sink(Note(f"booting {root.digest}"))
            with store.scratch() as folder:
                what = trial.Tests(tests, containers, image.link.stage, image.ports, args.timeout)
                show = partial(_show, host, args.format == "text")
                done = trial.run_tests(what, boot, executor.engine, forwards, folder, show)
    return str(root.digest), done


def _boot(
    args: argparse.Namespace,
    host: Host,
    store: Store,
    root: oci.Descriptor,
    forwards: Sequence[PortForward],
    sink: Console,
) -> trial.Boot:
    """What boots the image as it wants to be run."""
    image = options.read_image(store, root)
    kernel, initrd = (booting.boot_file(store, image, role) for role in (oci.VMLINUX, oci.INITRAMFS))
    wanted = RunOptions(
        forwards=tuple(forwards),
        accel=booting.accel_of(args.accel, host, kernel, sink),
        type=MachineType(args.machine),
        tsc_khz=host_tsc_khz(booting.cpuinfo()),
    )
    machine, guest = configure(image.run, kernel, initrd, wanted)
    return partial(launch, Qemu(), machine, guest, env=host.env)


def _show(host: Host, text: bool, result: trial.Result) -> None:
    """One line a test; what a failed one and the guest printed goes to standard error."""
    if text:
        verdict, why = ("FAIL", f": {result.problem}") if result.problem else ("pass", "")
        host.print(f"{verdict} {result.name} ({result.seconds:.1f} s){clean(why)}")
        host.stdout.flush()
    if result.problem:
        for what, printed in (("the test", result.output), ("the guest", result.console)):
            host.stderr.write(f"   {what} printed{':' if printed else ' nothing'}\n")
            for line in printed.splitlines():
                host.stderr.write(f"   | {clean(line)}\n")


def _json(digest: str, done: trial.Trial) -> JSON:
    tests: list[JSON] = [
        {
            "name": result.name,
            "passed": not result.problem,
            "milliseconds": round(result.seconds * 1000),
            "problem": result.problem,
            "output": result.output,
            "console": result.console,
        }
        for result in done.results
    ]
    return {"image": digest, "passed": done.passed, "ending": done.ending, "broken": done.broken, "tests": tests}
