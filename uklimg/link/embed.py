"""Put a linked application into the place that a finished vmlinux reserves for it.

The application's ELF file is split as the kernel wants it (struct ukl_app, arch/x86/ukl/app.c): a header, the
code page by page, and the same ELF file without the code, which the kernel's loader maps for each process.
Standard library only; runs in the build container.
"""

from __future__ import annotations

import dataclasses
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.link.elf import PF_X, PT_LOAD, Elf, ElfError, Segment, without_sections
else:  # in the container there is this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from elf import PF_X, PT_LOAD, Elf, ElfError, Segment, without_sections

HEADER = struct.Struct("<8sQQQQ64s")
MAGIC = b"UKLAPP1\0"
PAGE = 4096
MIB = 1 << 20


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


def blob(name: str, code: bytes, rest: bytes) -> bytes:
    """The contents of the kernel's .ukl_app section."""
    file_offset = PAGE + _pages(len(code))
    header = HEADER.pack(MAGIC, PAGE, len(code), file_offset, len(rest), name.encode())
    return b"".join((header.ljust(PAGE, b"\0"), code.ljust(_pages(len(code)), b"\0"), rest))


def reserve_of(vmlinux: bytes | bytearray) -> tuple[Segment, int]:
    """The segment of .ukl_app and the section's size in bytes. Raises ElfError for a kernel without UKL."""
    elf = Elf(vmlinux)
    section = elf.section(".ukl_app")
    for segment in elf.segments():
        if segment.type == PT_LOAD and segment.offset == section.offset and segment.vaddr == section.addr:
            return segment, section.size
    raise ElfError("no segment begins with .ukl_app")


def embed(vmlinux: bytes, content: bytes) -> bytes:
    """A bootable vmlinux with ``content`` in its reserve, cut behind it (no sections, no symbols).

    Raises TooLarge when it does not fit.
    """
    segment, size = reserve_of(vmlinux)
    if len(content) > size:
        need = -(-len(content) // MIB)
        raise TooLarge(f"the application needs {need} MiB in the kernel image, {size // MIB} MiB are reserved")
    out = bytearray(vmlinux[: segment.offset])
    filled = dataclasses.replace(segment, filesz=len(content))
    out[segment.at : segment.at + len(filled.pack())] = filled.pack()
    without_sections(out)
    return bytes(out) + content
