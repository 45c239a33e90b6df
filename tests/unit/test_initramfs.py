"""The initramfs: COPY's rules, and what the host function packs."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from uklimg.copyfiles import Place, copy_files, pattern
from uklimg.cpio import Entry, directory, regular, symlink
from uklimg.digest import Digest
from uklimg.errors import InternalError, Location, UserError
from uklimg.graph import ContextTree, Host, Inline, InlineFile, Output
from uklimg.guest.protocol import GuestConfig, Program, encode
from uklimg.initramfsbuild import initramfs, minimal_root
from uklimg.recipes.init import SOURCES, compile_cmd, init_step
from uklimg.recipes.initramfs import CopyInput, CopyParams, initramfs_step, params_of
from uklimg.roottree import Owner, RootTree
from uklimg.spec.model import Copy, HeredocFile

pytestmark = pytest.mark.unit

CONFIG = GuestConfig((Program("app"),))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "dir/sub").mkdir(parents=True)
    (root / "dir/a.txt").write_text("a")
    (root / "dir/sub/b.txt").write_text("b")
    (root / "dir/sub/c.md").write_text("c")
    (root / "dir/link").symlink_to("a.txt")
    (root / "top.txt").write_text("top")
    (root / "run.sh").write_text("#!")
    (root / "run.sh").chmod(0o755)
    (root / "to-top").symlink_to("top.txt")
    (root / "to-dir").symlink_to("/dir")
    return root


Copier = Callable[..., dict[str, Entry]]


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Copier:
    """Copy into a tree (a fresh one, or ``tree``) and return what is in it."""

    def do(
        *sources: str,
        dest: str,
        tree: RootTree | None = None,
        place: Place | None = None,
        chown: str = "",
        chmod: int | None = None,
        unpack: bool = False,
        parents: bool = False,
        exclude: tuple[str, ...] = (),
    ) -> dict[str, Entry]:
        tree = tree if tree is not None else RootTree()
        params = CopyParams(sources, (), dest, unpack, chown, chmod, parents, exclude, None)
        copy_files(tree, params, place or Place(source), None, tmp_path / "scratch")
        return {entry.path: entry for entry in tree.entries()}

    return do


def data(entry: Entry) -> bytes:
    assert entry.content is not None
    return b"".join(entry.content())


@pytest.mark.parametrize(
    ("sources", "dest", "paths"),
    [
        (["top.txt"], "/etc/new", ["etc", "etc/new"]),
        (["top.txt"], "/etc/", ["etc", "etc/top.txt"]),
        (["top.txt", "run.sh"], "/x", ["x", "x/run.sh", "x/top.txt"]),
        (["*.txt"], "/x/", ["x", "x/top.txt"]),
        (["d?r/*.txt"], "/x/", ["x", "x/a.txt"]),
        (["dir"], "/x", ["x", "x/a.txt", "x/link", "x/sub", "x/sub/b.txt", "x/sub/c.md"]),
        (["dir/sub/"], "/", ["b.txt", "c.md"]),
        (["to-top"], "/x", ["x"]),
        (["to-dir/sub"], "/x", ["x", "x/b.txt", "x/c.md"]),
        (["./dir/../top.txt"], "/x", ["x"]),
        (["../top.txt"], "/x", ["x"]),
    ],
)
def test_where_things_go(copy: Copier, sources: list[str], dest: str, paths: list[str]) -> None:
    assert sorted(copy(*sources, dest=dest)) == paths


def test_contents_modes_and_links(copy: Copier) -> None:
    found = copy(".", dest="/")
    assert data(found["dir/a.txt"]) == b"a"
    assert stat.S_IMODE(found["run.sh"].mode) == 0o755
    assert (found["dir/link"].target, found["to-dir"].target) == ("a.txt", "/dir")
    assert all((entry.uid, entry.gid) == (0, 0) for entry in found.values())


def test_a_link_as_a_source_is_followed_and_one_inside_a_folder_is_kept(copy: Copier) -> None:
    assert data(copy("to-top", dest="/x")["x"]) == b"top"
    assert stat.S_ISLNK(copy("dir", dest="/x")["x/link"].mode)


def test_destination_that_is_a_folder_or_leads_to_one(copy: Copier) -> None:
    tree = RootTree([directory("usr"), directory("usr/bin"), symlink("bin", "usr/bin"), symlink("sh", "/usr/bin/x")])
    assert "usr/bin/top.txt" in copy("top.txt", dest="/bin", tree=tree)
    assert data(copy("top.txt", dest="/sh", tree=tree)["usr/bin/x"]) == b"top", "written through the link"
    assert stat.S_ISLNK(copy("run.sh", dest="/bin/run", tree=tree)["bin"].mode)


def test_a_folder_keeps_its_mode_and_a_file_is_replaced(copy: Copier) -> None:
    tree = RootTree([directory("x", 0o700), regular("x/a.txt", b"old", 0o600)])
    found = copy("dir", dest="/x", tree=tree)
    assert stat.S_IMODE(found["x"].mode) == 0o700
    assert data(found["x/a.txt"]) == b"a"


@pytest.mark.parametrize(("words", "dest"), [(["top.txt"], "/file/x"), (["dir"], "/file")])
def test_what_does_not_fit_together(copy: Copier, words: list[str], dest: str) -> None:
    with pytest.raises(UserError, match="/file of the image is a file, not a folder"):
        copy(*words, dest=dest, tree=RootTree([regular("file", b"")]))


def test_a_folder_is_not_replaced_by_a_file(copy: Copier) -> None:
    with pytest.raises(UserError, match="is a folder, not a file"):
        copy("dir", dest="/x", tree=RootTree([directory("x"), directory("x/a.txt")]))


@pytest.mark.parametrize("word", ["none", "*.none", "dir/none", "none/*"])
def test_nothing_there(copy: Copier, word: str) -> None:
    with pytest.raises(UserError, match="nothing to copy"):
        copy(word, dest="/x")


def test_owner_and_mode(copy: Copier) -> None:
    tree = RootTree([directory("etc"), regular("etc/passwd", b"u:x:7:8::/:\n"), regular("etc/group", b"g:x:9:\n")])
    assert [tree.owner(text) for text in ("", "u", "u:g", "5", "5:g", "5:6", ":g")] == [
        Owner(0, 0),
        Owner(7, 8),
        Owner(7, 9),
        Owner(5, 5),
        Owner(5, 9),
        Owner(5, 6),
        Owner(0, 9),
    ]
    for text in ("nobody", "u:nobody"):
        with pytest.raises(UserError, match=r"no (user|group) 'nobody'"):
            tree.owner(text)
    found = copy("dir", dest="/x", tree=tree, chown="u:g", chmod=0o640)
    assert {(e.uid, e.gid) for p, e in found.items() if p.startswith("x")} == {(7, 9)}
    assert stat.S_IMODE(found["x/a.txt"].mode) == stat.S_IMODE(found["x/sub"].mode) == 0o640


def test_parents_and_exclude(copy: Copier) -> None:
    assert sorted(copy("dir/sub/b.txt", dest="/x/", parents=True)) == ["x", "x/dir", "x/dir/sub", "x/dir/sub/b.txt"]
    assert sorted(copy("dir/./sub/b.txt", dest="/x/", parents=True)) == ["x", "x/sub", "x/sub/b.txt"]
    assert "x/dir/sub/c.md" in copy("dir/sub", dest="/x/", parents=True)
    assert sorted(copy("dir", dest="/x", exclude=("*.md", "link", "a*"))) == ["x", "x/sub", "x/sub/b.txt"]
    assert "x/sub" not in copy("dir", dest="/x", exclude=("dir/sub",))


def test_only_what_the_context_lists_counts(source: Path, copy: Copier) -> None:
    place = Place(source, paths=("dir/sub/b.txt", "top.txt"))
    assert sorted(copy(".", dest="/", place=place)) == ["dir", "dir/sub", "dir/sub/b.txt", "top.txt"]
    with pytest.raises(UserError):
        copy("run.sh", dest="/x", place=place)


def test_hard_links(source: Path, copy: Copier) -> None:
    os.link(source / "top.txt", source / "same.txt")
    kept = copy("*.txt", dest="/x/", place=Place(source, links="1"))
    assert kept["x/top.txt"].link == kept["x/same.txt"].link != ""
    assert copy("*.txt", dest="/x/")["x/top.txt"].link == ""


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o640) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.gid = kind, target, mode, 3, 4
    return info


def test_add_unpacks_archives(source: Path, copy: Copier) -> None:
    archive(
        source / "a.tgz",
        (member("./d", tarfile.DIRTYPE, mode=0o750), b""),
        (member("d/f"), b"content"),
        (member("d/hard", tarfile.LNKTYPE, "d/f"), b""),
        (member("d/soft", tarfile.SYMTYPE, "/etc/f"), b""),
    )
    found = copy("a.tgz", dest="/x/", unpack=True)
    assert sorted(found) == ["x", "x/d", "x/d/f", "x/d/hard", "x/d/soft"]
    assert data(found["x/d/f"]) == b"content"
    assert (found["x/d/f"].uid, found["x/d/f"].gid, stat.S_IMODE(found["x/d/f"].mode)) == (3, 4, 0o640)
    assert found["x/d/hard"].link == found["x/d/f"].link != ""
    assert found["x/d/soft"].target == "/etc/f"
    assert sorted(copy("a.tgz", dest="/x/")) == ["x", "x/a.tgz"], "COPY does not unpack"
    assert sorted(copy("top.txt", dest="/x/", unpack=True)) == ["x", "x/top.txt"], "no archive, no unpacking"


@pytest.mark.parametrize(
    "info",
    [
        member("../f"),
        member("/f"),
        member("a/../../f"),
        member("f", tarfile.LNKTYPE, "/etc/passwd"),
        member("f", tarfile.LNKTYPE, "nothing"),
        member("f", tarfile.CHRTYPE),
    ],
)
def test_hostile_archives(source: Path, copy: Copier, info: tarfile.TarInfo) -> None:
    archive(source / "bad.tgz", (info, b""))
    with pytest.raises(UserError, match=r"bad\.tgz"):
        copy("bad.tgz", dest="/x/", unpack=True)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("*.c", ["a.c", ".c"], ["a/b.c", "a.cc"]),
        ("**/*.c", ["b.c", "a/b.c", "x/y/b.c"], ["b.h"]),
        ("a?b", ["axb"], ["a/b", "ab"]),
        ("[a-c]x", ["ax", "cx"], ["dx"]),
        ("[^a]x", ["bx"], ["ax", "/x"]),
        (r"\*", ["*"], ["a"]),
        ("a+(b)", ["a+(b)"], ["aab"]),
        ("[", ["["], ["a"]),
    ],
)
def test_patterns(text: str, yes: list[str], no: list[str]) -> None:
    assert all(pattern(text).fullmatch(name) for name in yes)
    assert not any(pattern(text).fullmatch(name) for name in no)


def test_link_loops_end() -> None:
    tree = RootTree([symlink("a", "b"), symlink("b", "a")])
    with pytest.raises(UserError, match="too many symbolic links"):
        tree.resolve("a/x")
    assert RootTree([symlink("up", "../../..")]).resolve("up/etc/../x") == "x"


def spec_copy(**fields: object) -> Copy:
    values: dict[str, object] = {"sources": (), "files": (), "dest": "/", **fields}
    return Copy(Location("Uklfile", 7), **values)  # type: ignore[arg-type]


def test_the_steps() -> None:
    context = ContextTree(Digest.of(b"x"), "/somewhere", ("redis.conf",))
    step = initramfs_step(
        init="init",
        programs={"redis": None, "plain": Output("app", "bin")},
        config=CONFIG,
        copies=[
            CopyInput(spec_copy(sources=("redis.conf",), dest="/etc/"), context),
            CopyInput(spec_copy(files=(HeredocFile("motd", b"hi"),), dest="/etc/motd"), None),
        ],
        trees=(Output("userland"),),
        folders=("/data",),
    )
    assert set(step.inputs) == {"init", "config", "program:plain", "tree:0", "copy:0", "files:1"}
    assert step.inputs["init"] == Output("init", "init")
    assert isinstance(step.action, Host)
    params = params_of(step.action.params)
    assert (params.programs, params.trees, params.folders) == (("plain", "redis"), 1, ("/data",))
    assert params.copies[0].paths == ("redis.conf",)
    assert "/somewhere" not in str(step.action) and "Uklfile" not in str(step.action)
    with pytest.raises(UserError):
        initramfs_step(init="init", programs={"a/b": None}, config=CONFIG)
    with pytest.raises(InternalError):
        params_of({"programs": "x"})
    compile_step = init_step("base:x", dict.fromkeys(SOURCES, b"int main;"))
    assert compile_step.needs() == ("base:x",)
    assert "-static" in compile_cmd("a", "b")


def test_host_function(tmp_path: Path, source: Path) -> None:
    (tmp_path / "init").write_bytes(b"INIT")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/run.conf").write_bytes(encode(CONFIG))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/motd").write_text("hi")
    step = initramfs_step(
        init="init",
        programs={"app": None},
        config=CONFIG,
        copies=[
            CopyInput(spec_copy(sources=("dir",), dest="/srv"), Output("stage")),
            CopyInput(spec_copy(files=(HeredocFile("motd", b"hi"),), dest="/etc/motd"), None),
        ],
        folders=("/data", "/var/lib/x"),
    )
    assert isinstance(step.action, Host)
    inputs = {
        "init": tmp_path / "init",
        "config": tmp_path / "config",
        "copy:0": source,
        "files:1": tmp_path / "files",
    }
    archives = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        initramfs(inputs, tmp_path / name, step.action.params)
        archives.append((tmp_path / name / "initramfs.cpio").read_bytes())
        os.utime(source / "dir/a.txt", (1, 1))
    assert archives[0] == archives[1], "time stamps of sources do not matter"
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=archives[0], capture_output=True, check=True)
    names = set(listed.stdout.decode().split())
    assert {entry.path for entry in minimal_root()} <= names
    assert {"init", "ukl/app", "etc/uklimg/run.conf", "srv/sub/b.txt", "etc/motd", "data", "var/lib/x"} <= names
    assert b"\x7fUKL1\napp\n" in archives[0]
    modes = subprocess.run(["cpio", "-tv", "--quiet"], input=archives[0], capture_output=True, check=True)
    (root,) = [line.split() for line in modes.stdout.decode().splitlines() if line.endswith(" .")]
    assert (root[0], root[2], root[3]) == ("drwxr-xr-x", "root", "root"), "nobody but root writes into /"


@pytest.mark.parametrize(("dest", "path"), [("/init", "/init"), ("/ukl/app", "/ukl/app"), ("/ukl", "/ukl/top.txt")])
def test_what_is_ours_cannot_be_copied_over(tmp_path: Path, source: Path, dest: str, path: str) -> None:
    (tmp_path / "init").write_bytes(b"INIT")
    step = initramfs_step(
        init="init",
        programs={"app": None},
        config=CONFIG,
        copies=[CopyInput(spec_copy(sources=("top.txt",), dest=dest), Inline((InlineFile("x", b""),)))],
    )
    assert isinstance(step.action, Host)
    inputs = {"init": tmp_path / "init", "config": tmp_path, "copy:0": source}
    with pytest.raises(UserError, match=f"COPY to {path}, which uklimg makes itself"):
        initramfs(inputs, tmp_path, step.action.params)
