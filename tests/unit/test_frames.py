"""Call frame information becomes rows; the programs here are written by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from uklimg.link.frames import BP, DEREF, END, ROW, SIGNAL, SP, FramesError, rows

pytestmark = pytest.mark.unit

ADDRESS, TEXT = 0x400000, 0xFFFFFFFFC0000000
# DW_CFA_def_cfa: RSP + 8; DW_CFA_offset: RIP at CFA - 8
ENTRY = bytes([0x0C, 7, 8, 0x80 | 16, 1])


def entry(body: bytes) -> bytes:
    body = body.ljust(-(-(len(body) + 4) // 8) * 8 - 4, b"\0")
    return struct.pack("<I", len(body)) + body


def section(functions: Sequence[tuple[int, int, bytes]], augmentation: bytes = b"zR", encoding: int = 0x1B) -> bytes:
    """One CIE, and an FDE for each (place in the code, bytes, program)."""
    data = entry(bytes(4) + b"\1" + augmentation + b"\0" + bytes([1, 0x78, 16, 1, encoding]) + ENTRY)
    for place, length, program in functions:
        at = len(data) + 4
        offset = TEXT + place - (ADDRESS + at + 4) & 0xFFFFFFFF
        data += entry(struct.pack("<III", at, offset, length) + b"\0" + program)
    return data + bytes(4)


def table(data: bytes, size: int = 0x1000) -> list[tuple[int, int, int, int]]:
    """(place, base, CFA offset in words, where RBP is) of each row."""
    raw, count = rows(data, ADDRESS, TEXT, size)
    found = [(at, base, cfa, rbp) for at, cfa, base, rbp in ROW.iter_unpack(raw)]
    assert len(found) == count
    return found


def test_a_function_with_a_frame_pointer() -> None:
    # push %rbp (1 byte); mov %rsp,%rbp (3); ... leave at 0x20
    program = bytes([0x41, 0x0E, 16, 0x86, 2, 0x43, 0x0D, 6, 0x02, 0x1D, 0x0C, 7, 8])
    assert table(section([(0x10, 0x22, program)])) == [
        (0x10, SP, 1, 0), (0x11, SP, 2, -2), (0x14, BP, 2, -2), (0x31, SP, 1, -2), (0x32, END, 0, 0),
    ]  # fmt: skip


def test_remembered_states_and_restored_registers() -> None:
    program = bytes([0x41, 0x0E, 16, 0x86, 2, 0x44, 0x0A, 0x0E, 8, 0xC6, 0x41, 0x0B, 0x04, 1, 0, 0, 0, 0x0E, 24])
    assert table(section([(0, 16, program)])) == [
        (0, SP, 1, 0), (1, SP, 2, -2), (5, SP, 1, 0), (6, SP, 2, -2), (7, SP, 3, -2), (16, END, 0, 0),
    ]  # fmt: skip


def test_functions_side_by_side_and_a_gap() -> None:
    data = section([(0x20, 8, b""), (0, 16, b""), (16, 16, b"")])
    assert table(data) == [(0, SP, 1, 0), (0x28, END, 0, 0)]


def test_a_realigned_stack() -> None:
    # DW_CFA_def_cfa_expression: DW_OP_breg6 -8, DW_OP_deref; DW_CFA_expression: RBP is at RBP + 0
    program = bytes([0x44, 0x10, 6, 2, 0x76, 0, 0x0F, 3, 0x76, 0x78, 0x06])
    assert table(section([(0, 16, program)])) == [(0, SP, 1, 0), (4, DEREF, -1, 0), (16, END, 0, 0)]


@pytest.mark.parametrize(
    "program",
    [
        bytes([0x0D, 10]),  # another register
        bytes([0x0E, 12]),  # no multiple of a word
        bytes([0x0E, 0x80, 0x80, 0x20]),  # 512 KiB
        bytes([0x0F, 2, 0x77, 8]),  # an expression
        bytes([0x07, 16]),  # no return address: the first function of all
    ],
)
def test_what_rows_cannot_say_ends_the_trace(program: bytes) -> None:
    assert table(section([(0, 16, bytes([0x41]) + program)]))[1:] == [(1, END, 0, 0)]


def test_the_return_of_a_signal_handler() -> None:
    program = bytes([0x0F, 4, 0x77, 0xA0, 1, 6])  # CFA = *(RSP + 160)
    assert table(section([(0, 16, program)], b"zRS")) == [(0, SIGNAL, 0, 0), (16, END, 0, 0)]


def test_the_return_from_an_interrupt_ends_the_trace() -> None:
    """ret.s, whose return address is not right below the CFA."""
    program = bytes([0x0C, 7, 0x90, 1, 0x41, 0x0E, 0x88, 1])
    assert table(section([(0, 16, b""), (16, 4, program)], b"zRS")) == []


def test_functions_elsewhere_are_left_out() -> None:
    assert table(section([(-0x1000, 8, b""), (0x2000, 8, b"")])) == []


@pytest.mark.parametrize(
    "data, words",
    [
        (section([(0, 8, b"")], encoding=0x03), "encoded as 0x3"),
        (section([(0, 8, bytes([0x3F]))]), "unknown instruction 0x3f"),
        (section([(0, 8, bytes([0x0B]))]), "not remembered"),
        (struct.pack("<II", 100, 0), "too long"),
        (struct.pack("<IIII", 12, 4, 0, 0), "refers to none"),
    ],
)
def test_what_is_not_understood_is_said(data: bytes, words: str) -> None:
    with pytest.raises(FramesError, match=words):
        rows(data, ADDRESS, TEXT, 0x1000)
