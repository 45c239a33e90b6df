"""Reading tars that somebody else wrote, with ``tarfile`` and checks that it lacks.

What is refused here, always as tarfile.ReadError: sizes below zero (versions of Python without the correction of
CVE-2025-8194 go round in circles), extension headers larger than any name (they are read into memory whole), long
chains of them (``tarfile`` calls itself for each), sparse files (a few bytes that unpack to exabytes), and more
members than an image can have. Names and links are the callers' business.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from uklimg.digest import CHUNK

MAX_EXTENSION = 1 << 20
"""Bytes of a pax or GNU header."""
MAX_MEMBERS = 2_000_000
_EXTENSIONS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
# What tarfile lets through for headers that are no headers, beside its own errors.
_ODD = (EOFError, ValueError, OverflowError, RecursionError, IndexError, zlib.error, lzma.LZMAError)


class Member(tarfile.TarInfo):
    """A header whose size is believable before anything of that size is read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        info = super().frombuf(buf, encoding, errors)
        assert isinstance(info, Member)
        if info.size < 0:
            raise tarfile.ReadError("a member has a size below zero")
        if info.type in _EXTENSIONS and info.size > MAX_EXTENSION:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


def opened(source: Path | IO[bytes], mode: str = "r:") -> tarfile.TarFile:
    """The archive; its names are UTF-8, or what surrogates stand for. ``mode`` is ``tarfile``'s."""
    where: dict[str, Any] = {"name": source} if isinstance(source, Path) else {"fileobj": source}
    stream: dict[str, Any] = {"bufsize": CHUNK} if "|" in mode else {}
    try:
        opening: Any = tarfile.open
        archive: tarfile.TarFile = opening(
            mode=mode, tarinfo=Member, encoding="utf-8", errors="surrogateescape", **where, **stream
        )
    except _ODD as error:
        raise tarfile.ReadError(_said(error)) from error
    return archive


def members(archive: tarfile.TarFile, limit: int = MAX_MEMBERS) -> Iterator[tarfile.TarInfo]:
    """The members of an archive that ``opened`` made, each checked before it is seen."""
    for _ in range(limit):
        try:
            info = archive.next()
        except _ODD as error:
            raise tarfile.ReadError(_said(error)) from error
        if info is None:
            return
        if info.size < 0 or info.issparse():
            raise tarfile.ReadError(f"{info.name[:200]!r} has a size below zero or holes")
        yield info
    raise tarfile.ReadError(f"more than {limit} members")


def _said(error: Exception) -> str:
    return "headers within headers" if isinstance(error, RecursionError) else f"{error}"[:200] or "it ends too early"
