"""uklimg export with a small image that no kernel is in: where it comes from, where it goes to, what is refused."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from test_registry import make_image, registry

from uklimg import oci
from uklimg.cli.main import main
from uklimg.store import Store

pytestmark = pytest.mark.integration

TAG = "tiny:1"
CONTENT = bytes([0, 1, 2, 3, 4, 5, 6, 7]) * 200_000  # of vmlinux, as make_image has it


@dataclass(frozen=True)
class Done:
    status: int
    stdout: bytes
    stderr: str


class Place:
    """A folder with a store in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")

    def uklimg(self, *argv: str, store: str = "store", **environ: str) -> Done:
        """The command line, without a process of its own: a dozen of these are here."""
        stdout, stderr = (TextIOWrapper(BytesIO(), write_through=True) for _ in range(2))
        argv = ("--store", str(self.folder / store), *argv)
        status = main(argv, {**os.environ, **environ}, self.folder, os.getuid(), stdout, stderr)
        out, err = (stream.buffer for stream in (stdout, stderr))
        assert isinstance(out, BytesIO) and isinstance(err, BytesIO)
        return Done(status, out.getvalue(), err.getvalue().decode())

    def refused(self, status: int, said: str, *argv: str, **environ: str) -> None:
        """One line, the exit status, and nothing left behind."""
        before = self.names()
        done = self.uklimg("export", *argv, **environ)
        lines = done.stderr.splitlines()
        assert (done.status, done.stdout, len(lines)) == (status, b"", 1), done.stderr
        assert said in lines[0], lines[0]
        assert self.names() == before

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("export")
    place = Place(folder)
    root = make_image(folder / "made")
    for path in (folder / "made/image/blobs/sha256").iterdir():
        place.store.put_file(path)
    place.store.tag(TAG, root)
    return place


def test_a_file_and_standard_output(place: Place) -> None:
    done = place.uklimg("export", "--format", "vmlinux", "-o", "kernel", TAG)
    assert done.stdout.decode() == f"{place.folder / 'kernel'}\n" and done.stderr == ""
    assert (place.folder / "kernel").read_bytes() == CONTENT
    assert place.uklimg("export", "--format", "vmlinux", "-o", "-", TAG).stdout == CONTENT
    place.refused(1, "is there already (--force replaces it)", "--format", "vmlinux", "-o", "kernel", TAG)
    (place.folder / "kernel").write_text("old")
    assert place.uklimg("export", "--force", "--format", "vmlinux", "-o", "kernel", TAG).status == 0
    assert (place.folder / "kernel").read_bytes() == CONTENT


def test_a_folder(place: Place) -> None:
    assert place.uklimg("export", "--format", "firecracker", "-o", "vm", "-m", "128M", TAG).status == 0
    assert sorted(path.name for path in (place.folder / "vm").iterdir()) == [
        "firecracker.json",
        "initramfs",
        "vmlinux",
    ]
    assert '"mem_size_mib": 128' in (place.folder / "vm/firecracker.json").read_text()
    (place.folder / "vm/mine").write_text("precious")
    place.refused(1, "has 'mine', which this export", "--force", "--format", "firecracker", "-o", "vm", TAG)
    assert (place.folder / "vm/mine").read_text() == "precious"


def test_what_is_refused(place: Place) -> None:
    place.refused(1, "no EFI stub", "--format", "uki", "-o", "x.efi", TAG)
    place.refused(1, "pulls the image from a registry", "--format", "kubevirt", "-o", "x.yaml", TAG)
    place.refused(1, "is a folder of files", "--format", "pxe", "-o", "-", TAG)
    place.refused(1, "no folder", "--format", "uki", "-o", "no/x.efi", TAG)
    place.refused(1, "--cpus does nothing for iso", "--format", "iso", "--cpus", "2", "-o", "x.iso", TAG)
    place.refused(1, "only --network none", "--format", "raw", "--network", "br0", "-o", "x.img", TAG)
    place.refused(1, "-m: ", "--format", "libvirt", "-m", "lots", "-o", "x", TAG)
    place.refused(1, "cannot read", "--format", "uki", "--stub", "/no/stub", "-o", "x.efi", TAG)
    place.refused(6, "no image nothing", "--format", "uki", "-o", "x.efi", "nothing")
    place.refused(8, "apt-get install xorriso", "--format", "iso", "-o", "x", TAG, PATH="/nowhere")


def test_a_damaged_image_leaves_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    root = make_image(tmp_path / "made")
    for path in (tmp_path / "made/image/blobs/sha256").iterdir():
        place.store.put_file(path)
    place.store.tag(TAG, root)
    image = oci.read_image(lambda blob: place.store.read_blob(blob.digest), root)
    blob = place.store.blob_path(image.file(oci.INITRAMFS).digest)
    data = bytearray(blob.read_bytes())
    data[700] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    place.refused(7, "is corrupt", "--format", "folder", "-o", "x", TAG)


def test_an_image_of_a_registry_is_pulled(place: Place, tmp_path: Path) -> None:
    with registry(tmp_path / "registry") as server:
        ref = f"{server.host}/me/tiny:1"
        assert place.uklimg("push", TAG, ref).status == 0
        done = place.uklimg("export", "--format", "urunc", "-o", "pod.yaml", ref, store="other")
        assert done.status == 0, done.stderr
    digest = place.store.tags()[TAG].digest
    assert f"image: {server.host}/me/tiny@{digest}\n" in (place.folder / "pod.yaml").read_text()
