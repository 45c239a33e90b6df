"""COPY between build stages and the build context, inside a container. Standard library only.

    copy.py pick --into DIR SOURCE...     copy what the sources (paths with wildcards) of this file system lead to
                                          below DIR, under the same paths, links on the way included
    copy.py put PARAMS FROM FILES         apply one COPY or ADD: PARAMS is a JSON file with the fields of a COPY,
                                          FROM the folder that its sources are relative to, FILES that of its heredocs

The rules are BuildKit's. Exit status: 0; 1 with one line on stderr that starts with ``uklimg-copy:``.
"""

from __future__ import annotations

import grp
import json
import os
import posixpath
import pwd
import re
import shutil
import stat
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAXIMUM_LINKS = 40


class CopyError(Exception):
    """One line for the user."""


def pattern(text: str) -> re.Pattern[str]:
    """Go's path.Match, and ``**`` for any number of components, as a regular expression."""
    out, at = "", 0
    while at < len(text):
        char = text[at]
        if text.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
            continue
        if text.startswith("**", at):
            out, at = out + ".*", at + 2
            continue
        if char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[" and (end := text.find("]", at + 2)) > 0:
            body = text[at + 1 : end]
            negated = body.startswith("^")
            out += f"[{'^/' if negated else ''}{body[negated:].replace('[', chr(92) + '[')}]"
            at = end
        elif char == "\\" and at + 1 < len(text):
            at += 1
            out += re.escape(text[at])
        else:
            out += re.escape(char)
        at += 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise CopyError(f"{text!r} is not a pattern: {error}") from None


class Tree:
    """A folder looked at as if it were the root: symbolic links never lead out of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def real(self, name: str) -> Path | None:
        """The file that ``name`` leads to with all links followed; None when there is none."""
        for _, path, last in self.walk(name):
            if last:
                return path
        return None

    def walk(self, name: str) -> Iterator[tuple[str, Path, bool]]:
        """Every file on the way to ``name``, links included, as (path below the root, file, whether the end)."""
        todo = [part for part in name.split("/") if part not in ("", ".")][::-1]
        done: list[str] = []
        links = 0
        if not todo:
            yield "", self.root, True
        while todo:
            part = todo.pop()
            if part == "..":
                del done[-1:]
                if not todo:
                    yield "/".join(done), self.root.joinpath(*done), True
                continue
            path = self.root.joinpath(*done, part)
            if path.is_symlink():
                links += 1
                if links > MAXIMUM_LINKS:
                    raise CopyError(f"too many symbolic links in {name}")
                yield "/".join([*done, part]), path, False
                target = os.readlink(path)  # noqa: PTH115 - as written, not as a Path
                done = [] if target.startswith("/") else done
                todo += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
                if not todo:
                    yield "/".join(done), self.root.joinpath(*done), True
                continue
            if not path.exists():
                return
            done.append(part)
            yield "/".join(done), path, not todo

    def expand(self, word: str) -> list[str]:
        """What a source with wildcards stands for, relative to the root, sorted; CopyError when it is nothing."""
        clean = posixpath.normpath("/" + word).lstrip("/")
        found = [""]
        for part in clean.split("/") if clean else []:
            found = [posixpath.join(folder, name) for folder in found for name in self.names(folder, part)]
        if not found:
            raise CopyError(f"{word} is not there")
        return found

    def names(self, folder: str, part: str) -> list[str]:
        if not re.search(r"[*?\[\\]", part):
            return [part] if self.real(posixpath.join(folder, part)) is not None else []
        here = self.real(folder)
        if here is None or not here.is_dir():
            return []
        wanted = pattern(part)
        return sorted(entry.name for entry in here.iterdir() if wanted.fullmatch(entry.name))


# --- pick


class Picker:
    def __init__(self, tree: Tree, into: Path) -> None:
        self.tree = tree
        self.into = into
        self.copied: dict[tuple[int, int], Path] = {}

    def pick(self, name: str) -> None:
        for place, path, last in self.tree.walk(name):
            self.take(path, self.into / place)
            if last and path.is_dir():
                self.folder(path, self.into / place)

    def folder(self, path: Path, target: Path) -> None:
        for entry in sorted(path.iterdir()):
            if entry == self.into:
                continue
            self.take(entry, target / entry.name)
            if entry.is_dir() and not entry.is_symlink():
                self.folder(entry, target / entry.name)

    def take(self, path: Path, target: Path) -> None:
        """One file, link or folder (without its contents); what is there already stays."""
        info = path.lstat()
        if target.is_symlink() or target.exists():
            return
        first = self.copied.get((info.st_dev, info.st_ino))
        if stat.S_ISDIR(info.st_mode):
            target.mkdir()
            target.chmod(stat.S_IMODE(info.st_mode))
        elif first is not None:
            os.link(first, target, follow_symlinks=False)
        elif stat.S_ISLNK(info.st_mode):
            target.symlink_to(os.readlink(path))  # noqa: PTH115
        elif stat.S_ISREG(info.st_mode):
            shutil.copyfile(path, target)
            target.chmod(stat.S_IMODE(info.st_mode))
            if info.st_nlink > 1:
                self.copied[info.st_dev, info.st_ino] = target


# --- put


@dataclass(frozen=True)
class Params:
    """The fields of uklimg.spec.model.Copy."""

    sources: list[str]
    files: list[str]
    dest: str
    unpack: bool
    chown: str
    chmod: int | None
    parents: bool
    exclude: list[str]


class Putter:
    def __init__(self, params: Params, tree: Tree, files: Path, root: Path) -> None:
        self.params = params
        self.tree = tree
        self.files = files
        self.root = root
        self.owner = owner(params.chown)
        self.exclude = [pattern(text) for text in params.exclude]
        self.linked: dict[tuple[int, int], Path] = {}

    def run(self) -> None:
        params = self.params
        found = [(name, kept(word, name)) for word in params.sources for name in self.tree.expand(word)]
        dest = self.root / params.dest.strip("/")
        into = params.dest.endswith("/") or len(found) + len(params.files) > 1 or dest.is_dir()
        for name, keep in found:
            path = self.tree.real(name)
            assert path is not None
            if path.is_dir():
                target = dest / keep if params.parents else dest
                self.folder(target, stat.S_IMODE(path.stat().st_mode))
                self.contents(path, target, "")
            elif params.unpack and is_archive(path):
                self.unpack(path, dest)
            else:
                base = keep if params.parents else posixpath.basename(name)
                self.file(path, dest / base if into or params.parents else dest)
        for name in params.files:
            self.file(self.files / name, dest / name if into else dest)

    def contents(self, source: Path, target: Path, inside: str) -> None:
        for entry in sorted(source.iterdir()):
            name = posixpath.join(inside, entry.name)
            whole = (source / entry.name).relative_to(self.tree.root).as_posix()
            if any(p.fullmatch(name) or p.fullmatch(whole) or p.fullmatch(entry.name) for p in self.exclude):
                continue
            if entry.is_dir() and not entry.is_symlink():
                self.folder(target / entry.name, stat.S_IMODE(entry.stat().st_mode))
                self.contents(entry, target / entry.name, name)
            else:
                self.file(entry, target / entry.name)

    def folder(self, path: Path, mode: int = 0o755) -> None:
        """``mkdir -p``; only a new folder gets mode and owner."""
        if path.is_dir():
            return
        if path.is_symlink() or path.exists():
            raise CopyError(f"{path} is a file, not a folder")
        self.folder(path.parent)
        path.mkdir()
        path.chmod(self.params.chmod if self.params.chmod is not None else mode)
        os.chown(path, *self.owner)

    def file(self, source: Path, target: Path) -> None:
        self.folder(target.parent)
        if target.is_dir() and not target.is_symlink():
            raise CopyError(f"{target} is a folder, not a file")
        info = source.lstat()
        if stat.S_ISLNK(info.st_mode):
            target.unlink(missing_ok=True)
            target.symlink_to(os.readlink(source))  # noqa: PTH115
            os.lchown(target, *self.owner)
            return
        if not stat.S_ISREG(info.st_mode):
            raise CopyError(f"{source.name} is a device, a pipe or a socket and cannot be copied")
        first = self.linked.get((info.st_dev, info.st_ino)) if info.st_nlink > 1 else None
        if first is not None:
            target.unlink(missing_ok=True)
            os.link(first, target)
            return
        shutil.copyfile(source, target)  # through a link in the way, as COPY does
        mode = self.params.chmod if self.params.chmod is not None else stat.S_IMODE(info.st_mode)
        os.chown(target, *self.owner)
        target.chmod(mode)
        if info.st_nlink > 1:
            self.linked[info.st_dev, info.st_ino] = target

    def unpack(self, archive: Path, dest: Path) -> None:
        self.folder(dest)
        with tarfile.open(archive, "r:*") as opened:
            opened.extractall(dest, numeric_owner=True, filter="tar")  # refuses what leads out of the folder


def kept(word: str, name: str) -> str:
    """What --parents keeps of the source ``name``: what follows ``/./`` in the word, else all of it."""
    pivot, _, rest = word.partition("/./")
    if not rest:
        return name
    skip = len([part for part in pivot.split("/") if part not in ("", ".")])
    return "/".join(name.split("/")[skip:])


def owner(text: str) -> tuple[int, int]:
    """``user[:group]`` by name or number of this file system; "" is root."""
    if not text:
        return 0, 0
    user, colon, group = text.partition(":")
    try:
        if user.isdigit():
            uid, gid = int(user), int(user)
        else:
            entry = pwd.getpwnam(user)
            uid, gid = entry.pw_uid, entry.pw_gid
        if colon:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise CopyError(f"--chown={text}: {error.args[0]}") from None
    return uid, gid


def is_archive(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:*") as archive:
            return archive.next() is not None
    except (tarfile.TarError, EOFError, OSError):
        return False


def main(argv: list[str]) -> int:
    try:
        if argv[:1] == ["pick"]:
            into, sources = Path(argv[2]), argv[3:]
            into.mkdir(parents=True)
            picker = Picker(Tree(Path("/")), into)
            for name in [name for word in sources for name in picker.tree.expand(word)]:
                picker.pick(name)
        else:
            _, params, source, files = argv
            fields = json.loads(Path(params).read_text())
            Putter(Params(**fields), Tree(Path(source)), Path(files), Path("/")).run()
    except (CopyError, OSError, tarfile.TarError) as error:
        print(f"uklimg-copy: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
