"""Put a linked application into the last segment of a finished vmlinux, which becomes as large as needed.

The application's ELF file is split as the kernel wants it (struct ukl_app, arch/x86/ukl/app.c): a header, the
ELF file without the code, which the kernel's loader maps for each process, the places of all addresses, which the
kernel changes when KASLR has moved it, the application's functions for kallsyms, where their callers' frames are, and
the code page by page. Standard library only; runs in the build container.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.link.elf import PF_X, PT_LOAD, Elf, ElfError, Segment, without_sections
else:  # in the container there is this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from elf import PF_X, PT_LOAD, Elf, ElfError, Segment, without_sections

HEADER = struct.Struct("<8sQQQQQQQQQQQQ64s")
# Words for what an application may ask of its kernel, and their bits in the header (asm/ukl_options.h).
OPTIONS = {"byp": 1 << 0, "ret": 1 << 1, "shortcut": 1 << 2, "rtc": 1 << 3}
MAGIC = b"UKLAPP1\0"
PAGE = 4096
# Code that fills such a page is mapped with one (x86-64).
LARGE_PAGE = 2 << 20
MIB = 1 << 20
# In the list of words that change with the application's place: this one falls as the application rises.
FALLS = 1 << 31


class NotMovable(Exception):
    """The application has an address that cannot be changed at boot."""


class TooLarge(Exception):
    """The application's code is more than the kernel has addresses for."""


def _up(size: int, to: int = PAGE) -> int:
    return -(-size // to) * to


def split(program: bytes) -> tuple[bytes, bytes, int]:
    """(code, ELF file without code, address of the code) of a linked application.

    The code's segment keeps its program header, without bytes: unwinders look for it there.
    """
    elf = Elf(program)
    loads = [s for s in elf.segments() if s.type == PT_LOAD]
    code = [s for s in loads if s.flags & PF_X]
    if len(code) != 1:
        raise ElfError(f"{len(code)} executable segments instead of one")
    text = code[0]
    end = max(s.offset + s.filesz for s in loads if s is not text)
    if text.offset < end:
        raise ElfError("the code is not the last of the file")
    rest = bytearray(program[:end])
    hollow = dataclasses.replace(text, offset=0, filesz=0)
    rest[text.at : text.at + len(hollow.pack())] = hollow.pack()
    without_sections(rest)
    return program[text.offset : text.offset + text.filesz], bytes(rest), text.vaddr


def moved_words(here: bytes, there: bytes, by: int) -> list[int]:
    """Offsets of the 32-bit little-endian words that change in ``there``, the same linked ``by`` higher.

    Those that become ``by`` more are addresses. FALLS is added to the offset of those that become ``by`` less: they
    are distances to something that does not move (a weak symbol that nobody defines). ``by`` is a power of two from
    2^16 to 2^23, so that the third byte of a word changes first. NotMovable when something else differs.
    """
    if len(here) != len(there):
        raise NotMovable("the application's size depends on its addresses")
    found = []
    differing = (int.from_bytes(here, "little") ^ int.from_bytes(there, "little")).to_bytes(len(here), "little")
    end = 0
    for match in re.finditer(rb"[^\0]", differing):
        if match.start() < end:
            continue
        at = match.start() - 2
        if at < end:
            raise NotMovable(f"the application has something at {match.start():#x} that depends on its addresses")
        before, after = (int.from_bytes(side[at : at + 4], "little") for side in (here, there))
        change = (after - before) & 0xFFFFFFFF
        if change not in (by, -by & 0xFFFFFFFF):
            raise NotMovable(f"the application has something at {at:#x} that depends on its addresses")
        found.append(at if change == by else at + FALLS)
        end = at + 4
    return found


def symbol_table(functions: Sequence[tuple[int, str]], start: int, size: int) -> tuple[bytes, int]:
    """The functions of the code at ``start``, ``size`` bytes long, as the kernel wants them, and how many there are.

    ``functions`` are (address, name), ascending. The table has a function's place and that of its name, 32 bits each.
    """
    rows, names = bytearray(), bytearray()
    inside = [(address - start, name) for address, name in functions if 0 <= address - start < size]
    for place, name in inside:
        rows += struct.pack("<II", place, len(names))
        names += name.encode("utf-8", "surrogateescape") + b"\0"
    return bytes(rows + names), len(inside)


def blob(
    name: str,
    here: tuple[bytes, bytes],
    there: tuple[bytes, bytes],
    by: int,
    symbols: tuple[bytes, int] = (b"", 0),
    rows: tuple[bytes, int] = (b"", 0),
    options: int = 0,
) -> bytes:
    """The contents of the kernel's application segment.

    ``here`` is the application's (code, ELF file without code); ``there`` the same, linked ``by`` bytes higher;
    ``symbols`` as of ``symbol_table``, ``rows`` as of ``frames.rows``, ``options`` a sum of values of OPTIONS.
    NotMovable when here and there differ in more than addresses.
    """
    code, rest = here
    code_words, rest_words = moved_words(code, there[0], by), moved_words(rest, there[1], by)
    relocs_size = 4 * (len(code_words) + len(rest_words))
    file_offset = PAGE
    relocs_offset = _up(file_offset + len(rest), 8)
    syms_offset = _up(relocs_offset + relocs_size)  # what lies before it is given back
    rows_offset = _up(syms_offset + len(symbols[0]), 8)
    text_offset = _up(rows_offset + len(rows[0]), LARGE_PAGE if len(code) >= LARGE_PAGE else PAGE)
    relocs = [text_offset + at for at in code_words] + [file_offset + at for at in rest_words]
    out = bytearray(text_offset)
    HEADER.pack_into(
        out, 0, MAGIC, file_offset, len(rest), relocs_offset, relocs_size, syms_offset, len(symbols[0]), symbols[1],
        rows_offset, rows[1], text_offset, len(code), options, name.encode(),
    )  # fmt: skip
    out[file_offset : file_offset + len(rest)] = rest
    struct.pack_into(f"<{len(relocs)}I", out, relocs_offset, *relocs)
    out[syms_offset : syms_offset + len(symbols[0])] = symbols[0]
    out[rows_offset : rows_offset + len(rows[0])] = rows[0]
    return bytes(out) + code


def segment_of(vmlinux: bytes | bytearray) -> Segment:
    """The segment that is the application's. Raises ElfError for a kernel without UKL."""
    elf = Elf(vmlinux)
    section = elf.section(".ukl_app")
    for segment in elf.segments():
        if segment.type == PT_LOAD and segment.offset == section.offset and segment.vaddr == section.addr:
            return segment
    raise ElfError("no segment begins with .ukl_app")


def check_code(size: int, limit: int) -> None:
    """Both in bytes. TooLarge says how many MiB are needed, and how many there are."""
    if size > limit:
        have, most = _up(size, MIB) // MIB, limit // MIB
        raise TooLarge(
            f"the application has {have} MiB of code, the kernel has addresses for {most} MiB "
            "(KCONFIG UKL_TEXT_MIB=N, 512 at most)"
        )


def embed(vmlinux: bytes, content: bytes, size_at: int) -> bytes:
    """A bootable vmlinux with ``content`` in its last segment (no sections, no symbols).

    ``size_at`` is the address of the kernel's variable with the content's size.
    """
    elf = Elf(vmlinux)
    segment = segment_of(vmlinux)
    out = bytearray(vmlinux[: segment.offset])
    filled = dataclasses.replace(segment, filesz=len(content), memsz=len(content))
    out[segment.at : segment.at + len(filled.pack())] = filled.pack()
    place = next((s for s in elf.segments() if s.type == PT_LOAD and 0 <= size_at - s.vaddr <= s.filesz - 8), None)
    if place is None:
        raise ElfError(f"the kernel has no data at {size_at:#x}")
    struct.pack_into("<Q", out, place.offset + size_at - place.vaddr, len(content))
    without_sections(out)
    return bytes(out) + content
