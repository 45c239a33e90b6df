"""Deterministic archives, and what they refuse."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.oci import EPOCH
from uklimg.store import trees

pytestmark = pytest.mark.unit


def pack(folder: Path) -> bytes:
    out = io.BytesIO()
    trees.pack(folder, out)
    return out.getvalue()


def fill(folder: Path, order: int) -> None:
    """The same tree, made in another order with other dates."""
    folder.mkdir()
    steps: list[Callable[[], object]] = [
        lambda: (folder / "b").mkdir(),
        lambda: (folder / "a-file").write_bytes(b"content"),
        lambda: (folder / "tool").write_bytes(b"#!/bin/sh\n"),
        lambda: (folder / "link").symlink_to("b/../a-file"),
        lambda: (folder / ("long-" * 40)).write_bytes(b""),
        lambda: (folder / "nämé").write_bytes(b"u"),
    ]
    for step in steps[order:] + steps[:order]:
        step()
    (folder / "b" / "inner").write_bytes(b"i" * 1000)
    (folder / "tool").chmod(0o755)
    os.link(folder / "b" / "inner", folder / "same")
    os.utime(folder / "a-file", (order * 1000, order * 1000))


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name: info for info in archive}


def test_equal_trees_have_equal_bytes(tmp_path: Path) -> None:
    packed = []
    for order in range(3):
        fill(tmp_path / str(order), order)
        packed.append(pack(tmp_path / str(order)))
    assert len(set(packed)) == 1
    found = members(packed[0])
    assert list(found) == sorted(found, key=lambda name: name.encode())
    assert {(info.uid, info.gid, info.uname, info.gname, info.mtime) for info in found.values()} == {
        (0, 0, "", "", EPOCH)
    }
    assert found["tool"].mode == 0o755
    assert (found["same"].type, found["same"].linkname) == (tarfile.LNKTYPE, "b/inner")


def test_unpack_gives_back_what_pack_settled(tmp_path: Path) -> None:
    fill(tmp_path / "one", 0)
    data = pack(tmp_path / "one")
    trees.settle(tmp_path / "one")
    (tmp_path / "two").mkdir()
    trees.unpack(io.BytesIO(data), tmp_path / "two")
    assert trees.fingerprint(tmp_path / "one") == trees.fingerprint(tmp_path / "two")
    assert pack(tmp_path / "two") == data
    assert (tmp_path / "two" / "same").stat().st_ino == (tmp_path / "two" / "b" / "inner").stat().st_ino


def test_only_long_or_odd_names_get_extended_headers(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "plain").write_bytes(b"")
    assert b"PaxHeader" not in pack(tmp_path / "t")
    (tmp_path / "t" / ("x" * 120)).write_bytes(b"")
    assert b"PaxHeader" in pack(tmp_path / "t")


@pytest.mark.parametrize("change", ["content-size", "mode", "extra", "gone", "link"])
def test_fingerprint_sees_changes(tmp_path: Path, change: str) -> None:
    tree = tmp_path / "t"
    fill(tree, 0)
    trees.settle(tree)
    before = trees.fingerprint(tree)
    match change:
        case "content-size":
            (tree / "a-file").write_bytes(b"")
        case "mode":
            (tree / "a-file").chmod(0o600)
        case "extra":
            (tree / "new").mkdir()
        case "gone":
            (tree / "tool").unlink()
        case _:
            (tree / "link").unlink()
            (tree / "link").symlink_to("b")
            os.utime(tree / "link", (EPOCH, EPOCH), follow_symlinks=False)
    assert trees.fingerprint(tree) != before


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "b/../../x", "b/../.."])
def test_pack_refuses_links_that_leave_the_tree(tmp_path: Path, target: str) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "link").symlink_to(target)
    with pytest.raises(ToolError, match="leaves its tree") as caught:
        pack(tmp_path / "t")
    assert caught.value.exit_code is ExitCode.STEP


def test_pack_refuses_what_is_no_file(tmp_path: Path) -> None:
    tree = tmp_path / "t"
    tree.mkdir()
    os.mkfifo(tree / "pipe")
    with pytest.raises(ToolError, match="pipe, which is a device, pipe or socket"):
        pack(tree)
    (tree / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "sock"))
        with pytest.raises(ToolError, match="sock, which is"):
            pack(tree)


def archive_of(*infos: tarfile.TarInfo, content: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info in infos:
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


EVIL = {
    "absolute": [info("/etc/cron.d/x")],
    "climbs": [info("../x")],
    "climbs inside": [info("a", tarfile.DIRTYPE), info("a/../../x")],
    "through a link": [info("l", tarfile.SYMTYPE, "."), info("l/x")],
    "link out": [info("l", tarfile.SYMTYPE, "../../etc")],
    "absolute link": [info("l", tarfile.SYMTYPE, "/etc")],
    "empty link": [info("l", tarfile.SYMTYPE, "")],
    "hard link out": [info("h", tarfile.LNKTYPE, "../../../etc/passwd")],
    "hard link to a link": [info("l", tarfile.SYMTYPE, "x"), info("h", tarfile.LNKTYPE, "l")],
    "hard link to nothing": [info("h", tarfile.LNKTYPE, "x")],
    "device": [info("d", tarfile.CHRTYPE)],
    "pipe": [info("p", tarfile.FIFOTYPE)],
    "twice": [info("x"), info("x")],
    "over a folder": [info("x", tarfile.DIRTYPE), info("x")],
    "no folder": [info("a/x")],
}


@pytest.mark.parametrize("case", sorted(EVIL))
def test_unpack_refuses(tmp_path: Path, case: str) -> None:
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(CorruptError):
        trees.unpack(io.BytesIO(archive_of(*EVIL[case])), target)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["target"]


def test_unpack_refuses_what_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="not a tar archive"):
        trees.unpack(io.BytesIO(b"not a tar archive" * 100), tmp_path)


@settings(deadline=None)
@given(st.text(alphabet="ab./\\\0\n", max_size=12))
def test_checked_names_stay_below(name: str) -> None:
    try:
        clean = trees.check_name(name, CorruptError)
    except CorruptError:
        return
    assert not clean.startswith("/") and "\0" not in clean
    assert not {"..", "."} & set(clean.split("/"))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "..", ".", ""]), min_size=1, max_size=6), st.integers(0, 3))
def test_checked_links_stay_below(parts: list[str], depth: int) -> None:
    name, target = "/".join(["d"] * depth + ["link"]), "/".join(parts)
    try:
        trees.check_link(name, target, CorruptError)
    except CorruptError:
        return
    root = "/r"
    for end in range(1, len(parts) + 1):  # no prefix of it climbs above the root either
        reached = os.path.normpath("/".join([root, *["d"] * depth, *parts[:end]]))
        assert reached == root or reached.startswith(root + "/")


# Layers of root file systems


def layer(tmp_path: Path, *infos: tarfile.TarInfo, content: bytes = b"data") -> Path:
    path = tmp_path / "layer.tar"
    path.write_bytes(archive_of(*infos, content=content))
    return path


def canonical(path: Path, drop: tuple[str, ...] = ()) -> bytes:
    out = io.BytesIO()
    trees.canonical_layer(path, out, drop)
    return out.getvalue()


def test_a_layer_keeps_owners_modes_devices_and_whiteouts(tmp_path: Path) -> None:
    file, folder, device = info("./d/f"), info("./d/", tarfile.DIRTYPE), info("./dev0", tarfile.BLKTYPE)
    file.uid, file.gid, file.mode, file.uname, file.mtime = 1000, 33, 0o4755, "builder", 5
    folder.mode = 0o1777
    device.devmajor, device.devminor = 8, 1
    whiteout = info("d/.wh.gone")
    whiteout.mode = 0o600  # Docker's; buildah's have none
    found = members(canonical(layer(tmp_path, file, device, folder, whiteout)))
    assert list(found) == ["d", "d/.wh.gone", "d/f", "dev0"]
    made = found["d/f"]
    assert (made.uid, made.gid, made.mode, made.uname, made.mtime) == (1000, 33, 0o4755, "", EPOCH)
    assert found["d"].mode == 0o1777
    assert (found["d/.wh.gone"].mode, found["d/.wh.gone"].size) == (0, 0)
    assert (found["dev0"].type, found["dev0"].devmajor, found["dev0"].devminor) == (tarfile.BLKTYPE, 8, 1)


def test_hard_links_follow_the_first_name_whichever_it_was(tmp_path: Path) -> None:
    one = canonical(layer(tmp_path, info("z"), info("a", tarfile.LNKTYPE, "z"), info("m", tarfile.LNKTYPE, "./z")))
    two = canonical(layer(tmp_path, info("a"), info("m", tarfile.LNKTYPE, "a"), info("z", tarfile.LNKTYPE, "a")))
    assert one == two
    found = members(one)
    assert found["a"].isreg() and found["a"].size == 4
    assert [(found[n].type, found[n].linkname) for n in ("m", "z")] == [(tarfile.LNKTYPE, "a")] * 2


def test_a_hard_link_to_a_lower_layer_stays(tmp_path: Path) -> None:
    found = members(canonical(layer(tmp_path, info("new", tarfile.LNKTYPE, "usr/bin/old"))))
    assert (found["new"].type, found["new"].linkname) == (tarfile.LNKTYPE, "usr/bin/old")


def test_what_an_engine_makes_is_dropped_unless_something_is_in_it(tmp_path: Path) -> None:
    folders = [info(name, tarfile.DIRTYPE) for name in ("dev", "etc", "in", "in/a", "in/b", "run", "run/kept", "src")]
    path = layer(tmp_path, *folders, info("etc/hostname"), info("etc/hosts"), content=b"")
    drop = ("dev", "run", "proc", "etc/hostname", "etc/hosts", "in/a", "/in/b/", "run/mounted")
    assert list(members(canonical(path, drop))) == ["run", "run/kept", "src"]
    with_content = layer(tmp_path, info("etc", tarfile.DIRTYPE), info("etc/hosts"), content=b"127.0.0.1 x\n")
    assert list(members(canonical(with_content, drop))) == ["etc", "etc/hosts"]


def test_the_linkers_private_cache_is_left_out(tmp_path: Path) -> None:
    names = ("var", "var/cache", "var/cache/ldconfig")
    path = layer(tmp_path, *(info(n, tarfile.DIRTYPE) for n in names), info("var/cache/ldconfig/aux-cache"))
    assert list(members(canonical(path))) == list(names)


def test_capabilities_of_files_stay_other_attributes_go(tmp_path: Path) -> None:
    file = info("ping")
    file.pax_headers = {"SCHILY.xattr.security.capability": "cap", "SCHILY.xattr.user.x": "y", "mtime": "1.5"}
    assert members(canonical(layer(tmp_path, file)))["ping"].pax_headers == {
        "SCHILY.xattr.security.capability": "cap"
    }


def test_a_layer_that_climbs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="leaves its archive"):
        canonical(layer(tmp_path, info("../x")))
