"""Results that travel: through a folder and through docker-registry, good ones and bad ones.

The builds here are small graphs with an engine that is a Python function, for every way in which an entry can be bad;
`test_shared_builds` does whole builds with containers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
from test_registry import RETRY, SKOPEO_POLICY, Server, free_port, registry

from uklimg import oci
from uklimg.digest import Digest, canonical_json
from uklimg.engine.base import Job, JobResult, Line
from uklimg.errors import ExitCode, ToolError
from uklimg.events import Event, Note, StepCached, TransferFinished, TransferStarted
from uklimg.execute import Executor
from uklimg.graph import Blob, Container, Graph, Host, Kind, Output, Step
from uklimg.hostfunctions import ROOTFS_TAR, HostJob
from uklimg.imagebuild import build_image
from uklimg.ref import Reference
from uklimg.remote.auth import NoCredentials
from uklimg.remote.transport import Transport
from uklimg.sharedcache.entry import BLOB, RECORD, entry_of, read_entry, read_manifest
from uklimg.sharedcache.exporter import export
from uklimg.sharedcache.importer import Cache, Importer
from uklimg.sharedcache.places import FolderSource, FolderTarget, Source, Target
from uklimg.sharedcache.registry import Repository
from uklimg.store import Layout, Record, StepResult, Store, encode_record, manifest_of

pytestmark = pytest.mark.integration


# --- a build


def tar(name: str, content: bytes = b"x") -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, BytesIO(content))
    return out.getvalue()


@dataclass
class Engine:
    """``broken``: a machine that can run nothing."""

    broken: bool = False
    ran: list[str] = field(default_factory=list)
    name: str = "fake"

    def run(self, job: Job, on_line: Line, cancel: threading.Event | None = None) -> JobResult:
        if self.broken:
            raise ToolError("there is no engine here")
        self.ran.append(job.name)
        job.log.touch()
        if job.kind is Kind.TREE:
            (job.output / "made").write_bytes(job.name.encode() * 40_000)
            return JobResult()
        layer = job.output / "layer.tar"
        layer.write_bytes(tar(f"by-{job.argv[0]}", b"y" * 100_000))
        return JobResult(layer)

    def prune(self, keep: Collection[Digest]) -> None:
        raise AssertionError("not asked for")


def bottom(job: HostJob) -> None:
    (job.out / ROOTFS_TAR).write_bytes(tar("etc/os", b"base" * 50_000))


def image(job: HostJob) -> None:
    build_image(dict.fromkeys(oci.PATHS, job.inputs["kit"]), job.out, oci.RunConfig(program="hello"))


BASE = Step("base", "base", "base", 1, Host("bottom"), kind=Kind.ROOTFS)
STAGE = Step("stage", "RUN it", "run", 1, Container("base", ("stage",)), kind=Kind.ROOTFS)
KIT = Step("kit", "kit", "kit", 1, Container("base", ("kit",)))
APP = Step("app", "LINK", "app", 1, Container("stage", ("app",)), {"/in/kit": Output("kit", "made")})
IMAGE = Step("image", "image", "image", 1, Host("image"), {"kit": Output("app", "made")})
STEPS = (BASE, STAGE, KIT, APP, IMAGE)
GRAPH = Graph.of(STEPS, "image")
CHANGED = Step("app", "LINK", "app", 2, APP.action, APP.inputs)
AFTER_A_CHANGE = Graph.of((BASE, STAGE, KIT, CHANGED, IMAGE), "image")


def no_fetch(blob: Blob, /, cancel: threading.Event | None = None) -> Path:
    raise AssertionError(f"nobody asked for {blob.name}")


@dataclass
class Machine:
    """A machine with a store of its own, and what it said."""

    store: Store
    engine: Engine = field(default_factory=Engine)
    heard: list[Event] = field(default_factory=list)
    caches: list[Cache] = field(default_factory=list)

    def build(self, graph: Graph = GRAPH, **sources: Source) -> tuple[StepResult, set[str]]:
        self.heard.clear()
        self.caches = [Cache(name, lambda source=source: source) for name, source in sources.items()]  # type: ignore[misc]
        importer = Importer(self.store, self.caches, self.heard.append)
        functions = {"bottom": bottom, "image": image}
        executor = Executor(self.store, self.engine, no_fetch, functions, self.heard.append, lookup=importer.lookup)
        with self.store.session():
            built = executor.run(graph)
        return built.result, set(built.ran)

    def export(self, target: Target, graph: Graph = GRAPH, again: Collection[Digest] = ()) -> int:
        return export(self.store, graph.keys.values(), target, self.heard.append, again=again)

    def warnings(self) -> list[str]:
        return [event.text for event in self.heard if isinstance(event, Note) and event.warning]

    def imported(self) -> set[str]:
        """Names of steps of which something was fetched."""
        return {e.name.split()[0] for e in self.heard if isinstance(e, TransferStarted) and e.verb == "import"}


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where that is possible: it is about bytes, and waiting for a disk to have them takes long."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 1 << 30:
        yield tmp_path_factory.mktemp("shared")
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="uklimg-test-") as folder:
        yield Path(folder)


@pytest.fixture
def first(tmp_path: Path) -> Machine:
    machine = Machine(Store(tmp_path / "first"))
    machine.build()
    return machine


@pytest.fixture
def second(tmp_path: Path) -> Machine:
    """A machine that can run nothing and has nothing."""
    return Machine(Store(tmp_path / "second"), Engine(broken=True))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with registry(tmp_path / "registry") as running:
        yield running


def repository(host: str, name: str = "team/cache") -> Repository:
    ref = Reference.parse(f"{host}/{name}")
    return Repository(lambda: Transport(ref, NoCredentials(), retry=RETRY))


# --- good entries


def check_shared(first: Machine, second: Machine, target: Callable[[], Target], source: Callable[[], Source]) -> None:
    assert first.export(target()) == len(STEPS)
    result, ran = second.build(there=source())
    assert ran == set()
    assert second.warnings() == []
    # The image is there, so nothing below it was fetched.
    assert second.imported() == {"image"}
    assert [record.step for record in second.store.records()] == ["image"]
    assert result == first.store.lookup(GRAPH.keys["image"])
    second.store.verify(result.root)
    assert sum(isinstance(event, StepCached) for event in second.heard) == len(STEPS)
    # What follows a change needs what is just below it.
    second.engine.broken = False
    _, ran = second.build(AFTER_A_CHANGE, there=source())
    assert ran == {"app", "image"}
    assert second.imported() == {"stage", "kit"}
    assert second.warnings() == []
    # And the other way round.
    assert second.export(target(), AFTER_A_CHANGE) == 2
    _, ran = first.build(AFTER_A_CHANGE, there=source())
    assert ran == set()


def test_a_folder_carries_results_to_an_empty_machine(first: Machine, second: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    check_shared(first, second, lambda: FolderTarget(folder), lambda: FolderSource(folder))


def test_a_registry_carries_results_to_an_empty_machine(first: Machine, second: Machine, server: Server) -> None:
    check_shared(first, second, lambda: repository(server.host), lambda: repository(server.host))


def test_what_is_there_is_not_sent_again(first: Machine, server: Server, tmp_path: Path) -> None:
    for target in (lambda: FolderTarget(tmp_path / "cache"), lambda: repository(server.host)):
        assert first.export(target()) == len(STEPS)
        assert first.export(target()) == 0
    # A half that an earlier export left is used: only the name is missing.
    layout = Layout(tmp_path / "cache")
    assert layout.untag(GRAPH.keys["kit"].hex)
    first.heard.clear()
    assert first.export(FolderTarget(tmp_path / "cache")) == 1
    assert {e.skipped for e in first.heard if isinstance(e, TransferFinished)} == {True}


def test_a_lookup_is_one_request_a_missing_key(second: Machine, server: Server) -> None:
    asked: list[str] = []

    class Counting(Transport):
        def once(self, method, url, *args, **kwargs):  # type: ignore[no-untyped-def]
            asked.append(f"{method} {url.rpartition('/')[2]}")
            return super().once(method, url, *args, **kwargs)

    second.engine.broken = False
    ref = server.ref("cache")
    second.build(there=Repository(lambda: Counting(ref, NoCredentials(), retry=RETRY)))
    assert sorted(asked) == sorted(f"GET {key.hex}" for key in GRAPH.keys.values())


def test_skopeo_copies_entries(first: Machine, second: Machine, server: Server, tmp_path: Path) -> None:
    """From a folder to a registry and back: every digest stays, so the copies serve as well."""
    first.export(FolderTarget(tmp_path / "cache"))
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(SKOPEO_POLICY))
    copy = ["skopeo", "--policy", str(policy), "copy", "--src-tls-verify=false", "--dest-tls-verify=false"]
    for key in GRAPH.keys.values():
        there = f"docker://{server.host}/copied:{key.hex}"
        for source, target in ((f"oci:{tmp_path}/cache:{key.hex}", there), (there, f"oci:{tmp_path}/back:{key.hex}")):
            subprocess.run([*copy, source, target], check=True, capture_output=True)
    assert {k: v.digest for k, v in Layout(tmp_path / "back").tags().items()} == {
        k: v.digest for k, v in Layout(tmp_path / "cache").tags().items()
    }
    _, ran = second.build(there=repository(server.host, "copied"))
    assert ran == set() and second.warnings() == []
    third = Machine(Store(tmp_path / "third"), Engine(broken=True))
    _, ran = third.build(there=FolderSource(tmp_path / "back"))
    assert ran == set() and third.warnings() == []


def test_threads_bring_one_result_once(first: Machine, second: Machine, server: Server) -> None:
    first.export(repository(server.host))
    importer = Importer(second.store, [Cache("there", lambda: repository(server.host))], second.heard.append)
    found: list[StepResult | None] = []
    keys = list(GRAPH.keys.values()) * 4
    threads = [threading.Thread(target=lambda k=key: found.append(importer.lookup(k))) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(keys) and None not in found
    labels = [event.id for event in second.heard if isinstance(event, TransferStarted)]
    assert second.warnings() == []
    # Results share layers, which two of them may bring at once; but each result is brought once.
    assert len([label for label in labels if label.startswith("import ")]) <= len(set(labels)) + len(STEPS)
    for key in GRAPH.keys.values():
        assert second.store.lookup(key) is not None


def test_a_transfer_can_be_ended(first: Machine, second: Machine, tmp_path: Path) -> None:
    first.export(FolderTarget(tmp_path / "cache"))
    cancel = threading.Event()

    class Slow(FolderSource):
        def chunks(self, blob: oci.Descriptor) -> Iterator[bytes]:
            for chunk in super().chunks(blob):
                if len(chunk) > 50_000:
                    cancel.set()
                yield chunk

    importer = Importer(second.store, [Cache("slow", lambda: Slow(tmp_path / "cache"))], second.heard.append)
    with pytest.raises(KeyboardInterrupt):
        importer.lookup(GRAPH.keys["kit"], cancel=cancel)
    assert list(second.store.tmp.iterdir()) == []
    assert second.warnings() == []
    assert importer.lookup(GRAPH.keys["kit"]) is not None


# --- places that do not answer


def test_places_that_are_not_there_are_a_warning_each(second: Machine, tmp_path: Path) -> None:
    second.engine.broken = False
    _, ran = second.build(
        down=repository(f"127.0.0.1:{free_port()}"),
        missing=FolderSource(tmp_path / "missing"),
    )
    assert ran == {step.id for step in STEPS}
    assert len(second.warnings()) == 2
    assert "cache down is not used: cannot reach 127.0.0.1" in second.warnings()[0]
    assert "cache missing is not used: cannot read" in second.warnings()[1]


def test_the_second_cache_is_asked_when_the_first_has_nothing(
    first: Machine, second: Machine, server: Server, tmp_path: Path
) -> None:
    first.export(FolderTarget(tmp_path / "cache"))
    _, ran = second.build(
        down=repository(f"127.0.0.1:{free_port()}"),
        empty=repository(server.host),
        good=FolderSource(tmp_path / "cache"),
    )
    assert ran == set()
    assert len(second.warnings()) == 1


# --- bad entries: each costs a warning, and the step runs


@dataclass
class Evil:
    """A folder in which whoever may write it wrote something else under a key."""

    folder: Path
    layout: Layout
    store: Store

    def manifest(self, step: str) -> oci.Manifest:
        entry = self.layout.tags()[GRAPH.keys[step].hex]
        return oci.parse_manifest(self.layout.read_blob(entry.digest))

    def record(self, step: str) -> Record:
        record = self.store.record(GRAPH.keys[step])
        assert record is not None
        return record

    def name(self, step: str, data: bytes, media_type: str = oci.MANIFEST) -> None:
        self.layout.tag(GRAPH.keys[step].hex, self.layout.put_bytes(data, media_type))

    def put(self, step: str, record: bytes, blobs: Sequence[oci.Descriptor]) -> None:
        config = self.layout.put_bytes(record, RECORD)
        self.name(step, oci.Manifest(config, tuple(blobs)).encode())

    def result(self, step: str, kind: Kind, layers: Sequence[bytes]) -> None:
        """A result of which everything is consistent but its contents."""
        key = GRAPH.keys[step]
        stored = [self.layout.put_bytes(layer, oci.LAYER) for layer in layers]
        config, manifest = (self.layout.put_bytes(data) for data in manifest_of(key, stored))
        root = oci.Descriptor(oci.MANIFEST, manifest.digest, manifest.size)
        record = Record(StepResult(key, kind, root, tuple(stored)), step, self.record(step).fields)
        blobs = {b.digest: oci.Descriptor(BLOB, b.digest, b.size) for b in (root, config, *stored)}
        self.put(step, encode_record(record), list(blobs.values()))

    def path(self, digest: Digest) -> Path:
        path = self.layout.blob_path(digest)
        path.chmod(0o644)
        return path


@pytest.fixture
def evil(first: Machine, tmp_path: Path) -> Evil:
    first.export(FolderTarget(tmp_path / "cache"))
    return Evil(tmp_path / "cache", Layout(tmp_path / "cache"), first.store)


def main_blob(evil: Evil, step: str) -> Digest:
    result = evil.record(step).result
    return result.layer.digest if result.layers else evil.manifest(step).layers[-1].digest


def flip(evil: Evil, step: str) -> None:
    path = evil.path(main_blob(evil, step))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(evil: Evil, step: str) -> None:
    path = evil.path(main_blob(evil, step))
    path.write_bytes(path.read_bytes()[:-10])


def lengthen(evil: Evil, step: str) -> None:
    with evil.path(main_blob(evil, step)).open("ab") as file:
        file.write(b"more")


def lose_a_blob(evil: Evil, step: str) -> None:
    evil.path(main_blob(evil, step)).unlink()


def damage_the_record(evil: Evil, step: str) -> None:
    path = evil.path(evil.manifest(step).config.digest)
    path.write_bytes(path.read_bytes().replace(b"x86_64", b"x86_65"))


def another_step(evil: Evil, step: str) -> None:
    entry = evil.layout.tags()[GRAPH.keys["kit" if step != "kit" else "app"].hex]
    evil.layout.tag(GRAPH.keys[step].hex, entry.bare())


def another_key_in_the_record(evil: Evil, step: str) -> None:
    """The record of another step, whose key was set to the wanted one."""
    other = "kit" if step != "kit" else "app"
    text = encode_record(evil.record(other)).replace(str(GRAPH.keys[other]).encode(), str(GRAPH.keys[step]).encode())
    evil.put(step, text, evil.manifest(other).layers)


def an_image_for_a_tree(evil: Evil, step: str) -> None:
    other = "image" if step != "image" else "kit"
    theirs, mine = evil.record(other), evil.record(step)
    found = theirs.result
    record = Record(StepResult(mine.key, found.kind, found.root, found.layers), step, mine.fields)
    evil.put(step, encode_record(record), evil.manifest(other).layers)


def another_kind(evil: Evil, step: str) -> None:
    record = json.loads(encode_record(evil.record(step)))
    record["kind"] = "rootfs" if record["kind"] == "tree" else "tree"
    evil.put(step, canonical_json(record), evil.manifest(step).layers)


def absurd_size(evil: Evil, step: str) -> None:
    """A terabyte, by every count."""
    manifest = evil.manifest(step)
    blobs = [oci.Descriptor(BLOB, blob.digest, 1 << 40) for blob in manifest.layers]
    record = json.loads(encode_record(evil.record(step)))
    record["root"]["size"] = 1 << 40
    for layer in record["layers"]:
        layer["size"] = 1 << 40
    evil.put(step, canonical_json(record), blobs)


def huge_record(evil: Evil, step: str) -> None:
    config = oci.Descriptor(RECORD, Digest.of(b"record"), 1 << 39)
    evil.name(step, oci.Manifest(config, evil.manifest(step).layers).encode())


def an_ordinary_image(evil: Evil, step: str) -> None:
    config = evil.layout.put_bytes(oci.ImageConfig(oci.Platform("linux", "amd64"), ()).encode(), oci.CONFIG)
    evil.name(step, oci.Manifest(config, ()).encode())


def not_json(evil: Evil, step: str) -> None:
    evil.name(step, b"\0not json")


def deep_json(evil: Evil, step: str) -> None:
    evil.name(step, b'{"a":' * 100_000)


def record_of_nonsense(evil: Evil, step: str) -> None:
    evil.put(step, b'{"version":1,"key":7}', evil.manifest(step).layers)


def lists_too_little(evil: Evil, step: str) -> None:
    evil.put(step, encode_record(evil.record(step)), evil.manifest(step).layers[:1])


BAD: tuple[Callable[[Evil, str], None], ...] = (
    flip, shorten, lengthen, lose_a_blob, damage_the_record, another_step, another_key_in_the_record,
    an_image_for_a_tree, another_kind, absurd_size, huge_record, an_ordinary_image, not_json, deep_json,
    record_of_nonsense, lists_too_little,
)  # fmt: skip


def check_refused(first: Machine, second: Machine, evil: Evil, step: str, source: Source) -> None:
    """The build makes the step itself, and of the rest takes what it needs."""
    # Nobody has what is above the step, so that it is asked for.
    above = {"kit": {"app", "image"}, "stage": {"app", "image"}, "base": {"kit", "stage", "app", "image"}}
    second.engine.broken = False
    result, ran = second.build(there=source)
    assert result == first.store.lookup(GRAPH.keys["image"])
    assert step in ran and ran <= {step, *above.get(step, ())}
    assert len(second.warnings()) == 1
    (cache,) = second.caches
    assert cache.rejected == {GRAPH.keys[step]} and not cache.broken
    assert list((second.store.root / "corrupt").iterdir()) == []
    assert list(second.store.tmp.iterdir()) == []
    for record in second.store.records():
        second.store.verify(record.result.root)


def without(evil: Evil, *steps: str) -> None:
    for step in steps:
        evil.layout.untag(GRAPH.keys[step].hex)


@pytest.mark.parametrize("harm", BAD, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("step", ["image", "kit"])
def test_a_bad_entry_is_a_warning_and_a_miss(
    first: Machine, second: Machine, evil: Evil, step: str, harm: Callable[[Evil, str], None]
) -> None:
    harm(evil, step)
    if step == "kit":
        without(evil, "app", "image")
    check_refused(first, second, evil, step, FolderSource(evil.folder))
    # The next export writes a good one.
    assert second.export(FolderTarget(evil.folder), again=second.caches[0].rejected) >= 1
    third = Machine(Store(second.store.root.parent / "third"), Engine(broken=True))
    _, ran = third.build(there=FolderSource(evil.folder))
    assert ran == set() and third.warnings() == []


@pytest.mark.parametrize(
    ("step", "layers"),
    [
        ("kit", [b"no tar at all" * 100]),
        ("kit", [tar("../escaped")]),
        ("kit", [tar("/absolute")]),
        ("kit", [tar("made"), tar("made")]),
        ("stage", [b"no tar at all" * 100]),
        ("stage", [tar("etc/os"), tar("../../escaped")]),
    ],
)
def test_contents_that_nothing_could_use_are_a_miss(
    first: Machine, second: Machine, evil: Evil, step: str, layers: list[bytes]
) -> None:
    evil.result(step, Kind.TREE if step == "kit" else Kind.ROOTFS, layers)
    without(evil, "app", "image")
    check_refused(first, second, evil, step, FolderSource(evil.folder))
    assert not list(second.store.root.parent.rglob("escaped"))


@pytest.mark.parametrize("harm", [flip, shorten, lengthen, lose_a_blob, another_step, absurd_size])
def test_a_registry_with_a_bad_entry(
    first: Machine, second: Machine, evil: Evil, server: Server, harm: Callable[[Evil, str], None]
) -> None:
    target = repository(server.host)
    first.export(target)
    victim = "image"
    if harm in (flip, shorten, lengthen, lose_a_blob):
        path = server.blob(main_blob(evil, victim))
        data = path.read_bytes()
        if harm is lose_a_blob:
            shutil.rmtree(path.parent)
        else:
            changed = {shorten: data[:-10], lengthen: data + b"more"}
            path.write_bytes(changed.get(harm, data[:10] + bytes([data[10] ^ 1]) + data[11:]))
    else:
        harm(evil, victim)
        entry = evil.layout.tags()[GRAPH.keys[victim].hex]
        manifest = oci.parse_manifest(evil.layout.read_blob(entry.digest))
        transport = Transport(server.ref("team/cache"), NoCredentials(), retry=RETRY)
        if not transport.has_blob(manifest.config.digest):
            target.put_entry(
                GRAPH.keys[victim], evil.layout.read_blob(manifest.config.digest), evil.layout.read_blob(entry.digest)
            )
        else:
            transport.put_manifest(GRAPH.keys[victim].hex, entry, evil.layout.read_blob(entry.digest), "entry")
    check_refused(first, second, evil, victim, repository(server.host))


def test_an_entry_of_a_damaged_store_is_not_exported(first: Machine, tmp_path: Path) -> None:
    found = first.store.lookup(GRAPH.keys["kit"])
    assert found is not None
    path = first.store.blob_path(found.layer.digest)
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)
    other = Machine(Store(first.store.root))
    assert other.export(FolderTarget(tmp_path / "cache")) == len(STEPS) - 1
    assert "the result of kit is not exported" in other.warnings()[0]


def test_what_was_written_is_read(first: Machine) -> None:
    for key in GRAPH.keys.values():
        record = first.store.record(key)
        assert record is not None
        entry = entry_of(record, first.store.closure(record.result.root))
        manifest = read_manifest(entry.manifest(), "it")
        assert read_entry(key, manifest, entry.record_bytes, "it").record.result == record.result


def test_a_target_that_refuses_is_an_error(first: Machine, tmp_path: Path) -> None:
    with pytest.raises(ToolError) as caught:
        first.export(repository(f"127.0.0.1:{free_port()}"))
    assert caught.value.exit_code == ExitCode.NETWORK
    (tmp_path / "file").touch()
    with pytest.raises(ToolError, match="cannot"):
        FolderTarget(tmp_path / "file")
