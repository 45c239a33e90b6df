"""Files out of a root file system's topmost layer, for steps that take them as an input."""

from __future__ import annotations

import os
import posixpath
import shutil
import tarfile
from pathlib import Path
from typing import IO

from uklimg import tarread
from uklimg.errors import CorruptError
from uklimg.store.trees import check_name


def unpack_below(layer: IO[bytes], below: str, folder: Path) -> None:
    """Unpack what the layer tar has below the path ``below`` into the empty ``folder``.

    Symbolic links are made as they are, absolute ones too, and never followed: a member whose parent is no folder
    of the archive is a CorruptError, as are devices.
    """
    prefix = below.strip("/") + "/"
    folders = {""}
    modes: list[tuple[Path, int]] = []
    try:
        with tarread.opened(layer) as archive:
            for info in tarread.members(archive):
                name = check_name(info.name, CorruptError)
                if not name.startswith(prefix):
                    continue
                inside = name.removeprefix(prefix)
                if posixpath.dirname(inside) not in folders:
                    raise CorruptError(f"{name!r} is outside its folder in the layer")
                path = folder / inside
                if info.isdir():
                    path.mkdir()
                    folders.add(inside)
                    modes.append((path, info.mode))
                else:
                    _extract(archive, info, path, folder, prefix)
    except tarfile.TarError as error:
        raise CorruptError(f"the layer is not a tar archive: {error}") from error
    for path, mode in reversed(modes):
        path.chmod(mode & 0o7777)


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path, folder: Path, prefix: str) -> None:
    if info.issym():
        path.symlink_to(info.linkname)
    elif info.islnk():
        first = folder / check_name(info.linkname, CorruptError).removeprefix(prefix)
        if first.is_symlink() or not first.is_file():
            raise CorruptError(f"{info.name!r} is a hard link to no file of the layer")
        os.link(first, path, follow_symlinks=False)
    elif info.isreg():
        content = archive.extractfile(info)
        assert content is not None
        with path.open("xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        path.chmod(info.mode & 0o7777)
    else:
        raise CorruptError(f"{info.name!r} is a device or pipe")
