"""How large the functions and objects of a program or kernel are, out of ELF files; and of the functions that an
image itself tells its kernel about, where nothing else is at hand."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from uklimg.errors import CorruptError

# The header of the application's segment, `uklimg/link/embed.py`.
_HEADER = struct.Struct("<8sQQQQQQQQQQQQ64s")
_MAGIC = b"UKLAPP1\0"
_MAX_TABLE = 64 << 20


class NoSymbolsError(CorruptError):
    """A file is not the ELF file that it should be."""


def elf_symbols(path: Path) -> Mapping[str, int]:
    """Bytes of each function and object by name, those of one name added up; empty for a file without symbols.

    NoSymbolsError when it is no ELF file.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    sizes: Counter[str] = Counter()
    try:
        with path.open("rb") as stream:
            table = ELFFile(stream).get_section_by_name(".symtab")
            for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
                if symbol["st_size"] and symbol["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT", "STT_TLS"):
                    sizes[symbol.name] += symbol["st_size"]
    except (ELFError, struct.error, ValueError, KeyError) as error:
        raise NoSymbolsError(f"{path.name} is no ELF file with symbols: {str(error)[:80]}") from None
    return dict(sizes)


def embedded_functions(path: Path) -> Mapping[str, int]:
    """Of the application in an image's vmlinux, bytes from each function to the next one; empty where it has none."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as stream:
            for segment in ELFFile(stream).iter_segments("PT_LOAD"):
                stream.seek(segment["p_offset"])
                header = stream.read(_HEADER.size)
                if header.startswith(_MAGIC) and len(header) == _HEADER.size:
                    return _table(stream, segment["p_offset"], header)
    except (ELFError, struct.error, ValueError, UnicodeDecodeError) as error:
        raise NoSymbolsError(f"{path.name} is no kernel with an application: {str(error)[:80]}") from None
    return {}


def _table(stream: BinaryIO, start: int, header: bytes) -> Mapping[str, int]:
    """Rows of a place in the code and one among the names that follow them, 32 bits each, ascending."""
    fields = _HEADER.unpack(header)
    offset, size, count, code = fields[5], fields[6], fields[7], fields[11]
    if size > _MAX_TABLE or 8 * count > size:
        raise ValueError("the table of functions is too large")
    stream.seek(start + offset)
    data = stream.read(size)
    rows = list(struct.iter_unpack("<II", data[: 8 * count]))
    names = data[8 * count :]
    ends = [place for place, _ in rows[1:]] + [code]
    sizes: Counter[str] = Counter()
    for (place, at), end in zip(rows, ends, strict=True):
        # Of several names at one place the last one gets the bytes.
        if end > place:
            name = names[at : names.index(b"\0", at)].decode("utf-8", "surrogateescape")
            sizes[name] += end - place
    return dict(sizes)
