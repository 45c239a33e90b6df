"""KERNEL --patches: the user's patches go on top of ours, in order and without fuzz. No kernel is built."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from uklimg.link import kit, override

pytestmark = pytest.mark.integration

MAKEFILE = "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 107\nEXTRAVERSION =\nNAME = Baby\n"
OURS = """--- a/Makefile
+++ b/Makefile
@@ -3,3 +3,4 @@
 SUBLEVEL = 107
 EXTRAVERSION =
 NAME = Baby
+UKL = ours
"""
FIRST = """From: somebody
Subject: [PATCH] after ours

--- a/Makefile
+++ b/Makefile
@@ -4,3 +4,4 @@
 EXTRAVERSION =
 NAME = Baby
 UKL = ours
+MINE = first
"""
SECOND = FIRST.replace("@@ -4,3 +4,4 @@\n EXTRAVERSION =\n", "@@ -5,3 +5,4 @@\n").replace(
    "+MINE = first", " MINE = first\n+MINE = second"
)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A kernel of one file, one patch of ours, an empty folder of the user's."""
    source = tmp_path / "linux-6.12.107"
    source.mkdir()
    (source / "Makefile").write_text(MAKEFILE)
    with tarfile.open(tmp_path / "linux.tar", "w") as archive:
        archive.add(source, "linux-6.12.107")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/0001-x86-ukl.patch").write_text(OURS)
    (tmp_path / "mine").mkdir()
    return tmp_path


def apply(world: Path) -> str:
    override.lay(world / "ours", world / "mine", world / "laid")
    kit.unpack(world / "linux.tar", sorted((world / "laid").glob("*.patch")), world / "unpacked")
    return (world / "unpacked/Makefile").read_text()


def test_by_name_after_ours(world: Path) -> None:
    (world / "mine/0001-first.patch").write_text(FIRST)
    (world / "mine/0002-second.diff").write_text(SECOND)
    (world / "mine/README").write_text("no patch")
    assert apply(world) == f"{MAKEFILE}UKL = ours\nMINE = first\nMINE = second\n"


def test_in_the_order_of_a_series(world: Path) -> None:
    (world / "mine/b.patch").write_text(FIRST)
    (world / "mine/a.patch").write_text(SECOND)
    (world / "mine/c.patch").write_text("not listed, not looked at")
    (world / "mine/series").write_text("# Debian's way\nb.patch -p1\na.patch # last\n")
    assert apply(world).endswith("MINE = first\nMINE = second\n")


def test_a_patch_that_nearly_fits_is_refused(world: Path) -> None:
    (world / "mine/0001-first.patch").write_text(FIRST.replace(" NAME = Baby\n", " NAME = Infant\n"))
    with pytest.raises(kit.KitError, match=r"patch .*x0001-0001-first\.patch failed"):
        apply(world)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "there is no patch in mine"),
        ({"a.patch": "hello\n"}, "mine/a.patch is not a patch"),
        ({"series": "gone.patch\n"}, "mine/series names gone.patch, which is not there"),
        ({"a.patch": "--- Makefile\n+++ Makefile\n"}, "is not a patch with names like a/"),
    ],
)
def test_folders_without_a_patch(world: Path, files: dict[str, str], problem: str) -> None:
    for name, text in files.items():
        (world / "mine" / name).write_text(text)
    with pytest.raises(kit.KitError, match=problem):
        apply(world)
