"""The little of ELF-64 that linking needs (System V gABI, "Object Files"); standard library only.

Runs in the build container, beside the other files of this folder, and in the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
SYM = struct.Struct("<IBBHQQ")

PT_LOAD, PT_NOTE = 1, 4
PF_X = 1
SHT_SYMTAB, SHT_NOTE, SHT_NOBITS = 2, 7, 8
SHF_ALLOC, SHF_EXECINSTR = 2, 4
STT_FUNC, STT_GNU_IFUNC = 2, 10
STB_GLOBAL = 1
SHN_UNDEF = 0


class ElfError(Exception):
    """The bytes are not the ELF file that was expected."""


@dataclass(frozen=True)
class Segment:
    """A program header; ``at`` is its own offset in the file."""

    at: int
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int

    def pack(self) -> bytes:
        return PHDR.pack(
            self.type,
            self.flags,
            self.offset,
            self.vaddr,
            self.paddr,
            self.filesz,
            self.memsz,
            self.align,
        )


@dataclass(frozen=True)
class Section:
    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int


class Elf:
    """A little-endian ELF-64 file in memory; tables are read on demand."""

    def __init__(self, data: bytes | bytearray) -> None:
        if len(data) < EHDR.size or bytes(data[:6]) != b"\x7fELF\x02\x01":
            raise ElfError("not a 64-bit little-endian ELF file")
        self.data = data
        header = EHDR.unpack_from(data)
        self.type, self.entry = header[1], header[4]
        self.phoff, self.shoff = header[5], header[6]
        self.phnum, self.shnum, self.shstrndx = header[10], header[12], header[13]

    def segments(self) -> list[Segment]:
        found = []
        for index in range(self.phnum):
            at = self.phoff + index * PHDR.size
            found.append(Segment(at, *PHDR.unpack_from(self.data, at)))
        return found

    def sections(self) -> list[Section]:
        rows = [SHDR.unpack_from(self.data, self.shoff + i * SHDR.size) for i in range(self.shnum)]
        if not rows:
            return []
        names = rows[self.shstrndx][4]
        return [Section(self._string(names + r[0]), r[1], r[2], r[3], r[4], r[5], r[6]) for r in rows]

    def section(self, name: str) -> Section:
        for section in self.sections():
            if section.name == name:
                return section
        raise ElfError(f"no section {name}")

    def symbols(self) -> dict[str, int]:
        """Values of the defined global symbols."""
        return {name: value for name, info, value in self._defined() if info >> 4 == STB_GLOBAL}

    def functions(self) -> list[tuple[int, str]]:
        """(address, name) of the functions, ascending; of the names of an address a global one, then the first."""
        found: dict[int, tuple[bool, str]] = {}
        for name, info, value in self._defined():
            if info & 15 in (STT_FUNC, STT_GNU_IFUNC):
                rank = (info >> 4 != STB_GLOBAL, name)
                found[value] = min(found.get(value, rank), rank)
        return [(value, found[value][1]) for value in sorted(found)]

    def _defined(self) -> Iterator[tuple[str, int, int]]:
        """(name, st_info, value) of every defined symbol."""
        sections = self.sections()
        for table in sections:
            if table.type != SHT_SYMTAB:
                continue
            strings = sections[table.link].offset
            for at in range(table.offset, table.offset + table.size, SYM.size):
                name, info, _, shndx, value, _ = SYM.unpack_from(self.data, at)
                if shndx != SHN_UNDEF:
                    yield self._string(strings + name), info, value

    def notes(self) -> list[tuple[str, int, bytes]]:
        """(owner, type, descriptor) of every note in a PT_NOTE segment."""
        found = []
        for segment in self.segments():
            if segment.type != PT_NOTE:
                continue
            at, end = segment.offset, segment.offset + segment.filesz
            while at + 12 <= end:
                namesz, descsz, kind = struct.unpack_from("<III", self.data, at)
                name = at + 12
                desc = name + (namesz + 3 & ~3)
                owner = bytes(self.data[name : name + namesz]).rstrip(b"\0").decode("latin-1")
                found.append((owner, kind, bytes(self.data[desc : desc + descsz])))
                at = desc + (descsz + 3 & ~3)
        return found

    def build_id(self) -> str:
        """Hexadecimal digits of the GNU build ID, "" when there is none."""
        return next((d.hex() for owner, kind, d in self.notes() if owner == "GNU" and kind == 3), "")

    def _string(self, at: int) -> str:
        end = self.data.index(0, at)
        return bytes(self.data[at:end]).decode("utf-8", "surrogateescape")


def without_sections(data: bytearray) -> None:
    """Forget the section headers, in place."""
    fields = list(EHDR.unpack_from(data))
    fields[6] = fields[12] = fields[13] = 0
    EHDR.pack_into(data, 0, *fields)
