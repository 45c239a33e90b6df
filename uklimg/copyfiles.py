"""COPY and ADD as BuildKit's Dockerfile frontend does them, into a RootTree."""

from __future__ import annotations

import posixpath
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uklimg.cpio import Entry
from uklimg.digest import CHUNK
from uklimg.errors import UserError
from uklimg.recipes.initramfs import CopyParams
from uklimg.roottree import Owner, RootTree, entry_of

_MAX_LINKS = 40


@dataclass(frozen=True)
class Place:
    """Files to copy from. ``root`` is the folder, ``paths`` what of it counts (None: everything), ``links`` a prefix
    for hard links (None where they are an accident, as in a build context)."""

    root: Path
    paths: tuple[str, ...] | None = None
    links: str | None = None

    def visible(self) -> frozenset[str] | None:
        if self.paths is None:
            return None
        every = set(self.paths)
        for path in self.paths:
            while path := posixpath.dirname(path):
                every.add(path)
        return frozenset(every)


def copy_files(tree: RootTree, copy: CopyParams, place: Place | None, files: Path | None, scratch: Path) -> None:
    """Apply one COPY (ADD with ``copy.unpack``). ``files`` holds the heredocs; ``scratch`` is an empty folder that
    must live as long as the tree, for what comes out of archives. UserError for sources that are not there."""
    owner = tree.owner(copy.chown)
    found = _Sources(place, copy.exclude).find(copy.sources) if place is not None else []
    if copy.sources and place is None:
        raise UserError(f"nothing to copy {copy.sources[0]!r} from")
    into = copy.dest.endswith("/") or len(found) + len(copy.files) > 1 or tree.is_folder(copy.dest)
    target = _Target(tree, copy, owner, into)
    for number, source in enumerate(found):
        if copy.unpack and source.is_file and _is_archive(source.path):
            _unpack(target, source.path, scratch / str(number))
        else:
            target.add(source, place.links if place else None)
    for name in copy.files:
        assert files is not None
        target.add_file(files / name, name)


@dataclass(frozen=True)
class _Source:
    """Something a source word led to: ``name`` relative to the place, ``kept`` what --parents keeps of it, and for a
    folder what is in it, relative to it, parents first."""

    name: str
    path: Path
    is_file: bool
    inside: tuple[str, ...] = ()
    kept: str = ""


class _Sources:
    def __init__(self, place: Place, exclude: Sequence[str]) -> None:
        self._place = place
        self._visible = place.visible()
        self._exclude = [pattern(text) for text in exclude]

    def find(self, words: Sequence[str]) -> list[_Source]:
        return [source for word in words for source in self._word(word)]

    def _word(self, word: str) -> list[_Source]:
        pivot, _, rest = word.partition("/./")
        text = f"{pivot}/{rest}" if rest else word
        clean = posixpath.normpath("/" + text).lstrip("/")
        names = list(self._match(clean.split("/"))) if clean else [""]
        if not names:
            raise UserError(f"nothing to copy: {word!r} is not there")
        skip = len(posixpath.normpath(pivot).split("/")) if rest and posixpath.normpath(pivot) != "." else 0
        return [self._source(name, "/".join(name.split("/")[skip:])) for name in names]

    def _match(self, parts: list[str], folder: str = "") -> Iterator[str]:
        head, *rest = parts
        if not re.search(r"[*?\[\\]", head):
            names = [head] if self._exists(posixpath.join(folder, head)) else []
        else:
            wanted = pattern(head)
            names = [n for n in self._list(folder) if wanted.fullmatch(n)]
        for name in names:
            path = posixpath.join(folder, name)
            if not rest:
                yield path
            else:
                yield from self._match(rest, path)

    def _exists(self, name: str) -> bool:
        if self._visible is not None and name not in self._visible:
            # What a visible symbolic link to a folder leads to has other names; look below the link's target.
            return self._real(name) is not None and self._relative(name) in self._visible
        return self._real(name) is not None

    def _relative(self, name: str) -> str:
        real = self._real(name)
        return real.relative_to(self._place.root).as_posix() if real is not None else name

    def _real(self, name: str) -> Path | None:
        """The file with all symbolic links followed inside the place (absolute ones from its root)."""
        todo = name.split("/")[::-1]
        done: list[str] = []
        for _ in range(_MAX_LINKS * 16):
            if not todo:
                return self._place.root.joinpath(*done)
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            path = self._place.root.joinpath(*done, part)
            if path.is_symlink():
                target = path.readlink().as_posix()
                done = [] if target.startswith("/") else done
                todo += target.split("/")[::-1]
            elif path.exists():
                done.append(part)
            else:
                return None
        return None

    def _list(self, folder: str) -> list[str]:
        real = self._real(folder)
        if real is None or not real.is_dir():
            return []
        return sorted(p.name for p in real.iterdir() if self._exists(posixpath.join(folder, p.name)))

    def _source(self, name: str, kept: str) -> _Source:
        path = self._real(name)
        assert path is not None
        if not path.is_dir():
            return _Source(name, path, True, (), kept)
        base = path.relative_to(self._place.root).as_posix() if path != self._place.root else ""
        return _Source(name, path, False, tuple(self._walk(path, base, "")), kept)

    def _walk(self, folder: Path, base: str, inside: str) -> Iterator[str]:
        for path in sorted(folder.iterdir(), key=lambda p: p.name):
            name = posixpath.join(inside, path.name)
            whole = posixpath.join(base, name)
            if self._visible is not None and whole not in self._visible:
                continue
            if any(p.fullmatch(name) or p.fullmatch(whole) or p.fullmatch(path.name) for p in self._exclude):
                continue
            yield name
            if path.is_dir() and not path.is_symlink():
                yield from self._walk(path, base, name)


class _Target:
    """Where a COPY puts things."""

    def __init__(self, tree: RootTree, copy: CopyParams, owner: Owner, into: bool) -> None:
        self._tree = tree
        self._copy = copy
        self._owner = owner
        self._into = into
        self.dest = copy.dest.strip("/")

    def put(self, entry: Entry, *, as_is: bool = False) -> None:
        """``as_is`` keeps mode and owner (of an archive) unless the user gave others."""
        if not as_is or self._copy.chown:
            entry = replace(entry, uid=self._owner.uid, gid=self._owner.gid)
        if self._copy.chmod is not None and not stat.S_ISLNK(entry.mode):
            entry = replace(entry, mode=stat.S_IFMT(entry.mode) | self._copy.chmod)
        self._tree.put(entry)

    def add(self, source: _Source, links: str | None) -> None:
        if source.is_file:
            self.add_file(source.path, source.kept if self._copy.parents else posixpath.basename(source.name), links)
            return
        base = posixpath.join(self.dest, source.kept) if self._copy.parents else self.dest
        self.folder(base, source.path)
        for inside in source.inside:
            entry = entry_of(source.path / inside, posixpath.join(base, inside), links)
            if entry is not None:
                self.put(entry)

    def folder(self, path: str, like: Path) -> None:
        """The destination itself: made with the source's mode, or left as it is."""
        if path and not self._tree.is_folder(path):
            entry = entry_of(like, path)
            assert entry is not None
            self.put(entry)

    def add_file(self, path: Path, name: str, links: str | None = None) -> None:
        into = self._into or self._copy.parents
        entry = entry_of(path, posixpath.join(self.dest, name) if into else self.dest, links)
        if entry is None:
            raise UserError(f"{name} is a device or a socket and cannot be copied")
        if stat.S_ISREG(entry.mode):
            # COPY onto a symbolic link writes the file that the link leads to.
            entry = replace(entry, path=self._tree.resolve(entry.path))
        self.put(entry)


def _is_archive(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:*") as archive:
            return archive.next() is not None
    except (tarfile.TarError, EOFError, OSError):
        return False


def _unpack(target: _Target, path: Path, scratch: Path) -> None:
    """Put an archive's members below the destination. Contents go to numbered files in ``scratch``, so no name in the
    archive ever becomes a path of this machine."""
    scratch.mkdir(parents=True)
    regular: dict[str, Entry] = {}
    with tarfile.open(path, "r:*") as archive:
        for number, member in enumerate(archive):
            name = _safe(member.name, path)
            if not name:
                continue
            entry = Entry(posixpath.join(target.dest, name), member.mode & 0o7777, uid=member.uid, gid=member.gid)
            if member.isdir():
                entry = replace(entry, mode=entry.mode | stat.S_IFDIR)
            elif member.issym():
                entry = replace(entry, mode=stat.S_IFLNK | 0o777, target=member.linkname)
            elif member.islnk():
                first = regular.get(_safe(member.linkname, path))
                if first is None:
                    raise UserError(f"{path.name}: {member.name} is a hard link to nothing")
                entry = replace(first, path=entry.path)
            elif member.isreg():
                link = f"{path}:{number}"
                entry = replace(_extract(archive, member, entry, scratch / str(number)), link=link)
                regular[name] = entry
            else:
                raise UserError(f"{path.name}: {member.name} is a device, which does not belong in an image")
            target.put(entry, as_is=True)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, entry: Entry, to: Path) -> Entry:
    reader = archive.extractfile(member)
    assert reader is not None
    with reader, to.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            writer.write(chunk)
    found = entry_of(to, entry.path)
    assert found is not None
    return replace(found, mode=stat.S_IFREG | entry.mode, uid=entry.uid, gid=entry.gid)


def _safe(name: str, path: Path) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"{path.name} holds {name!r}, which leads out of it")
    return posixpath.normpath(name) if posixpath.normpath(name) != "." else ""


def pattern(text: str) -> re.Pattern[str]:
    """Go's path.Match as a regular expression, and ``**`` for any number of components (as .dockerignore has it)."""
    out, at = "", 0
    while at < len(text):
        char = text[at]
        if text.startswith("**/", at):
            out, at = out + r"(?:.*/)?", at + 3
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
            body = body[negated:].replace("[", r"\[")
            out += f"[{'^/' if negated else ''}{body}]"
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
        raise UserError(f"{text!r} is not a pattern: {error}") from None
