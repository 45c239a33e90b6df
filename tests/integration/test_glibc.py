"""Our libc, built as any image's: what it may not contain, whatever the compiler makes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from uklimg import proc
from uklimg.digest import Digest
from uklimg.recipes.glibc import step_id
from uklimg.settings import read_settings
from uklimg.store import Store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

UKLFILE = "FROM debian:trixie AS build\nRUN true\nFROM ukl:6.12\nGLIBC 2.41\nLINK --from=build /p\n"
ARCHIVES = ("libc-ukl.a", "libm-ukl.a", "libmvec.a", "libresolv.a")
ENTRY = "__ukl_syscall"
# For C, by arguments: none, up to three, up to six.
C_ENTRIES = tuple(f"{ENTRY}{count}" for count in (0, 3, 6))
NUMBERS = 463  # Linux 6.12 has so many system calls.
# What keeps the instruction, with how many: they do not return to the frame that issued it (docs/glibc.md).
ALLOWED = {("clone.o", "__clone"): 2, ("clone3.o", "__clone3"): 2, ("vfork.o", "__libc_vfork"): 1}
ALLOWED[("libc_sigaction.o", "__restore_rt")] = 1
# It compares an address with the entry's.
ASKS = {"pthread_cancel.o"}


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The libc as build stages get it."""
    folder = tmp_path_factory.mktemp("glibc")
    (folder / "Uklfile").write_text(UKLFILE)
    run = [sys.executable, "-m", "uklimg"]
    proc.run([*run, "build", "--target", "build", str(folder)], env=dict(os.environ), timeout=3000)
    planned = proc.run([*run, "plan", "--format", "json", str(folder)], env=dict(os.environ))
    (key,) = (step["key"] for step in json.loads(planned.text) if step["step"] == step_id("debian-trixie", "2.41"))
    store = Store(read_settings(os.environ, Path.cwd()).store)
    found = store.lookup(Digest.parse(key))
    assert found is not None
    return store.tree(found)


def disassembly(archive: Path, *options: str) -> Iterator[tuple[str, str, str]]:
    """(member, function, line) of an archive."""
    argv = ["objdump", "--disassemble", "--no-addresses", *options, str(archive)]
    member = function = ""
    for line in subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines():
        if found := re.fullmatch(r"(\S+):\s+file format .*", line):
            member = found[1]
        elif found := re.fullmatch(r"<(.+)>:", line):
            function = found[1]
        else:
            yield member, function, line


def value_of(register: str, code: list[str]) -> int:
    """What the last instruction of ``code`` that writes the register puts there; -1 for what is no constant."""
    for at in reversed(range(len(code))):
        if found := re.search(rf"\bmov +(\$0x|%)(\w+),%{register}$", code[at]):
            return int(found[2], 16) if found[1] == "$0x" else value_of(found[2], code[:at])
        if re.search(rf"\bxor +%{register},%{register}$", code[at]):
            return 0
    return -1


def test_system_calls_are_calls(kit: Path) -> None:
    instructions: Counter[tuple[str, str]] = Counter()
    for name in ARCHIVES:
        for member, function, line in disassembly(kit / name, "--no-show-raw-insn"):
            instructions[member, function] += line.split()[:1] in (["syscall"], ["sysenter"], ["int"])
    assert +instructions == ALLOWED


def test_the_entries_are_called_as_the_kernel_wants_it(kit: Path) -> None:
    """Where the number or the place matters, with the entry's address in RCX, by a call of two bytes, so that a
    system call can be restarted; else as functions, with a number that the kernel has."""
    lines = list(disassembly(kit / "libc-ukl.a", "--reloc", "--show-raw-insn"))
    calls: dict[str, Counter[str]] = {entry: Counter() for entry in (ENTRY, *C_ENTRIES)}
    for number, (member, function, line) in enumerate(lines):
        if ENTRY not in line or member in ASKS:
            continue
        before, after = lines[number - 1][2], lines[number + 1][2]
        found = re.search(r"R_X86_64_(PC32|PLT32)\s+(\w+)", line)
        assert found, (member, function, line)
        calls[found[2]][member] += 1
        if found[2] == ENTRY:
            assert re.search(r"48 8d 0d .*lea +0x0\(%rip\),%rcx", before), (member, function, before)
            assert re.search(r"^\s*ff d1\s+call +\*%rcx", after), (member, function, after)
        else:
            assert re.search(r"^\s*e8 .*call ", before), (member, function, before)
            code = [text for _, where, text in lines[max(0, number - 400) : number] if where == function]
            assert 0 <= value_of("eax", code) < NUMBERS, (member, function)
    kept = calls.pop(ENTRY)
    assert {"syscall.o", "syscall_cancel.o", "getcontext.o"} <= set(kept) and len(kept) < 20, kept
    none, three, six = calls.values()
    assert "getppid.o" in none and {"read.o", "write.o"} <= set(three)
    assert {"sendto.o", "futex-internal.o"} <= set(six)
    assert len(none) + len(three) + len(six) > 300


def test_what_calls_has_no_red_zone(kit: Path) -> None:
    """A function with a call of the entry keeps nothing below the stack pointer: its return address lies there."""
    calling: set[tuple[str, str]] = set()
    below: set[tuple[str, str]] = set()
    for member, function, line in disassembly(kit / "libc-ukl.a", "--reloc", "--no-show-raw-insn"):
        if ENTRY in line:
            calling.add((member, function))
        elif re.search(r"-0x[0-9a-f]+\(%rsp\)", line) and not line.split()[0].startswith("lea"):
            below.add((member, function))
    # It moves the stack pointer for the call (0002).
    assert calling & below == {("____longjmp_chk.o", "____longjmp_chk")}


def test_objects_can_lie_anywhere(kit: Path) -> None:
    for name in ARCHIVES:
        argv = ["readelf", "--wide", "--relocs", str(kit / name)]
        text = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert not re.search(r"R_X86_64_(32|32S|16|8)\b", text), name


def test_wide_streams_have_their_buffers(kit: Path) -> None:
    """Upstream refers to the function weakly, and nothing links it: fwprintf is a call of the null pointer (0004)."""
    argv = ["nm", "--format=posix", str(kit / "libc-ukl.a")]
    text = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
    kinds = {line.split()[1] for line in text.splitlines() if line.startswith("_IO_wfile_doallocate ")}
    assert kinds == {"U", "T"}
