"""Differences between layers, cpio archives that are read, and images as one file."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from uklimg import archive, attachments, cpio, oci
from uklimg.blueprint import CONFIG, FILES, LOCK, UKLFILE, Blueprint, StepRecord, entry, manifest
from uklimg.blueprints import entry_of, put_entry, read
from uklimg.compare import compare_layers, diffoscope, diffoscope_cmd, tar_members
from uklimg.digest import Digest
from uklimg.errors import CorruptError, UserError
from uklimg.imagebuild import build_image
from uklimg.oci import layer
from uklimg.signing import Signed
from uklimg.store import Store

pytestmark = pytest.mark.unit


def tar(path: Path, files: dict[str, bytes], mode: int = 0o644) -> Path:
    with tarfile.open(path, "w") as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            out.addfile(info, io.BytesIO(data))
    return path


def test_layers_are_compared_file_by_file(tmp_path: Path) -> None:
    first = tar(tmp_path / "1", {"same": b"s", "gone": b"g", "a/text": b"hello", "long": b"x" * (3 << 20)})
    second = tar(tmp_path / "2", {"same": b"s", "new": b"n", "a/text": b"help!", "long": b"x" * (3 << 20) + b"y"})
    assert [item.line() for item in compare_layers(first, second)] == [
        "a/text: differs from byte 3 on (5 bytes)",
        "gone: only in the first (1 bytes)",
        "long: differs from byte 3145728 on (3145728 and 3145729 bytes)",
        "new: only in the second (1 bytes)",
    ]
    assert compare_layers(first, first) == ()
    third = tar(tmp_path / "3", {"same": b"s"}, mode=0o755)
    assert compare_layers(tar(tmp_path / "4", {"same": b"s"}), third)[0].line() == (
        "same: -rw-r--r-- 0:0 became -rwxr-xr-x 0:0"
    )


def initrd(path: Path, *entries: cpio.Entry) -> Path:
    out = io.BytesIO()
    cpio.write([cpio.directory("etc"), *entries], out, mtime=0)
    path.write_bytes(layer.of_bytes(oci.PATHS[oci.INITRAMFS], out.getvalue()))
    return path


def test_an_initramfs_is_looked_into(tmp_path: Path) -> None:
    first = initrd(tmp_path / "1", cpio.regular("etc/a", b"abc"), cpio.symlink("etc/l", "a"))
    second = initrd(tmp_path / "2", cpio.regular("etc/a", b"abd"), cpio.symlink("etc/l", "b"))
    found = compare_layers(first, second)
    assert [item.path for item in found] == ["unikraft/bin/initrd", "initrd/etc/a", "initrd/etc/l"]
    assert found[1].line() == "initrd/etc/a: differs from byte 2 on (3 bytes)"
    assert found[2].line() == "initrd/etc/l: lrwxrwxrwx 0:0 -> a became lrwxrwxrwx 0:0 -> b"


def test_what_is_written_as_cpio_can_be_read() -> None:
    out = io.BytesIO(b"before")
    out.seek(6)
    entries = [
        cpio.directory("d", 0o700, 1, 2),
        cpio.regular("d/f", b"content", 0o755),
        cpio.symlink("d/l", "f"),
        cpio.regular("e", b""),
    ]
    length = cpio.write(entries, out, mtime=5)
    found = {item.path: item for item in cpio.read(out, 6, length)}
    assert set(found) == {"d", "d/f", "d/l", "e"}
    assert (found["d"].mode, found["d"].uid, found["d"].gid) == (stat.S_IFDIR | 0o700, 1, 2)
    assert out.getvalue()[found["d/f"].offset :][: found["d/f"].size] == b"content"


@pytest.mark.parametrize("cut", [0, 50, 110, 130, 300])
def test_a_damaged_cpio_archive_is_refused(cut: int) -> None:
    out = io.BytesIO()
    cpio.write([cpio.regular("a", b"x" * 100)], out, mtime=0)
    data = out.getvalue()
    short = data[:cut]
    with pytest.raises(CorruptError):
        list(cpio.read(io.BytesIO(short), 0, len(short)))
    with pytest.raises(CorruptError):
        list(cpio.read(io.BytesIO(b"0707x1" + data[6:]), 0, len(data)))


def test_no_tar_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(CorruptError):
        tar_members(tmp_path / "x")


def test_diffoscope_is_asked_when_it_is_there(tmp_path: Path) -> None:
    assert diffoscope_cmd(Path("/a"), Path("/b"))[-2:] == ["/a", "/b"]
    assert diffoscope(tmp_path, tmp_path, {"PATH": str(tmp_path)}) == ""


# --- images as one file


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def image(store: Store, folder: Path, name: str) -> oci.Descriptor:
    """An image of ours with a blueprint, under ``name``."""
    inputs = {}
    (folder / "in").mkdir(parents=True)
    for role in oci.PATHS:
        inputs[role] = folder / "in" / role
        inputs[role].write_bytes(f"{name} {role}".encode() * 100)
    root = build_image(inputs, folder / "image", oci.RunConfig(program="hello"))
    for blob in sorted((folder / "image/blobs/sha256").iterdir()):
        store.put_file(blob)
    store.tag(name, root)
    record = StepRecord("image", "t", "image", 1, Digest.of(b"k"), root.digest)
    config = store.put_bytes(Blueprint("0", (record,)).encode(), CONFIG)
    files = {one: store.put_bytes(one.encode(), FILES[one]) for one in (UKLFILE, LOCK)}
    artifact = store.put_bytes(manifest(config, files, root).encode(), oci.MANIFEST)
    put_entry(store, entry(artifact, root.digest))
    return root


def saved(store: Store, *names: str) -> bytes:
    out = io.BytesIO()
    archive.save(store, {name: store.tags()[name] for name in names}, out)
    return out.getvalue()


def test_images_survive_an_archive(store: Store, tmp_path: Path) -> None:
    roots = {name: image(store, tmp_path / name, f"{name}:latest") for name in ("one", "two")}
    data = saved(store, "one:latest", "two:latest")
    assert data == saved(store, "two:latest", "one:latest")
    other = Store(tmp_path / "other")
    loaded = archive.load(other, io.BytesIO(data))
    assert {found.name: found.root.digest for found in loaded} == {
        f"{name}:latest": root.digest for name, root in roots.items()
    }
    for name, root in roots.items():
        assert other.tags()[f"{name}:latest"].digest == root.digest
        carried = read(other, root.digest)
        assert carried is not None
        assert carried.blueprint.steps[0].result == root.digest
    # What is loaded is what was saved, and stays when room is made.
    other.prune()
    assert saved(other, "one:latest", "two:latest") == data
    assert other.untag("one:latest")
    other.prune()
    assert entry_of(other, roots["one"].digest) is None
    assert entry_of(other, roots["two"].digest) is not None


def test_an_archive_lists_its_images_only_and_signatures_go_along(store: Store, tmp_path: Path) -> None:
    root = image(store, tmp_path / "one", "one:latest")
    attachments.keep_signature(store, Signed(b'{"critical":{}}', "c2lnbmF0dXJl"), root)
    data = saved(store, "one:latest")
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        index = found.extractfile("index.json")
        assert index is not None
        # podman load takes no archive with two entries.
        (entry,) = oci.parse_index(index.read()).manifests
    assert entry.digest == root.digest
    other = Store(tmp_path / "other")
    archive.load(other, io.BytesIO(data))
    assert attachments.signatures(other, root.digest) == attachments.signatures(store, root.digest) != ()
    assert entry_of(other, root.digest) is not None
    assert saved(other, "one:latest") == data
    # As other tools list them: beside the image.
    both = oci.Index(tuple(one for one in store.index().manifests)).encode()
    third = Store(tmp_path / "third")
    archive.load(third, io.BytesIO(rewritten(data, {"index.json": both})))
    assert attachments.signatures(third, root.digest) == attachments.signatures(store, root.digest)
    # A list that is missing, is none, or lists something as what it is not.
    for change in ("sha256:" + "0" * 64, "nonsense", str(root.digest)):
        notes = {oci.REF_NAME: "one:latest", archive.ATTACHED: change}
        index_json = oci.Index((root.bare().annotated(notes),)).encode()
        fourth = Store(tmp_path / change[:9])
        if change == str(root.digest):  # its entries have no artifact type: nothing is attached
            archive.load(fourth, io.BytesIO(rewritten(data, {"index.json": index_json})))
            assert entry_of(fourth, root.digest) is None
            continue
        with pytest.raises(CorruptError):
            archive.load(fourth, io.BytesIO(rewritten(data, {"index.json": index_json})))
        assert fourth.tags() == {}
        shutil.rmtree(fourth.root)


def rewritten(data: bytes, change: dict[str, bytes | None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for info in source:
            file = source.extractfile(info)
            assert file is not None
            content: bytes | None = file.read()
            if info.name in change:
                content = change[info.name]
            if content is not None:
                info.size = len(content)
                target.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_a_damaged_archive_gives_no_name(store: Store, tmp_path: Path) -> None:
    root = image(store, tmp_path / "one", "one:latest")
    data = saved(store, "one:latest")
    vmlinux = oci.read_image(lambda blob: store.read_blob(blob.digest), root).file(oci.VMLINUX)
    blob = f"blobs/sha256/{vmlinux.digest.hex}"
    index = store.read_blob(root.digest)
    outside = oci.Index((root.annotated({oci.REF_NAME: "../x"}),))
    cases: list[tuple[dict[str, bytes | None], type[Exception]]] = [
        ({blob: b"other bytes"}, CorruptError),
        ({blob: None}, CorruptError),
        ({f"blobs/sha256/{root.digest.hex}": index[:-1]}, CorruptError),
        ({"index.json": None}, UserError),
        ({"index.json": b"{}"}, CorruptError),
        ({"index.json": oci.Index(()).encode()}, UserError),
        ({"index.json": outside.encode()}, UserError),
    ]
    for number, (change, kind) in enumerate(cases):
        other = Store(tmp_path / f"other{number}")
        with pytest.raises(kind):
            archive.load(other, io.BytesIO(rewritten(data, change)))
        assert other.tags() == {}
    for junk in (b"", b"junk" * 1000, data[:2000]):
        with pytest.raises((UserError, CorruptError)):
            archive.load(Store(tmp_path / "junk"), io.BytesIO(junk))


def test_a_damaged_store_writes_no_archive(store: Store, tmp_path: Path) -> None:
    root = image(store, tmp_path / "one", "one:latest")
    vmlinux = oci.read_image(lambda blob: store.read_blob(blob.digest), root).file(oci.VMLINUX)
    path = store.blob_path(vmlinux.digest)
    path.chmod(0o644)
    path.write_bytes(b"x" * vmlinux.size)
    with pytest.raises(CorruptError):
        saved(store, "one:latest")
