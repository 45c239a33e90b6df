"""The little of ELF that the wrapper reads: a program's build ID, and what a shared object needs."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PT_LOAD = 1
PT_DYNAMIC = 2
PT_NOTE = 4
DT_NULL = 0
DT_NEEDED = 1
DT_STRTAB = 5
DT_STRSZ = 10
NT_GNU_BUILD_ID = 3


class NotElf(ValueError):
    """Not a 64-bit little-endian ELF file, or a truncated one."""


@dataclass(frozen=True)
class Segment:
    """A program header: type, place in the file, address, size in the file."""

    kind: int
    offset: int
    address: int
    size: int


def segments(file: BinaryIO) -> tuple[Segment, ...]:
    """The program headers; an ordinary object (.o) has none. Raises NotElf."""
    header = _read(file, 0, 64, "not a 64-bit little-endian ELF file")
    if header[:6] != b"\x7fELF\x02\x01":
        raise NotElf("not a 64-bit little-endian ELF file")
    offset, size, count = struct.unpack_from("<32xQ14xHH", header)
    if count and size < 56:
        raise NotElf("bad program headers")
    table = _read(file, offset, size * count, "truncated program headers")
    found = (struct.unpack_from("<I4xQQ8xQ", table, index * size) for index in range(count))
    return tuple(Segment(*fields) for fields in found)


def build_id(path: Path) -> str:
    """The NT_GNU_BUILD_ID note of a program or shared object in hexadecimal, "" when it has none.

    Read through the program headers, so that a stripped program (even without section headers) keeps it.
    Raises NotElf and OSError.
    """
    with path.open("rb") as file:
        for segment in segments(file):
            if segment.kind == PT_NOTE:
                notes = _read(file, segment.offset, segment.size, "truncated notes")
                for kind, name, content in _notes(notes):
                    if kind == NT_GNU_BUILD_ID and name == b"GNU\0":
                        return content.hex()
    return ""


def needed(path: Path) -> tuple[str, ...]:
    """The names (DT_NEEDED) of the shared objects that the shared object ``path`` needs. Raises NotElf, OSError."""
    with path.open("rb") as file:
        found = segments(file)
        names: list[int] = []
        strings = size = 0
        for segment in found:
            if segment.kind == PT_DYNAMIC:
                table = _read(file, segment.offset, segment.size & ~15, "truncated dynamic section")
                for tag, value in struct.iter_unpack("<QQ", table):
                    if tag == DT_NULL:
                        break
                    if tag == DT_NEEDED:
                        names.append(value)
                    elif tag == DT_STRTAB:
                        strings = value
                    elif tag == DT_STRSZ:
                        size = value
        for segment in found:
            if segment.kind == PT_LOAD and segment.address <= strings < segment.address + segment.size:
                text = _read(file, segment.offset + strings - segment.address, size, "truncated string table")
                return tuple(text[name : text.index(b"\0", name)].decode() for name in names)
    return ()


def _read(file: BinaryIO, offset: int, size: int, complaint: str) -> bytes:
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise NotElf(complaint)
    return content


def _notes(notes: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Type, name and content of each note."""
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        name_end = position + 12 + name_size
        start = (name_end + 3) & ~3
        yield kind, notes[position + 12 : name_end], notes[start : start + size]
        position = (start + size + 3) & ~3
