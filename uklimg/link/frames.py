"""The application's call frame information as the kernel wants it: rows of where a caller's frame is.

``.eh_frame`` is a program for each function (DWARF 5, section 6.4; System V ABI for x86-64, "Unwinding"). The kernel
follows RIP, RSP and RBP alone (arch/x86/include/asm/ukl_unwind.h): the programs are run here, and what they say of
these registers becomes a table. Standard library only; runs in the build container.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

ROW = struct.Struct("<IhBb")
# enum ukl_row_base
END, SP, BP, DEREF, SIGNAL = range(5)
RBP, RSP, RIP = 6, 7, 16
BREG_RBP, DEREF_OP = 0x76, 0x06  # DW_OP_breg6, DW_OP_deref
PCREL_SDATA4 = 0x1B  # DW_EH_PE_pcrel | DW_EH_PE_sdata4
WORD = 8
MASK = (1 << 64) - 1

# CFA rule and, if RBP was saved, where: in words from the CFA.
Rule = tuple[int, int, int]
UNKNOWN: Rule = (END, 0, 0)


class FramesError(Exception):
    """The bytes are no call frame information that is understood."""


@dataclass(frozen=True)
class Common:
    """A common information entry: what the programs of several functions begin with."""

    code_align: int
    data_align: int
    program: bytes
    signal: bool
    augmented: bool


@dataclass
class State:
    """Where the program is: CFA = register + offset (bytes), or what ``deref`` says.

    RBP was saved at CFA + ``rbp``, or not, if that is 0. ``outermost``: there is no caller.
    """

    register: int = RSP
    offset: int = 0
    deref: int | None = None
    expression: bool = False
    rbp: int = 0
    outermost: bool = False

    def rule(self) -> Rule:
        """UNKNOWN for what the kernel's rows cannot say."""
        base, offset = {RSP: SP, RBP: BP}.get(self.register, END), self.offset
        if self.expression:
            base, offset = (END, 0) if self.deref is None else (DEREF, self.deref)
        if self.outermost or base == END or offset % WORD or self.rbp % WORD:
            return UNKNOWN
        cfa, rbp = offset // WORD, self.rbp // WORD
        return (base, cfa, rbp) if -(1 << 15) <= cfa < 1 << 15 and -128 <= rbp < 128 else UNKNOWN


def rows(section: bytes, address: int, start: int, size: int) -> tuple[bytes, int]:
    """The table for the code at ``start``, ``size`` bytes long, and how many rows it has.

    ``section`` is .eh_frame as linked, at ``address``. Raises FramesError.
    """
    found: dict[int, Rule] = {}
    ends = set()
    for first, length, steps in _functions(section, address):
        at = first - start & MASK
        if at >= size:
            continue  # a function that the linker has dropped
        ends.add(min(at + length, size))
        for place, rule in steps:
            if place < length:
                found[at + place] = rule
    for end in ends:
        found.setdefault(end, UNKNOWN)
    table, count, before = bytearray(), 0, UNKNOWN
    for at in sorted(found):
        if found[at] != before:
            before = found[at]
            table += ROW.pack(at, before[1], before[0], before[2])
            count += 1
    return bytes(table), count


def _functions(data: bytes, address: int) -> Iterator[tuple[int, int, list[tuple[int, Rule]]]]:
    """(address, bytes, rules from a place on) of each function."""
    commons: dict[int, Common] = {}
    at = 0
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        body = at + 4
        if not length:
            at = body  # crtend.o's end; others' may follow
            continue
        if length == 0xFFFFFFFF or body + length > len(data):
            raise FramesError(f"the entry at {at:#x} is too long")
        end = body + length
        (pointer,) = struct.unpack_from("<I", data, body)
        if pointer == 0:
            commons[at] = _common(data, body + 4, end)
        else:
            common = commons.get(body - pointer)
            if common is None:
                raise FramesError(f"the entry at {at:#x} refers to none before it")
            offset, size = struct.unpack_from("<iI", data, body + 4)
            program = body + 12
            if common.augmented:
                skip, program = _uleb(data, program)
                program += skip
            yield address + body + 4 + offset & MASK, size, list(_run(common, data[program:end]))
        at = end


def _common(data: bytes, at: int, end: int) -> Common:
    version = data[at]
    stop = data.index(0, at + 1, end)
    augmentation = data[at + 1 : stop].decode("ascii", "replace")
    code_align, at = _uleb(data, stop + 1)
    data_align, at = _sleb(data, at)
    if version == 1:
        at += 1
    else:
        _, at = _uleb(data, at)
    encoding = 0
    program = at
    if augmentation.startswith("z"):
        size, at = _uleb(data, at)
        program = at + size
        for letter in augmentation[1:]:
            if letter == "R":
                encoding, at = data[at], at + 1
            elif letter == "L":
                at += 1
            elif letter == "P":
                at += 1 + {0: 8, 2: 2, 3: 4, 4: 8}[data[at] & 7]
    if encoding != PCREL_SDATA4:
        raise FramesError(f"addresses are encoded as {encoding:#x}")
    return Common(code_align, data_align, data[program:end], "S" in augmentation, augmentation.startswith("z"))


def _run(common: Common, program: bytes) -> Iterator[tuple[int, Rule]]:
    """(place in the function, rule from there on)."""
    state, place = State(), 0
    for _ in _steps(common, common.program, state, 0):
        pass
    if common.signal:
        for _ in _steps(common, program, state, state.rbp):
            pass
        # Of libc's restorer: *(RSP + offset). Others (ret.s) are not understood.
        yield 0, (SIGNAL, 0, 0) if state.expression else UNKNOWN
        return
    initial_rbp = state.rbp
    for advance in _steps(common, program, state, initial_rbp):
        yield place, state.rule()
        place += advance
    yield place, state.rule()


def _steps(common: Common, program: bytes, state: State, initial_rbp: int) -> Iterator[int]:
    """Run the instructions on ``state``; yields before each step forward, by how many bytes it is."""
    at, end = 0, len(program)
    stack: list[State] = []
    while at < end:
        op = program[at]
        at += 1
        high, low = op & 0xC0, op & 0x3F
        if high == 0x40:  # DW_CFA_advance_loc
            yield low * common.code_align
        elif high == 0x80:  # DW_CFA_offset
            value, at = _uleb(program, at)
            if low == RBP:
                state.rbp = value * common.data_align
        elif high == 0xC0:  # DW_CFA_restore
            if low == RBP:
                state.rbp = initial_rbp
        elif op == 0x0E:  # DW_CFA_def_cfa_offset
            state.offset, at = _uleb(program, at)
            state.expression = False
        elif op in (0x02, 0x03, 0x04):  # DW_CFA_advance_loc1, 2, 4
            width = 1 << op - 2
            yield int.from_bytes(program[at : at + width], "little") * common.code_align
            at += width
        elif op == 0x0C:  # DW_CFA_def_cfa
            state.register, at = _uleb(program, at)
            state.offset, at = _uleb(program, at)
            state.expression = False
        elif op == 0x0D:  # DW_CFA_def_cfa_register
            state.register, at = _uleb(program, at)
            state.expression = False
        elif op == 0x0A:  # DW_CFA_remember_state
            stack.append(State(**vars(state)))
        elif op == 0x0B:  # DW_CFA_restore_state
            if not stack:
                raise FramesError("a state is restored that was not remembered")
            vars(state).update(vars(stack.pop()))
        elif op == 0x0F:  # DW_CFA_def_cfa_expression
            size, at = _uleb(program, at)
            state.expression, state.deref = True, _dereferenced_rbp(program[at : at + size])
            at += size
        elif op in (0x10, 0x16):  # DW_CFA_expression, DW_CFA_val_expression
            register, at = _uleb(program, at)
            size, at = _uleb(program, at)
            if register == RBP:  # of a realigned stack: RBP is where it points to, as the CFA's expression needs it
                state.rbp = 0
            at += size
        elif op in (0x05, 0x11, 0x2F):  # DW_CFA_offset_extended, _sf, DW_CFA_GNU_negative_offset_extended
            register, at = _uleb(program, at)
            value, at = _sleb(program, at) if op == 0x11 else _uleb(program, at)
            if register == RBP:
                state.rbp = value * common.data_align * (-1 if op == 0x2F else 1)
        elif op == 0x07:  # DW_CFA_undefined
            register, at = _uleb(program, at)
            state.outermost = state.outermost or register == RIP
        elif op in (0x06, 0x08, 0x2E):  # DW_CFA_restore_extended, same_value, GNU_args_size
            _, at = _uleb(program, at)
        elif op in (0x09, 0x14):  # DW_CFA_register, DW_CFA_val_offset
            _, at = _uleb(program, at)
            _, at = _uleb(program, at)
        elif op == 0x00:  # DW_CFA_nop
            pass
        else:
            raise FramesError(f"unknown instruction {op:#x}")


def _dereferenced_rbp(expression: bytes) -> int | None:
    """The offset of ``*(RBP + offset)``, which is how a function with a realigned stack names its CFA, or None."""
    if len(expression) < 3 or expression[0] != BREG_RBP:
        return None
    offset, at = _sleb(expression, 1)
    return offset if expression[at:] == bytes([DEREF_OP]) else None


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _sleb(data: bytes, at: int) -> tuple[int, int]:
    start = at
    value, at = _uleb(data, at)
    bits = 7 * (at - start)
    return (value - (1 << bits) if value >> bits - 1 & 1 else value), at
