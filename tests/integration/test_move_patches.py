"""The tool that moves patches to another release, on a small source of our own."""

from __future__ import annotations

import importlib.util
import os
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from uklimg import proc
from uklimg.digest import Digest
from uklimg.errors import ToolError, UserError
from uklimg.lock import LockedFile
from uklimg.patchset import PatchSet, parse_patchset

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
ENV = proc.host_env(os.environ)
OLD = "".join(f"line {n}\n" for n in range(30))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("move_patches", ROOT / "scripts/move_patches.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def source(folder: Path, name: str, text: str) -> Path:
    tree = folder / name / f"linux-{name}"
    (tree / "kernel").mkdir(parents=True)
    (tree / "kernel/a.c").write_text(text)
    (tree / "README").write_text("not touched\n")
    with tarfile.open(folder / f"{name}.tar.xz", "w:xz") as tar:
        tar.add(tree, arcname=tree.name)
    return folder / f"{name}.tar.xz"


@pytest.fixture
def patches(tool: ModuleType, tmp_path: Path) -> PatchSet:
    """One that changes a line and adds a file, one that changes the added file."""
    repository = tmp_path / "authors"
    repository.mkdir()
    tool.git(repository, ENV, "init", "--quiet")
    tool.commit_files(repository, ENV, source(tmp_path, "1", OLD), ["kernel/a.c"], tool.NEW)
    tool.git(repository, ENV, "checkout", "--quiet", "-b", tool.WORK)
    states = [{"kernel/a.c": OLD.replace("line 20\n", "our 20\n"), "b.c": "one\n"}, {"b.c": "one\ntwo\n"}]
    for number, state in enumerate(states, 1):
        for name, text in state.items():
            (repository / name).write_text(text)
        tool.git(repository, ENV, "add", "--all")
        message = f"topic {number}\n\nWhy it is so.\n\nUpstream: none (a test)\nSigned-off-by: A <a@example.org>\n"
        tool.git(repository, ENV, "commit", "--quiet", f"--message={message}")
    return parse_patchset(tool.export(repository, ENV))


def test_patches_go_over_to_a_source_with_other_lines(tool: ModuleType, patches: PatchSet, tmp_path: Path) -> None:
    new = "new first line\n" + OLD.replace("line 3\n", "line three\n")
    (work := tmp_path / "work").mkdir()
    tool.rebase(work, ENV, patches, tmp_path / "1.tar.xz", source(tmp_path, "2", new))
    moved = parse_patchset(tool.export(work, ENV))
    assert [p.name for p in moved.patches] == [p.name for p in patches.patches]
    assert moved.patches[0].content != patches.patches[0].content
    # With zero fuzz and no offset, as a build applies them.
    tree = tmp_path / "2/linux-2"
    for patch in moved.patches:
        (tmp_path / patch.name).write_bytes(patch.content)
        applied = proc.run(["patch", "-p1", "--fuzz=0", "-d", str(tree), "-i", str(tmp_path / patch.name)], env=ENV)
        assert "offset" not in applied.text
    assert (tree / "kernel/a.c").read_text() == new.replace("line 20\n", "our 20\n")
    assert (tree / "b.c").read_text() == "one\ntwo\n"


def test_a_conflict_names_the_file_and_can_be_resolved(tool: ModuleType, patches: PatchSet, tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    new = source(tmp_path, "2", OLD.replace("line 20\n", "their 20\n"))
    with pytest.raises(ToolError, match=r"does not go over: kernel/a\.c"):
        tool.rebase(work, ENV, patches, tmp_path / "1.tar.xz", new)
    (work / "kernel/a.c").write_text(OLD.replace("line 20\n", "our 20 and theirs\n"))
    tool.git(work, ENV, "add", "--all")
    tool.git(work, ENV, "-c", "core.editor=true", "rebase", "--continue")
    moved = parse_patchset(tool.export(work, ENV))
    assert b"+our 20 and theirs\n" in moved.patches[0].content and len(moved.patches) == 2


def test_the_definition_follows_and_keeps_its_comments(tool: ModuleType, patches: PatchSet, tmp_path: Path) -> None:
    series = tmp_path / "6.12"
    (series / "patches").mkdir(parents=True)
    (series / "patches/0009-old.patch").write_text("")
    (series / "source.toml").write_text((ROOT / "kernel/6.12/source.toml").read_text())
    file = LockedFile("linux_6.12.999.orig.tar.xz", Digest("ab" * 32), 7, "debian:pool/linux_6.12.999.orig.tar.xz")
    tool.write(series, {p.name: p.content for p in patches.patches}, "6.12.999", file)
    text = (series / "source.toml").read_text()
    assert text.startswith("# The Linux source under our patches.")
    assert 'version = "6.12.999"' in text and f'sha256 = "{"ab" * 32}"' in text and "size = 7" in text
    assert sorted(p.name for p in (series / "patches").iterdir()) == [p.name for p in patches.patches]


def test_a_tarball_that_one_has(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "linux-source-6.12.tar.xz").write_bytes(b"abc")
    file = tool.local_file(tmp_path / "linux-source-6.12.tar.xz", "https://example.org/linux-source-6.12.tar.xz")
    assert (file.name, file.size, file.origin) == (
        "linux-source-6.12.tar.xz",
        3,
        "https://example.org/linux-source-6.12.tar.xz",
    )
    assert file.digest == Digest("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    with pytest.raises(UserError, match=r"none\.tar\.xz: No such file"):
        tool.local_file(tmp_path / "none.tar.xz", "https://example.org/none.tar.xz")
