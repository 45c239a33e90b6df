"""Sections added to a PE32+ file, as a unified kernel image has them. Pure.

Sources: "PE Format" (Microsoft's specification: COFF file header, optional header, section table) and "UKI" of the
UAPI group. The stub's own sections stay as they are; the new ones lie behind them, in the file and in memory. What
follows the stub's sections (symbols of older ones, a signature that no longer fits) is left out: a gap between
sections makes signatures that firmware does not take.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from uklimg.errors import UserError

PAGE = 0x1000
_PE32_PLUS = 0x20B
_SECTION = struct.Struct("<8sIIIIIIHHI")
_READABLE_DATA = 0x40000040  # IMAGE_SCN_MEM_READ | IMAGE_SCN_CNT_INITIALIZED_DATA
_SYMBOLS_STRIPPED = 0x8  # IMAGE_FILE_LOCAL_SYMS_STRIPPED
# Offsets from the PE signature.
_COUNT, _SYMBOLS, _OPTIONAL_SIZE, _FLAGS, _OPTIONAL = 6, 12, 20, 22, 24
_DATA_SIZE, _FILE_ALIGNMENT, _IMAGE_SIZE, _HEADERS_SIZE, _CHECKSUM, _SIGNATURE = (
    24 + at for at in (8, 36, 56, 60, 64, 144)
)


@dataclass(frozen=True)
class Section:
    """``name`` has at most 8 bytes; ``size`` in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Layout:
    """A file with more sections: ``head`` comes first, then each section's content, filled up with zeros to a
    multiple of ``alignment``."""

    head: bytes
    alignment: int


def add_sections(stub: bytes, sections: Sequence[Section]) -> Layout:
    """``stub`` with ``sections``, in that order. UserError when it is no PE32+ file or its header has no room."""
    head = bytearray(stub)
    try:
        (at,) = struct.unpack_from("<I", head, 0x3C)
        (count,) = struct.unpack_from("<H", head, at + _COUNT)
        (optional,) = struct.unpack_from("<H", head, at + _OPTIONAL_SIZE)
        (magic,) = struct.unpack_from("<H", head, at + _OPTIONAL)
        (alignment,) = struct.unpack_from("<I", head, at + _FILE_ALIGNMENT)
        (headers,) = struct.unpack_from("<I", head, at + _HEADERS_SIZE)
        table = at + _OPTIONAL + optional
        old = [_SECTION.unpack_from(head, table + number * _SECTION.size) for number in range(count)]
    except struct.error:
        raise UserError("the EFI stub is cut off") from None
    if head[:2] != b"MZ" or head[at : at + 4] != b"PE\0\0" or magic != _PE32_PLUS or not alignment or not old:
        raise UserError("the EFI stub is no 64-bit PE file", hint="linuxx64.efi.stub of systemd is one")
    end = table + count * _SECTION.size
    if end + len(sections) * _SECTION.size > headers or any(head[end : end + len(sections) * _SECTION.size]):
        raise UserError(
            "the EFI stub's header has no room for more sections", hint="take the stub of a newer systemd"
        )
    del head[max(entry[4] + entry[3] for entry in old) :]
    head += bytes(-len(head) % alignment)
    address = max(_up(entry[2] + entry[1], PAGE) for entry in old)
    position = len(head)
    for number, section in enumerate(sections):
        raw = _up(section.size, alignment)
        entry = (section.name.encode(), section.size, address, raw, position, 0, 0, 0, 0, _READABLE_DATA)
        _SECTION.pack_into(head, end + number * _SECTION.size, *entry)
        address, position = _up(address + section.size, PAGE), position + raw
    if position >= 1 << 32:
        raise UserError("a unified kernel image is smaller than 4 GiB")
    (data,) = struct.unpack_from("<I", head, at + _DATA_SIZE)
    struct.pack_into("<H", head, at + _COUNT, count + len(sections))
    struct.pack_into("<I", head, at + _DATA_SIZE, data + position - len(head))
    struct.pack_into("<I", head, at + _IMAGE_SIZE, address)
    struct.pack_into("<I", head, at + _CHECKSUM, 0)  # firmware does not look at it
    (flags,) = struct.unpack_from("<H", head, at + _FLAGS)
    struct.pack_into("<H", head, at + _FLAGS, flags | _SYMBOLS_STRIPPED)
    struct.pack_into("<II", head, at + _SYMBOLS, 0, 0)
    struct.pack_into("<II", head, at + _SIGNATURE, 0, 0)
    return Layout(bytes(head), alignment)


def _up(value: int, to: int) -> int:
    return -(-value // to) * to
