"""Walks a graph against the store: what the store has is taken, the rest is made and put there.

A step is looked up by its key, with every byte of a result checked before it is used. What a step needs is only
looked at when the step must run, so a build in which nothing changed touches the wanted result alone. Several builds
may share the store: a step that two of them want is made once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from uklimg import context, runmounts
from uklimg.digest import JSON, Digest
from uklimg.engine.base import Engine, Job, Mount, Rootfs
from uklimg.errors import ExitCode, InternalError, Location, UklimgError
from uklimg.events import (
    BuildPlanned,
    Sink,
    StepCached,
    StepFailed,
    StepFinished,
    StepOutput,
    StepStarted,
    discard,
)
from uklimg.graph import Blob, Container, ContextTree, Graph, Host, Inline, Kind, Output, Step
from uklimg.hostfunctions import ROOTFS_TAR, HostFunction, HostJob
from uklimg.oci import EPOCH
from uklimg.recipes import image as image_recipe
from uklimg.store import StepResult, Store
from uklimg.toplayer import unpack_below

Fetch: TypeAlias = Callable[[Blob], Path]


class Lookup(Protocol):
    """Finds results: ``Store.lookup``, or what brings them from elsewhere besides. Called from any thread."""

    def __call__(self, key: Digest, /, *, verify: bool = True) -> StepResult | None: ...


# Downloads at once, of a step with many small files.
_DOWNLOADS = 4


@dataclass(frozen=True)
class Built:
    """``ran``: the steps that were made, in order."""

    result: StepResult
    ran: tuple[str, ...]


def missing(graph: Graph, has: Callable[[Digest], bool]) -> frozenset[str]:
    """The steps that a build must run when ``has`` says which keys have a result: those without one that the target
    leads to through others without one."""
    found: set[str] = set()
    todo = [graph.target]
    while todo:
        step = graph.step(todo.pop())
        if step.id not in found and not has(graph.keys[step.id]):
            found.add(step.id)
            todo.extend(step.needs())
    return frozenset(found)


@dataclass(frozen=True)
class _Work:
    """What one step works with: its inputs by target, folders for its output and for temporary files, its log."""

    key: Digest
    fields: Mapping[str, JSON]
    inputs: Mapping[str, Path]
    out: Path
    work: Path
    log: Path


class Executor:
    """``functions`` are those of host steps by name; ``sink`` hears what happens; ``secrets`` are RUN's. ``lookup``
    is asked for results, in place of the store alone."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        fetch: Fetch,
        functions: Mapping[str, HostFunction],
        sink: Sink = discard,
        clock: Callable[[], float] = time.monotonic,
        secrets: Mapping[str, bytes] | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        self._store = store
        self._lookup = lookup or store.lookup
        self._engine = engine
        self._fetch = fetch
        self._functions = functions
        self._sink = sink
        self._clock = clock
        self._secrets = secrets or {}

    def run(self, graph: Graph, places: Mapping[str, Location] | None = None, *, again: bool = False) -> Built:
        """Make the graph's target. ``again`` makes every step anew, whatever the store has (--no-cache).

        Errors get the place of their step from ``places``. The caller holds a ``Store.session``. Whatever is raised,
        KeyboardInterrupt included, leaves the results of finished steps in the store and nothing of the others.
        """

        def has(key: Digest) -> bool:
            return not again and self._lookup(key, verify=False) is not None

        wanted = missing(graph, has)
        self._sink(BuildPlanned(len(graph.steps), len(graph.steps) - len(wanted)))
        results: dict[str, StepResult] = {}
        ran: list[str] = []

        def ready(step: Step) -> StepResult:
            """The step's result, made with all it needs unless the store has it."""
            if step.id not in results:
                found = None if again else self._lookup(graph.keys[step.id])
                if found is None:
                    needed = {name: ready(graph.step(name)) for name in step.needs()}
                    found = self._make_once(graph, step, needed, places or {}, again, ran)
                results[step.id] = found
            return results[step.id]

        for step in graph.steps:
            if step.id in wanted:
                ready(step)
            else:
                self._sink(StepCached(step.id, step.title, str(graph.keys[step.id])))
        return Built(ready(graph.step(graph.target)), tuple(ran))

    def _make_once(
        self,
        graph: Graph,
        step: Step,
        needed: Mapping[str, StepResult],
        places: Mapping[str, Location],
        again: bool,
        ran: list[str],
    ) -> StepResult:
        key = graph.keys[step.id]
        with self._store.key_lock(key):
            # Another build may have made it while we waited.
            found = None if again else self._lookup(key)
            if found is not None:
                self._sink(StepCached(step.id, step.title, str(key)))
                return found
            try:
                result = self._make(step, key, step.key_fields(graph.keys), needed)
            except UklimgError as error:
                error.location = error.location or places.get(step.id)
                raise
        ran.append(step.id)
        return result

    def _make(
        self, step: Step, key: Digest, fields: Mapping[str, JSON], needed: Mapping[str, StepResult]
    ) -> StepResult:
        log = self._store.log_path(key, step.id)
        self._sink(StepStarted(step.id, step.title, str(key)))
        began = self._clock()
        try:
            with self._store.scratch() as scratch:
                out, work = scratch / "out", scratch / "work"
                for folder in (out, work):
                    folder.mkdir()
                inputs = self._inputs(step, needed, scratch)
                if isinstance(step.action, Container):
                    result = self._container(step, step.action, _Work(key, fields, inputs, out, work, log), needed)
                else:
                    result = self._host(step, step.action, _Work(key, fields, inputs, out, work, log))
        except UklimgError as error:
            if error.exit_code == ExitCode.STEP:
                self._sink(StepFailed(step.id, step.title, str(log)))
                if str(log) not in error.message:
                    error.hint = error.hint or f"the whole log is {log}"
            raise
        self._sink(StepFinished(step.id, step.title, self._clock() - began))
        return result

    def _container(self, step: Step, action: Container, work: _Work, needed: Mapping[str, StepResult]) -> StepResult:
        base = needed[action.rootfs]
        caches = self._store.root / "mounts"
        mounts = [Mount(path, target) for target, path in sorted(work.inputs.items()) if target.startswith("/")]
        with runmounts.prepared(action.mounts, work.inputs, work.work, caches, self._secrets) as more:
            job = Job(
                name=step.title,
                rootfs=Rootfs(*self._store.rootfs_layout(base)),
                argv=more.argv(action.argv),
                output=work.out,
                log=work.log,
                kind=step.kind,
                mounts=(*mounts, *more.mounts),
                env=action.env,
                workdir=action.workdir,
                network=action.network,
                user=action.user,
            )
            done = self._engine.run(job, lambda line: self._sink(StepOutput(step.id, line)))
        if step.kind is Kind.TREE:
            return self._store.commit_tree(work.key, work.out, work.fields, step=step.id)
        if done.layer is None:
            raise InternalError(f"the engine left no layer of {step.id}")
        return self._store.commit_rootfs(work.key, done.layer, work.fields, base=base, drop=done.drop, step=step.id)

    def _host(self, step: Step, action: Host, work: _Work) -> StepResult:
        function = self._functions.get(action.function)
        if function is None:
            raise InternalError(f"no host function {action.function!r}")
        with work.log.open("w", encoding="utf-8") as file:

            def on_line(line: str) -> None:
                file.write(f"{line}\n")
                self._sink(StepOutput(step.id, line))

            function(HostJob(action.params, work.inputs, work.out, work.work, on_line))
        if step.kind is Kind.ROOTFS:
            return self._store.commit_rootfs(work.key, work.out / ROOTFS_TAR, work.fields, step=step.id)
        if action.function == image_recipe.FUNCTION:
            return self._store.commit_image(work.key, work.out, work.fields, step=step.id)
        return self._store.commit_tree(work.key, work.out, work.fields, step=step.id)

    # --- inputs

    def _inputs(self, step: Step, needed: Mapping[str, StepResult], scratch: Path) -> Mapping[str, Path]:
        """Every input as a file or folder of this machine, below ``scratch`` when it is not in the store as such."""
        blobs = self._blobs([item for item in step.inputs.values() if isinstance(item, Blob)])
        paths: dict[str, Path] = {}
        for number, (target, item) in enumerate(sorted(step.inputs.items())):
            if isinstance(item, Blob):
                paths[target] = blobs[item.digest]
            else:
                paths[target] = self._folder(item, needed, scratch / f"input-{number}")
        return paths

    def _blobs(self, blobs: Sequence[Blob]) -> Mapping[Digest, Path]:
        if len(blobs) < _DOWNLOADS:
            return {blob.digest: self._fetch(blob) for blob in blobs}
        pool = ThreadPoolExecutor(_DOWNLOADS)
        try:
            futures = {blob.digest: pool.submit(self._fetch, blob) for blob in blobs}
            return {digest: future.result() for digest, future in futures.items()}
        finally:
            # After an error or Ctrl-C those under way end; they are small, the large ones come alone.
            pool.shutdown(cancel_futures=True)

    def _folder(self, item: Inline | ContextTree | Output, needed: Mapping[str, StepResult], folder: Path) -> Path:
        if isinstance(item, Output):
            return self._output(needed[item.step], item.path, folder)
        folder.mkdir()
        folder.chmod(0o755)  # a step's user need not be root
        if isinstance(item, ContextTree):
            context.stage(item, folder, epoch=EPOCH)
            return folder
        for file in item.files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)
            path.chmod(file.mode)
        return folder

    def _output(self, result: StepResult, path: str, folder: Path) -> Path:
        """A TREE's file or folder; of a ROOTFS, what its topmost layer has there."""
        if result.kind is Kind.TREE:
            found = self._store.tree(result) / path
            if not found.exists():
                raise InternalError(f"the result {result.key} has no {path}")
            return found
        folder.mkdir()
        with self._store.open_blob(result.layer.digest) as layer:
            unpack_below(layer, path, folder)
        return folder
