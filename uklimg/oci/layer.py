"""Layers of one file: an uncompressed tar with exactly one member, so that the file lies in the blob as it is.

Pure: a caller writes ``header``, the file, then ``trailer``; a reader takes 512 bytes and learns where the file lies
(always at offset 512) without unpacking anything.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from uklimg.digest import CHUNK
from uklimg.errors import CorruptError, InternalError
from uklimg.oci.model import EPOCH

BLOCK = 512
_MAX_FILE = 8**11 - 1  # what the ustar header can say


def header(path: str, size: int, mode: int = 0o644) -> bytes:
    """The tar header of the file ``path`` (absolute in the image) of ``size`` bytes: owner root, fixed date."""
    if not path.startswith("/") or size > _MAX_FILE:
        raise InternalError(f"no layer of {path!r} with {size} bytes")
    info = tarfile.TarInfo(path.removeprefix("/"))
    info.size, info.mode, info.mtime = size, mode, EPOCH
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def trailer(size: int) -> bytes:
    """What follows a file of ``size`` bytes: padding to a block and the two empty blocks that end an archive."""
    return bytes(-size % BLOCK + 2 * BLOCK)


def length(size: int) -> int:
    """Bytes of the whole layer."""
    return BLOCK + size + len(trailer(size))


def of_bytes(path: str, content: bytes) -> bytes:
    return header(path, len(content)) + content + trailer(len(content))


def file_size(first_block: bytes, path: str, layer_size: int) -> int:
    """Size of the file ``path`` in a layer of ``layer_size`` bytes whose first 512 bytes are given.

    Raises CorruptError when the layer is anything but that one regular file.
    """
    try:
        info = tarfile.TarInfo.frombuf(first_block, "utf-8", "strict")
    except (tarfile.TarError, ValueError) as error:
        raise CorruptError(f"the layer of {path} does not begin with a tar header: {error}") from None
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or "/" + info.name.removeprefix("./") != path:
        raise CorruptError(f"the layer of {path} holds {info.name[:100]!r} instead")
    if info.size < 0 or length(info.size) > layer_size:
        raise CorruptError(f"the layer of {path} is shorter than its file")
    return info.size


def file_chunks(stream: BinaryIO, path: str, layer_size: int) -> Iterator[bytes]:
    """The bytes of the file ``path`` out of ``stream``, a layer of ``layer_size`` bytes at its beginning.

    The stream is left after the file; a caller that wants the blob verified to its end reads on.
    """
    left = file_size(stream.read(BLOCK), path, layer_size)
    while left:
        chunk = stream.read(min(left, CHUNK))
        if not chunk:
            raise CorruptError(f"the layer of {path} is shorter than its file")
        left -= len(chunk)
        yield chunk
