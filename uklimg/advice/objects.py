"""A look at ELF objects, archives of them, and programs: what the link would refuse, and what would fail later."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

from uklimg.advice.findings import FUNCTIONS, OPTIONS, Finding, Level, option_rule
from uklimg.advice.sources import finding
from uklimg.errors import Location

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

ELF = b"\x7fELF"
ARCHIVE = b"!<arch>\n"
THIN = b"!<thin>\n"
# Limits of the link (uklimg/link/link.py, CONFIG_UKL_TEXT_MIB of the base configuration); a test compares.
TEXT_LIMIT = 256 << 20
DATA_LIMIT = (1 << 30) - 0x400000

_R_32, _R_32S, _R_16, _R_PC16, _R_8 = 10, 11, 12, 13, 14
_ALLOC, _EXEC = 2, 4
_PIE = 0x08000000  # DF_1_PIE


class _Unreadable(Exception):
    """The bytes are no object, or a broken one; the text says which."""


def scan_object(content: bytes, file: str, *, programs: bool = False) -> list[Finding]:
    """Findings in an object, an archive or a program. ``programs``: the image holds other programs."""
    findings: list[Finding] = []
    text = data = 0
    place = Location(file)
    try:
        for member, body in _members(content):
            try:
                made = _scan(body, place, member, programs)
            except _Unreadable as error:
                findings.append(Finding(Level.ERROR, "not-an-object", place, str(error), "", member))
                continue
            findings += made[0]
            text, data = text + made[1], data + made[2]
    except _Unreadable as error:
        return [Finding(Level.ERROR, "not-an-object", place, str(error))]
    for what, size, limit, hint in (
        ("code", text, TEXT_LIMIT, "KCONFIG UKL_TEXT_MIB= gives more"),
        ("static data", data, DATA_LIMIT, "allocate large arrays at run time"),
    ):
        if size > limit:
            message = f"{-(-size >> 20)} MiB of {what}; there are addresses for {limit >> 20}"
            findings.append(Finding(Level.ERROR, "size", place, message, hint))
    return findings


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The objects of an archive (System V and GNU form, ar(5)) with their names, or the one object itself."""
    if content.startswith(THIN):
        raise _Unreadable("a thin archive holds no objects, only their names")
    if not content.startswith(ARCHIVE):
        if not content.startswith(ELF):
            raise _Unreadable("neither an ELF file nor an archive")
        yield "", content
        return
    at, names = len(ARCHIVE), b""
    while at + 60 <= len(content):
        header = content[at : at + 60]
        size_text = header[48:58].strip()
        if header[58:] != b"`\n" or not size_text.isdigit():
            raise _Unreadable("a broken archive")
        size = int(size_text)
        body = content[at + 60 : at + 60 + size]
        if len(body) != size:
            raise _Unreadable("the archive is cut short")
        name = header[:16].rstrip()
        at += 60 + size + size % 2
        if name == b"//":
            names = body
        elif name not in (b"/", b"/SYM64/"):
            yield _member_name(name, names), body


def _member_name(name: bytes, names: bytes) -> str:
    if name.startswith(b"/") and name[1:].isdigit():
        name = names[int(name[1:]) :].partition(b"/\n")[0]
    return name.rstrip(b"/").decode(errors="replace")


def _scan(content: bytes, place: Location, member: str, programs: bool) -> tuple[list[Finding], int, int]:
    """Findings in one ELF file, its bytes of code and of static data."""
    from elftools.common.exceptions import ELFError, ELFParseError  # takes its time to import
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    if not content.startswith(ELF):
        raise _Unreadable("not an ELF file")
    if len(content) < 64 or content[4] != 2 or content[5] != 1 or content[18:20] != b"\x3e\x00":
        word = "a 32-bit object" if content[4:5] == b"\x01" else "an object for another machine"
        return [Finding(Level.ERROR, "machine", place, f"{word}; the kernel is x86-64", "", member)], 0, 0
    try:
        return _Scan(ELFFile(BytesIO(content)), place, member, programs).run()
    except (
        *(ELFError, ELFParseError, ConstructError, struct.error, UnicodeDecodeError, ValueError, LookupError),
        *(TypeError, AttributeError, AssertionError, OverflowError, MemoryError, EOFError, RecursionError),
    ) as error:
        # The library meets what nobody's compiler writes with whatever exception comes of it.
        raise _Unreadable(f"a broken ELF file: {type(error).__name__}") from error


class _Scan:
    def __init__(self, elf: ELFFile, place: Location, member: str, programs: bool) -> None:
        self.elf = elf
        self.place = place
        self.member = member
        self.programs = programs
        self.found: list[Finding] = []

    def add(self, level: Level, rule: str, message: str, hint: str = "") -> None:
        self.found.append(Finding(level, rule, self.place, message, hint, self.member))

    def run(self) -> tuple[list[Finding], int, int]:
        sections = list(self.elf.iter_sections())
        alive = [section for section in sections if section["sh_flags"] & _ALLOC]
        code = [section for section in alive if section["sh_flags"] & _EXEC]
        text = sum(int(section["sh_size"]) for section in code)
        data = sum(int(section["sh_size"]) for section in alive) - text
        kind = self.elf["e_type"]
        if kind == "ET_REL":
            self.relocatable(sections, text)
        elif kind in ("ET_DYN", "ET_EXEC"):
            self.program()
        else:
            self.add(Level.ERROR, "not-an-object", f"an ELF file of type {kind}")
        return self.found, text, data

    def relocatable(self, sections: list[Any], text: int) -> None:
        from elftools.elf.relocation import RelocationSection
        from elftools.elf.sections import SymbolTableSection

        for section in sections:
            if section.name == ".note.GNU-stack" and section["sh_flags"] & _EXEC:
                hint = "a nested function whose address is taken (gcc -Wtrampolines)"
                self.add(Level.WARNING, "executable-stack", "asks for an executable stack; there is none", hint)
            if isinstance(section, SymbolTableSection):
                self.undefined(section)
            if isinstance(section, RelocationSection) and section["sh_info"] < len(sections):
                target = sections[section["sh_info"]]
                if target["sh_flags"] & _ALLOC:
                    self.relocations(section, target, sections)
        if not text and any(section.name.startswith(".gnu.lto_") for section in sections):
            self.add(Level.INFO, "lto", "compiled for link-time optimisation: only its symbols can be looked at")

    def undefined(self, table: Any) -> None:
        for symbol in table.iter_symbols():
            if symbol["st_shndx"] != "SHN_UNDEF" or not symbol.name:
                continue
            name = symbol.name
            rule = FUNCTIONS.get(name) or (option_rule(OPTIONS[name]) if name in OPTIONS else None)
            if rule is not None and not (rule.name == "exec" and self.programs):
                self.found.append(finding(rule, name, self.place, self.member))

    def relocations(self, section: Any, target: Any, sections: list[Any]) -> None:
        """32-bit addresses of code do not fit: it lies in the kernel's half. Those of data do, below 1 GiB."""
        table = sections[section["sh_link"]]
        wrong: dict[str, str] = {}
        for relocation in section.iter_relocations():
            kind = relocation["r_info_type"]
            if kind not in (_R_32, _R_32S, _R_16, _R_PC16, _R_8):
                continue
            symbol = table.get_symbol(relocation["r_info_sym"])
            index = symbol["st_shndx"]
            to_code = isinstance(index, int) and index < len(sections) and sections[index]["sh_flags"] & _EXEC
            if to_code or symbol["st_info"]["type"] == "STT_FUNC" or kind in (_R_16, _R_PC16, _R_8):
                name = symbol.name or (sections[index].name if isinstance(index, int) else "?")
                wrong.setdefault(name, target.name)
        if wrong:
            names = ", ".join(sorted(wrong)[:3]) + (" …" if len(wrong) > 3 else "")
            message = f"not position independent: {target.name} holds 32-bit addresses of {names}"
            self.add(Level.ERROR, "position", message, "compile with ukl-gcc, or -fPIE; assembler: lea name(%rip)")

    def program(self) -> None:
        from elftools.elf.dynamic import DynamicSegment

        needed: list[str] = []
        flags = 0
        for segment in self.elf.iter_segments():
            if isinstance(segment, DynamicSegment):
                needed = [str(getattr(tag, "needed", "")) for tag in segment.iter_tags("DT_NEEDED")]
                flags = next((int(tag["d_val"]) for tag in segment.iter_tags("DT_FLAGS_1")), 0)
        interpreter = any(segment["p_type"] == "PT_INTERP" for segment in self.elf.iter_segments())
        if self.elf["e_type"] == "ET_DYN" and not interpreter and not flags & _PIE:
            message = "a shared library: a kernel has no dynamic linker"
            self.add(Level.ERROR, "shared", message, "use its static archive, lib….a")
        elif interpreter or needed:
            names = f", with {', '.join(needed[:4])}" if needed else ""
            message = f"a dynamically linked program{names}"
            self.add(Level.ERROR, "shared", message, "build it with ukl-gcc in a build stage")
        else:
            self.add(Level.INFO, "program", "a finished program: LINK wants one that ukl-gcc linked in a build stage")
