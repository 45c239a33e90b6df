"""The application's link against a kernel's symbols, with this machine's gcc and ld."""

from __future__ import annotations

from pathlib import Path

import pytest

from uklimg import proc
from uklimg.link import embed, link
from uklimg.link.elf import PF_X, PT_LOAD, Elf

pytestmark = pytest.mark.integration

TEXT_START = 0xFFFFFFFFC0000000
KERNEL = {"a_kernel_function": 0xFFFFFFFF81234560}
ENV = {"PATH": "/usr/bin:/bin"}


def compiled(folder: Path, source: str) -> Path:
    (folder / "a.c").write_text(source)
    proc.run(("gcc", "-O2", "-fPIE", "-c", "-o", str(folder / "a.o"), str(folder / "a.c")), env=ENV)
    return folder / "a.o"


def test_names_that_only_the_kernel_has_come_from_there(tmp_path: Path) -> None:
    declared = "#include <stdio.h>\nint a_kernel_function(int);\n"
    source = declared + 'int main(void) { return puts("") + a_kernel_function(7); }\n'
    taken = link.link(compiled(tmp_path, source), {}, tmp_path / "a", link.Place(TEXT_START), {**KERNEL, "puts": 1})
    assert taken == ["a_kernel_function"], "what libc has is libc's"
    program = Elf((tmp_path / "a").read_bytes())
    assert program.symbols()["a_kernel_function"] == KERNEL["a_kernel_function"]
    assert program.symbols()["main"] >= TEXT_START
    code = [s for s in program.segments() if s.type == PT_LOAD and s.flags & PF_X]
    assert [s.vaddr for s in code] == [TEXT_START]


def test_a_name_that_nobody_has_is_named(tmp_path: Path) -> None:
    source = "int nobodys(void);\nint main(void) { return nobodys(); }\n"
    with pytest.raises(link.LinkError, match="undefined: nobodys"):
        link.link(compiled(tmp_path, source), {}, tmp_path / "a", link.Place(TEXT_START), KERNEL)


def test_what_differs_between_two_places_is_addresses(tmp_path: Path) -> None:
    """Of pointers, the GOT, IRELATIVE entries, the ELF headers; and moving the first link gives the second."""
    source = '#include <stdio.h>\nint (*pointer)(const char *) = puts;\nint main(void) { return pointer(""); }\n'
    obj, here, there = compiled(tmp_path, source), tmp_path / "here", tmp_path / "there"
    link.link(obj, {}, here, link.Place(TEXT_START), {})
    build_id = Elf(here.read_bytes()).build_id()
    link.link(obj, {}, there, link.Place(TEXT_START, link.MOVED, f"0x{build_id}"), {})
    first, second = (embed.split(file.read_bytes()) for file in (here, there))
    assert second[2] == first[2] + link.MOVED
    for part in range(2):
        before, after = bytes(first[part]), bytes(second[part])
        words = embed.moved_words(before, after, link.MOVED)
        moved = bytearray(before)
        for at in words:
            by = -link.MOVED if at & embed.FALLS else link.MOVED
            at &= ~embed.FALLS
            value = int.from_bytes(moved[at : at + 4], "little") + by
            moved[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")
        assert moved == after
        assert part == 0 or len(words) > 50
