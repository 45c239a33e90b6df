"""Images as Docker's archives (``docker load`` and ``docker save``, which Podman has too), and folders as tars."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import posixpath
import shutil
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from uklimg import oci
from uklimg.digest import CHUNK, Digest
from uklimg.errors import CorruptError, ExitCode, ToolError

_GZIP_MAGIC = b"\x1f\x8b"
_MANIFEST = "manifest.json"
_OPAQUE = ".wh..wh..opq"


def read_manifest(layout: Path, digest: Digest) -> oci.Manifest:
    """The manifest of an image in an OCI layout."""
    data = (layout / "blobs" / "sha256" / digest.hex).read_bytes()
    if Digest.of(data) != digest:
        raise CorruptError(f"blob {digest} of {layout} is corrupt", hint="run the build again")
    return oci.parse_manifest(data, str(digest))


# Into the engine


def image_archive(layout: Path, manifest: oci.Manifest, name: str, known: int = 0) -> Iterator[bytes]:
    """The image of an OCI layout, its layers uncompressed, for ``docker load`` under ``name``; in pieces.

    CorruptError, before the archive is complete, when a layer has not the digest it should have. The lowest ``known``
    layers are left out: the engine has them.
    """
    diff_ids: list[str] = [str(layer.digest) for layer in manifest.layers]
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    config_name = f"{Digest.of(config.encode()).hex}.json"
    for layer in {layer.digest: layer for layer in manifest.layers[known:]}.values():
        yield _header(_layer_name(layer), layer.size)
        yield from _verified(layout / "blobs" / "sha256" / layer.digest.hex, layer)
        yield _padding(layer.size)
    entry = {"Config": config_name, "RepoTags": [name], "Layers": [_layer_name(layer) for layer in manifest.layers]}
    for path, text in ((config_name, config), (_MANIFEST, json.dumps([entry]))):
        data = text.encode()
        yield _header(path, len(data)) + data + _padding(len(data))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _layer_name(layer: oci.Descriptor) -> str:
    return f"{layer.digest.hex}.tar"


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode, info.mtime = size, kind, mode, oci.EPOCH
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _verified(path: Path, blob: oci.Descriptor) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            yield chunk
    if hasher.hexdigest() != blob.digest.hex:
        raise CorruptError(f"blob {path} is corrupt", hint="run the build again to make it")


def folder_archive(name: str) -> bytes:
    """A tar with one empty folder."""
    return _header(name, 0, tarfile.DIRTYPE, 0o755) + bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Small:
    """A file or symbolic link of an image, whole."""

    name: str
    kind: bytes
    mode: int
    owner: tuple[int, int]
    link: str = ""
    content: bytes = b""


def smalls_archive(files: Iterable[Small]) -> bytes:
    """A tar with these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.type, info.mode, info.linkname = file.kind, file.mode, file.link
            (info.uid, info.gid), info.size, info.mtime = file.owner, len(file.content), oci.EPOCH
            archive.addfile(info, io.BytesIO(file.content))
    return out.getvalue()


def read_small(layers: Sequence[Path], name: str) -> Small:
    """A small file of an image whose layers, uncompressed, are these, the lowest first. It has to be there."""
    for layer in reversed(layers):
        with tarfile.open(layer, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            for info in archive:
                if posixpath.normpath(info.name) == name:
                    return _small(archive, info, name)
    raise ToolError(f"no {name} in the image")


def _small(archive: tarfile.TarFile, info: tarfile.TarInfo, name: str) -> Small:
    file = archive.extractfile(info) if info.isreg() or info.islnk() else None
    kind = tarfile.REGTYPE if file else info.type
    content = file.read() if file else b""
    return Small(name, kind, info.mode & 0o7777, (info.uid, info.gid), info.linkname if info.issym() else "", content)


def without(layer: Path, files: Collection[Small], out: Path) -> None:
    """Copy the layer, leaving out what are exactly these files."""
    names = {file.name: file for file in files}
    with (
        tarfile.open(layer, "r:", encoding="utf-8", errors="surrogateescape") as archive,
        tarfile.open(out, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as result,
    ):
        for info in archive:
            name = posixpath.normpath(info.name)
            if name not in names or _small(archive, info, name) != names[name]:
                result.addfile(info, archive.extractfile(info) if info.isreg() else None)


# Out of it


def top_layer(saved: Path, base: oci.Manifest, out: Path) -> None:
    """Take the layer on top of those of ``base`` out of the archive that ``docker save`` made of one image.

    An image without one has changed nothing: the layer is an empty tar. ToolError when it has other layers below.
    """
    try:
        with tarfile.open(saved, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            entry = json.loads(_read(archive, _MANIFEST))[0]
            diff_ids = json.loads(_read(archive, entry["Config"]))["rootfs"]["diff_ids"]
            expected = [str(layer.digest) for layer in base.layers]
            if diff_ids[: len(expected)] != expected or len(diff_ids) > len(expected) + 1:
                raise ToolError("the container engine committed other layers than it was given")
            if len(diff_ids) == len(expected):
                out.write_bytes(bytes(2 * tarfile.BLOCKSIZE))
                return
            layer = cast(IO[bytes], archive.extractfile(entry["Layers"][-1]))
            packed = layer.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            layer.seek(0)
            with out.open("wb") as file:
                plain = cast(IO[bytes], gzip.GzipFile(fileobj=layer)) if packed else layer
                shutil.copyfileobj(plain, file, CHUNK)
    except (tarfile.TarError, KeyError, IndexError, ValueError, TypeError) as error:
        raise ToolError(f"the container engine saved something that is no image: {error}") from error


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


# Looking into layers


def mentioned(layer: Path, paths: Collection[str]) -> tuple[str, ...]:
    """What the layer, an uncompressed tar, says about ``paths`` (relative): names in it of these and of folders above
    them, and their whiteouts; sorted."""
    folders = {folder for path in paths for folder in _above(path)}
    wanted = {*paths, *folders, *(whiteout(path) for path in (*paths, *folders))}
    wanted |= {posixpath.join(folder, _OPAQUE) for folder in folders}
    try:
        with tarfile.open(layer, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            return tuple(sorted({posixpath.normpath(info.name) for info in archive} & wanted))
    except tarfile.TarError as error:
        raise CorruptError(f"the layer {layer} is not a tar archive: {error}") from error


def lacking(layers: Iterable[Collection[str]], paths: Iterable[str]) -> tuple[str, ...]:
    """Those of ``paths`` that an image does not have whose layers, the lowest first, say what ``mentioned`` found."""
    there: set[str] = set()
    for said in layers:
        for path in sorted(there):
            folders = _above(path)
            hidden = {whiteout(name) for name in (path, *folders)}
            hidden |= {posixpath.join(folder, _OPAQUE) for folder in folders}
            if hidden & set(said):
                there.discard(path)
        there |= set(said)
    return tuple(path for path in paths if path not in there)


def whiteout(path: str) -> str:
    """The name under which a layer says that ``path`` is gone (OCI image specification, layer.md)."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, f".wh.{name}")


def _above(path: str) -> tuple[str, ...]:
    parts = path.split("/")
    return tuple("/".join(parts[:count]) for count in range(1, len(parts)))


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file for reading."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        while not self._rest:
            try:
                self._rest = memoryview(next(self._pieces))
            except StopIteration:
                return 0
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def unpack_output(pieces: Iterable[bytes], root: str, folder: Path) -> None:
    """Unpack a tar whose entries all lie in ``root``, a folder's name, into the empty ``folder``.

    Types, modes, contents and links stay; owners and dates do not. ToolError STEP for a device or a pipe.
    """
    modes: dict[str, int] = {}
    with tarfile.open(
        fileobj=io.BufferedReader(_Pieces(pieces), CHUNK), mode="r|", encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for info in archive:
            name = _below(info.name, root)
            if name and posixpath.dirname(name) not in modes:
                raise ToolError(f"the container engine gave {info.name!r} without its folder")
            _make(archive, info, folder / name, folder / _below(info.linkname, root) if info.islnk() else None)
            if info.isdir():
                modes[name] = info.mode
    # Now nothing more is written into folders, which may forbid it.
    for name, mode in reversed(modes.items()):
        if name:
            (folder / name).chmod(mode & 0o7777)


def _below(name: str, root: str) -> str:
    """The path below ``root``, "" for itself."""
    parts = name.strip("/").split("/")
    if parts[0] != root or ".." in parts:
        raise ToolError(f"the container engine gave {name!r}, which is not in /{root}")
    return "/".join(parts[1:])


def _make(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path, first: Path | None) -> None:
    if info.isdir():
        path.mkdir(0o700, exist_ok=True)
    elif first is not None:
        os.link(first, path, follow_symlinks=False)
    elif info.issym():
        path.symlink_to(info.linkname)
    elif info.isreg():
        content = archive.extractfile(info)
        assert content is not None
        with path.open("xb") as file:
            shutil.copyfileobj(content, file, CHUNK)
        path.chmod(info.mode & 0o7777)
    else:
        problem = f"the step left {info.name}, which is a device, pipe or socket, in its output"
        raise ToolError(problem, exit_code=ExitCode.STEP)
