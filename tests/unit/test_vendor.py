"""Vendored files: the artifact, the folder, which place is asked when, and what is said about a damaged copy."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from uklimg import oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.events import Event, Note, Sink
from uklimg.graph import Blob
from uklimg.lock import LockedFile
from uklimg.mirror import configured_vendors
from uklimg.ref import Reference
from uklimg.remote.transport import Transport
from uklimg.sources import Sources
from uklimg.store import Layout, Store
from uklimg.vendor import Folder, Place, Repository, artifact, entry, is_folder, place_of, vendor_folder

pytestmark = pytest.mark.unit

CONTENTS: Mapping[str, bytes] = {"a.deb": b"a" * 100, "b.tar": b"b" * 2_000_000, "c.dsc": b"c"}


def locked(name: str, content: bytes | None = None) -> LockedFile:
    data = CONTENTS[name] if content is None else content
    return LockedFile(name, Digest.of(data), len(data), f"debian:pool/{name}")


FILES = tuple(locked(name) for name in sorted(CONTENTS))


@dataclass
class Upstream:
    """Where files come from when nothing is vendored; notes who was asked for."""

    folder: Path
    asked: list[str] = field(default_factory=list)

    def __call__(self, blob: Blob) -> Path:
        self.asked.append(blob.name)
        path = self.folder / blob.name
        path.write_bytes(CONTENTS[blob.name])
        return path


@pytest.fixture
def upstream(tmp_path: Path) -> Upstream:
    folder = tmp_path / "upstream"
    folder.mkdir()
    return Upstream(folder)


def connect(ref: Reference) -> Transport:
    raise AssertionError(f"{ref} is asked")


def test_what_is_a_folder() -> None:
    for text in ("vendor", "/srv/vendor", "./host.example/x", "../x", "~/vendor", "a/b", "."):
        assert is_folder(text), text
    for text in ("host.example/vendor:main", "localhost/x", "127.0.0.1:5000/x", "[::1]/x"):
        assert not is_folder(text), text


def test_the_artifact_lists_each_file_once_whatever_the_order() -> None:
    entries = [entry(file, file.size) for file in FILES]
    first = artifact(entries)
    assert artifact(reversed([*entries, *entries])) == first
    assert artifact(entries[:1], artifact(entries[1:])) == first
    read = oci.parse_manifest(first.encode())
    assert [layer.annotations["org.opencontainers.image.title"] for layer in read.layers] == sorted(CONTENTS)
    assert read.artifact_type == "application/vnd.uklimg.vendor.v1" and read.config.media_type == oci.EMPTY


def test_a_folder_is_an_oci_layout_with_a_listing(tmp_path: Path, upstream: Upstream) -> None:
    root = tmp_path / "vendor"
    done = vendor_folder(root, FILES[:2], upstream)
    assert (done.files, done.added, done.size) == (2, ("a.deb", "b.tar"), 2_000_100)
    done = vendor_folder(root, FILES[1:], upstream)
    assert done.added == ("c.dsc",) and upstream.asked == ["a.deb", "b.tar", "c.dsc"]
    layout = Layout(root)
    (tag,) = layout.tags().values()
    assert {layer.digest for layer in oci.parse_manifest(layout.read_blob(tag.digest)).layers} == {
        file.digest for file in FILES
    }
    layout.verify(tag)
    lines = (root / "files.txt").read_text().splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["a.deb", "b.tar", "c.dsc"]
    assert lines[0].split() == ["100", "a.deb", FILES[0].digest.hex, "debian:pool/a.deb"]
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    # Files, the empty configuration, one manifest: older ones are gone.
    assert len(list((root / "blobs/sha256").iterdir())) == 5


def test_vendoring_mends_a_damaged_copy(tmp_path: Path, upstream: Upstream) -> None:
    root = tmp_path / "vendor"
    vendor_folder(root, FILES, upstream)
    path = root / "blobs/sha256" / FILES[1].digest.hex
    path.chmod(0o644)
    path.write_bytes(b"x" * 2_000_000)
    assert vendor_folder(root, FILES, upstream).added == ("b.tar",)
    assert Digest.of(path.read_bytes()) == FILES[1].digest


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, upstream: Upstream) -> None:
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(UserError, match="a folder with other things in it"):
        vendor_folder(tmp_path, FILES, upstream)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep", "upstream"]


@dataclass
class World:
    store: Store
    events: list[Event]
    asked: list[str]
    sink: Sink

    def sources(self, *places: Place, offline: bool = False) -> Sources:
        def download(blob: Blob, cancel: threading.Event | None) -> None:
            self.asked.append(blob.name)
            self.store.put_bytes(CONTENTS[blob.name])

        return Sources(self.store, lambda: places, download, self.sink, offline=offline)

    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    events: list[Event] = []
    return World(Store(tmp_path / "store"), events, [], events.append)


def test_the_store_comes_first_then_vendored_copies_then_the_rest(
    tmp_path: Path, upstream: Upstream, world: World
) -> None:
    root = tmp_path / "vendor"
    vendor_folder(root, FILES[:1], upstream)
    sources = world.sources(Folder(tmp_path / "elsewhere"), Folder(root))
    assert sources.fetch(FILES[0].blob()).read_bytes() == CONTENTS["a.deb"]
    assert world.asked == []
    assert sources.fetch(FILES[2].blob()).read_bytes() == CONTENTS["c.dsc"]
    assert world.asked == ["c.dsc"]
    nowhere = world.sources(offline=True)
    assert nowhere.fetch(FILES[0].blob()).read_bytes() == CONTENTS["a.deb"]
    assert world.notes() == []


def test_a_damaged_copy_is_told_and_the_next_place_is_asked(tmp_path: Path, upstream: Upstream, world: World) -> None:
    for name in ("one", "two"):
        vendor_folder(tmp_path / name, FILES, upstream)
    for name in ("a.deb", "b.tar"):
        path = tmp_path / "one/blobs/sha256" / locked(name).digest.hex
        path.chmod(0o644)
        path.write_bytes(CONTENTS[name][:-1] + b"?")
    sources = world.sources(Folder(tmp_path / "one"), Folder(tmp_path / "two"), offline=True)
    assert sources.fetch(locked("a.deb").blob()).read_bytes() == CONTENTS["a.deb"]
    assert len(world.notes()) == 1
    assert "the vendored a.deb is damaged" in world.notes()[0] and "one" in world.notes()[0]
    alone = world.sources(Folder(tmp_path / "one"), offline=True)
    with pytest.raises(ToolError, match=r"b.tar is neither in the store nor vendored") as caught:
        alone.fetch(locked("b.tar").blob())
    assert caught.value.exit_code == ExitCode.NETWORK
    assert not world.store.has(locked("b.tar").digest)
    assert world.asked == []


def test_a_damaged_blob_of_the_store_is_replaced_from_a_vendored_copy(
    tmp_path: Path, upstream: Upstream, world: World
) -> None:
    vendor_folder(tmp_path / "vendor", FILES, upstream)
    found = world.store.put_bytes(CONTENTS["a.deb"])
    path = world.store.blob_path(found.digest)
    path.chmod(0o644)
    path.write_bytes(b"z" * 100)
    again = world.sources(Folder(tmp_path / "vendor"), offline=True).fetch(FILES[0].blob())
    assert again.read_bytes() == CONTENTS["a.deb"]
    assert "is corrupt" in world.notes()[0]


def test_offline_asks_no_registry(world: World) -> None:
    repository = Repository(Reference.parse("host.example/vendor"), connect)
    with pytest.raises(ToolError, match="neither in the store nor vendored"):
        world.sources(repository, offline=True).fetch(FILES[0].blob())


def test_a_registry_that_does_not_answer_is_told_once(world: World) -> None:
    asked = []

    def refuse(ref: Reference) -> Transport:
        asked.append(ref)
        raise ToolError(f"cannot reach {ref.host}", exit_code=ExitCode.NETWORK)

    sources = world.sources(Repository(Reference.parse("host.example/vendor"), refuse))
    for file in FILES:
        sources.fetch(file.blob())
    assert world.notes() == ["cannot reach host.example; looking elsewhere"]
    assert len(asked) == 1 and world.asked == ["a.deb", "b.tar", "c.dsc"]


def test_places_by_name(tmp_path: Path) -> None:
    (tmp_path / "vendor/blobs/sha256").mkdir(parents=True)
    assert place_of("vendor", tmp_path, connect) == Folder(tmp_path / "vendor")
    assert place_of("host.example/x:1", tmp_path, connect).name == "host.example/x:1"
    for text, problem in (
        ("none", "is no folder of vendored files"),
        ("", "without a folder"),
        ("h.example/X", "bad"),
    ):
        with pytest.raises(UserError, match=problem):
            place_of(text, tmp_path, connect)


def test_configured_places(tmp_path: Path) -> None:
    config = tmp_path / "uklimg.toml"
    assert configured_vendors(config) == ()
    config.write_text('[vendor]\nplaces = ["/srv/vendor", "host.example/vendor:main"]\n')
    assert configured_vendors(config) == ("/srv/vendor", "host.example/vendor:main")
    config.write_text('[vendor]\nplaces = "x"\n')
    with pytest.raises(UserError, match="places is not a list"):
        configured_vendors(config)


def test_the_listing_of_a_folder_is_verified(tmp_path: Path, upstream: Upstream) -> None:
    root = tmp_path / "vendor"
    vendor_folder(root, FILES, upstream)
    (tag,) = Layout(root).tags().values()
    path = root / "blobs/sha256" / tag.digest.hex
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"c.dsc", b"d.dsc"))
    with pytest.raises(CorruptError, match=r"the listing of .* is damaged"):
        vendor_folder(root, FILES, upstream)
