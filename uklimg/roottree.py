"""A root file system as entries in memory (contents stay where they are), with the rules by which COPY changes it."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from uklimg.cpio import Entry, directory
from uklimg.digest import CHUNK
from uklimg.errors import UserError

_MAX_LINKS = 40


def file_content(path: Path) -> Iterator[bytes]:
    """A file's bytes in chunks; opened when the first is asked for."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def entry_of(path: Path, name: str, links: str | None = None) -> Entry | None:
    """The file at ``path`` as the entry ``name``, owned by root; None for sockets and devices, which nobody copies.

    With ``links`` (a prefix, unique to the tree) hard links stay hard links.
    """
    info = path.lstat()
    kind = stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFLNK:
        return Entry(name, stat.S_IFLNK | 0o777, target=os.readlink(path))  # noqa: PTH115 - as written, not as a Path
    if kind == stat.S_IFREG:
        link = f"{links}:{info.st_dev}:{info.st_ino}" if links is not None and info.st_nlink > 1 else ""
        return Entry(name, info.st_mode, size=info.st_size, content=lambda: file_content(path), link=link)
    if kind in (stat.S_IFDIR, stat.S_IFIFO):
        return Entry(name, info.st_mode)
    return None


@dataclass(frozen=True)
class Owner:
    uid: int = 0
    gid: int = 0


class RootTree:
    """Entries by path (relative, normalised). Parents exist always; "" is the root."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[str, Entry] = {}
        for entry in entries:
            self.put(entry)

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def get(self, path: str) -> Entry | None:
        """The entry at ``path`` once symbolic links in it, the last part included, are followed."""
        return self._entries.get(self.resolve(path))

    def is_folder(self, path: str) -> bool:
        resolved = self.resolve(path)
        entry = self._entries.get(resolved)
        return not resolved or (entry is not None and stat.S_ISDIR(entry.mode))

    def resolve(self, path: str) -> str:
        """Where ``path`` leads inside this root, links followed as the guest's kernel would; it need not exist."""
        todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del done[-1:]
                continue
            done.append(part)
            entry = self._entries.get("/".join(done))
            if entry is None or not stat.S_ISLNK(entry.mode):
                continue
            links += 1
            if links > _MAX_LINKS:
                raise UserError(f"too many symbolic links in /{path.lstrip('/')} of the image")
            done = [] if entry.target.startswith("/") else done[:-1]
            todo += [part for part in entry.target.split("/") if part not in ("", ".")][::-1]
        return "/".join(done)

    def make_folder(self, path: str, permissions: int = 0o755, owner: Owner | None = None) -> str:
        """``mkdir -p``; returns the place. An existing folder stays as it is; UserError when a file is in the way."""
        resolved = self.resolve(path)
        parts = resolved.split("/") if resolved else []
        owner = owner or Owner()
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            entry = self._entries.get(name)
            if entry is None:
                self._entries[name] = directory(name, permissions, owner.uid, owner.gid)
            elif not stat.S_ISDIR(entry.mode):
                raise UserError(f"/{name} of the image is a file, not a folder")
        return resolved

    def put(self, entry: Entry) -> None:
        """Add or replace, parents made. A folder does not replace an existing one, whose mode and owner stay.

        UserError when a file would replace a folder or a folder a file.
        """
        parent, name = posixpath.split(entry.path)
        path = posixpath.join(self.make_folder(parent), name)
        there = self._entries.get(path)
        if stat.S_ISDIR(entry.mode):
            if there is not None and self.is_folder(path):
                return
            if there is not None:
                raise UserError(f"/{path} of the image is a file, not a folder")
        elif there is not None and stat.S_ISDIR(there.mode):
            raise UserError(f"/{path} of the image is a folder, not a file")
        self._entries[path] = replace(entry, path=path)

    def read(self, path: str) -> bytes:
        """The contents of a regular file, b"" when there is none."""
        entry = self.get(path)
        if entry is None or entry.content is None:
            return b""
        return b"".join(entry.content())

    def owner(self, text: str) -> Owner:
        """``user[:group]`` by number or by the names in this root's /etc/passwd and /etc/group; "" is root.

        A user without a group: the group of /etc/passwd, or for a number the same number (Dockerfile reference,
        "COPY --chown"). UserError for an unknown name.
        """
        if not text:
            return Owner()
        user, colon, group = text.partition(":")
        uid, gid = self._user(user) if user else (0, 0)
        if colon and group:
            gid = self._group(group)
        return Owner(uid, gid)

    def _user(self, name: str) -> tuple[int, int]:
        if name.isascii() and name.isdigit():
            return int(name), int(name)
        for fields in self._table("etc/passwd", 4):
            if fields[0] == name and fields[2].isdigit() and fields[3].isdigit():
                return int(fields[2]), int(fields[3])
        raise UserError(
            f"no user {name!r} in the image's /etc/passwd", hint="COPY an /etc/passwd first, or use numbers"
        )

    def _group(self, name: str) -> int:
        if name.isascii() and name.isdigit():
            return int(name)
        for fields in self._table("etc/group", 3):
            if fields[0] == name and fields[2].isdigit():
                return int(fields[2])
        raise UserError(
            f"no group {name!r} in the image's /etc/group", hint="COPY an /etc/group first, or use numbers"
        )

    def _table(self, path: str, columns: int) -> Iterator[list[str]]:
        for line in self.read(path).decode(errors="replace").splitlines():
            fields = line.split(":")
            if len(fields) >= columns:
                yield fields
