"""A Uklfile's surroundings: links of the context, the image's default name, the lock file."""

from __future__ import annotations

from pathlib import Path

import pytest

from uklimg.context import open_context
from uklimg.data import Data, find_data
from uklimg.errors import ToolError, UserError
from uklimg.lock import Lock, parse_lock
from uklimg.plan import Selected
from uklimg.project import open_project, selected, write_lock

pytestmark = pytest.mark.unit

UKLFILE = "FROM debian:trixie AS build\nRUN make\nFROM ukl:6.12\nLINK --from=build /p\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "My Context"
    (root / "real").mkdir(parents=True)
    (root / "real/file").write_text("x")
    (root / "v1.conf").write_text("x")
    (root / "a*b").write_text("x")
    (root / "latest.conf").symlink_to("v1.conf")
    (root / "link").symlink_to("real")
    return root


def select(folder: Path, *sources: str) -> Selected:
    return selected(open_context(folder).select(sources), sources)


@pytest.mark.parametrize(
    ("sources", "paths"),
    [
        (("v1.conf",), ("v1.conf",)),
        (("real/file", "v1.conf"), ("real/file", "v1.conf")),
        ((".",), (".",)),
        (("v*", "re*/f?le"), ("v1.conf", "real/file")),
        (("none*",), ()),
        (("a\\*b",), ("a\\*b",)),
        (("link",), ("real",)),
        (("link/file", "lin*/f*"), ("real/file", "real/file")),
        (("real/./file",), ("real/./file",)),
    ],
)
def test_sources_are_what_they_stand_for(folder: Path, sources: tuple[str, ...], paths: tuple[str, ...]) -> None:
    found = select(folder, *sources)
    assert found.sources == paths
    assert found.renamed == ()


def test_a_link_to_a_file_of_another_name_is_noticed(folder: Path) -> None:
    found = select(folder, "latest.conf")
    assert found.sources == ("v1.conf",)
    assert found.renamed == ("latest.conf",)
    assert select(folder, "l*").renamed == ("latest.conf",)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("", "my-context:latest"),
        ("LABEL org.opencontainers.image.title='The Redis!'\n", "the-redis:latest"),
        ("LABEL org.opencontainers.image.title=---\n", "my-context:latest"),
    ],
)
def test_the_default_name(folder: Path, label: str, name: str) -> None:
    (folder / "Uklfile").write_text(UKLFILE + label)
    project = open_project(folder / "Uklfile", folder, {}, Data(find_data()))
    assert project.name_of() == name
    assert project.lock == Lock()
    assert project.lock_path == folder / "Uklfile.lock"


def test_a_lock_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "Uklfile.lock"
    path.write_text("old")
    write_lock(path, Lock())
    assert parse_lock(path.read_text()) == Lock()
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="cannot write"):
        write_lock(tmp_path / "gone" / "Uklfile.lock", Lock())


def test_a_lock_alone_is_no_uklfile(tmp_path: Path) -> None:
    (tmp_path / "Uklfile.lock").write_text("")
    with pytest.raises(UserError) as caught:
        open_project(tmp_path / "Uklfile", tmp_path, {}, Data(find_data()))
    assert caught.value.hint.startswith("-f FILE names another; `uklimg init`")
    (tmp_path / "UkIfile").write_text("")
    with pytest.raises(UserError) as caught:
        open_project(tmp_path / "Uklfile", tmp_path, {}, Data(find_data()))
    assert caught.value.hint == "did you mean UkIfile?"
