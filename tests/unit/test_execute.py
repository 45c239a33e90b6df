"""The executor, with a store on disk and an engine that is a Python function."""

from __future__ import annotations

import signal
import tarfile
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from types import FrameType

import pytest

from uklimg import events
from uklimg.digest import Digest
from uklimg.engine.base import Job, JobResult, Line
from uklimg.errors import CorruptError, ExitCode, InternalError, Location, ToolError
from uklimg.execute import Executor
from uklimg.graph import Blob, Container, ContextTree, Graph, Host, Inline, InlineFile, Kind, Output, Step
from uklimg.hostfunctions import ROOTFS_TAR, HostJob
from uklimg.store import Store
from uklimg.walk import missing

pytestmark = pytest.mark.unit

Behaviour = Callable[[Job], None]


def tar(files: Mapping[str, bytes]) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return out.getvalue()


@dataclass
class FakeEngine:
    """Does what ``behaviours`` says for the step's first argument, and notes the jobs."""

    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    name: str = "fake"
    cancel: threading.Event = field(default_factory=threading.Event)

    def run(self, job: Job, on_line: Line, cancel: threading.Event | None = None) -> JobResult:
        self.jobs.append(job)
        self.cancel = cancel or self.cancel
        job.log.write_text("said\n")
        on_line("said")
        word = job.argv[0]
        if word in self.behaviours:
            self.behaviours[word](job)
        if job.kind is Kind.TREE:
            if word not in self.behaviours:
                (job.output / "made").write_text(word)
            return JobResult()
        layer = job.output / "layer.tar"
        if not layer.exists():
            layer.write_bytes(tar({f"by-{word}": b"x"}))
        return JobResult(layer, ("run",))

    def prune(self, keep: Collection[Digest]) -> None:
        raise AssertionError("not asked for")


@dataclass
class World:
    store: Store
    engine: FakeEngine = field(default_factory=FakeEngine)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    heard: list[events.Event] = field(default_factory=list)

    def fetch(self, blob: Blob, /, cancel: threading.Event | None = None) -> Path:
        self.fetched.append(blob.name)
        self.store.put_bytes(self.blobs[blob.digest])
        return self.store.verified_path(blob.digest)

    def executor(self, at_once: int = 1) -> Executor:
        functions = {"bottom": bottom, "join": join}
        sink = self.heard.append
        return Executor(self.store, self.engine, self.fetch, functions, sink, clock=lambda: 1.0, at_once=at_once)

    def blob(self, content: bytes, name: str = "blob") -> Blob:
        digest = Digest.of(content)
        self.blobs[digest] = content
        return Blob(name, digest, len(content))

    def ran(self) -> list[str]:
        return [event.step for event in self.heard if isinstance(event, events.StepFinished)]


def bottom(job: HostJob) -> None:
    job.on_line("making the base")
    (job.out / ROOTFS_TAR).write_bytes(tar({"etc/os": b"base"}))


def join(job: HostJob) -> None:
    text = "".join(f"{name}={path.read_text()};" for name, path in sorted(job.inputs.items()))
    (job.out / "joined").write_text(text)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Store(tmp_path / "store"))


BASE = Step("base", "base", "base", 1, Host("bottom"), kind=Kind.ROOTFS)
STAGE = Step("stage", "RUN it", "run", 1, Container("base", ("stage",)), kind=Kind.ROOTFS)
KIT = Step("kit", "kit", "kit", 1, Container("base", ("kit",)))
APP = Step("app", "LINK", "app", 1, Container("stage", ("app",)), {"/in/kit": Output("kit", "made")})
IMAGE = Step("joined", "join", "join", 1, Host("join"), {"a": Output("app", "made"), "k": Output("kit", "made")})
GRAPH = Graph.of([BASE, STAGE, KIT, APP, IMAGE], "joined")


def test_steps_run_once_in_order_and_then_never_again(world: World) -> None:
    built = world.executor().run(GRAPH)
    assert built.ran[0] == "base"
    assert set(built.ran) == {"base", "stage", "kit", "app", "joined"}
    assert built.ran[-1] == "joined"
    assert (world.store.tree(built.result) / "joined").read_text() == "a=app;k=kit;"
    jobs = len(world.engine.jobs)
    again = world.executor().run(GRAPH)
    assert again.ran == ()
    assert again.result == built.result
    assert len(world.engine.jobs) == jobs


def test_another_process_finds_the_results(world: World, tmp_path: Path) -> None:
    first = world.executor().run(GRAPH)
    other = World(Store(tmp_path / "store"))
    assert other.executor().run(GRAPH).result == first.result
    assert other.engine.jobs == []


def test_a_changed_step_reruns_what_follows_it(world: World) -> None:
    world.executor().run(GRAPH)
    other = replace(STAGE, action=Container("base", ("stage", "changed")))
    graph = Graph.of([BASE, other, KIT, APP, IMAGE], "joined")
    assert world.executor().run(graph).ran == ("stage", "app", "joined")


def test_no_cache_runs_everything_and_makes_the_same(world: World) -> None:
    first = world.executor().run(GRAPH)
    again = world.executor().run(GRAPH, again=True)
    assert set(again.ran) == set(first.ran)
    assert again.result.root == first.result.root


def test_events_tell_what_is_cached_what_runs_and_what_it_says(world: World) -> None:
    world.executor().run(Graph.of([BASE, KIT], "kit"))
    assert world.heard[0] == events.BuildPlanned(2, 0)
    assert world.heard[-1] == events.BuildFinished(2, 0, 2, 0.0)
    assert events.StepOutput("base", "making the base") in world.heard
    assert events.StepOutput("kit", "said") in world.heard
    assert world.ran() == ["base", "kit"]
    world.heard.clear()
    world.executor().run(Graph.of([BASE, KIT], "kit"))
    assert [type(event) for event in world.heard] == [
        events.BuildPlanned,
        events.StepCached,
        events.StepCached,
        events.BuildFinished,
    ]


def test_a_container_gets_its_inputs_as_mounts_in_order_of_their_targets(world: World) -> None:
    blobs = {f"/in/{n}": world.blob(f"content {n}".encode(), f"b{n}") for n in range(6)}
    inline = Inline((InlineFile("a/run.sh", b"#!/bin/sh\n", 0o755), InlineFile("b", b"x")))
    seen: dict[str, str] = {}

    def look(job: Job) -> None:
        seen.update({m.target: m.source.read_text() for m in job.mounts if m.source.is_file()})
        folder = next(m.source for m in job.mounts if m.target == "/ukl")
        seen["script"] = (folder / "a/run.sh").read_text()
        seen["mode"] = oct((folder / "a/run.sh").stat().st_mode & 0o777)
        assert all(mount.read_only for mount in job.mounts)
        (job.output / "made").write_text("x")

    world.engine.behaviours["kit"] = look
    step = replace(KIT, inputs={**blobs, "/ukl": inline})
    world.executor().run(Graph.of([BASE, step], "kit"))
    assert seen == {**{f"/in/{n}": f"content {n}" for n in range(6)}, "script": "#!/bin/sh\n", "mode": "0o755"}
    assert [m.target for m in world.engine.jobs[-1].mounts] == sorted([*blobs, "/ukl"])
    assert sorted(world.fetched) == [f"b{n}" for n in range(6)]


def test_files_of_the_context_are_copied_clean(world: World, tmp_path: Path) -> None:
    from uklimg.context import open_context

    root = tmp_path / "context"
    root.mkdir()
    (root / "a").write_text("hello")
    (root / "b").write_text("not asked for")
    tree: ContextTree = open_context(root).select(["a"]).tree

    def look(job: Job) -> None:
        (mount,) = job.mounts
        (job.output / "made").write_text(" ".join(path.name for path in mount.source.iterdir()))

    world.engine.behaviours["kit"] = look
    built = world.executor().run(Graph.of([BASE, replace(KIT, inputs={"/in": tree})], "kit"))
    assert (world.store.tree(built.result) / "made").read_text() == "a"


def test_of_a_root_file_system_only_the_top_layer_is_an_input(world: World) -> None:
    def pick(job: Job) -> None:
        with tarfile.open(job.output / "layer.tar", "w") as archive:
            for name in ("var", "var/picked", "var/picked/bin"):
                info = tarfile.TarInfo(name)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            info = tarfile.TarInfo("var/picked/bin/sh")
            info.type, info.linkname = tarfile.SYMTYPE, "/usr/bin/dash"
            archive.addfile(info)
            info = tarfile.TarInfo("var/picked/conf")
            info.size = 2
            archive.addfile(info, BytesIO(b"hi"))

    seen: list[str] = []

    def look(job: HostJob) -> None:
        folder = job.inputs["files"]
        seen.extend(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")))
        seen.append(str((folder / "bin/sh").readlink()))
        (job.out / "x").write_text("x")

    world.engine.behaviours["stage"] = pick
    step = Step("look", "look", "look", 1, Host("look"), {"files": Output("stage", "var/picked")})
    functions = {"bottom": bottom, "look": look}
    Executor(world.store, world.engine, world.fetch, functions).run(Graph.of([BASE, STAGE, step], "look"))
    assert seen == ["bin", "bin/sh", "conf", "/usr/bin/dash"]


def test_a_failing_step_says_where_and_leaves_the_finished_ones(world: World) -> None:
    def fail(job: Job) -> None:
        raise ToolError("it failed", exit_code=ExitCode.STEP, detail="cc: error")

    world.engine.behaviours["app"] = fail
    with pytest.raises(ToolError) as caught:
        world.executor().run(GRAPH, {"app": Location("Uklfile", 7)})
    assert caught.value.line().startswith("Uklfile:7: it failed (the whole log is ")
    assert caught.value.exit_code is ExitCode.STEP
    failed = next(event for event in world.heard if isinstance(event, events.StepFailed))
    assert Path(failed.log).read_text() == "said\n"
    del world.engine.behaviours["app"]
    assert world.executor().run(GRAPH).ran == ("app", "joined")


def test_a_program_of_another_compiler_is_told_what_to_do(world: World) -> None:
    def fail(job: Job) -> None:
        said = "ukl-find: /p was not linked by ukl-gcc or ukl-g++ (build ID 12 is unknown)"
        raise ToolError(f"it failed; the whole log is {job.log}", exit_code=ExitCode.STEP, detail=said)

    world.engine.behaviours["app"] = fail
    with pytest.raises(ToolError) as caught:
        world.executor().run(GRAPH)
    assert "RUN make CC=ukl-gcc CXX=ukl-g++" in caught.value.hint


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
def test_whatever_ends_a_step_leaves_the_store_intact(world: World, exception: type[BaseException]) -> None:
    def end(job: Job) -> None:
        (job.output / "half").write_text("half")
        raise exception

    world.engine.behaviours["kit"] = end
    with pytest.raises(exception):
        world.executor().run(GRAPH)
    assert list(world.store.tmp.iterdir()) == []
    del world.engine.behaviours["kit"]
    built = world.executor().run(GRAPH)
    assert not (world.store.tree(built.result) / "half").exists()


def test_a_corrupt_result_is_made_again(world: World) -> None:
    built = world.executor().run(GRAPH)
    blob = world.store.blob_path(built.result.layer.digest)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)
    other = World(Store(world.store.root), world.engine)
    again = other.executor().run(GRAPH)
    assert again.ran == ("joined",)
    assert again.result == built.result
    assert Store(world.store.root).verify(built.result.root)


def test_a_corrupt_input_is_made_again_when_it_is_needed(world: World) -> None:
    world.executor().run(GRAPH)
    kit = world.store.lookup(GRAPH.keys["kit"])
    assert kit is not None
    blob = world.store.blob_path(kit.layer.digest)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)
    other = World(Store(world.store.root), world.engine)
    changed = replace(APP, action=Container("stage", ("app", "changed")))
    graph = Graph.of([BASE, STAGE, KIT, changed, IMAGE], "joined")
    assert other.executor().run(graph).ran == ("kit", "app", "joined")


def test_an_error_of_fetching_goes_through(world: World) -> None:
    def fetch(blob: Blob, /, cancel: threading.Event | None = None) -> Path:
        raise CorruptError(f"checksum mismatch of {blob.name}")

    step = replace(KIT, inputs={"/in/a": world.blob(b"a", "a.deb")})
    executor = Executor(world.store, world.engine, fetch, {"bottom": bottom}, world.heard.append)
    with pytest.raises(CorruptError, match=r"mismatch of a\.deb"):
        executor.run(Graph.of([BASE, step], "kit"))
    assert world.ran() == ["base"]
    assert not any(isinstance(event, events.StepFailed) for event in world.heard)


def test_an_unknown_function_is_our_bug(world: World) -> None:
    with pytest.raises(InternalError, match="no host function 'gone'"):
        world.executor().run(Graph.of([Step("s", "s", "s", 1, Host("gone"))], "s"))


def test_an_output_that_is_not_there_is_our_bug(world: World) -> None:
    step = replace(APP, inputs={"/in": Output("kit", "other")})
    with pytest.raises(InternalError, match="has no other"):
        world.executor().run(Graph.of([BASE, STAGE, KIT, step], "app"))


# --- steps at once


def both(world: World, *names: str) -> None:
    """Steps that end only when all of them run."""
    met = threading.Barrier(len(names), timeout=30)

    def meet(job: Job) -> None:
        met.wait()
        if job.kind is Kind.TREE:
            (job.output / "made").write_text(job.argv[0])

    world.engine.behaviours.update(dict.fromkeys(names, meet))


def until_cancelled(world: World) -> Behaviour:
    """A step that runs until it is cancelled."""

    def wait(job: Job) -> None:
        assert world.engine.cancel.wait(30)
        raise KeyboardInterrupt

    return wait


def test_steps_that_do_not_need_one_another_run_at_once(world: World) -> None:
    both(world, "stage", "kit")
    assert set(world.executor(2).run(GRAPH).ran) == {"base", "stage", "kit", "app", "joined"}


def test_no_more_steps_run_at_once_than_may(world: World) -> None:
    running: list[str] = []
    most = 0

    def count(job: Job) -> None:
        nonlocal most
        running.append(job.argv[0])
        most = max(most, len(running))
        threading.Event().wait(0.02)
        running.remove(job.argv[0])
        (job.output / "made").write_text(job.argv[0])

    names = [f"s{number}" for number in range(6)]
    world.engine.behaviours.update(dict.fromkeys(names, count))
    steps = [Step(name, name, name, 1, Container("base", (name,))) for name in names]
    last = Step("joined", "join", "join", 1, Host("join"), {name: Output(name, "made") for name in names})
    for allowed in (1, 3):
        most = 0
        world.executor(allowed).run(Graph.of([BASE, *steps, last], "joined"), again=True)
        assert most <= allowed


def test_the_first_failure_ends_the_others_and_is_what_is_told(world: World) -> None:
    kit_runs = threading.Event()
    wait = until_cancelled(world)

    def runs(job: Job) -> None:
        kit_runs.set()
        wait(job)

    def fail(job: Job) -> None:
        assert kit_runs.wait(30)
        raise ToolError("it failed", exit_code=ExitCode.STEP)

    world.engine.behaviours.update(kit=runs, stage=fail)
    with pytest.raises(ToolError, match="it failed") as caught:
        world.executor(2).run(GRAPH, {"stage": Location("Uklfile", 2), "kit": Location("Uklfile", 9)})
    assert caught.value.location == Location("Uklfile", 2)
    assert events.StepCancelled("kit", "kit") in world.heard
    failed = [event for event in world.heard if isinstance(event, events.StepFailed)]
    assert [event.step for event in failed] == ["stage"]
    assert world.heard[-1] == events.BuildFinished(1, 0, 5, 0.0, failed=True)
    assert list(world.store.tmp.iterdir()) == []
    assert world.store.lookup(GRAPH.keys["base"]) is not None, "what was finished stays"
    assert world.store.lookup(GRAPH.keys["kit"]) is None
    world.engine.behaviours.clear()
    assert set(world.executor(2).run(GRAPH).ran) == {"stage", "kit", "app", "joined"}


def test_an_interruption_of_the_waiting_thread_ends_all_steps(world: World) -> None:
    both_run = threading.Barrier(3, timeout=30)
    wait = until_cancelled(world)

    def runs(job: Job) -> None:
        both_run.wait()
        wait(job)

    def interrupt() -> None:
        both_run.wait()
        signal.pthread_kill(main, signal.SIGUSR1)

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    world.engine.behaviours.update(kit=runs, stage=runs)
    # Tests run in the main thread, which is the only one that gets signals.
    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handle)
    other = threading.Thread(target=interrupt)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            world.executor(2).run(GRAPH)
    finally:
        other.join()
        signal.signal(signal.SIGUSR1, before)
    cancelled = [event.step for event in world.heard if isinstance(event, events.StepCancelled)]
    assert sorted(cancelled) == ["kit", "stage"]
    assert list(world.store.tmp.iterdir()) == []


@pytest.mark.parametrize("again", [False, True])
def test_two_branches_that_want_the_same_make_it_once(world: World, again: bool) -> None:
    twin = replace(KIT, id="twin", title="the same again")
    assert twin.key_fields(GRAPH.keys) == KIT.key_fields(GRAPH.keys)
    last = Step("joined", "join", "join", 1, Host("join"), {"a": Output("kit", "made"), "b": Output("twin", "made")})
    graph = Graph.of([BASE, KIT, twin, last], "joined")
    built = world.executor(2).run(graph, again=again)
    assert (world.store.tree(built.result) / "joined").read_text() == "a=kit;b=kit;"
    assert len(world.engine.jobs) == 1
    assert built.ran == ("base", "kit", "joined")
    assert events.StepCached("twin", "the same again", str(graph.keys["twin"])) in world.heard


def test_two_steps_at_once_download_a_file_once(world: World) -> None:
    both(world, "stage", "kit")
    blob = world.blob(b"large", "large.tar")
    steps = [replace(step, inputs={"/in/large": blob}) for step in (STAGE, KIT)]

    def fetch(wanted: Blob, /, cancel: threading.Event | None = None) -> Path:
        if not world.store.has(wanted.digest):
            world.fetch(wanted)
        return world.store.verified_path(wanted.digest)

    functions = {"bottom": bottom, "join": join}
    Executor(world.store, world.engine, fetch, functions, at_once=2).run(
        Graph.of([BASE, *steps, APP, IMAGE], "joined")
    )
    assert world.fetched == ["large.tar"]


def test_who_waits_for_another_build_can_be_cancelled(world: World) -> None:
    waits = threading.Event()

    def fail(job: Job) -> None:
        assert waits.wait(30)
        raise ToolError("it failed", exit_code=ExitCode.STEP)

    def hear(event: events.Event) -> None:
        world.heard.append(event)
        if isinstance(event, events.Note):
            waits.set()

    world.engine.behaviours["stage"] = fail
    with world.store.key_lock(GRAPH.keys["kit"]), pytest.raises(ToolError, match="it failed"):
        functions = {"bottom": bottom, "join": join}
        Executor(world.store, world.engine, world.fetch, functions, hear, at_once=2).run(GRAPH)
    assert events.Note("another build makes this now, waiting for it: kit") in world.heard


def test_how_long_a_step_took_is_noted(world: World) -> None:
    ticks = iter(range(1000))
    functions = {"bottom": bottom, "join": join}
    Executor(world.store, world.engine, world.fetch, functions, clock=lambda: next(ticks) / 4).run(GRAPH)
    record = world.store.record(GRAPH.keys["kit"])
    assert record is not None
    assert record.seconds == 0.25


def test_only_what_leads_to_a_missing_target_is_missing() -> None:
    keys = GRAPH.keys
    assert missing(GRAPH, lambda key: True) == frozenset()
    assert missing(GRAPH, lambda key: key != keys["joined"]) == {"joined"}
    # The stage is gone, but nothing that runs needs it.
    assert missing(GRAPH, lambda key: key not in (keys["joined"], keys["stage"])) == {"joined"}
    assert missing(GRAPH, lambda key: key not in (keys["joined"], keys["app"])) == {"joined", "app"}
