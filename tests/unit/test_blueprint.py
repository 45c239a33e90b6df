"""What an image carries: its bytes, its files of the build context, and where two builds part."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from uklimg import contexttar, oci
from uklimg.blueprint import (
    ARTIFACT,
    CONFIG,
    CONTEXT,
    FILES,
    KERNEL_CONFIG,
    LOCK,
    SUBJECT,
    UKLFILE,
    Blueprint,
    StepRecord,
    entry,
    files_of,
    first_difference,
    first_planned_otherwise,
    manifest,
    parse_blueprint,
)
from uklimg.cli.diff import kernel_options, locked_inputs
from uklimg.context import open_context
from uklimg.digest import Digest
from uklimg.errors import CorruptError, UserError
from uklimg.graph import ContextTree
from uklimg.lock import (
    ComponentKind,
    Lock,
    LockedBase,
    LockedComponent,
    LockedFile,
    LockedPackage,
    LockedSource,
    SourceKind,
    format_lock,
)
from uklimg.project import declared_arguments, selected

pytestmark = pytest.mark.unit


def step(name: str, key: str = "k", result: str | None = "r", needs: tuple[str, ...] = ()) -> StepRecord:
    left = None if result is None else Digest.of(result.encode())
    return StepRecord(name, f"title of {name}", "recipe", 1, Digest.of(key.encode()), left, needs)


BLUEPRINT = Blueprint("0.1.0", (step("a"), step("b", result=None, needs=("a",))), {"X": "ä"}, ("debug",), False)


def test_a_blueprint_comes_back_as_it_was() -> None:
    assert parse_blueprint(BLUEPRINT.encode()) == BLUEPRINT
    assert parse_blueprint(BLUEPRINT.encode()).encode() == BLUEPRINT.encode()


def test_a_twins_blueprint_says_so_in_its_version() -> None:
    """A uklimg that knows nothing of twins would build the unikernel."""
    twin = replace(BLUEPRINT, twin=True)
    assert parse_blueprint(twin.encode()) == twin
    assert json.loads(twin.encode()) == {**json.loads(BLUEPRINT.encode()), "version": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"steps": []},
        {"steps": "a"},
        {"steps": [{"id": "a"}]},
        {"buildArgs": ["X"]},
        {"buildArgs": {"X": 1}},
        {"kernelConfigs": [1]},
        {"uklimg": None},
    ],
)
def test_a_damaged_blueprint_is_refused(change: dict[str, object]) -> None:
    value = {**json.loads(BLUEPRINT.encode()), **change}
    with pytest.raises(CorruptError, match="blueprint"):
        parse_blueprint(json.dumps(value).encode())


@pytest.mark.parametrize(
    "change", [{"id": "b"}, {"key": "sha256:1"}, {"result": 5}, {"recipeVersion": "1"}, {"needs": None}]
)
def test_a_damaged_step_is_refused(change: dict[str, object]) -> None:
    value = json.loads(BLUEPRINT.encode())
    value["steps"][0].update(change)
    with pytest.raises(CorruptError, match="blueprint"):
        parse_blueprint(json.dumps(value).encode())


def test_the_artifact_is_about_the_image_and_names_its_files() -> None:
    blobs = {name: oci.Descriptor.of("application/octet-stream", name.encode()) for name in FILES}
    image = oci.Descriptor.of(oci.INDEX, b"image").annotated({"x": "y"})
    found = manifest(oci.Descriptor.of(CONFIG, b"{}"), blobs, image)
    assert found.artifact_type == ARTIFACT
    assert found.subject == image.bare()
    again = oci.parse_manifest(found.encode())
    assert {name: blob.digest for name, blob in files_of(again).items()} == {
        name: blob.digest for name, blob in blobs.items()
    }
    with pytest.raises(CorruptError, match="no blueprint"):
        files_of(replace(again, artifact_type="other/type"))
    with pytest.raises(CorruptError, match="lacks the Uklfile"):
        files_of(manifest(oci.Descriptor.of(CONFIG, b"{}"), {CONTEXT: blobs[CONTEXT]}, image))
    listed = entry(oci.Descriptor.of(oci.MANIFEST, found.encode()), image.digest)
    assert (listed.artifact_type, listed.annotations) == (ARTIFACT, {SUBJECT: str(image.digest)})
    assert {UKLFILE, LOCK, KERNEL_CONFIG} < set(FILES)


def test_the_first_step_that_differs() -> None:
    before = (step("a"), step("b", result=None), step("c", result="1"), step("d", result="1"))
    after = (step("a"), step("b"), step("new"), step("c", result="2"), step("d", result="2"))
    assert first_difference(before, before) is None
    assert first_difference(before, after) == after[3]
    assert first_planned_otherwise(before, after) == after[2]
    assert first_planned_otherwise(before, (step("a", key="other"), *after)) == step("a", key="other")
    assert first_planned_otherwise(before, before) is None


def test_only_arguments_that_the_uklfile_declares_are_its_own() -> None:
    text = "ARG A=1\nFROM debian:trixie AS build\nARG B C=3\nENV D=4\nRUN true\nFROM ukl:6.12\nLINK --from=build /p\n"
    assert declared_arguments(text) == {"A", "B", "C"}


# --- files of the build context


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    (root / "src/deep").mkdir(parents=True)
    (root / "real").mkdir()
    (root / "src/deep/tool").write_text("#!/bin/sh\n")
    (root / "src/deep/tool").chmod(0o700)
    (root / "src/a.c").write_text("int a;\n")
    (root / "src/out").symlink_to("/etc/passwd")
    (root / "real/file").write_text("x")
    (root / "real/other").write_text("y")
    (root / "link").symlink_to("real")
    (root / "chain").symlink_to("./link/../link/file")
    (root / "absolute").symlink_to(root / "real/other")
    (root / "secret").write_text("password")
    (root / ".uklignore").write_text("secret\nsrc/*\n!src/a.c\n!src/deep\n!src/out\n")
    return root


SELECTIONS: tuple[tuple[str, ...], ...] = (
    ("src",),
    ("src/deep/tool",),
    ("chain",),
    ("link", "link/file"),
    ("absolute",),
    ("re*/f?le",),
    ("none*",),
    (".",),
)


def trees(root: Path, *selections: tuple[str, ...]) -> list[ContextTree]:
    opened = open_context(root)
    return [selected(opened.select(sources), sources).tree for sources in selections]


def packed(found: list[ContextTree], scratch: Path) -> bytes:
    scratch.mkdir()
    out = io.BytesIO()
    contexttar.pack(found, scratch, out)
    return out.getvalue()


@pytest.mark.parametrize("selection", [*[(one,) for one in SELECTIONS], SELECTIONS[:-1]])
def test_what_is_carried_gives_the_same_trees(
    folder: Path, tmp_path: Path, selection: tuple[tuple[str, ...], ...]
) -> None:
    found = trees(folder, *selection)
    data = packed(found, tmp_path / "scratch")
    other = tmp_path / "elsewhere"
    other.mkdir()
    contexttar.unpack(io.BytesIO(data), other)
    # The rules travel with the Uklfile, not with the files.
    (other / ".uklignore").write_text((folder / ".uklignore").read_text())
    if (".",) in selection:
        # The link says where the context was, and says it to the build as well.
        (other / "absolute").unlink()
        (other / "absolute").symlink_to(folder / "real/other")
    again = trees(other, *selection)
    assert [tree.digest for tree in again] == [tree.digest for tree in found]
    assert packed(found, tmp_path / "scratch2") == data
    assert not (other / "secret").exists()


def test_only_what_was_used_is_carried(folder: Path, tmp_path: Path) -> None:
    data = packed(trees(folder, ("real/file",), ("chain",)), tmp_path / "scratch")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {info.name: info for info in archive}
    assert set(members) == {"real", "real/file", "chain", "link"}
    assert {(info.uid, info.gid, info.uname, info.mtime) for info in members.values()} == {(0, 0, "", oci.EPOCH)}


def test_modes_and_dates_of_the_checkout_do_not_matter(folder: Path, tmp_path: Path) -> None:
    data = packed(trees(folder, ("src",)), tmp_path / "scratch")
    (folder / "src/a.c").chmod(0o600)
    (folder / "src/deep").chmod(0o700)
    (folder / "src/deep/tool").chmod(0o755)
    (folder / "src/a.c").touch()
    assert packed(trees(folder, ("src",)), tmp_path / "again") == data


def test_a_context_that_changed_is_noticed(folder: Path, tmp_path: Path) -> None:
    found = trees(folder, ("src",))
    (folder / "src/a.c").write_text("int b;\n")
    with pytest.raises(UserError, match="changed while it was read"):
        packed(found, tmp_path / "scratch")


def hostile(*members: tuple[str, bytes, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info, io.BytesIO())
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        hostile(("../up", tarfile.REGTYPE, "")),
        hostile(("..", tarfile.SYMTYPE, "x")),
        hostile(("/abs", tarfile.REGTYPE, "")),
        hostile(("a", tarfile.SYMTYPE, "/tmp"), ("a/b", tarfile.REGTYPE, "")),
        hostile(("a", tarfile.REGTYPE, ""), ("a", tarfile.REGTYPE, "")),
        hostile(("a", tarfile.DIRTYPE, ""), ("a/./b", tarfile.REGTYPE, "")),
        hostile(("gone/b", tarfile.REGTYPE, "")),
        hostile(("a", tarfile.FIFOTYPE, "")),
        hostile(("a", tarfile.LNKTYPE, "/etc/passwd")),
        hostile(("a", tarfile.SYMTYPE, "")),
        b"no tar at all" * 100,
    ],
)
def test_a_hostile_context_leaves_nothing_outside(tmp_path: Path, data: bytes) -> None:
    target = tmp_path / "deep/target"
    target.mkdir(parents=True)
    with pytest.raises(CorruptError, match="the image's context"):
        contexttar.unpack(io.BytesIO(data), target)
    assert list((tmp_path / "deep").iterdir()) == [target]


# --- what `diff` reads


def test_kernel_options() -> None:
    assert kernel_options('# c\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x=y"\n') == {
        "CONFIG_A": "y",
        "CONFIG_C": '"x=y"',
    }


def test_inputs_of_a_lock() -> None:
    file = LockedFile("f", Digest.of(b"f"), 1, "debian:pool/f")
    deb = replace(file, name="libc6-dev_2_amd64.deb", origin="debian:pool/libc6-dev_2_amd64.deb")
    package = LockedPackage("libc6-dev", "2.41-12", "amd64", deb)
    lock = Lock(
        (
            LockedSource("https://example.org/a.tar", SourceKind.ARCHIVE, "", (file,)),
            LockedSource("debian:redis", SourceKind.DEBIAN, "8.0", (file,)),
            LockedBase("debian-trixie", Digest.of(b"d"), (package,)),
            LockedComponent(ComponentKind.KERNEL, "6.12", "6.12.1", file, Digest.of(b"p")),
        )
    )
    assert locked_inputs(format_lock(lock)) == {
        "kernel 6.12": "6.12.1",
        "package libc6-dev": "2.41-12",
        "source debian:redis": "8.0",
        "source https://example.org/a.tar": Digest.of(b"f").short,
    }
