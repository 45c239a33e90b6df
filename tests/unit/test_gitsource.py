"""Commits as tars: names, the environment for git, the bytes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from uklimg.digest import Digest
from uklimg.errors import CorruptError, UserError
from uklimg.gitsource import _parse_tree, fetch_cmd, git_env, origin, split_origin, tar_name, write_tar
from uklimg.store import Layout

pytestmark = pytest.mark.unit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ONE, TWO, LINK = "1" * 40, "2" * 40, "3" * 40
TREE = (
    f"100644 blob {ONE}\ta/plain\x00100755 blob {TWO}\ta/run\x00"
    f"120000 blob {LINK}\tlink\x00160000 commit {ONE}\tsub\x00"
).encode()
BATCH = f"{ONE} blob 3\none\n{TWO} blob 0\n\n{LINK} blob 7\na/plain\n".encode()


def packed(tmp_path: Path, tree: bytes = TREE, batch: bytes = BATCH) -> tuple[Digest, tarfile.TarFile]:
    layout = Layout(tmp_path / "store")
    entries, submodules = _parse_tree(tree)
    with layout.writer() as writer:
        write_tar("x-1", entries, submodules, io.BytesIO(batch), writer)
        digest = writer.commit().digest
    return digest, tarfile.open(layout.blob_path(digest))


def test_the_tar(tmp_path: Path) -> None:
    digest, archive = packed(tmp_path)
    found = [(info.name, info.type, info.mode, info.linkname, info.size) for info in archive]
    assert found == [
        ("x-1", tarfile.DIRTYPE, 0o755, "", 0),
        ("x-1/a", tarfile.DIRTYPE, 0o755, "", 0),
        ("x-1/a/plain", tarfile.REGTYPE, 0o644, "", 3),
        ("x-1/a/run", tarfile.REGTYPE, 0o755, "", 0),
        ("x-1/link", tarfile.SYMTYPE, 0o777, "a/plain", 0),
        ("x-1/sub", tarfile.DIRTYPE, 0o755, "", 0),
    ]
    assert all((info.uid, info.gid, info.mtime) == (0, 0, 1735689600) for info in archive.getmembers())
    content = archive.extractfile("x-1/a/plain")
    assert content is not None and content.read() == b"one"
    # The form is part of every lock: other bytes here are other digests there.
    assert digest.hex == "bc694c2aeaa8873754c854293a1c4e6b2b7c014c9a6e47d006286efaa356809f"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"a/plain", b"../plain"),
        (b"a/plain", b"/plain"),
        (b"a/plain", b"a//plain"),
        (b"100644 blob", b"100644 tree"),
        (b"100644 blob", b"100777 blob"),
    ],
)
def test_odd_trees(tmp_path: Path, old: bytes, new: bytes) -> None:
    with pytest.raises(CorruptError):
        packed(tmp_path, TREE.replace(old, new, 1))


def test_objects_that_git_does_not_give(tmp_path: Path) -> None:
    for batch in (BATCH.replace(b"1 blob 3", b"1 missing"), BATCH.replace(b"blob 3", b"blob 2"), BATCH[:50], b""):
        with pytest.raises((CorruptError, OSError)):
            packed(tmp_path, batch=batch)


def test_names() -> None:
    assert tar_name("https://example.org/team/thing.git", COMMIT) == "thing-0123456789ab.tar"
    assert tar_name("https://example.org/a%20b/", COMMIT) == "a-b-0123456789ab.tar"
    assert tar_name("https://example.org/...git", COMMIT) == "source-0123456789ab.tar"
    assert split_origin(origin("https://example.org/x.git", COMMIT)) == ("https://example.org/x.git", COMMIT)
    for text in ("git+https://example.org/x#v1", "https://example.org/x", f"git+#{COMMIT}"):
        with pytest.raises(UserError):
            split_origin(text)


def test_git_sees_nobodys_settings(tmp_path: Path) -> None:
    env = git_env({"PATH": "/bin", "HOME": "/root", "https_proxy": "http://proxy:1"}, tmp_path)
    assert env["HOME"] == env["XDG_CONFIG_HOME"] == str(tmp_path)
    assert env["GIT_CONFIG_GLOBAL"] == "/dev/null" and env["GIT_CONFIG_NOSYSTEM"] == "1"
    assert env["GIT_ALLOW_PROTOCOL"] == "http:https" and env["GIT_TERMINAL_PROMPT"] == "0"
    assert env["https_proxy"] == "http://proxy:1"


def test_what_a_url_begins_with_is_no_option(tmp_path: Path) -> None:
    command = fetch_cmd(tmp_path, "--upload-pack=evil", COMMIT, shallow=True)
    assert command[-3:] == ["--", "--upload-pack=evil", COMMIT] and "--depth=1" in command
