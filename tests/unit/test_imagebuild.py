"""The host function "image": a layout whose bytes depend on its input alone."""

from __future__ import annotations

import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from uklimg import oci
from uklimg.digest import Digest
from uklimg.imagebuild import build_image, image, layout_image
from uklimg.oci import layer
from uklimg.recipes.image import params

pytestmark = pytest.mark.unit

RUN = oci.RunConfig(program="hello", cmd=("hello", "world"), kernel_version="6.12.107")


def make_inputs(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    paths = {role: folder / f"{role}.file" for role in oci.PATHS}
    for number, (role, path) in enumerate(paths.items()):
        path.write_bytes(role.encode() * (100_000 + number))
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_layout(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    built = build_image(inputs, out, RUN)
    assert layout_image(out) == built
    assert sorted(p.name for p in out.iterdir()) == ["blobs", "index.json", "oci-layout"]
    blobs = out / "blobs" / "sha256"
    for blob in blobs.iterdir():
        assert Digest.of(blob.read_bytes()).hex == blob.name
    loaded = oci.read_image(lambda blob: (blobs / blob.digest.hex).read_bytes(), built)
    assert loaded.run == RUN
    for role, source in inputs.items():
        path = blobs / loaded.file(role).digest.hex
        assert path.stat().st_size == loaded.file(role).size
        with tarfile.open(path, "r:") as tar:
            assert tar.getnames() == [oci.PATHS[role].removeprefix("/")]
        with path.open("rb") as stream:
            chunks = layer.file_chunks(stream, oci.PATHS[role], loaded.file(role).size)
            assert b"".join(chunks) == source.read_bytes()
    # Every blob is referred to, none twice.
    referred = {b.digest.hex for m in loaded.manifests for b in m.blobs()}
    referred |= {entry.digest.hex for entry in loaded.index.manifests} | {built.digest.hex}
    assert {blob.name for blob in blobs.iterdir()} == referred


def test_nothing_of_time_path_or_mode_gets_in(tmp_path: Path) -> None:
    first, second = make_inputs(tmp_path / "a"), make_inputs(tmp_path / "b")
    for path in second.values():
        os.utime(path, (1, 1))
        path.chmod(0o755)
    for inputs, name in ((first, "one"), (second, "two")):
        (tmp_path / name).mkdir()
        image(inputs, tmp_path / name, params(RUN))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    first[oci.VMLINUX].write_bytes(b"another")
    (tmp_path / "three").mkdir()
    image(first, tmp_path / "three", params(replace(RUN)))
    assert contents(tmp_path / "one") != contents(tmp_path / "three")
