"""Walks a graph against the store: what the store has is taken, the rest is made and put there.

A step is looked up by its key, with every byte of a result checked before it is used. What a step needs is only
looked at when the step must run, so a build in which nothing changed touches the wanted result alone. Steps that do
not need one another run at once. Several builds may share the store: a step that two of them want is made once.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from uklimg import context, runmounts
from uklimg.digest import JSON, Digest
from uklimg.engine.base import Engine, Job, Mount, Rootfs
from uklimg.errors import ExitCode, InternalError, Location, ToolError, UklimgError
from uklimg.events import (
    BuildFinished,
    BuildPlanned,
    Note,
    Sink,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepOutput,
    StepStarted,
    discard,
)
from uklimg.graph import Blob, Container, ContextTree, Graph, Host, Inline, Kind, Output, Step
from uklimg.hostfunctions import ROOTFS_TAR, HostFunction, HostJob
from uklimg.oci import EPOCH
from uklimg.recipes import app, registry_image
from uklimg.recipes import image as image_recipe
from uklimg.store import StepResult, Store
from uklimg.toplayer import unpack_below
from uklimg.walk import Task, Walk, missing
from uklimg.workers import Workers


class Fetch(Protocol):
    """Brings a blob: the path of its verified bytes. Setting ``cancel`` ends that as KeyboardInterrupt."""

    def __call__(self, blob: Blob, /, cancel: threading.Event | None = None) -> Path: ...


class Lookup(Protocol):
    """Finds results, as ``Store.lookup`` does, and may bring them from elsewhere besides. Called from any thread;
    setting ``cancel`` ends what takes long, which leaves as KeyboardInterrupt."""

    def __call__(
        self, key: Digest, /, *, verify: bool = True, cancel: threading.Event | None = None
    ) -> StepResult | None: ...


def _in_store(store: Store) -> Lookup:
    def lookup(key: Digest, /, *, verify: bool = True, cancel: threading.Event | None = None) -> StepResult | None:
        return store.lookup(key, verify=verify)

    return lookup


# What the disk says when it cannot take more, wherever a step writes.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL = "no space left on device"
_MAKE_ROOM = "make room: uklimg prune --keep-storage SIZE"
# Downloads at once, of a step with many small files.
_DOWNLOADS = 4


@dataclass(frozen=True)
class Built:
    """``ran``: the steps that were made, in order."""

    result: StepResult
    ran: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """One call of ``Executor.run``: what is asked for, and so far the steps that were made, in order, and those whose
    results were there."""

    graph: Graph
    places: Mapping[str, Location]
    again: bool
    ran: list[str]
    cached: set[str]
    cancel: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Call:
    """A step that must be made, with what it needs; ``again`` whatever there is. ``cancel`` ends it."""

    step: Step
    key: Digest
    fields: Mapping[str, JSON]
    needed: Mapping[str, StepResult]
    again: bool
    cancel: threading.Event


@dataclass(frozen=True)
class _Done:
    """How a task ended; without ``result`` when there was none to be found."""

    step: str
    result: StepResult | None
    made: bool = False


@dataclass(frozen=True)
class _Work:
    """What one step works with: its inputs by target, folders for its output and for temporary files, its log;
    ``began`` is when the inputs were there."""

    call: _Call
    inputs: Mapping[str, Path]
    out: Path
    work: Path
    log: Path
    began: float


class Executor:
    """``functions`` are those of host steps by name; ``sink`` hears what happens, from several threads; ``secrets``
    are RUN's. ``lookup`` is asked for results, in place of the store alone; ``at_once`` steps may run at once."""

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
        *,
        at_once: int = 1,
    ) -> None:
        self._store = store
        self._lookup = lookup or _in_store(store)
        self._engine = engine
        self._fetch = fetch
        self._functions = functions
        self._sink = sink
        self._clock = clock
        self._secrets = secrets or {}
        self._at_once = at_once
        self._guard = threading.Lock()
        self._fetching: dict[Digest, threading.Lock] = {}

    @property
    def engine(self) -> Engine:
        return self._engine

    def run(self, graph: Graph, places: Mapping[str, Location] | None = None, *, again: bool = False) -> Built:
        """Make the graph's target. ``again`` makes every step anew, whatever the store has (--no-cache).

        Errors get the place of their step from ``places``. The first one ends the steps that run beside it and is
        what is raised. The caller holds a ``Store.session``. Whatever is raised, KeyboardInterrupt included, leaves
        the results of finished steps in the store and nothing of the others.
        """

        def has(key: Digest) -> bool:
            return not again and self._lookup(key, verify=False) is not None

        began = self._clock()
        wanted = missing(graph, has)
        run = _Run(graph, places or {}, again, [], {step.id for step in graph.steps if step.id not in wanted})
        self._sink(BuildPlanned(len(graph.steps), len(run.cached)))
        for step in graph.steps:
            if step.id in run.cached:
                self._sink(StepCached(step.id, step.title, str(graph.keys[step.id])))
        failed = True
        try:
            result = self._walk(run, wanted)
            failed = False
        finally:
            seconds = self._clock() - began
            self._sink(BuildFinished(len(run.ran), len(run.cached), len(graph.steps), seconds, failed))
        return Built(result, tuple(run.ran))

    def _walk(self, run: _Run, wanted: frozenset[str]) -> StepResult:
        """Look and make, in as many threads as may be."""
        graph = run.graph
        if graph.target not in wanted:
            found = self._lookup(graph.keys[graph.target])
            if found is not None:
                return found
            wanted = wanted | {graph.target}
        walk = Walk[StepResult](graph, wanted)
        with Workers[_Done](self._at_once, run.cancel) as workers:
            while True:
                while workers.free and (task := walk.next()):
                    workers.start(self._job(run, task, walk))
                if not workers.busy:
                    return walk.result(graph.target)
                self._note(run, walk, workers.wait())

    def _note(self, run: _Run, walk: Walk[StepResult], done: _Done) -> None:
        if done.result is None:
            run.cached.discard(done.step)
            walk.lost(done.step)
            return
        walk.done(done.step, done.result)
        if done.made:
            run.cached.discard(done.step)
            run.ran.append(done.step)
        else:
            run.cached.add(done.step)
        for twin in walk.twins(done.step):
            run.cached.add(twin)
            self._sink(StepCached(twin, run.graph.step(twin).title, str(run.graph.keys[twin])))

    def _job(self, run: _Run, task: Task, walk: Walk[StepResult]) -> Callable[[], _Done]:
        """The task as a function for another thread."""
        step, key = run.graph.step(task.step), run.graph.keys[task.step]
        if not task.make:
            return lambda: _Done(step.id, self._lookup(key, cancel=run.cancel))
        needed = {name: walk.result(name) for name in step.needs()}
        call = _Call(step, key, step.key_fields(run.graph.keys), needed, run.again, run.cancel)

        def make() -> _Done:
            try:
                return self._make_once(call)
            except UklimgError as error:
                error.location = error.location or run.places.get(step.id)
                raise

        return make

    def _make_once(self, call: _Call) -> _Done:
        step = call.step

        def on_wait() -> None:
            self._sink(Note(f"another build makes this now, waiting for it: {step.title}"))

        with self._store.key_lock(call.key, call.cancel, on_wait):
            # Another build may have made it while we waited.
            found = None if call.again else self._lookup(call.key, cancel=call.cancel)
            if found is not None:
                self._sink(StepCached(step.id, step.title, str(call.key)))
                return _Done(step.id, found)
            return _Done(step.id, self._make(call), made=True)

    def _make(self, call: _Call) -> StepResult:
        step = call.step
        log = self._store.log_path(call.key, step.id)
        self._sink(StepStarted(step.id, step.title, str(call.key)))
        began = self._clock()
        try:
            with self._store.scratch() as scratch:
                out, temporary = scratch / "out", scratch / "work"
                for folder in (out, temporary):
                    folder.mkdir()
                inputs = self._inputs(call, scratch)
                work = _Work(call, inputs, out, temporary, log, self._clock())
                if isinstance(step.action, Container):
                    result = self._container(step.action, work)
                else:
                    result = self._host(step.action, work)
        except KeyboardInterrupt:
            self._sink(StepCancelled(step.id, step.title))
            raise
        except UklimgError as error:
            if error.exit_code == ExitCode.HOST and _FULL in error.detail and _FULL not in error.message:
                # A tool of the engine's said it, at length.
                error.message, error.hint = f"{step.title}: {_FULL} ({error.message})", error.hint or _MAKE_ROOM
            if error.exit_code == ExitCode.STEP:
                self._sink(StepFailed(step.id, step.title, str(log)))
                error.hint = error.hint or app.advice(error.detail)
                if str(log) not in error.message:
                    error.hint = error.hint or f"the whole log is {log}"
            raise
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            where = f" ({error.filename})" if error.filename else ""
            raise ToolError(f"{step.title}: {error.strerror}{where}", hint=_MAKE_ROOM) from error
        self._sink(StepFinished(step.id, step.title, self._clock() - began))
        return result

    def _container(self, action: Container, work: _Work) -> StepResult:
        step, base = work.call.step, work.call.needed[action.rootfs]
        caches = self._store.root / "mounts"
        mounts = [Mount(path, target) for target, path in sorted(work.inputs.items()) if target.startswith("/")]
        with runmounts.prepared(
            action.mounts, work.inputs, work.work, caches, self._secrets, work.call.cancel, again=work.call.again
        ) as more:
            job = Job(
                name=step.title,
                rootfs=Rootfs(*self._store.rootfs_layout(base)),
                argv=more.argv(action.argv),
                output=work.out,
                log=work.log,
                kind=step.kind,
                mounts=(*mounts, *more.mounts),
                env={**action.proxies, **action.env},
                workdir=action.workdir,
                network=action.network,
                user=action.user,
            )
            done = self._engine.run(job, lambda line: self._sink(StepOutput(step.id, line)), work.call.cancel)
        key, fields, seconds = work.call.key, work.call.fields, self._clock() - work.began
        if step.kind is Kind.TREE:
            return self._store.commit_tree(key, work.out, fields, step=step.id, seconds=seconds)
        if done.layer is None:
            raise InternalError(f"the engine left no layer of {step.id}")
        return self._store.commit_rootfs(
            key, done.layer, fields, base=base, drop=done.drop, step=step.id, seconds=seconds
        )

    def _host(self, action: Host, work: _Work) -> StepResult:
        step = work.call.step
        function = self._functions.get(action.function)
        if function is None:
            raise InternalError(f"no host function {action.function!r}")
        with work.log.open("w", encoding="utf-8") as file:

            def on_line(line: str) -> None:
                file.write(f"{line}\n")
                self._sink(StepOutput(step.id, line))

            function(HostJob(action.params, work.inputs, work.out, work.work, on_line, work.call.cancel))
        key, fields, seconds = work.call.key, work.call.fields, self._clock() - work.began
        if action.function == registry_image.LAYERS:
            layers = sorted(work.out.iterdir())
            return self._store.commit_layers(key, layers, fields, step=step.id, seconds=seconds)
        if step.kind is Kind.ROOTFS:
            return self._store.commit_rootfs(key, work.out / ROOTFS_TAR, fields, step=step.id, seconds=seconds)
        if action.function == image_recipe.FUNCTION:
            return self._store.commit_image(key, work.out, fields, step=step.id, seconds=seconds)
        return self._store.commit_tree(key, work.out, fields, step=step.id, seconds=seconds)

    # --- inputs

    def _inputs(self, call: _Call, scratch: Path) -> Mapping[str, Path]:
        """Every input as a file or folder of this machine, below ``scratch`` when it is not in the store as such."""
        inputs = call.step.inputs
        blobs = self._blobs([item for item in inputs.values() if isinstance(item, Blob)], call.cancel)
        paths: dict[str, Path] = {}
        for number, (target, item) in enumerate(sorted(inputs.items())):
            if isinstance(item, Blob):
                paths[target] = blobs[item.digest]
            else:
                paths[target] = self._folder(item, call.needed, scratch / f"input-{number}")
        return paths

    def _blobs(self, blobs: Sequence[Blob], cancel: threading.Event) -> Mapping[Digest, Path]:
        if len(blobs) < _DOWNLOADS:
            return {blob.digest: self._fetch_once(blob, cancel) for blob in blobs}
        from concurrent.futures import ThreadPoolExecutor  # not free to import

        pool = ThreadPoolExecutor(_DOWNLOADS)
        try:
            futures = {blob.digest: pool.submit(self._fetch_once, blob, cancel) for blob in blobs}
            return {digest: future.result() for digest, future in futures.items()}
        finally:
            # After an error those under way end; they are small, the large ones come alone.
            pool.shutdown(cancel_futures=True)

    def _fetch_once(self, blob: Blob, cancel: threading.Event) -> Path:
        """Two steps at once that want the same file download it once."""
        with self._guard:
            lock = self._fetching.setdefault(blob.digest, threading.Lock())
        with lock:
            return self._fetch(blob, cancel=cancel)

    def _folder(self, item: Inline | ContextTree | Output, needed: Mapping[str, StepResult], folder: Path) -> Path:
        if isinstance(item, Output):
            return self._output(needed[item.step], item.path, folder)
        folder.mkdir()
        folder.chmod(0o755)  # a step's user need not be root
        if isinstance(item, ContextTree):
            # For `explain`: a blob whose name is the tree's digest in the step's record.
            self._store.put_bytes(context.stage(item, folder, epoch=EPOCH))
            return folder
        for file in item.files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)
            path.chmod(file.mode)
        return folder

    def _output(self, result: StepResult, path: str, folder: Path) -> Path:
        """A TREE's file or folder; of a ROOTFS, what its topmost layer has there, or without a path all its layers
        as files, whose names sort from the bottom to the top."""
        if result.kind is Kind.TREE:
            found = self._store.tree(result) / path
            if not found.exists():
                raise InternalError(f"the result {result.key} has no {path}")
            return found
        folder.mkdir()
        if not path:
            for number, blob in enumerate(result.layers):
                (folder / f"{number:03}.tar").symlink_to(self._store.verified_path(blob.digest))
            return folder
        with self._store.open_blob(result.layer.digest) as layer:
            unpack_below(layer, path, folder)
        return folder
