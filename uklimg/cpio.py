"""Write and read cpio archives in the "newc" format, the one the kernel unpacks as its root. Pure, streaming.

Format: Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c of the kernel. The bytes
depend on the entries alone: sorted by path, inode numbers by order, one time stamp for all. Contents are read from
their entry when they are written, so a large tree is never in memory.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeAlias

from uklimg.errors import CorruptError, InternalError, UserError

MAGIC = b"070701"
TRAILER = b"TRAILER!!!"
BLOCK = 512
MAX_FIELD = 0xFFFFFFFF
_HEADER = 110
PATH_MAX = 4096

Content: TypeAlias = Callable[[], Iterable[bytes]]


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Entry:
    """One name in the archive.

    ``path`` is relative and normalised (``etc/passwd``). ``mode`` holds type and permission bits as in st_mode. A
    regular file has ``size`` and ``content`` (called when written; must yield exactly ``size`` bytes), a symbolic
    link ``target``, a device ``device`` = (major, minor). Regular files with the same ``link`` (not "") are
    hard links of one another; their mode, owner, size and content must agree.
    """

    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    content: Content | None = None
    target: str = ""
    device: tuple[int, int] = (0, 0)
    link: str = ""


def directory(path: str, permissions: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions, uid, gid)


def regular(path: str, data: bytes, permissions: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, uid, gid, size=len(data), content=lambda: (data,))


def symlink(path: str, target: str, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, uid, gid, target=target)


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def write(entries: Iterable[Entry], out: Writer, *, mtime: int) -> int:
    """Write the archive, padded to 512 bytes; returns its size in bytes.

    ``mtime``: seconds, for every entry. InternalError when entries do not make a tree (double path, missing or
    non-directory parent) or a content has another size than promised; UserError when the format cannot hold one
    (4 GiB or more, too long a path).
    """
    ordered = sorted(entries, key=lambda entry: entry.path.encode(errors="surrogateescape"))
    _check_tree(ordered)
    total = 0
    for chunk in _chunks(ordered, mtime):
        out.write(chunk)
        total += len(chunk)
    return total


def _check_tree(ordered: list[Entry]) -> None:
    types: dict[str, int] = {"": stat.S_IFDIR}
    for entry in ordered:
        path = entry.path
        if path == "." and stat.S_ISDIR(entry.mode):
            continue  # the root itself, for its mode
        if not path or path != posixpath.normpath(path) or path.startswith(("/", "..")) or path == ".":
            raise InternalError(f"not a path for an archive: {path!r}")
        if path in types:
            raise InternalError(f"{path!r} is in the archive twice")
        if types.get(posixpath.dirname(path)) != stat.S_IFDIR:
            raise InternalError(f"the parent of {path!r} is not a directory of the archive")
        types[path] = stat.S_IFMT(entry.mode)


def _chunks(ordered: list[Entry], mtime: int) -> Iterator[bytes]:
    links: dict[str, list[Entry]] = {}
    for entry in ordered:
        if entry.link:
            links.setdefault(entry.link, []).append(entry)
    inodes: dict[str, int] = {}
    next_inode, total = 1, 0
    for entry in ordered:
        group = links.get(entry.link, [entry])
        inode = inodes.get(entry.link)
        if inode is None:
            inode, next_inode = next_inode, next_inode + 1
            if entry.link:
                inodes[entry.link] = inode
        # The contents of a hard-linked file go with its last name, as GNU cpio and gen_init_cpio have it.
        for chunk in _entry(entry, inode, len(group), entry is group[-1], mtime):
            total += len(chunk)
            yield chunk
    trailer = _header(0, 0, 0, 0, 1, 0, 0, (0, 0), TRAILER)
    total += len(trailer)
    yield trailer
    yield b"\0" * (-total % BLOCK)


def _entry(entry: Entry, inode: int, links: int, with_content: bool, mtime: int) -> Iterator[bytes]:
    name = entry.path.encode(errors="surrogateescape")
    if len(name) >= PATH_MAX:
        raise UserError(f"the path is too long for an initramfs: {entry.path[:60]}…")
    content: Content | None = None
    size = 0
    if stat.S_ISLNK(entry.mode):
        target = entry.target.encode(errors="surrogateescape")
        if not target or len(target) >= PATH_MAX:
            raise UserError(f"the symbolic link cannot be kept in an initramfs: {entry.path}")
        size, content = len(target), lambda: (target,)
    elif stat.S_ISREG(entry.mode) and with_content:
        size, content = entry.size, entry.content
    if size > MAX_FIELD:
        raise UserError(f"{entry.path} is too large for an initramfs", hint="the format holds less than 4 GiB a file")
    # The kernel (do_name) follows links only for nlink >= 2.
    yield _header(inode, entry.mode, entry.uid, entry.gid, links, mtime, size, entry.device, name)
    written = 0
    for chunk in content() if content else ():
        written += len(chunk)
        yield chunk
    if written != size:
        raise InternalError(f"{entry.path} has {written} bytes, not {size}")
    yield b"\0" * (-size % 4)


def _header(
    inode: int,
    mode: int,
    uid: int,
    gid: int,
    links: int,
    mtime: int,
    size: int,
    device: tuple[int, int],
    name: bytes,
) -> bytes:
    fields = (inode, mode, uid, gid, links, mtime, size, 0, 0, *device, len(name) + 1, 0)
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return head + b"\0" * (-len(head) % 4)


@dataclass(frozen=True)
class Found:
    """An entry of an archive that is read; its content (of a link the target) has ``size`` bytes at ``offset``."""

    path: str
    mode: int
    uid: int
    gid: int
    size: int
    offset: int


def read(file: BinaryIO, start: int, length: int) -> Iterator[Found]:
    """The entries of the archive that lies at ``start`` in ``file``, in order. CorruptError for a damaged one.

    A hard link's content is with the last of its names; the others have ``size`` 0.
    """
    at, end = start, start + length
    while at + _HEADER <= end:
        file.seek(at)
        head = file.read(_HEADER)
        try:
            fields = [int(head[place : place + 8], 16) for place in range(6, _HEADER, 8)]
        except ValueError:
            raise CorruptError(f"no cpio header at byte {at - start}") from None
        size, name_size = fields[6], fields[11]
        offset = at + (_HEADER + name_size + 3) // 4 * 4
        if head[:6] != MAGIC or not 0 < name_size <= PATH_MAX or offset + size > end:
            raise CorruptError(f"no cpio header at byte {at - start}")
        name = file.read(name_size)[:-1]
        if name == TRAILER:
            return
        yield Found(name.decode(errors="surrogateescape"), fields[1], fields[2], fields[3], size, offset)
        at = offset + (size + 3) // 4 * 4
    raise CorruptError("the cpio archive has no end")
