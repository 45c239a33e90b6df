"""The store on a real file system: several processes, kills, corrupt bytes, other tools reading it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from uklimg import oci
from uklimg.digest import JSON, Digest
from uklimg.errors import CorruptError, ExitCode, InternalError, ToolError
from uklimg.events import Event, Note
from uklimg.graph import Kind
from uklimg.store import StepResult, Store

pytestmark = pytest.mark.integration

KEY, OTHER = Digest.of(b"key"), Digest.of(b"other key")
BIG = os.urandom(3 << 20)
FIELDS: dict[str, JSON] = {"recipe": "test", "input /x": {"blob": str(Digest.of(b"source")), "name": "source"}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def add_tree(store: Store, key: Digest = KEY, content: bytes = BIG) -> StepResult:
    with store.session(), store.scratch() as folder:
        out = folder / "out"
        (out / "sub").mkdir(parents=True)
        (out / "sub" / "big").write_bytes(content)
        (out / "link").symlink_to("sub/big")
        return store.commit_tree(key, out, FIELDS, step="kit")


def damage(path: Path) -> None:
    """Change one byte in the middle, keeping size and date."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(600):
        if condition():
            return
        pause.wait(0.05)
    pytest.fail("it did not happen within 30 seconds")


# Blobs


def test_blobs_have_the_name_of_their_digest(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BIG)
    one, two = store.put_bytes(BIG, "a/b"), store.put_file(tmp_path / "file", "a/b")
    assert one == two == oci.Descriptor("a/b", Digest.of(BIG), len(BIG))
    assert store.blob_path(one.digest).stat().st_mode & 0o777 == 0o444
    assert store.read_blob(one.digest) == BIG
    with store.open_blob(one.digest) as blob:
        assert blob.read() == BIG
    assert store.has(one.digest) and store.has(one.digest, len(BIG))
    assert not store.has(one.digest, 1) and not store.has(OTHER)
    assert list(store.tmp.iterdir()) == []


def test_a_blob_without_commit_or_with_another_digest_is_nothing(store: Store) -> None:
    with store.writer() as writer:
        writer.write(b"half")
    with pytest.raises(CorruptError, match=f"expected {KEY}, got"), store.writer() as writer:
        writer.write(b"other")
        writer.commit(KEY)
    assert list((store.root / "blobs" / "sha256").iterdir()) == []
    assert list(store.tmp.iterdir()) == []


@pytest.mark.parametrize("data", [b"small", BIG])
def test_a_corrupt_blob_is_named_and_set_aside(store: Store, data: bytes) -> None:
    blob = store.put_bytes(data)
    path = store.blob_path(blob.digest)
    damage(path)
    read: Callable[[], object] = lambda: store.open_blob(blob.digest)  # noqa: E731
    if data == b"small":
        read = lambda: store.read_blob(blob.digest)  # noqa: E731
    with pytest.raises(CorruptError) as caught:
        read()
    assert caught.value.exit_code is ExitCode.CORRUPT
    assert str(path) in caught.value.line() and "run the build again" in caught.value.line()
    assert not path.exists()
    assert [p.name.partition(".")[0] for p in (store.root / "corrupt").iterdir()] == [blob.digest.hex]
    with pytest.raises(CorruptError, match="the store lacks blob"):
        read()
    assert store.put_bytes(data) == blob
    assert store.read_blob(blob.digest) == data


def test_a_full_disk_is_one_line(store: Store) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with store.writer() as writer:
        os.dup2(full, writer._fd)
        with pytest.raises(ToolError, match="cannot write to the store: No space left on device") as caught:
            writer.write(b"x")
    os.close(full)
    assert caught.value.exit_code is ExitCode.HOST


def test_a_store_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolError, match="cannot make the store: Not a directory"):
        Store(tmp_path / "file" / "store")


# Trees and root file systems


def test_a_tree_comes_back(store: Store) -> None:
    made = add_tree(store)
    again = Store(store.root)
    found = again.lookup(KEY)
    assert found == made and found.kind is Kind.TREE
    tree = again.tree(found)
    assert (tree / "link").read_bytes() == BIG
    assert again.lookup(OTHER) is None
    record = again.record(KEY)
    assert record is not None
    assert (record.step, record.fields, record.sources()) == ("kit", FIELDS, (Digest.of(b"source"),))
    assert [r.key for r in again.records()] == [KEY]


def test_equal_trees_share_their_layer(store: Store) -> None:
    assert add_tree(store).layer == add_tree(store, OTHER).layer


@pytest.mark.parametrize("harm", ["missing", "marker", "file gone", "file torn", "extra"])
def test_a_tree_that_is_not_whole_is_unpacked_again(store: Store, harm: str) -> None:
    result = add_tree(store)
    tree = store.tree(result)
    match harm:
        case "missing":
            shutil.rmtree(tree)
        case "marker":
            tree.with_suffix(".done").unlink()
            (tree / "sub" / "big").unlink()
        case "file gone":
            (tree / "sub" / "big").unlink()
        case "file torn":
            (tree / "sub" / "big").write_bytes(b"")
        case _:
            (tree / "extra").touch()
    assert (Store(store.root).tree(result) / "sub" / "big").read_bytes() == BIG
    assert not (tree / "extra").exists()
    assert list(store.tmp.iterdir()) == []


def test_a_missing_tree_with_a_corrupt_layer(store: Store) -> None:
    result = add_tree(store)
    shutil.rmtree(store.tree(result))
    damage(store.blob_path(result.layer.digest))
    with pytest.raises(CorruptError, match="is corrupt"):
        Store(store.root).tree(result)


@pytest.mark.parametrize("part", ["root", "config", "layer"])
@pytest.mark.parametrize("harm", [damage, Path.unlink])
def test_a_result_with_a_bad_blob_is_a_miss(store: Store, part: str, harm: Callable[[Path], None]) -> None:
    result = add_tree(store)
    manifest = oci.parse_manifest(store.read_blob(result.root.digest))
    blob = {"root": result.root, "config": manifest.config, "layer": result.layer}[part]
    harm(store.blob_path(blob.digest))
    events: list[Event] = []
    again = Store(store.root, events.append)
    assert again.lookup(KEY) is None
    assert [isinstance(event, Note) and event.warning for event in events] == [True]
    assert add_tree(again) == result
    assert again.lookup(KEY) == result


def test_a_garbled_record_is_a_miss(store: Store) -> None:
    add_tree(store)
    path = store.root / "cache" / f"{KEY.hex}.json"
    for text in (
        "",
        "{",
        "[]",
        '{"version":1}',
        '{"version":2}',
        json.dumps(json.loads(path.read_text()) | {"root": 1}),
    ):
        path.write_text(text)
        assert store.lookup(KEY) is None
        assert list(store.records()) == []


def test_a_base_and_a_layer_on_it(store: Store, tmp_path: Path) -> None:
    for name in ("base", "diff"):
        with tarfile.open(tmp_path / name, "w") as archive:
            for path in ("etc", f"etc/{name}", "etc/hosts"):
                info = tarfile.TarInfo(path)
                info.type = tarfile.DIRTYPE if path == "etc" else tarfile.REGTYPE
                info.uid = 7
                archive.addfile(info)
    base = store.commit_rootfs(KEY, tmp_path / "base", FIELDS)
    assert store.blob_path(base.layer.digest).read_bytes() == (tmp_path / "base").read_bytes()
    above = store.commit_rootfs(OTHER, tmp_path / "diff", FIELDS, base=base, drop=("etc/hosts",))
    assert above.kind is Kind.ROOTFS and above.layers[0] == base.layer and len(above.layers) == 2
    with tarfile.open(store.blob_path(above.layer.digest)) as archive:
        assert [(info.name, info.uid) for info in archive] == [("etc", 7), ("etc/diff", 7)]
    manifest = oci.parse_manifest(store.read_blob(above.root.digest))
    config = oci.parse_config(store.read_blob(manifest.config.digest))
    assert config.diff_ids == tuple(layer.digest for layer in above.layers)
    assert store.rootfs_layout(above) == (store.root, above.root.digest)
    with pytest.raises(InternalError):
        store.tree(above)


def test_an_image_layout_is_taken_in(store: Store, tmp_path: Path) -> None:
    made = Store(tmp_path / "made")
    result = add_tree(made)
    index = made.put_bytes(oci.Index((result.root,)).encode(), oci.INDEX)
    made.tag("image", index)
    image = store.commit_image(OTHER, made.root, FIELDS)
    assert image.root == index and store.lookup(OTHER) == image
    assert {blob.digest for blob in store.closure(index)} >= {index.digest, result.root.digest, result.layer.digest}


# Tags, and other tools


def test_tags(store: Store) -> None:
    one, two = add_tree(store).root, add_tree(store, OTHER).root
    store.tag("b:1", one)
    store.tag("a:1", two)
    store.tag("b:1", two)
    assert {name: entry.digest for name, entry in store.tags().items()} == {"a:1": two.digest, "b:1": two.digest}
    assert list(store.tags()) == ["a:1", "b:1"]
    assert store.untag("a:1") and not store.untag("a:1")
    assert list(Store(store.root).tags()) == ["b:1"]
    with pytest.raises(InternalError):
        store.tag("c", oci.Descriptor(oci.MANIFEST, KEY, 1))


def test_a_garbled_index_is_one_line(store: Store) -> None:
    (store.root / "index.json").write_text("{")
    with pytest.raises(CorruptError, match=r"index\.json is no good JSON"):
        store.tags()


def test_skopeo_reads_the_store(store: Store, tmp_path: Path) -> None:
    result = add_tree(store)
    store.tag("example.org/team/app:1.0", result.root)
    source = f"oci:{store.root}:example.org/team/app:1.0"
    found = json.loads(subprocess.run(["skopeo", "inspect", source], capture_output=True, check=True).stdout)
    assert found["Digest"] == str(result.root.digest)
    assert found["Layers"] == [str(result.layer.digest)]
    subprocess.run(["skopeo", "copy", "--quiet", source, f"dir:{tmp_path}/copy"], check=True)
    assert Digest.of((tmp_path / "copy" / result.layer.digest.hex).read_bytes()) == result.layer.digest


TAGGER = """
import sys
from pathlib import Path
from uklimg import oci
from uklimg.store import Store
store = Store(Path(sys.argv[1]))
blob = store.put_bytes(oci.Index(()).encode(), oci.INDEX)
for number in range(20):
    store.tag(f"{sys.argv[2]}:{number}", blob)
"""


def test_processes_tag_at_once(store: Store) -> None:
    children = [subprocess.Popen([sys.executable, "-c", TAGGER, str(store.root), f"t{n}"]) for n in range(4)]
    assert [child.wait(300) for child in children] == [0] * 4
    assert len(store.tags()) == 80


# Living together


def test_the_key_lock_is_held_by_one(store: Store) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with Store(store.root).key_lock(KEY):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with store.key_lock(KEY):
        inside.set()
        with store.key_lock(OTHER):
            order.append("first")
    thread.join()
    assert order == ["first", "second"]


BUILDER = """
import sys
from pathlib import Path
from uklimg.digest import Digest
from uklimg.store import Store
root, key = Path(sys.argv[1]), Digest(sys.argv[2])
store = Store(root)
with store.session(), store.key_lock(key):
    if store.lookup(key) is None:
        with open(sys.argv[3], "a") as log:
            log.write("built\\n")
        with store.scratch() as folder:
            (folder / "out").mkdir()
            (folder / "out" / "file").write_bytes(bytes(1 << 20))
            store.commit_tree(key, folder / "out", {})
    assert (store.tree(store.lookup(key)) / "file").stat().st_size == 1 << 20
"""


def test_two_processes_build_a_key_once(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDER, str(store.root), KEY.hex, str(tmp_path / "log")]
    children = [subprocess.Popen(command) for _ in range(4)]
    assert [child.wait(300) for child in children] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


VICTIM = """
import sys, time
from pathlib import Path
from uklimg.digest import Digest
from uklimg.store import Store
store = Store(Path(sys.argv[1]))
key = Digest(sys.argv[2])
with store.session(), store.key_lock(key), store.scratch() as folder, store.writer() as writer:
    (folder / "half").write_bytes(b"x" * 1000)
    writer.write(b"y" * 1000)
    print("up", flush=True)
    time.sleep(1000)
"""


def test_a_killed_build_leaves_nothing_that_stays(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", VICTIM, str(store.root), KEY.hex], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None and victim.stdout.readline() == b"up\n"
        with store.session():
            assert len(list(store.tmp.iterdir())) == 3  # a live one's things are left alone
        with pytest.raises(ToolError, match="the store is in use by another uklimg"):
            store.prune()
        victim.send_signal(signal.SIGKILL)
    assert len(list(store.tmp.iterdir())) == 3
    with store.session(), store.key_lock(KEY):
        assert list(store.tmp.iterdir()) == []
    assert add_tree(store) == store.lookup(KEY)


LOOP = """
import sys
from pathlib import Path
from uklimg import oci
from uklimg.digest import Digest
from uklimg.store import Store
store = Store(Path(sys.argv[1]))
print("up", flush=True)
number = 0
while True:
    number += 1
    key = Digest.of(str(number % 7).encode())
    with store.session(), store.key_lock(key), store.scratch() as folder:
        (folder / "out").mkdir()
        (folder / "out" / "file").write_bytes(str(number % 7).encode() * 200000)
        result = store.commit_tree(key, folder / "out", {})
        store.tag(f"t:{number % 5}", result.root)
        if number % 11 == 0:
            store.untag("t:1")
"""


def test_kills_at_any_moment_leave_the_store_whole(store: Store) -> None:
    """Kill a process that writes all the time, after ever longer delays."""
    pause = threading.Event()
    for number in range(25):
        with subprocess.Popen([sys.executable, "-c", LOOP, str(store.root)], stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None and victim.stdout.readline() == b"up\n"
            pause.wait(0.003 * number)
            victim.kill()
        after = Store(store.root)
        with after.session():
            assert list(after.tmp.iterdir()) == []
        for record in after.records():
            result = after.lookup(record.key)
            assert result == record.result
            assert (after.tree(result) / "file").stat().st_size == 200000
        for entry in after.tags().values():
            after.verify(entry)
        assert list((after.root / "corrupt").iterdir()) == []
    assert list(store.records())


# Making room


def test_prune_keeps_what_tags_and_records_need(store: Store) -> None:
    source, stray = store.put_bytes(b"source"), store.put_bytes(b"stray")
    tagged, recorded = add_tree(store, KEY, b"one"), add_tree(store, OTHER, b"two")
    gone = add_tree(store, Digest.of(b"third"), b"three")
    store.tag("keep:1", tagged.root)
    store.log_path(OTHER, "kit").touch()
    store.log_path(gone.key, "kit").touch()
    pruned = store.prune(lambda record: record.key == OTHER)
    assert (pruned.records, pruned.trees) == (2, 1)
    assert pruned.roots == {recorded.root.digest}
    assert store.has(source.digest) and not store.has(stray.digest)
    assert store.lookup(KEY) is None and store.lookup(OTHER) == recorded
    store.verify(tagged.root)
    assert not store.has(gone.layer.digest)
    assert [path.name for path in (store.root / "logs").iterdir()] == [store.log_path(OTHER, "kit").name]
    trees = {path.name for path in (store.root / "trees" / "sha256").iterdir()}
    assert trees == {
        f"{layer.hex}{end}" for layer in (tagged.layer.digest, recorded.layer.digest) for end in ("", ".done")
    }


def test_prune_frees_everything_when_nothing_is_kept(store: Store) -> None:
    add_tree(store)
    assert store.du().blobs > len(BIG) and store.du().trees >= len(BIG)
    pruned = store.prune(lambda record: False)
    assert pruned.freed > 2 * len(BIG)
    assert (store.du().blobs, store.du().trees) == (0, 0)
    add_tree(store)


def test_a_referrer_lives_as_long_as_its_subject(store: Store) -> None:
    subject = add_tree(store).root
    empty = store.put_bytes(b"{}", oci.EMPTY)
    about = store.put_bytes(oci.Manifest(empty, (empty,), subject=subject).encode(), oci.MANIFEST)
    above = store.put_bytes(oci.Manifest(empty, (empty,), {"n": "2"}, subject=about).encode(), oci.MANIFEST)
    store.tag("image:1", subject)
    store.attach(above)
    store.attach(about)
    store.attach(about)
    assert len(store.index().manifests) == 3
    store.prune(lambda record: False)
    store.verify(about)
    store.verify(above)
    store.untag("image:1")
    store.prune(lambda record: False)
    assert not store.has(about.digest) and not store.has(empty.digest)
    assert store.index().manifests == ()
