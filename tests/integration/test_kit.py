"""What a kernel's build takes over from earlier ones (uklimg/link/kit.py): source that stayed the same, and objects
that the same tools made. That the kernels are equal to the byte is what ``benchmarks.kernels`` shows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from uklimg.link import kit, twin

pytestmark = pytest.mark.integration

PATCH = """\
--- a/b/two
+++ b/b/two
@@ -1 +1 @@
-two
+%s
"""
LONG_AGO = 1_000_000_000


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "build"
    folder.mkdir()
    monkeypatch.setattr(kit, "BUILD", folder)
    monkeypatch.setattr(kit, "SOURCE", folder / "source")
    monkeypatch.setattr(kit, "OBJECTS", folder / "objects")
    monkeypatch.setattr(kit, "PACKAGES", tmp_path / "status")
    kit.PACKAGES.write_text("gcc 14")
    return folder


@pytest.fixture
def tarball(tmp_path: Path) -> Path:
    source = tmp_path / "linux"
    (source / "b").mkdir(parents=True)
    for name in ("one", "b/two", "b/three"):
        (source / name).write_text(f"{Path(name).name}\n")
    subprocess.run(["tar", "cf", str(tmp_path / "linux.tar"), "linux"], cwd=tmp_path, check=True)
    return tmp_path / "linux.tar"


def patch(folder: Path, line: str) -> list[Path]:
    path = folder / "0001-two.patch"
    path.write_text(PATCH % line)
    return [path]


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def old(source: Path) -> set[str]:
    files = (path for path in source.rglob("*") if path.is_file())
    return {path.name for path in files if path.stat().st_mtime == LONG_AGO}


def test_files_that_a_new_patch_does_not_touch_keep_their_dates(build: Path, tarball: Path, tmp_path: Path) -> None:
    kit.prepare_source(tarball, patch(tmp_path, "zwei"))
    age(kit.SOURCE)
    kit.prepare_source(tarball, patch(tmp_path, "zwei"))
    assert old(kit.SOURCE) == {"one", "two", "three"}
    (kit.SOURCE / "left-over").write_text("of another release")
    kit.prepare_source(tarball, patch(tmp_path, "deux"))
    assert (kit.SOURCE / "b/two").read_text() == "deux\n"
    assert old(kit.SOURCE) == {"one", "three"}
    assert {path.name for path in kit.SOURCE.rglob("*") if path.is_file()} == {"one", "two", "three"}


def test_a_source_that_a_killed_build_left_is_looked_at_again(build: Path, tarball: Path, tmp_path: Path) -> None:
    kit.prepare_source(tarball, patch(tmp_path, "zwei"))
    (build / "source.stamp").unlink()
    (build / "fresh").mkdir()
    (kit.SOURCE / "one").write_text("half")
    kit.prepare_source(tarball, patch(tmp_path, "zwei"))
    assert (kit.SOURCE / "one").read_text() == "one\n"
    assert not (build / "fresh").exists()


def test_a_patch_that_does_not_fit_leaves_the_source_as_it_was(build: Path, tarball: Path, tmp_path: Path) -> None:
    kit.prepare_source(tarball, [])
    wrong = tmp_path / "0001-wrong.patch"
    wrong.write_text((PATCH % "x").replace("-two", "-drei"))
    with pytest.raises(kit.KitError, match="patch"):
        kit.prepare_source(tarball, [wrong])
    assert (kit.SOURCE / "b/two").read_text() == "two\n"
    kit.prepare_source(tarball, [])
    assert (kit.SOURCE / "b/two").read_text() == "two\n"


def test_objects_go_on_from_where_a_build_with_the_same_tools_ended(build: Path) -> None:
    tree = build / "objects.base"
    kit.take_objects(tree)
    (kit.OBJECTS / "a.o").write_text("object")
    kit.OBJECTS.rename(tree)
    kit.take_objects(tree)
    assert (kit.OBJECTS / "a.o").exists()


def test_objects_of_other_tools_or_of_a_killed_build_are_of_no_use(build: Path) -> None:
    tree = build / "objects.base"
    kit.take_objects(tree)
    (kit.OBJECTS / "a.o").write_text("object")
    kit.OBJECTS.rename(tree)
    kit.PACKAGES.write_text("gcc 15")
    kit.take_objects(tree)
    assert not (kit.OBJECTS / "a.o").exists()
    (kit.OBJECTS / "half.o").write_text("ob")
    kit.take_objects(tree)
    assert not (kit.OBJECTS / "half.o").exists()


def test_the_twins_fragments_say_nothing_of_ukl_but_that_it_is_off(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "10-base.config", tmp_path / "more.config"
    ours.write_text("CONFIG_A=y\nCONFIG_UKL=y\nCONFIG_UKL_TEXT_MIB=64\n# CONFIG_UKL_BYP is not set\n# a remark\n")
    theirs.write_text("CONFIG_UKLELE=y\n# CONFIG_A is not set\n")
    found = twin.without_ukl([ours, theirs], tmp_path)
    assert [path.read_text() for path in found] == [
        "CONFIG_A=y\n# a remark\n",
        "CONFIG_UKLELE=y\n# CONFIG_A is not set\n",
        "# CONFIG_UKL is not set\n",
    ]
    assert kit.wanted_config(found) == {"CONFIG_A": "n", "CONFIG_UKLELE": "y", "CONFIG_UKL": "n"}
