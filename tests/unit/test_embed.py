"""Finding an application's addresses by comparing two links of it, and what the kernel gets of that."""

from __future__ import annotations

import struct

import pytest

from uklimg.link.embed import FALLS, HEADER, MAGIC, PAGE, NotMovable, blob, moved_words, symbol_table

pytestmark = pytest.mark.unit

BY = 0x10000


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


def test_the_kernel_gets_offsets_into_the_whole() -> None:
    code, rest = b"\x90" * 8 + words(0x400000), words(0xFFFFFFFFC0000000) + b"abc"
    there = (b"\x90" * 8 + words(0x400000 + BY), words(0xFFFFFFFFC0000000 + BY) + b"abc")
    content = blob("app", (code, rest), there, BY)
    magic, text, text_size, file, file_size, relocs, relocs_size, _, _, _, name = HEADER.unpack_from(content)
    assert (magic, name.rstrip(b"\0")) == (MAGIC, b"app")
    assert content[text : text + text_size] == code and content[file : file + file_size] == rest
    assert relocs % 8 == 0 and relocs + relocs_size == len(content)
    places = struct.unpack_from(f"<{relocs_size // 4}I", content, relocs)
    assert places == (PAGE + 8, 2 * PAGE)
    assert [struct.unpack_from("<I", content, at)[0] for at in places] == [0x400000, 0xC0000000]


def test_functions_of_the_code_with_their_names() -> None:
    functions = [(0x400000, "data"), (0x1000, "main"), (0x1010, "très"), (0x1100, "behind")]
    table, count = symbol_table(functions, 0x1000, 0x100)
    assert (table, count) == (struct.pack("<IIII", 0, 0, 0x10, 5) + b"main\0tr\xc3\xa8s\0", 2)
    there = (b"\x90", b"rest")
    content = blob("app", there, there, BY, (table, count))
    _, _, _, file, _, _, _, syms, syms_size, syms_count, _ = HEADER.unpack_from(content)
    assert content[syms : syms + syms_size] == table and syms_count == count
    assert syms % PAGE == file % PAGE == 0 and file >= syms + syms_size
