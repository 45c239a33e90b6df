"""Put a linked application into the place that a finished vmlinux reserves for it.

The application's ELF file is split as the kernel wants it (struct ukl_app, arch/x86/ukl/app.c): a header, the
code page by page, the application's functions for kallsyms, the same ELF file without the code, which the
kernel's loader maps for each process, and the places of all addresses, which the kernel changes when KASLR has moved
it. Standard library only; runs in the build container.
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

HEADER = struct.Struct("<8sQQQQQQQQQ64s")
MAGIC = b"UKLAPP1\0"
PAGE = 4096
MIB = 1 << 20
# In the list of words that change with the application's place: this one falls as the application rises.
FALLS = 1 << 31


class NotMovable(Exception):
    """The application has an address that cannot be changed at boot."""


class TooLarge(Exception):
    """The application does not fit into the kernel's reserve."""


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


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
) -> bytes:
    """The contents of the kernel's .ukl_app section.

    ``here`` is the application's (code, ELF file without code); ``there`` the same, linked ``by`` bytes higher;
    ``symbols`` as of ``symbol_table``. NotMovable when here and there differ in more than addresses.
    """
    code, rest = here
    table, count = symbols
    syms_offset = PAGE + _pages(len(code))
    file_offset = syms_offset + _pages(len(table))
    code_words = moved_words(code, there[0], by)
    words = [PAGE + at for at in code_words] + [file_offset + at for at in moved_words(rest, there[1], by)]
    relocs_offset = -(-(file_offset + len(rest)) // 8) * 8
    header = HEADER.pack(
        MAGIC, PAGE, len(code), file_offset, len(rest), relocs_offset, 4 * len(words), syms_offset, len(table), count,
        name.encode(),
    )  # fmt: skip
    pages = (part.ljust(_pages(len(part)), b"\0") for part in (header, code, table))
    body = b"".join((*pages, rest))
    return body.ljust(relocs_offset, b"\0") + struct.pack(f"<{len(words)}I", *words)


def reserve_of(vmlinux: bytes | bytearray) -> tuple[Segment, int]:
    """The segment of .ukl_app and the section's size in bytes. Raises ElfError for a kernel without UKL."""
    elf = Elf(vmlinux)
    section = elf.section(".ukl_app")
    for segment in elf.segments():
        if segment.type == PT_LOAD and segment.offset == section.offset and segment.vaddr == section.addr:
            return segment, section.size
    raise ElfError("no segment begins with .ukl_app")


def check_size(need: int, reserve: int) -> None:
    """Both in bytes. TooLarge says how many MiB are needed, and how many there are."""
    if need > reserve:
        need_mib, reserve_mib = -(-need // MIB), reserve // MIB
        raise TooLarge(
            f"the application needs {need_mib} MiB in the kernel image, {reserve_mib} MiB are reserved "
            "(KCONFIG UKL_RESERVE_MIB=N)"
        )


def embed(vmlinux: bytes, content: bytes) -> bytes:
    """A bootable vmlinux with ``content`` in its reserve, cut behind it (no sections, no symbols).

    Raises TooLarge when it does not fit.
    """
    segment, size = reserve_of(vmlinux)
    check_size(len(content), size)
    out = bytearray(vmlinux[: segment.offset])
    filled = dataclasses.replace(segment, filesz=len(content))
    out[segment.at : segment.at + len(filled.pack())] = filled.pack()
    without_sections(out)
    return bytes(out) + content
