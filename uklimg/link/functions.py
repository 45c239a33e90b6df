"""Functions of the kernel that an application calls by name (ukl.h): its declarations against the kernel's. Pure.

The application's are pairs of strings, name and declaration, in two sections of its object: those that it declared
itself, and those of the header, which a kernel may lack. The kernel's are strings of its own, one a function, that
its compiler has held against the function (arch/x86/ukl/calls.c). Runs in the build container.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.link import elf
else:  # in the container there is this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import elf

DECLARED, OPTIONAL = ".ukl.functions", ".ukl.optional"
# The kernel's symbol of a function's declaration; the application's of its address.
DECLARATION, ADDRESS = "ukl_proto_", "__ukl_kernel_"
ENTRY = "__ukl_call"


class FunctionsError(Exception):
    """One line for the user."""


def addresses(obj: elf.Elf, vmlinux: elf.Elf, kernel: Mapping[str, int]) -> dict[str, int]:
    """What the application's names for functions of the kernel are, for the linker; ``kernel``: its symbols.

    FunctionsError when a declaration is not the kernel's, or the kernel has none.
    """
    found = {ENTRY: kernel[ENTRY]} if ENTRY in kernel else {}
    for section in (DECLARED, OPTIONAL):
        for name, declaration in sorted(_declared(obj, section)):
            if DECLARATION + name in kernel and name in kernel and found:
                theirs = _string(vmlinux, kernel[DECLARATION + name])
                if _spelled(declaration) != _spelled(theirs):
                    raise FunctionsError(f"{name} is {theirs} in this kernel, and is declared as {declaration}")
                found[ADDRESS + name] = kernel[name]
            elif section == DECLARED:
                raise FunctionsError(f"this kernel lets no application call {name}{_hint(name, kernel)}")
    return found if len(found) > 1 else {}


def _hint(name: str, kernel: Mapping[str, int]) -> str:
    there = [symbol.removeprefix(DECLARATION) for symbol in kernel if symbol.startswith(DECLARATION)]
    near = difflib.get_close_matches(name, there, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _declared(obj: elf.Elf, name: str) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for section in obj.sections():
        if section.name == name:
            content = bytes(obj.data[section.offset : section.offset + section.size])
            words = content.decode("utf-8", "replace").split("\0")
            found.update(zip(words[::2], words[1::2], strict=False))
    return found


def _string(vmlinux: elf.Elf, address: int) -> str:
    for segment in vmlinux.segments():
        if segment.type == elf.PT_LOAD and 0 <= address - segment.vaddr < segment.filesz:
            at = segment.offset + address - segment.vaddr
            return bytes(vmlinux.data[at : vmlinux.data.index(0, at)]).decode("utf-8", "replace")
    raise elf.ElfError(f"the kernel has no data at {address:#x}")


def _spelled(declaration: str) -> str:
    """The same for the same words, whatever the spaces between them."""
    return re.sub(r"\s*([*(),])\s*", r"\1", " ".join(declaration.split()))
