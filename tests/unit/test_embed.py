"""Finding an application's addresses by comparing two links of it, and what the kernel gets of that."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from uklimg.link import embed as module
from uklimg.link.elf import EHDR, PHDR, PT_LOAD, SHDR, Elf
from uklimg.link.embed import (
    FALLS,
    HEADER,
    LARGE_PAGE,
    MAGIC,
    MIB,
    OPTIONS,
    PAGE,
    NotMovable,
    TooLarge,
    blob,
    check_code,
    embed,
    moved_words,
    symbol_table,
)

pytestmark = pytest.mark.unit

BY = 0x10000
ROOT = Path(__file__).resolve().parents[2]


def words(*values: int, width: str = "Q") -> bytes:
    return struct.pack(f"<{len(values)}{width}", *(value & (1 << 64) - 1 for value in values))


def test_addresses_of_both_halves_are_found_and_nothing_else() -> None:
    text, data = 0xFFFFFFFFC0001234, 0x400010
    here = words(text, 7, data, 0xFFFF0000)
    there = words(text + BY, 7, data + BY, 0xFFFF0000)
    assert moved_words(here, there, BY) == [0, 16]


def test_a_distance_to_what_does_not_move_falls() -> None:
    """A call of a weak symbol that nobody defines, which is never made: 0 minus its place."""
    here, there = b"\xe8" + words(0x3FFFF9E9, width="I"), b"\xe8" + words(0x3FFFF9E9 - BY, width="I")
    assert moved_words(here, there, BY) == [1 + FALLS]


def test_a_carry_is_part_of_the_address() -> None:
    here, there = words(0x40FF0000), words(0x40FF0000 + BY)
    assert moved_words(here, there, BY) == [0]


@pytest.mark.parametrize("value", [0x400000, 0xC0000000, 0xFFFF0000])
def test_immediates_of_32_bits_side_by_side_at_any_place(value: int) -> None:
    here = b"\x48\x3d" + words(value, value, width="I") + b"\xc3"
    moved = value + BY & 0xFFFFFFFF
    assert moved_words(here, b"\x48\x3d" + words(moved, moved, width="I") + b"\xc3", BY) == [2, 6]


@pytest.mark.parametrize(
    "here, there",
    [
        (words(1), words(2)),
        (words(0x400000), words(0x400000 + 2 * BY)),
        (b"\0\0\0\0", b"\1\0\0\0"),
        (b"\0\0\0\0", b"\0\0\0\0\0"),
        (words(0x40), words(0x4000)),
    ],
)
def test_any_other_difference_is_refused(here: bytes, there: bytes) -> None:
    with pytest.raises(NotMovable):
        moved_words(here, there, BY)


FIELDS = (
    "magic", "file", "file_size", "relocs", "relocs_size", "syms", "syms_size", "syms_count", "rows", "rows_count",
    "text", "text_size", "options", "name",
)  # fmt: skip


def header(content: bytes) -> dict[str, int]:
    fields = dict(zip(FIELDS, HEADER.unpack_from(content), strict=True))
    assert (fields.pop("magic"), fields.pop("name").rstrip(b"\0")) == (MAGIC, b"app")
    return fields


def test_the_kernel_gets_offsets_into_the_whole() -> None:
    code, rest = b"\x90" * 8 + words(0x400000), words(0xFFFFFFFFC0000000) + b"abc"
    there = (b"\x90" * 8 + words(0x400000 + BY), words(0xFFFFFFFFC0000000 + BY) + b"abc")
    content = blob("app", (code, rest), there, BY)
    h = header(content)
    assert content[h["text"] :] == code and len(code) == h["text_size"]
    assert content[h["file"] : h["file"] + h["file_size"]] == rest
    assert h["relocs"] % 8 == 0 and h["text"] % PAGE == 0
    places = struct.unpack_from(f"<{h['relocs_size'] // 4}I", content, h["relocs"])
    assert places == (h["text"] + 8, h["file"])
    assert [struct.unpack_from("<I", content, at)[0] for at in places] == [0x400000, 0xC0000000]


def test_what_is_given_back_at_boot_lies_before_what_stays() -> None:
    pair = (b"\x90", b"rest" * 5000)
    h = header(blob("app", pair, pair, BY, (b"symbols", 1), (b"rows8888", 1)))
    order = [h["file"], h["file"] + h["file_size"], h["relocs"], h["relocs"] + h["relocs_size"], h["syms"]]
    order += [h["syms"] + h["syms_size"], h["rows"], h["rows"] + 8 * h["rows_count"], h["text"]]
    assert order == sorted(order) and h["syms"] % PAGE == 0 and h["rows"] % 8 == 0


def test_options_are_the_bits_that_the_kernel_knows() -> None:
    pair = (b"\x90", b"rest")
    assert header(blob("app", pair, pair, BY))["options"] == 0
    assert header(blob("app", pair, pair, BY, options=OPTIONS["byp"] | OPTIONS["rtc"]))["options"] == 0b1001
    patch = next((ROOT / "kernel/6.12/patches").glob("0011-*.patch")).read_text()
    names = re.search(r"enum ukl_option \{\n([^}]*)UKL_OPTIONS$", patch.replace("\n+", "\n"), re.MULTILINE)
    assert names
    order = [name.removeprefix("UKL_").lower() for name in re.findall(r"\w+", names[1].removesuffix("\n"))]
    assert {word: 1 << bit for bit, word in enumerate(order)} == OPTIONS


@pytest.mark.parametrize("size, to", [(LARGE_PAGE - 1, PAGE), (LARGE_PAGE, LARGE_PAGE), (3 * LARGE_PAGE, LARGE_PAGE)])
def test_large_code_begins_where_a_large_page_can(size: int, to: int) -> None:
    pair = (b"\x90" * size, b"rest")
    h = header(blob("app", pair, pair, BY))
    assert h["text"] == max(to, 2 * PAGE)


def test_functions_of_the_code_with_their_names() -> None:
    functions = [(0x400000, "data"), (0x1000, "main"), (0x1010, "très"), (0x1100, "behind")]
    table, count = symbol_table(functions, 0x1000, 0x100)
    assert (table, count) == (struct.pack("<IIII", 0, 0, 0x10, 5) + b"main\0tr\xc3\xa8s\0", 2)
    pair = (b"\x90", b"rest")
    content = blob("app", pair, pair, BY, (table, count))
    h = header(content)
    assert content[h["syms"] : h["syms"] + h["syms_size"]] == table and h["syms_count"] == count


def kernel() -> bytes:
    """A vmlinux of two segments: data with the size's variable at 0x2008, and the application's, one byte."""
    names = b"\0.ukl_app\0.shstrtab\0"
    data, app, strings = 0x1000, 0x2000, 0x2001
    sections = strings + len(names)
    out = bytearray(sections + 3 * SHDR.size)
    EHDR.pack_into(out, 0, b"\x7fELF\2\1\1", 2, 62, 1, 0, EHDR.size, sections, 0, EHDR.size, PHDR.size, 2, 64, 3, 2)
    PHDR.pack_into(out, EHDR.size, PT_LOAD, 6, data, 0x2000, 0x2000, 0x100, 0x200, PAGE)
    PHDR.pack_into(out, EHDR.size + PHDR.size, PT_LOAD, 6, app, 0x400000, 0x400000, 1, 1, LARGE_PAGE)
    out[strings:sections] = names
    SHDR.pack_into(out, sections + SHDR.size, 1, 1, 3, 0x400000, app, 1, 0, 0, 1, 0)
    SHDR.pack_into(out, sections + 2 * SHDR.size, 10, 3, 0, 0, strings, len(names), 0, 0, 1, 0)
    return bytes(out)


def test_the_last_segment_becomes_as_large_as_needed_and_the_kernel_knows() -> None:
    made = embed(kernel(), b"content" * 1000, 0x2008)
    last = Elf(made).segments()[-1]
    assert (last.filesz, last.memsz, last.vaddr) == (7000, 7000, 0x400000)
    assert made[last.offset :] == b"content" * 1000
    assert struct.unpack_from("<Q", made, 0x1008) == (7000,)
    assert Elf(made).sections() == []


def test_a_kernel_that_has_no_place_for_the_size_is_refused() -> None:
    with pytest.raises(vars(module)["ElfError"], match="no data at 0x20fc"):
        embed(kernel(), b"content", 0x20FC)


def test_more_code_than_there_are_addresses_for() -> None:
    check_code(16 * MIB, 16 * MIB)
    with pytest.raises(TooLarge, match=r"has 17 MiB of code, the kernel has addresses for 16 MiB \(KCONFIG"):
        check_code(16 * MIB + 1, 16 * MIB)
