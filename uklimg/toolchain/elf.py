"""The little of ELF that the wrapper reads: a program's build ID."""

from __future__ import annotations

import struct

PT_NOTE = 4
NT_GNU_BUILD_ID = 3


class NotElf(ValueError):
    """Not a 64-bit little-endian ELF file, or a truncated one."""


def build_id(image: bytes) -> str:
    """The NT_GNU_BUILD_ID note of an ELF program or shared object in hexadecimal, "" when it has none.

    Read through the program headers, so that a stripped program (without section headers, even) keeps it.
    Raises NotElf.
    """
    if image[:4] != b"\x7fELF" or image[4:6] != b"\x02\x01" or len(image) < 64:
        raise NotElf("not a 64-bit little-endian ELF file")
    offset, size, count = struct.unpack_from("<32xQ14xHH", image)[:3]
    for index in range(count):
        try:
            kind, start, length = struct.unpack_from("<I4xQ16xQ", image, offset + index * size)
        except struct.error as error:
            raise NotElf("truncated program headers") from error
        if kind == PT_NOTE and (found := _build_id_in_notes(image[start : start + length])):
            return found
    return ""


def _build_id_in_notes(notes: bytes) -> str:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        name_end = position + 12 + name_size
        start = (name_end + 3) & ~3
        if kind == NT_GNU_BUILD_ID and notes[position + 12 : name_end] == b"GNU\0":
            return notes[start : start + size].hex()
        position = (start + size + 3) & ~3
    return ""
