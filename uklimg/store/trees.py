"""Folders as deterministic uncompressed tars and back.

``pack`` and ``unpack`` are for TREE results: owner root, one fixed date, no devices, no link that leaves the tree.
``canonical_layer`` is for ROOTFS results: it rewrites a layer that a container engine made, so that the bytes depend
on what is in the layer and not on the engine; owners, modes, devices and whiteouts (OCI image specification,
layer.md) stay as they are.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import stat
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

from uklimg import tarread
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UklimgError
from uklimg.oci import EPOCH

# The linker's own cache: inode numbers and dates, and it works without.
_NEVER = "var/cache/ldconfig/aux-cache"
_WHITEOUT = ".wh."
_KEPT_PAX = ("SCHILY.xattr.security.capability",)


class Writer(Protocol):
    def write(self, data: bytes, /) -> int: ...


def _step_error(message: str) -> UklimgError:
    return ToolError(message, exit_code=ExitCode.STEP)


def _open_tar(out: Writer) -> tarfile.TarFile:
    return tarfile.open(
        fileobj=cast(IO[bytes], _Sequential(out)),
        mode="w",
        format=tarfile.PAX_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    )


class _Sequential:
    """The two methods that tarfile wants of a file it writes."""

    def __init__(self, out: Writer) -> None:
        self._out = out
        self._at = 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        return self._out.write(data)

    def tell(self) -> int:
        return self._at


# Packing


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below ``folder`` as (path relative to it, lstat), each folder before its contents, names sorted."""

    def below(path: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in found:
            name = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            yield name, status
            if stat.S_ISDIR(status.st_mode):
                yield from below(entry.path, name + "/")

    return below(os.fspath(folder), "")


def pack(folder: Path, out: Writer) -> None:
    """Write the contents of ``folder`` as a tar. ToolError STEP when it holds what a tree must not hold."""
    seen: dict[tuple[int, int], str] = {}
    with _open_tar(out) as archive:
        for name, status in walk(folder):
            info = _member(folder, name, status, seen)
            if info.isreg():
                with (folder / name).open("rb") as content:
                    archive.addfile(info, content)
            else:
                archive.addfile(info)


def _member(folder: Path, name: str, status: os.stat_result, seen: dict[tuple[int, int], str]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(status.st_mode)
    info.mtime = EPOCH
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type = tarfile.SYMTYPE
        info.mode = 0o777
        info.linkname = str((folder / name).readlink())
        check_link(name, info.linkname, _step_error)
    elif stat.S_ISREG(status.st_mode):
        first = seen.setdefault((status.st_dev, status.st_ino), name) if status.st_nlink > 1 else name
        if first != name:
            info.type = tarfile.LNKTYPE
            info.linkname = first
        else:
            info.size = status.st_size
    else:
        raise _step_error(f"the step left {name}, which is a device, pipe or socket, in its output")
    return info


def settle(folder: Path) -> None:
    """Give ``folder`` the dates, and as root the owners, that ``unpack`` would have given it."""
    as_root = os.geteuid() == 0
    for name, status in walk(folder):
        path = folder / name
        if as_root and (status.st_uid, status.st_gid) != (0, 0):
            os.lchown(path, 0, 0)
            if not stat.S_ISLNK(status.st_mode):
                path.chmod(stat.S_IMODE(status.st_mode))  # a change of owner takes setuid bits away
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    folder.chmod(0o755)
    os.utime(folder, (EPOCH, EPOCH))


# Checking names


def check_name(name: str, error: Callable[[str], UklimgError]) -> str:
    """A member's name without "./" and "/" at its ends ("" is the root itself); raises for "..", absolute, odd."""
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise error(f"the name {name[:200]!r} leaves its archive")
    clean = posixpath.normpath(name) if name else "."
    return "" if clean == "." else clean


def check_link(name: str, target: str, error: Callable[[str], UklimgError]) -> None:
    """Raises when the symbolic link ``name`` to ``target`` leaves the tree.

    Only the text is looked at: ``..`` may climb to the tree's root and no higher. Nothing of ours follows a link
    while unpacking, so a chain of links cannot do more than the last one says.
    """
    depth = name.count("/")
    if target.startswith("/") or not target:
        raise error(f"the link {name} -> {target[:200]} leaves its tree")
    for part in target.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            raise error(f"the link {name} -> {target[:200]} leaves its tree")


# Unpacking


def unpack(source: IO[bytes], folder: Path) -> None:
    """Unpack a tar that ``pack`` wrote into the empty ``folder``; CorruptError for what ``pack`` does not write."""
    folders: list[tuple[Path, tarfile.TarInfo]] = []
    names, within = {""}, {""}
    try:
        with tarread.opened(source, "r|") as archive:
            for info in tarread.members(archive):
                name = check_name(info.name, CorruptError)
                if name in names or posixpath.dirname(name) not in within:
                    raise CorruptError(f"{name!r} is twice, or outside its folder, in the archive")
                path = folder / name
                _extract(archive, info, name, path, folder)
                names.add(name)
                if info.isdir():
                    within.add(name)
                    folders.append((path, info))
    except tarfile.TarError as error:
        raise CorruptError(f"not a tar archive: {error}") from error
    for path, info in reversed(folders):
        path.chmod(info.mode)
        os.utime(path, (info.mtime, info.mtime))
    folder.chmod(0o755)
    os.utime(folder, (EPOCH, EPOCH))


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo, name: str, path: Path, folder: Path) -> None:
    if info.isdir():
        path.mkdir(0o700)
        return
    if info.issym():
        check_link(name, info.linkname, CorruptError)
        path.symlink_to(info.linkname)
    elif info.islnk():
        first = folder / check_name(info.linkname, CorruptError)
        if first.is_symlink() or not first.is_file():
            raise CorruptError(f"{name} is a hard link to {info.linkname!r}, which is no file of the archive")
        os.link(first, path, follow_symlinks=False)
    elif info.isreg():
        content = archive.extractfile(info)
        assert content is not None
        with path.open("xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        path.chmod(info.mode)
    else:
        raise CorruptError(f"{name} is a device or pipe")
    os.utime(path, (info.mtime, info.mtime), follow_symlinks=False)


def fingerprint(folder: Path) -> Digest:
    """A digest of names, types, modes, sizes, dates and link targets: cheap to compute, and it tells when a tree was
    changed or torn by a crash. The contents of files are not read."""
    hasher = hashlib.sha256()
    for name, status in walk(folder):
        is_folder = stat.S_ISDIR(status.st_mode)
        target = str((folder / name).readlink()) if stat.S_ISLNK(status.st_mode) else ""
        size = 0 if is_folder else status.st_size
        line = f"{status.st_mode:o} {size} {status.st_mtime_ns} ".encode() + os.fsencode(f"{name}\0{target}\0")
        hasher.update(line)
    return Digest(hasher.hexdigest())


# Layers of root file systems


def canonical_layer(source: Path, out: Writer, drop: Collection[str] = ()) -> None:
    """Rewrite the layer tar ``source``: sorted, one fixed date, one way of writing headers and hard links.

    ``drop`` names (relative paths) what an engine makes on its own: mount points, /etc/hosts and the like. Each is
    left out when it is an empty file or a folder with nothing in it, and so are the folders above it that hold
    nothing else in this layer.
    """
    try:
        with (
            tarread.opened(source) as archive,
            _open_tar(out) as result,
        ):
            members = {check_name(info.name, CorruptError): info for info in tarread.members(archive)}
            members.pop("", None)
            members.pop(_NEVER, None)
            for name in _dropped(members, drop):
                del members[name]
            _write_sorted(archive, members, result)
    except tarfile.TarError as error:
        raise CorruptError(f"the layer {source} is not a tar archive: {error}") from error


def _dropped(members: dict[str, tarfile.TarInfo], drop: Iterable[str]) -> set[str]:
    children: dict[str, set[str]] = {}
    for name in members:
        while name:
            parent = posixpath.dirname(name)
            children.setdefault(parent, set()).add(name)
            name = parent
    gone: set[str] = set()
    # The deepest first, so that a folder's mount points are gone when its turn comes.
    for name in sorted({name.strip("/") for name in drop}, key=lambda n: (-n.count("/"), n)):
        while name in members and not children.get(name, set()) - gone:
            info = members[name]
            if not (info.isdir() or (info.isreg() and info.size == 0)):
                break
            gone.add(name)
            name = posixpath.dirname(name)
    return gone


def _write_sorted(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], result: tarfile.TarFile) -> None:
    # A hard link must follow the file it means: the first name in order becomes the file, whichever it was.
    moved: dict[str, str] = {}
    for name in sorted(members, key=_sort_key):
        info = members[name]
        original = name
        if info.islnk():
            original = check_name(info.linkname, CorruptError)
        if original in members and members[original].isreg():
            moved.setdefault(original, name)
            first = moved[original]
        else:
            first = original if info.islnk() else name
        if first != name:
            result.addfile(_clean(info, name, tarfile.LNKTYPE, first))
        elif original in members and members[original].isreg():
            content = members[original]
            result.addfile(_clean(content, name, tarfile.REGTYPE), archive.extractfile(content))
        else:
            result.addfile(_clean(info, name, info.type, info.linkname if info.issym() else ""))


def _sort_key(name: str) -> list[bytes]:
    return [os.fsencode(part) for part in name.split("/")]


def _clean(info: tarfile.TarInfo, name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """``info`` under ``name``, without what does not belong to the file: dates, names of owners."""
    clean = tarfile.TarInfo(name)
    clean.type = kind
    clean.linkname = link
    clean.mtime = EPOCH
    if posixpath.basename(name).startswith(_WHITEOUT):  # engines give what is gone modes of their own
        clean.type, clean.mode = tarfile.REGTYPE, 0
        return clean
    clean.mode = info.mode & 0o7777
    clean.uid, clean.gid = info.uid, info.gid
    if kind == tarfile.REGTYPE:
        clean.size = info.size
    if info.ischr() or info.isblk():
        clean.devmajor, clean.devminor = info.devmajor, info.devminor
    kept: dict[str, Any] = {key: info.pax_headers[key] for key in _KEPT_PAX if key in info.pax_headers}
    clean.pax_headers = kept
    return clean
