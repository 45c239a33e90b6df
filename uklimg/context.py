"""The build context: which of its files a COPY or SOURCE takes, their digest, and a clean copy of them.

What counts of a file is its path, its content and whether it is executable; of a link its target; of a folder that
it is there. Owners, times and the other permission bits differ between two checkouts of the same thing, so they stay
out of the digest and are made equal in the copy (0644, or 0755 for folders and executables).
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uklimg.digest import CHUNK, JSON, Digest, canonical_json
from uklimg.errors import Location, UserError
from uklimg.graph import ContextTree
from uklimg.uklfile.ignore import PatternError, Rules, compile_component, compile_patterns, has_wildcard, parse_rules
from uklimg.uklfile.parser import did_you_mean

IGNORE_FILE = ".uklignore"
_MAX_HOPS = 40  # links that Linux follows in one path
MAXIMUM_TEXT = 1 << 20  # bytes of a Uklfile or ignore file; real ones have a few thousand


@dataclass(frozen=True)
class Match:
    """What one source of a COPY stands for.

    ``path`` is where it lies in the tree, ``name`` its last component as the source names it (they differ when the
    source is a link). Of a folder it is the content that COPY copies.
    """

    source: str
    path: str
    name: str
    is_folder: bool


@dataclass(frozen=True)
class Selection:
    """Files of the context chosen by sources: the tree of all of them, and each source's matches in order."""

    tree: ContextTree
    matches: tuple[Match, ...]


@dataclass(frozen=True)
class BuildContext:
    """A folder and its ignore rules; ``root`` is absolute and free of links, ``ignore_file`` is for messages,
    ``ignore_text`` what it says."""

    root: Path
    rules: Rules = field(default_factory=Rules)
    ignore_file: str = IGNORE_FILE
    ignore_text: str = field(default="", repr=False)

    def select(
        self, sources: Sequence[str], *, exclude: Sequence[str] = (), location: Location | None = None
    ) -> Selection:
        """The files that ``sources`` (see spec.Copy) take, without those that ``exclude`` patterns match.

        A wildcard may match nothing, a plain path must be there. Raises UserError at ``location``.
        """
        try:
            return self._select(sources, Rules(compile_patterns(exclude)), location)
        except PatternError as error:
            raise UserError(str(error), location=location) from error
        except OSError as error:
            raise UserError(f"cannot read the build context: {error}", location=location) from error

    def _select(self, sources: Sequence[str], excluded: Rules, location: Location | None) -> Selection:
        matches: list[Match] = []
        paths: set[str] = set()
        via: set[str] = set()
        for source in sources:
            for path in self._expand(source, location):
                match = self._match(source, path, location)
                if match.path != "." and excluded.ignored(match.path):
                    continue
                matches.append(match)
                paths.update(self._below(match.path, excluded))
                via.update(self._links(path))
        ordered = tuple(sorted(paths))
        tree = ContextTree(self._digest(ordered, location), str(self.root), ordered, tuple(sorted(via)))
        return Selection(tree, tuple(matches))

    def _expand(self, source: str, location: Location | None) -> list[str]:
        if not has_wildcard(source):
            return [source]
        found = [""]
        for part in source.split("/"):
            pattern = compile_component(part)
            found = [
                posixpath.join(folder, name)
                for folder in found
                for name in self._names(folder)
                if (pattern.match(name) if has_wildcard(part) else name == part)
            ]
        return [path for path in found if not self._hidden(path, location)]

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self.root / folder).iterdir())
        except (NotADirectoryError, FileNotFoundError):
            return []

    def _hidden(self, path: str, location: Location | None) -> bool:
        """Whether ``path`` is ignored, with nothing below it taken back in."""
        if path == "." or not self.rules.ignored(path):
            return False
        return not (self.rules.takes_back and any(True for _ in self._below(path, Rules(), itself=False)))

    def _match(self, source: str, path: str, location: Location | None) -> Match:
        """Follow links of the source itself, inside the context only."""
        if self._hidden(path, location):
            hint = f"{self.ignore_file} ignores it"
            raise UserError(f"{path!r} is not in the build context", hint=hint, location=location)
        try:
            real = (self.root / path).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            near = did_you_mean(posixpath.basename(path), self._names(posixpath.dirname(path)))
            message = f"{path!r} is not in the build context"
            raise UserError(message, hint=near or f"it is {self.root}", location=location) from error
        if not real.is_relative_to(self.root):
            raise UserError(f"the link {path!r} leads out of the build context", location=location)
        inside = real.relative_to(self.root).as_posix()
        if self._hidden(inside, location):
            hint = f"{self.ignore_file} ignores {inside!r}, where it leads"
            raise UserError(f"{path!r} is not in the build context", hint=hint, location=location)
        return Match(source, inside, posixpath.basename(path), real.is_dir())

    def _links(self, path: str) -> Iterator[str]:
        """The links that lead from ``path`` to what it stands for, which is known to be in the context."""
        todo, current, hops = path.split("/"), "", 0
        while todo and hops < _MAX_HOPS:
            part = todo.pop(0)
            full = self.root / current / part
            if part == "..":
                current = posixpath.dirname(current)
            elif part in ("", "."):
                continue
            elif full.is_symlink():
                hops += 1
                yield posixpath.join(current, part)
                target = full.readlink().as_posix()
                if target.startswith("/"):
                    if not full.resolve().is_relative_to(self.root):
                        return  # out of the context and back in: nobody can move such a link
                    target, current = full.resolve().relative_to(self.root).as_posix(), ""
                todo = [*target.split("/"), *todo]
            else:
                current = posixpath.join(current, part)

    def _below(self, path: str, excluded: Rules, itself: bool = True) -> Iterator[str]:
        """``path`` and everything below it that counts, folders included."""
        takes_back = self.rules.takes_back or excluded.takes_back
        todo = [path]
        while todo:
            current = todo.pop()
            wanted = current == "." or not (self.rules.ignored(current) or excluded.ignored(current))
            folder = _kind(self.root / current) == "folder"
            if wanted and current != "." and (itself or current != path):
                yield current
            if folder and (wanted or takes_back):
                todo.extend(name if current == "." else f"{current}/{name}" for name in self._names(current))

    def _digest(self, paths: Sequence[str], location: Location | None) -> Digest:
        return Digest.of_json([_describe(self.root, path, location) for path in paths])


def open_context(root: Path, uklfile: Path | None = None) -> BuildContext:
    """The context at ``root``, with the rules of ``<uklfile>.uklignore`` or else of its ``.uklignore``.

    Raises UserError when it is not a folder or a rule is malformed.
    """
    if not root.is_dir():
        raise UserError(f"the build context {str(root)!r} is not a folder")
    resolved = root.resolve()
    candidates = [resolved / IGNORE_FILE]
    if uklfile is not None:
        candidates.insert(0, uklfile.with_name(uklfile.name + IGNORE_FILE))
    for candidate in candidates:
        if candidate.is_file():
            text = read_text(candidate)
            return BuildContext(resolved, parse_rules(text, candidate.name), candidate.name, text)
    return BuildContext(resolved)


def read_text(path: Path) -> str:
    """The text of a Uklfile or ignore file; raises UserError that says why it cannot be read."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAXIMUM_TEXT + 1)
    except OSError as error:
        near = did_you_mean(path.name, _siblings(path)) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}", hint=near) from error
    if len(data) > MAXIMUM_TEXT:
        raise UserError(f"{str(path)!r} is larger than {MAXIMUM_TEXT >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError("the file is not UTF-8 text", location=Location(str(path), line)) from error


def listing(tree: ContextTree) -> bytes:
    """What the tree's digest is the digest of: a JSON list with path, kind and content's digest of each file.
    UserError when the files changed since the digest was taken."""
    try:
        return _listing(tree, [_describe(Path(tree.root), path, None) for path in tree.paths])
    except OSError as error:
        raise UserError(f"the build context changed while it was read: {error}") from error


def _listing(tree: ContextTree, described: list[JSON]) -> bytes:
    data = canonical_json(described)
    if Digest.of(data) != tree.digest:
        raise UserError("the build context changed while it was read", hint="build again when nothing writes to it")
    return data


def stage(tree: ContextTree, into: Path, *, epoch: int) -> bytes:
    """Copy the tree's files below the empty folder ``into``, with equal modes and times (``epoch``, seconds), and
    return their ``listing``.

    The digest is computed again from what is copied: UserError when the files changed since it was taken.
    """
    root = Path(tree.root)
    described: list[JSON] = []
    try:
        for path in tree.paths:
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            described.append(_describe(root, path, None, copy_to=into / path))
    except OSError as error:
        raise UserError(f"the build context changed while it was read: {error}") from error
    data = _listing(tree, described)
    for folder, folders, files in os.walk(into, topdown=False):
        for name in (*folders, *files):
            os.utime(Path(folder, name), (epoch, epoch), follow_symlinks=False)
        Path(folder).chmod(0o755)
    os.utime(into, (epoch, epoch))
    return data


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


def _kind(path: Path) -> str:
    mode = path.lstat().st_mode
    for kind, test in (("file", stat.S_ISREG), ("folder", stat.S_ISDIR), ("link", stat.S_ISLNK)):
        if test(mode):
            return kind
    return "special"


def _describe(root: Path, path: str, location: Location | None, copy_to: Path | None = None) -> JSON:
    """What the digest sees of one path, which is also copied when ``copy_to`` is given."""
    full = root / path
    try:
        path.encode()
        kind = _kind(full)
        if kind == "folder":
            if copy_to:
                copy_to.mkdir(exist_ok=True)
            return {"path": path, "kind": kind}
        if kind == "link":
            target = os.readlink(full)  # noqa: PTH115 (Path.readlink would tidy the target up)
            target.encode()
            if copy_to:
                copy_to.symlink_to(target)
            return {"path": path, "kind": kind, "target": target}
        if kind == "file":
            executable = bool(full.stat().st_mode & 0o111)
            return {
                "path": path,
                "kind": kind,
                "executable": executable,
                "digest": _content(full, copy_to, executable),
            }
    except UnicodeEncodeError as error:
        raise UserError(f"the file name {path!r} is not UTF-8", location=location) from error
    except PermissionError as error:
        raise UserError(f"cannot read {path!r} of the build context", location=location) from error
    hint = f"{IGNORE_FILE} can leave it out"
    raise UserError(f"{path!r} is a socket, pipe or device", hint=hint, location=location)


def _content(path: Path, copy_to: Path | None, executable: bool) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as source:
        if copy_to is None:
            while chunk := source.read(CHUNK):
                hasher.update(chunk)
        else:
            with copy_to.open("wb") as target:
                while chunk := source.read(CHUNK):
                    hasher.update(chunk)
                    target.write(chunk)
            copy_to.chmod(0o755 if executable else 0o644)
    return str(Digest(hasher.hexdigest()))
