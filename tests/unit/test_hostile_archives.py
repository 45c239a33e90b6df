"""`load` and everything that unpacks, given archives that lie: one line, nothing outside, nothing half-kept."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostiletars import END, ODD, header, member

from uklimg import archive, contexttar, oci, registryimage, tarread, toplayer
from uklimg.cli.main import main
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UklimgError, UserError
from uklimg.imagebuild import build_image
from uklimg.store import Store, trees

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Good:
    """An image, and the members of the archive that holds it."""

    root: oci.Descriptor
    vmlinux: oci.Descriptor
    members: Mapping[str, bytes]

    def tar(self, change: Mapping[str, bytes | None] | None = None, before: bytes = b"", after: bytes = b"") -> bytes:
        found = {**self.members, **(change or {})}
        body = b"".join(member(name, content) for name, content in found.items() if content is not None)
        return before + body + after + END

    def index(self, *entries: oci.Descriptor) -> dict[str, bytes | None]:
        return {"index.json": oci.Index(entries).encode()}


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of blobs are written here, and no power fails meanwhile."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("good")
    inputs = {role: folder / role for role in oci.PATHS}
    for role, path in inputs.items():
        path.write_bytes(role.encode() * 3000)
    root = build_image(inputs, folder / "image", oci.RunConfig(program="hello"))
    blobs = {f"blobs/sha256/{path.name}": path.read_bytes() for path in (folder / "image/blobs/sha256").iterdir()}
    index = oci.Index((root.bare().annotated({oci.REF_NAME: "good:1"}),)).encode()
    layout = b'{"imageLayoutVersion":"1.0.0"}'
    image = oci.read_image(lambda blob: blobs[f"blobs/sha256/{blob.digest.hex}"], root)
    members = {"oci-layout": layout, "index.json": index, **dict(sorted(blobs.items()))}
    return Good(root, image.file(oci.VMLINUX), members)


def refused(data: bytes, good: Good, tmp_path: Path) -> UklimgError:
    """The error of loading ``data``; afterwards there is no name, no leftover and no foreign byte in the store, and
    the good archive loads whole."""
    outside = tmp_path / "outside"
    outside.mkdir()
    store = Store(outside / "deep" / "store")
    with pytest.raises(UklimgError) as caught:
        archive.load(store, io.BytesIO(data))
    error = caught.value
    assert isinstance(error, (UserError, ToolError)) and error.exit_code != ExitCode.BUG
    assert "\n" not in error.line() and error.line().isprintable() and len(error.line()) < 600
    assert store.tags() == {} and list(store.tmp.iterdir()) == []
    for path in (store.root / "blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert [path.name for path in outside.iterdir()] == ["deep"]
    assert [path.name for path in (outside / "deep").iterdir()] == ["store"]
    (loaded,) = archive.load(store, io.BytesIO(good.tar()))
    assert (loaded.name, loaded.root.digest) == ("good:1", good.root.digest)
    assert oci.read_image(lambda blob: store.read_blob(blob.digest), store.tags()["good:1"]).run.program == "hello"
    store.verify(good.root)
    return error


def test_the_good_one_is_good(good: Good, tmp_path: Path) -> None:
    packers: tuple[Callable[[bytes], bytes], ...] = (bytes, gzip.compress, bz2.compress, lzma.compress)
    for number, pack in enumerate(packers):
        store = Store(tmp_path / str(number))
        assert archive.load(store, io.BytesIO(pack(good.tar())))[0].root.digest == good.root.digest
    # As tar -C folder . writes it, and with what Docker adds.
    dotted = b"".join(member(f"./{name}", content) for name, content in good.members.items())
    whole = member("./", kind=tarfile.DIRTYPE) + member("blobs", kind=tarfile.DIRTYPE) + dotted
    store = Store(tmp_path / "dotted")
    archive.load(store, io.BytesIO(whole + member("manifest.json", b"[]") + member("repositories", b"{}") + END))
    assert list(store.tags()) == ["good:1"]


NAMES = {
    "absolute": member("/etc/cron.d/x", b"x"),
    "climbs": member("../x", b"x"),
    "climbs inside": member("blobs/sha256/../../../x", b"x"),
    "symbolic link": member("blobs/sha256", kind=tarfile.SYMTYPE, link="/etc"),
    "harmless link": member("x", kind=tarfile.SYMTYPE, link="y"),
    "hard link": member("index.json", kind=tarfile.LNKTYPE, link="../../etc/passwd"),
    "device": member("blobs/sha256/null", kind=tarfile.CHRTYPE),
    "disk": member("disk", kind=tarfile.BLKTYPE),
    "pipe": member("pipe", kind=tarfile.FIFOTYPE),
    "unprintable": member("\x1b[2J\udcff/../x", b"x"),
}


@pytest.mark.parametrize("case", sorted(NAMES))
@pytest.mark.parametrize("first", [True, False])
def test_members_that_do_not_belong(good: Good, tmp_path: Path, case: str, first: bool) -> None:
    data = good.tar(before=NAMES[case]) if first else good.tar(after=NAMES[case])
    assert refused(data, good, tmp_path).exit_code == ExitCode.CORRUPT


@pytest.mark.parametrize("case", sorted(ODD))
@pytest.mark.parametrize("place", ["first", "blob", "last"])
def test_odd_headers(good: Good, tmp_path: Path, case: str, place: str) -> None:
    name = f"blobs/sha256/{good.vmlinux.digest.hex}"
    odd = ODD[case](name if place == "blob" else "x", good.members[name][:512])
    match place:
        case "first":
            data = good.tar(before=odd)
        case "blob":
            data = good.tar({name: None}, after=odd)
        case _:
            data = good.tar(after=odd)
    refused(data, good, tmp_path)


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_cut_at_every_tenth(good: Good, tmp_path: Path, tenth: int, pack: Callable[[bytes], bytes]) -> None:
    data = pack(good.tar())
    refused(data[: len(data.rstrip(b"\0")) * tenth // 10], good, tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"junk" * 4096, END, bytes(1 << 20), b"\x1f\x8bjunk", b"BZhjunk", b"\xfd7zXZ\0junk", b"{}" * 600],
    ids=range(9),
)
def test_no_archive(good: Good, tmp_path: Path, data: bytes) -> None:
    assert isinstance(refused(data, good, tmp_path), UserError)


def test_blobs_that_lie(good: Good, tmp_path: Path) -> None:
    blob = f"blobs/sha256/{good.vmlinux.digest.hex}"
    index = f"blobs/sha256/{good.root.digest.hex}"
    flipped = bytearray(good.members[blob])
    flipped[700] ^= 1
    cases: dict[str, bytes] = {
        "flipped": good.tar({blob: bytes(flipped)}),
        "short": good.tar({blob: good.members[blob][:-512]}),
        "long": good.tar({blob: good.members[blob] + b"x"}),
        "empty": good.tar({blob: b""}),
        "missing": good.tar({blob: None}),
        "index missing": good.tar({index: None}),
        "index twice": good.tar(after=member("index.json", good.members["index.json"])),
        "blob twice": good.tar(after=member(blob, good.members[blob])),
        "blob twice under another name": good.tar(after=member(f"./{blob}", good.members[blob])),
    }
    for name, data in cases.items():
        (tmp_path / name).mkdir()
        assert refused(data, good, tmp_path / name).exit_code == ExitCode.CORRUPT, name


def put(blobs: dict[str, bytes | None], data: bytes, media_type: str) -> oci.Descriptor:
    found = oci.Descriptor.of(media_type, data)
    blobs[f"blobs/sha256/{found.digest.hex}"] = data
    return found


def lying_indexes(good: Good) -> Mapping[str, dict[str, bytes | None]]:
    root = good.root.bare()
    cases: dict[str, dict[str, bytes | None]] = {
        "itself": {},
        "a circle": {},
        "another type": good.index(oci.Descriptor(oci.MANIFEST, root.digest, root.size)),
        "a layer as an image": good.index(good.vmlinux.bare()),
        "another size": good.index(oci.Descriptor(root.media_type, root.digest, root.size + 1)),
        "two of a name": good.index(
            root.annotated({oci.REF_NAME: "x:1"}),
            oci.Descriptor(oci.MANIFEST, root.digest, root.size, {oci.REF_NAME: "x:1"}),
        ),
        "a name that climbs": good.index(root.annotated({oci.REF_NAME: "../../x"})),
        "a name with a digest": good.index(root.annotated({oci.REF_NAME: f"x@{root.digest}"})),
        "an odd name": good.index(root.annotated({oci.REF_NAME: "a\n\x1b[2Jb"})),
        "a long name": good.index(root.annotated({oci.REF_NAME: "a" * 100_000})),
        "no image": good.index(),
        "deep": {"index.json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000},
        "deep lists": {"index.json": b'{"schemaVersion":2,"manifests":' + b"[" * 50 + b"]" * 50 + b"}"},
        "long": {"index.json": good.members["index.json"] + b" " * (5 << 20)},
        "many": good.index(*[root] * 20_000),
        "a huge number": {"index.json": b'{"schemaVersion":2,"manifests":[{"size":1' + b"0" * 100_000 + b"}]}"},
        "no number": {"index.json": good.members["index.json"].replace(b'"size":', b'"size":NaN,"x":')},
        "a key twice": {"index.json": b'{"schemaVersion":2,"manifests":[],"manifests":[]}'},
        "not JSON": {"index.json": b"\xff\xfe\0"},
        "another layout": {"oci-layout": b'{"imageLayoutVersion":"9"}'},
        "a layout that is none": {"oci-layout": b"[]"},
    }
    # An index cannot hold its own digest; one can only say so, under a wrong name.
    name = Digest.of(b"wanted")
    self_naming = oci.Index((oci.Descriptor(oci.INDEX, name, 300),)).encode()
    cases["itself"] = {**good.index(oci.Descriptor(oci.INDEX, name, 300)), f"blobs/sha256/{name.hex}": self_naming}
    other = Digest.of(b"other")
    cases["a circle"] = {
        **good.index(oci.Descriptor(oci.INDEX, name, 300)),
        f"blobs/sha256/{name.hex}": oci.Index((oci.Descriptor(oci.INDEX, other, 300),)).encode(),
        f"blobs/sha256/{other.hex}": self_naming,
    }
    # Index and manifest at once (CVE-2021-41190), whole by digest.
    both = json.dumps(
        {
            **json.loads(oci.Manifest(good.vmlinux, (good.vmlinux,)).encode()),
            **json.loads(oci.Index((root,)).encode()),
            "mediaType": oci.INDEX,
        }
    ).encode()
    added: dict[str, bytes | None] = {}
    cases["two things at once"] = {**good.index(put(added, both, oci.INDEX)), **added}
    # A layer with the size of another, whole by digest.
    added = {}
    wrong = oci.Descriptor(oci.LAYER, good.vmlinux.digest, good.vmlinux.size - 1)
    config = put(added, oci.ImageConfig(oci.Platform("linux", "amd64"), (wrong.digest,)).encode(), oci.CONFIG)
    cases["a layer of another size"] = {
        **good.index(put(added, oci.Manifest(config, (wrong,)).encode(), oci.MANIFEST)),
        **added,
    }
    return cases


def test_indexes_that_lie(good: Good, tmp_path: Path) -> None:
    for name, change in lying_indexes(good).items():
        (tmp_path / name).mkdir()
        refused(good.tar(change), good, tmp_path / name)


def test_a_tower_of_indexes_is_only_slow(good: Good, tmp_path: Path) -> None:
    """Two thousand indexes, one in the other: no recursion, and every one of them hashed."""
    added: dict[str, bytes | None] = {}
    top = good.root.bare()
    for _ in range(2000):
        top = put(added, oci.Index((top,)).encode(), oci.INDEX)
    store = Store(tmp_path / "store")
    data = good.tar({**good.index(top.annotated({oci.REF_NAME: "tower:1"})), **added})
    assert archive.load(store, io.BytesIO(data))[0].root.digest == top.digest


def test_what_does_not_fit_is_not_begun(good: Good, tmp_path: Path) -> None:
    name = f"blobs/sha256/{Digest.of(b'x').hex}"
    data = good.tar(after=header(name, size=1 << 42))
    error = refused(data, good, tmp_path)
    assert error.exit_code == ExitCode.HOST and "has room for" in error.line()


def test_too_many_members(good: Good, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 50)
    data = good.tar(after=b"".join(member(f"x{number}") for number in range(50)))
    assert "more than 50 members" in refused(data, good, tmp_path).line()


def test_a_damaged_blob_of_the_store_is_mended_by_a_load(good: Good, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    archive.load(store, io.BytesIO(good.tar()))
    path = store.blob_path(good.vmlinux.digest)
    path.chmod(0o644)
    path.write_bytes(b"x" * good.vmlinux.size)
    again = Store(store.root)
    archive.load(again, io.BytesIO(good.tar()))
    again.verify(good.root)


def test_the_command_says_one_line(good: Good, tmp_path: Path) -> None:
    for number, (data, code) in enumerate(
        [
            (b"junk" * 1000, ExitCode.USER),
            (good.tar(before=NAMES["climbs"]), ExitCode.CORRUPT),
            (good.tar(before=ODD["headers within headers"]("x", b"")), ExitCode.USER),
            (good.tar(after=ODD["headers within headers"]("x", b"")), ExitCode.CORRUPT),
        ]
    ):
        file = tmp_path / f"{number}.tar"
        file.write_bytes(data)
        out, err = io.StringIO(), io.StringIO()
        environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        argv = ["--store", str(tmp_path / "store"), "load", "-i", str(file)]
        assert main(argv, environ, tmp_path, os.getuid(), out, err) == code
        said = err.getvalue()
        assert out.getvalue() == "" and said.count("\n") == 1 and said.startswith("uklimg: "), said


# --- everything else that reads tars of others

READERS: dict[str, Callable[[Path, Path], object]] = {
    "a tree": lambda tar, out: trees.unpack(tar.open("rb"), out),
    "a context": lambda tar, out: contexttar.unpack(tar.open("rb"), out),
    "a layer's files": lambda tar, out: toplayer.unpack_below(tar.open("rb"), "x", out),
    "an image's files": lambda tar, out: registryimage.pick([tar], ["/"], "picked", out / "picked.tar"),
    "a layer of an engine": lambda tar, out: trees.canonical_layer(tar, io.BytesIO()),
}


@pytest.mark.parametrize("reader", sorted(READERS))
@pytest.mark.parametrize("case", sorted(ODD))
def test_readers_of_tars(tmp_path: Path, reader: str, case: str) -> None:
    tar = tmp_path / "layer.tar"
    tar.write_bytes(ODD[case]("x/file", b"content".ljust(512)) + END)
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with pytest.raises(CorruptError) as caught:
        READERS[reader](tar, out)
    assert "\n" not in caught.value.line()
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 1 << 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "layer.tar"]


def test_a_layer_that_unpacks_to_more_than_any_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registryimage, "MAX_LAYER", 1 << 20)
    (tmp_path / "layer").write_bytes(gzip.compress(bytes(2 << 20)))
    config = oci.ImageConfig(oci.Platform("linux", "amd64"), (Digest.of(bytes(2 << 20)),))
    (tmp_path / "config").write_bytes(config.encode())
    (tmp_path / "out").mkdir()
    with pytest.raises(CorruptError, match="unpacks to more than"):
        registryimage.unpack_layers(tmp_path / "config", [tmp_path / "layer"], tmp_path / "out")


def test_names_of_others_stay_readable(tmp_path: Path) -> None:
    data = member("é".encode().decode("latin-1") + "\udcff", b"1") + END
    with tarread.opened(io.BytesIO(data)) as found:
        assert [info.size for info in tarread.members(found)] == [1]
