"""Where an export goes: whole, or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from uklimg.errors import ToolError, UserError


@contextmanager
def placed(out: Path, *, folder: bool, force: bool) -> Iterator[Path]:
    """A path beside ``out`` for what is to be there (an empty folder, or nothing yet); renamed when the block ends
    well, removed otherwise.

    UserError when something is there already: with ``force`` a file is replaced, and a folder in which nothing is but
    what the new one has, too. ToolError when it cannot be written.
    """
    check(out, folder=folder, force=force)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        if folder and out.exists():
            _replace_folder(temporary, out)
        else:
            temporary.rename(out)
        _sync(out.parent)
    except OSError as error:
        raise ToolError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        _remove(temporary)


def check(out: Path, *, folder: bool, force: bool) -> None:
    """Say before the work what would keep ``placed`` from its end."""
    if not out.parent.is_dir():
        raise UserError(f"no folder {out.parent} to write into")
    try:
        mode = out.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ToolError(f"cannot write {out}: {error.strerror}") from error
    kind = stat.S_ISDIR if folder else stat.S_ISREG
    if not kind(mode):
        what = "folder" if folder else "file"
        hint = "" if folder else "`-o -` writes to standard output, as in `-o - > /dev/sdX`"
        raise UserError(f"{out} is there and no {what}", hint="" if stat.S_ISDIR(mode) else hint)
    if not force and not (folder and not any(out.iterdir())):
        raise UserError(f"{out} is there already", hint="--force replaces it")


def _replace_folder(new: Path, out: Path) -> None:
    foreign = sorted(_names(out) - _names(new))
    if foreign:
        raise UserError(f"{out} is not replaced: it has {foreign[0]!r}, which this export does not", hint="remove it")
    old = new.with_name(f"{new.name}.old")
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    _remove(old)


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
