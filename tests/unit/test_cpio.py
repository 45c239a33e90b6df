"""The cpio writer against the format's text and against GNU cpio."""

from __future__ import annotations

import io
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from uklimg import cpio
from uklimg.errors import InternalError, UserError

pytestmark = pytest.mark.unit

MTIME = 1735689600


def archive(*entries: cpio.Entry) -> bytes:
    out = io.BytesIO()
    size = cpio.write(entries, out, mtime=MTIME)
    assert size == len(out.getvalue())
    return out.getvalue()


def parsed(data: bytes) -> list[tuple[str, dict[str, int], bytes]]:
    """A reader of its own: (name, fields, contents) up to the trailer."""
    names = ["ino", "mode", "uid", "gid", "nlink", "mtime", "size"]
    names += ["devmajor", "devminor", "rmajor", "rminor", "namesize", "check"]
    found: list[tuple[str, dict[str, int], bytes]] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        values = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        fields = dict(zip(names, values, strict=True))
        name = data[at + 110 : at + 110 + fields["namesize"] - 1].decode()
        at += -(-(110 + fields["namesize"]) // 4) * 4
        content = data[at : at + fields["size"]]
        at += -(-fields["size"] // 4) * 4
        if name == "TRAILER!!!":
            assert not data[at:].strip(b"\0")
            return found
        found.append((name, fields, content))


def test_fields_of_each_type() -> None:
    data = archive(
        cpio.directory("dev"),
        cpio.character_device("dev/console", 5, 1),
        cpio.directory("etc", 0o700, 3, 4),
        cpio.regular("etc/f", b"hello", 0o4755, 1, 2),
        cpio.symlink("etc/l", "../x"),
    )
    assert len(data) % 512 == 0
    entries = {name: (fields, content) for name, fields, content in parsed(data)}
    assert entries["dev/console"][0]["mode"] == stat.S_IFCHR | 0o600
    assert (entries["dev/console"][0]["rmajor"], entries["dev/console"][0]["rminor"]) == (5, 1)
    fields, content = entries["etc/f"]
    assert (fields["mode"], fields["uid"], fields["gid"], content) == (stat.S_IFREG | 0o4755, 1, 2, b"hello")
    assert entries["etc"][0]["mode"] == stat.S_IFDIR | 0o700
    assert entries["etc/l"] == (entries["etc/l"][0], b"../x")
    assert all(fields["mtime"] == MTIME and fields["devmajor"] == 0 for fields, _ in entries.values())
    assert [fields["ino"] for fields, _ in entries.values()] == [1, 2, 3, 4, 5]


def test_order_of_entries_does_not_matter() -> None:
    entries = [cpio.directory("a"), cpio.regular("a/b", b"1"), cpio.regular("a-b", b"2"), cpio.regular("a.c", b"3")]
    expected = archive(*entries)
    for seed in range(5):
        random.Random(seed).shuffle(entries)
        assert archive(*entries) == expected
    assert [name for name, _, _ in parsed(expected)] == ["a", "a-b", "a.c", "a/b"]


def test_hard_links_share_an_inode_and_the_last_has_the_contents() -> None:
    def linked(path: str) -> cpio.Entry:
        return cpio.Entry(path, stat.S_IFREG | 0o644, size=3, content=lambda: (b"abc",), link="x")

    found = parsed(archive(linked("b"), linked("a"), cpio.regular("c", b"other"), linked("d")))
    links = [(name, fields["ino"], fields["nlink"], content) for name, fields, content in found]
    assert links == [("a", 1, 3, b""), ("b", 1, 3, b""), ("c", 2, 1, b"other"), ("d", 1, 3, b"abc")]


def test_contents_are_streamed() -> None:
    """Each content is asked for only when what is before it has been written."""
    log: list[str] = []

    class Out:
        def write(self, data: bytes) -> int:
            log.extend(name for name in ("first", "second") if name.encode() == data)
            return len(data)

    def content(name: str) -> Iterator[bytes]:
        log.append(f"open {name}")
        yield name.encode()

    entries = [
        cpio.Entry(path, stat.S_IFREG | 0o644, size=len(name), content=lambda name=name: content(name))  # type: ignore[misc]
        for path, name in (("1", "first"), ("2", "second"))
    ]
    cpio.write(entries, Out(), mtime=0)
    assert log == ["open first", "first", "open second", "second"]


@pytest.mark.parametrize(
    "entries",
    [
        [cpio.regular("a/b", b"")],
        [cpio.regular(".", b"")],
        [cpio.regular("a", b""), cpio.regular("a/b", b"")],
        [cpio.regular("a", b""), cpio.directory("a")],
        [cpio.regular("/a", b"")],
        [cpio.regular("../a", b"")],
        [cpio.regular("a//b", b"")],
        [cpio.regular("", b"")],
        [cpio.regular(".", b"")],
        [cpio.Entry("a", stat.S_IFREG | 0o644, size=2, content=lambda: (b"abc",))],
    ],
)
def test_what_is_no_tree_is_a_bug(entries: list[cpio.Entry]) -> None:
    with pytest.raises(InternalError):
        archive(*entries)


@pytest.mark.parametrize(
    "entry",
    [
        cpio.Entry("a", stat.S_IFREG | 0o644, size=1 << 32, content=lambda: ()),
        cpio.regular("a" * 4096, b""),
        cpio.symlink("a", ""),
        cpio.symlink("a", "x" * 4096),
    ],
)
def test_what_the_format_cannot_hold_is_the_users_error(entry: cpio.Entry) -> None:
    with pytest.raises(UserError):
        archive(entry)


def test_gnu_cpio_reads_it(tmp_path: Path) -> None:
    def linked(path: str) -> cpio.Entry:
        return cpio.Entry(path, stat.S_IFREG | 0o640, size=3, content=lambda: (b"abc",), link="x")

    data = archive(
        cpio.directory("d", 0o750),
        linked("d/one"),
        linked("d/two"),
        cpio.symlink("d/link", "one"),
        cpio.regular("d/ümlaut", b"x" * 1001, 0o755),
    )
    subprocess.run(["cpio", "-id", "--quiet"], input=data, cwd=tmp_path, check=True)
    one, two = (tmp_path / "d/one").stat(), (tmp_path / "d/two").stat()
    assert one.st_ino == two.st_ino
    assert (tmp_path / "d/two").read_bytes() == b"abc"
    assert (tmp_path / "d/link").readlink() == Path("one")
    assert (tmp_path / "d/ümlaut").read_bytes() == b"x" * 1001
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750
