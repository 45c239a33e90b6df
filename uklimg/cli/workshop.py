"""Builds what `bench` and `profile` boot: packaged Uklfiles, as each variant, and the programs beside them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from uklimg import oci
from uklimg.bench.boot import BootFiles
from uklimg.bench.model import Variant
from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.cli.run import boot_file
from uklimg.errors import ToolError, UklimgError, UserError
from uklimg.events import Sink
from uklimg.graph import Graph
from uklimg.lock import Lock, LockedComponent, format_lock, parse_lock
from uklimg.plan import Options, Plan
from uklimg.project import open_project, plan_project, resolve_project, write_lock
from uklimg.recipes.perf import perf_step
from uklimg.recipes.program import step_id as program_step
from uklimg.resolve import ResolvedSpec
from uklimg.store import StepResult, Store

# Names sources whose files mirrors have.
_SOURCES = "apps/sources.lock"
# What was resolved once stays, so that figures compare with those of last time.
_LOCK = "bench.lock"


class Workshop:
    """The caller holds a session of ``store``."""

    def __init__(self, host: Host, store: Store, sink: Sink) -> None:
        self._host = host
        self._store = store
        self._sink = sink
        self._data = host.data()
        self._lock_path = host.settings.state / _LOCK

    @property
    def root(self) -> Path:
        """The folder that has workloads/ and apps/."""
        return self._data.root

    def image(self, uklfile: str, context: str, variant: Variant) -> BootFiles:
        """The packaged ``uklfile`` as the variant."""
        words = [f"UKL {' '.join(variant.ukl)}"] if variant.ukl else []
        words += [f"GLIBC {variant.glibc}"] if variant.glibc else []
        made = self._plan(uklfile, context, words, Options(twin=variant.twin))
        return self.files(self._make(made.graph).root)

    def files(self, root: oci.Descriptor) -> BootFiles:
        """An image of the store."""
        image = options.read_image(self._store, root)
        vmlinux, bzimage, initramfs = (boot_file(self._store, image, role) for role in oci.PATHS)
        return BootFiles(image.run, vmlinux, bzimage, initramfs)

    def program(self, name: str) -> Path:
        """The program of workloads/NAME, an ordinary static one."""
        made = self._plan(f"workloads/{name}/Uklfile", "workloads", (), Options(twin=True))
        program = made.run.program
        return self._store.tree(self._make(Graph.of(made.graph.steps, program_step(program)))) / program

    @cached_property
    def perf(self) -> Path:
        """A folder with perf."""
        made = self._plan("workloads/perf/Uklfile", "workloads", (), Options(target="tools"))
        step = perf_step(made.graph.target)
        return self._store.tree(self._make(Graph.of([*made.graph.steps, step], step.id)))

    def _plan(self, uklfile: str, context: str, words: Sequence[str], wanted: Options) -> Plan:
        """``words`` are further lines of the image stage."""
        with self._store.scratch() as folder:
            written = folder / "Uklfile"
            shutil.copy(self.root / uklfile, written)
            with written.open("a", encoding="utf-8") as file:
                file.writelines(f"\n{word}\n" for word in words)
            project = open_project(written, self.root / context, {}, self._data, uklfile)
            found, last = None, None
            for lock in self._locks():
                try:
                    with self._host.resolver(self._store, self._sink) as resolver:
                        found = resolve_project(replace(project, lock=lock), self._data, resolver)
                    break
                except UserError as error:
                    # An earlier lock may be about another base image; what is packaged is about none.
                    last = error
            if found is None:
                raise last or ToolError("nothing to resolve with")
            self._keep(found)
            return plan_project(project, found, wanted)

    def _locks(self) -> Sequence[Lock]:
        packaged = self.root / _SOURCES
        first = parse_lock(packaged.read_text(encoding="utf-8"), _SOURCES)
        try:
            kept = parse_lock(self._lock_path.read_text(encoding="utf-8"), str(self._lock_path))
        except (OSError, UklimgError):
            return (first,)
        return (kept.with_missing(first.entries), first)

    def _keep(self, found: ResolvedSpec) -> None:
        """All but our own folders', which say themselves what they are."""
        lock = Lock(tuple(entry for entry in found.lock.entries if not isinstance(entry, LockedComponent)))
        try:
            if not self._lock_path.exists() or self._lock_path.read_text(encoding="utf-8") != format_lock(lock):
                self._lock_path.parent.mkdir(parents=True, exist_ok=True)
                write_lock(self._lock_path, lock)
        except (OSError, ToolError):
            return  # next time it is resolved again

    def _make(self, graph: Graph) -> StepResult:
        executor = self._host.executor(self._store, self._sink, offline=False)
        return executor.run(graph).result
