"""The files of the build context that steps used, as one tar: the same bytes for the same files.

What counts of a file is what counts for a step's key (``uklimg.context``): path, content, whether it is executable;
of a link its target. Unlike the trees that steps leave, a context may hold links that lead anywhere: they are copied
and not followed.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Protocol

from uklimg import context, tarread
from uklimg.digest import CHUNK
from uklimg.errors import CorruptError, ToolError
from uklimg.graph import ContextTree
from uklimg.oci import EPOCH


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


def pack(trees: Iterable[ContextTree], scratch: Path, out: Writer) -> int:
    """Write the files of all ``trees``, each once, and how many they are.

    ``scratch`` is an empty folder for copies, whose digests are checked: UserError when the context has changed since
    the trees were made.
    """
    found: dict[str, Path] = {}
    targets: dict[str, str] = {}
    for number, tree in enumerate(dict.fromkeys(trees)):
        folder = scratch / str(number)
        folder.mkdir()
        context.stage(tree, folder, epoch=EPOCH)
        found |= {path: folder / path for path in tree.paths}
        for path in tree.via:
            found.setdefault(path, Path(tree.root) / path)
            targets[path] = _target(Path(tree.root), path)
    # Folders that lead to files and are themselves in no tree.
    for path in list(found):
        while path := posixpath.dirname(path):
            found.setdefault(path, scratch)
    with tarfile.open(fileobj=_Sink(out), mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK) as archive:  # type: ignore[call-overload]
        for path in sorted(found, key=lambda path: path.split("/")):
            _add(archive, path, found[path], targets.get(path, ""))
    return len(found)


def _target(root: Path, path: str) -> str:
    """Where a link leads, in a way that holds wherever the context lies."""
    target = os.readlink(root / path)  # noqa: PTH115 (Path.readlink would tidy the target up)
    if target.startswith("/"):
        return os.path.relpath((root / path).resolve(), (root / path).parent.resolve())
    return target


class _Sink:
    """A writer as the file that ``tarfile`` wants."""

    def __init__(self, out: Writer) -> None:
        self._out = out

    def write(self, data: bytes) -> int:
        self._out.write(data)
        return len(data)


def _add(archive: tarfile.TarFile, path: str, source: Path, target: str) -> None:
    info = tarfile.TarInfo(path)
    info.mtime = EPOCH
    status = source.lstat()
    info.mode = 0o755 if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o100 else 0o644
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.mode = tarfile.SYMTYPE, 0o777
        info.linkname = target or os.readlink(source)  # noqa: PTH115
        archive.addfile(info)
    else:
        info.size = status.st_size
        with source.open("rb") as file:
            archive.addfile(info, file)


def unpack(source: IO[bytes], folder: Path) -> None:
    """Unpack what ``pack`` wrote into the empty ``folder``; CorruptError for anything else.

    Links are made when everything else is there, so nothing is ever written through one.
    """
    links: dict[str, str] = {}
    folders, names = {""}, {""}
    try:
        with tarread.opened(source, "r|") as archive:
            for info in tarread.members(archive):
                name = info.name
                if name in names or not _is_plain(name) or posixpath.dirname(name) not in folders:
                    raise CorruptError(f"the image's context has {name[:200]!r} twice or out of place")
                names.add(name)
                if info.isdir():
                    (folder / name).mkdir(mode=0o755)
                    folders.add(name)
                elif info.issym() and info.linkname and "\0" not in info.linkname:
                    links[name] = info.linkname
                elif info.isreg():
                    _extract(archive, info, folder / name)
                else:
                    raise CorruptError(f"the image's context has {name[:200]!r}, which is no file, folder or link")
    except (tarfile.TarError, UnicodeError, ValueError) as error:
        raise CorruptError(f"the image's context is not a tar archive: {error}") from error
    except OSError as error:
        raise ToolError(f"cannot unpack the image's context: {error.strerror} ({error.filename})") from error
    for name, target in links.items():
        (folder / name).symlink_to(target)


def _is_plain(name: str) -> bool:
    return name == posixpath.normpath(name) and not name.startswith("/") and not {".", ".."} & set(name.split("/"))


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(info)
    assert content is not None
    with path.open("xb") as file:
        while chunk := content.read(CHUNK):
            file.write(chunk)
    path.chmod(0o755 if info.mode & 0o100 else 0o644)
