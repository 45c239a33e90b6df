"""How our glibc is built: commands, and what stands for its archives."""

from __future__ import annotations

from pathlib import Path

import pytest

from uklimg.inside import glibc
from uklimg.recipes import toolchain
from uklimg.toolchain import driver

pytestmark = pytest.mark.unit

TREE, BUILD = Path("/w/source"), Path("/w/build")


def test_the_target_is_found_by_the_vendor() -> None:
    cmd = glibc.configure_cmd(TREE, BUILD)
    assert cmd[0] == "/w/source/configure"
    assert {f"--host={toolchain.TRIPLET}", f"--build={toolchain.TRIPLET}"} <= set(cmd), "no cross build"
    flags = next(word for word in cmd if word.startswith("CFLAGS="))
    assert "-ffile-prefix-map=/w/build=build" in flags and "-ffile-prefix-map=/w/source=glibc" in flags


def test_only_static_objects_are_built() -> None:
    first, *others = glibc.make_cmds(TREE, BUILD, 7)
    assert first == ["make", "-j7", "csu/subdir_lib", "object-suffixes=.o"], "it also makes the headers"
    assert all("build-shared=no" in cmd and "-j7" in cmd for cmd in others)
    made = {word for cmd in others for word in cmd if word.endswith(".a")}
    assert made == {str(BUILD / path) for name, path in glibc.WANTED.items() if "/" in path and name.endswith(".a")}


def test_what_stands_for_archives_names_them_where_they_will_lie() -> None:
    assert glibc.group("/home/a.a", "/home/b.a").splitlines()[-1] == "GROUP ( /home/a.a /home/b.a )"


def test_a_build_that_lacks_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "build/csu").mkdir(parents=True)
    for name in ("crt1.o", "crti.o", "crtn.o"):
        (tmp_path / "build/csu" / name).write_bytes(b"")
    (tmp_path / "out").mkdir()
    with pytest.raises(glibc.GlibcError, match=r"the build has not made libc\.a"):
        glibc.collect(tmp_path / "build", tmp_path / "out", "/home")


def test_the_wrapper_links_what_lies_beside_it(tmp_path: Path) -> None:
    assert driver.libc_options(str(tmp_path / "libc")) == []
    (tmp_path / "libc").mkdir()
    assert driver.libc_options(str(tmp_path / "libc")) == [f"-B{tmp_path}/libc/"]
    assert f"/{toolchain.HOME}/libc" == toolchain.LIBC
