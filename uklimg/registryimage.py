"""Images of a registry as root file systems: layers unpacked to plain tars, and files taken out of them.

A layer is what its digest in the manifest says before it is unpacked, and what its diff ID in the configuration says
afterwards (OCI image specification, config.md, "Layer DiffID").
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from uklimg import oci, tarread
from uklimg.copyfiles import pattern
from uklimg.digest import CHUNK, Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.store.trees import check_name

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_MAX_LINKS = 40
MAX_LAYER = 64 << 30
"""Bytes of a layer, unpacked: a few megabytes of zeros, packed, would else fill any disk."""


# --- layers


def unpack_layers(config: Path, layers: Sequence[Path], out: Path) -> None:
    """Write the layers, decompressed, as ``out/000.tar`` and so on. CorruptError when one is not what ``config``
    says; ToolError HOST when nothing here decompresses zstd."""
    known = oci.parse_config(config.read_bytes(), "the image's configuration")
    if len(known.diff_ids) != len(layers):
        raise CorruptError(f"the image has {len(layers)} layers, and its configuration {len(known.diff_ids)}")
    for number, (layer, wanted) in enumerate(zip(layers, known.diff_ids, strict=True)):
        hasher = hashlib.sha256()
        try:
            with _opened(layer) as packed, (out / f"{number:03}.tar").open("xb") as plain:
                size = 0
                while chunk := packed.read(CHUNK):
                    size += len(chunk)
                    if size > MAX_LAYER:
                        raise CorruptError(f"layer {number} of the image unpacks to more than {MAX_LAYER} bytes")
                    hasher.update(chunk)
                    plain.write(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorruptError(f"layer {number} of the image cannot be unpacked: {error}") from error
        if Digest(hasher.hexdigest()) != wanted:
            raise CorruptError(f"layer {number} of the image unpacks to sha256:{hasher.hexdigest()}, not {wanted}")


def _opened(layer: Path) -> IO[bytes]:
    """A layer's tar; what it is packed with is seen, not believed."""
    with layer.open("rb") as file:
        first = file.read(4)
    if first.startswith(_GZIP):
        return cast(IO[bytes], gzip.open(layer))
    if first == _ZSTD:
        for module in ("compression.zstd", "zstandard"):
            try:
                return cast(IO[bytes], importlib.import_module(module).open(layer, "rb"))
            except ImportError:
                continue
        raise ToolError(
            "a layer of the image is packed with zstd, which this Python cannot read",
            hint="Python 3.14, or `pip install zstandard` beside uklimg",
        )
    return layer.open("rb")


# --- files


@dataclass(frozen=True)
class _Node:
    """A file, link or folder. ``content``: layer and offset of a regular file; the same for its hard links."""

    info: tarfile.TarInfo
    content: tuple[int, int] | None = None


class Merged:
    """The file system that layers make, bottom first, with whiteouts (layer.md); contents stay in the tars."""

    def __init__(self, archives: Sequence[tarfile.TarFile]) -> None:
        self._archives = archives
        self._nodes: dict[str, _Node] = {"": _Node(_folder())}
        self._children: dict[str, set[str]] = {"": set()}
        for number in range(len(archives)):
            self._lay(number)

    def _lay(self, number: int) -> None:
        members = [(check_name(info.name, CorruptError), info) for info in tarread.members(self._archives[number])]
        for name, _ in members:  # whiteouts are about the layers below, wherever in the archive they stand
            folder, _, last = name.rpartition("/")
            if last == _OPAQUE:
                for child in tuple(self._children.get(folder, ())):
                    self._remove(posixpath.join(folder, child))
            elif last.startswith(_WHITEOUT):
                self._remove(posixpath.join(folder, last.removeprefix(_WHITEOUT)))
        for name, info in members:
            if name and not name.rpartition("/")[2].startswith(_WHITEOUT):
                self._put(name, info, number)

    def _put(self, name: str, info: tarfile.TarInfo, number: int) -> None:
        parent = posixpath.dirname(name)
        above = self._nodes.get(parent)
        if above is None or not above.info.isdir():
            self._put(parent, _folder(), number)
        if info.isdir():
            if name not in self._nodes or not self._nodes[name].info.isdir():
                self._remove(name)
            self._add(name, _Node(info))
            return
        content = (number, info.offset_data) if info.isreg() else None
        if info.islnk():
            first = self._nodes.get(check_name(info.linkname, CorruptError))
            if first is None or first.info.isdir():
                raise CorruptError(f"{name} in the image is a hard link to {info.linkname!r}, which is not there")
            info, content = first.info, first.content
        self._remove(name)
        self._add(name, _Node(info, content))

    def _add(self, name: str, node: _Node) -> None:
        self._nodes[name] = node
        if node.info.isdir():
            self._children.setdefault(name, set())
        self._children[posixpath.dirname(name)].add(posixpath.basename(name))

    def _remove(self, name: str) -> None:
        if not name or name not in self._nodes:
            return
        for child in tuple(self._children.get(name, ())):
            self._remove(posixpath.join(name, child))
        del self._nodes[name]
        self._children.pop(name, None)
        self._children[posixpath.dirname(name)].discard(posixpath.basename(name))

    def walk(self, name: str) -> Iterator[tuple[str, bool]]:
        """Every entry on the way to ``name``, links included, as (path, whether it is the end); no end when it leads
        nowhere."""
        todo = [part for part in name.split("/") if part not in ("", ".")][::-1]
        done: list[str] = []
        links = 0
        if not todo:
            yield "", True
        while todo:
            part = todo.pop()
            if part == "..":
                del done[-1:]
                if not todo:
                    yield "/".join(done), True
                continue
            path = "/".join([*done, part])
            node = self._nodes.get(path)
            if node is None:
                return
            if node.info.issym():
                links += 1
                if links > _MAX_LINKS:
                    raise ToolError(f"too many symbolic links in /{name}", exit_code=ExitCode.STEP)
                yield path, False
                target = node.info.linkname
                done = [] if target.startswith("/") else done
                todo += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
                if not todo:
                    yield "/".join(done), True
                continue
            done.append(part)
            yield path, not todo

    def real(self, name: str) -> str | None:
        """Where ``name`` leads with all links followed; None when nowhere."""
        return next((path for path, last in self.walk(name) if last), None)

    def expand(self, word: str) -> list[str]:
        """What a source with wildcards stands for, sorted; ToolError STEP when it is nothing."""
        clean = posixpath.normpath("/" + word).lstrip("/")
        found = [""]
        for part in clean.split("/") if clean else []:
            found = [posixpath.join(folder, name) for folder in found for name in self._names(folder, part)]
        if not found:
            raise ToolError(f"{word} is not there", exit_code=ExitCode.STEP)
        return found

    def _names(self, folder: str, part: str) -> list[str]:
        if not re.search(r"[*?\[\\]", part):
            return [part] if self.real(posixpath.join(folder, part)) is not None else []
        here = self.real(folder)
        if here is None:
            return []
        wanted = pattern(part)
        return sorted(name for name in self._children.get(here, ()) if wanted.fullmatch(name))

    def below(self, name: str) -> Iterator[str]:
        """Everything in the folder ``name``, each folder before its contents."""
        for child in sorted(self._children.get(name, ())):
            path = posixpath.join(name, child)
            yield path
            yield from self.below(path)

    def node(self, name: str) -> _Node:
        return self._nodes[name]

    def open(self, node: _Node) -> IO[bytes]:
        """A regular file's bytes."""
        assert node.content is not None, "a regular file"
        found = self._archives[node.content[0]].extractfile(node.info)
        assert found is not None, "a regular file"
        return found


def _folder() -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def pick(layers: Sequence[Path], sources: Sequence[str], into: str, out: Path) -> None:
    """Write the tar ``out`` with what the sources (paths with wildcards) of the file system lead to, below the folder
    ``into`` and under the paths they have, links on the way included; owned by root, dated as everything."""
    with ExitStack() as stack:
        try:
            archives = [stack.enter_context(tarread.opened(path)) for path in layers]
            merged = Merged(archives)
            names = _picked(merged, sources)
            _write(merged, names, into, out)
        except tarfile.TarError as error:
            raise CorruptError(f"a layer of the image is no tar archive: {error}") from error


def _picked(merged: Merged, sources: Sequence[str]) -> list[str]:
    """Paths of what is taken, each folder before what is in it."""
    found: dict[str, None] = {}
    for source in sources:
        for name in merged.expand(source):
            for path, last in merged.walk(name):
                parts = path.split("/")
                found.update(dict.fromkeys("/".join(parts[:depth]) for depth in range(1, len(parts))))
                found[path] = None
                if last and merged.node(path).info.isdir():
                    found.update(dict.fromkeys(merged.below(path)))
    return [name for name in found if name]


def _write(merged: Merged, names: Sequence[str], into: str, out: Path) -> None:
    first: dict[tuple[int, int], str] = {}
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as result:
        parts = into.split("/")
        for depth in range(1, len(parts) + 1):
            result.addfile(_member("/".join(parts[:depth]), _folder()))
        for name in names:
            node = merged.node(name)
            member = _member(f"{into}/{name}", node.info)
            if node.content is None:
                if node.info.isdir() or node.info.issym():  # COPY copies no devices and pipes
                    result.addfile(member)
            elif node.content in first:
                member.type, member.size = tarfile.LNKTYPE, 0
                member.linkname = f"{into}/{first[node.content]}"
                result.addfile(member)
            else:
                first[node.content] = name
                with merged.open(node) as content:
                    result.addfile(member, content)


def _member(name: str, like: tarfile.TarInfo) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = like.type, like.mode & 0o7777, oci.EPOCH
    info.size, info.linkname = like.size if like.isreg() else 0, like.linkname if like.issym() else ""
    return info


def layer_inputs(inputs: Mapping[str, Path]) -> list[Path]:
    """The layers among a step's inputs, in order."""
    return [inputs[name] for name in sorted(inputs) if name.startswith("layer-")]
