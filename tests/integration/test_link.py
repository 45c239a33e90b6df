"""The application's link against a kernel's symbols, with this machine's gcc and ld."""

from __future__ import annotations

from pathlib import Path

import pytest

from uklimg import proc
from uklimg.link import embed, functions, link
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


HEADERS = Path(link.__file__).parents[1] / "toolchain"
# A kernel with two functions that applications may call, and one that they may not.
A_KERNEL = """
const char ukl_proto_twice[] = "long (int, const void *)";
long twice(int, const void *) { return 2; }
const char ukl_proto_vfree[] = "void (const void *)";
void vfree(const void *) { }
int secret(void) { return 0; }
void __ukl_call(void) { }
"""


def called(folder: Path, declaration: str, use: str = "ukl_run_to_completion(1)") -> dict[str, int]:
    """What an application with ``declaration`` is given of A_KERNEL."""
    (folder / "k.c").write_text(A_KERNEL)
    flags = ("-nostdlib", "-static", "-Wl,-emain", "-Wno-builtin-declaration-mismatch")
    proc.run(("gcc", "-O2", *flags, "-o", str(folder / "k"), str(folder / "k.c")), env=ENV)
    kernel = Elf((folder / "k").read_bytes())
    (folder / "a.c").write_text(f"#include <ukl.h>\n{declaration}\nint main(void) {{ return (int)({use}); }}\n")
    strict = ("-O2", "-fPIE", f"-I{HEADERS}", "-Wall", "-Wextra", "-Werror")
    proc.run(("gcc", *strict, "-c", "-o", str(folder / "a.o"), str(folder / "a.c")), env=ENV)
    return functions.addresses(Elf((folder / "a.o").read_bytes()), kernel, kernel.symbols())


def test_functions_of_the_kernel_have_its_addresses_and_others_none(tmp_path: Path) -> None:
    """What the header declares and the kernel lacks is no error: it is not there, as in ring 3."""
    found = called(tmp_path, "UKL_KERNEL_FUNCTION(long, twice, int, const void*)", 'ukl_kernel_twice(1, "")')
    assert found.keys() == {"__ukl_call", "__ukl_kernel_twice", "__ukl_kernel_vfree"}
    link.link(tmp_path / "a.o", {}, tmp_path / "a", link.Place(TEXT_START), {}, None, found)
    symbols = Elf((tmp_path / "a").read_bytes()).symbols()
    assert {name: symbols[name] for name in found} == found


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ("long, twice, int, void *", r"twice is long \(int, const void \*\) in this kernel, and is declared as "),
        ("int, twice, int, const void *", r"declared as int \(int, const void \*\)"),
        ("long, twice, int", "twice is long"),
        ("int, secret, void", "lets no application call secret$"),
        ("long, twise, int", "lets no application call twise; did you mean twice?"),
    ],
)
def test_a_declaration_that_is_not_the_kernels_is_refused(tmp_path: Path, declaration: str, words: str) -> None:
    with pytest.raises(functions.FunctionsError, match=words):
        called(tmp_path, f"UKL_KERNEL_FUNCTION({declaration})")


def test_a_program_that_calls_the_kernel_is_an_ordinary_one(tmp_path: Path) -> None:
    """Linked without a kernel, the functions say so."""
    use = "!(ukl_run_to_completion(1) == -1 && errno == ENOSYS && !ukl_kernel_alloc(1) && errno == ENOSYS)"
    called(tmp_path, "", use)
    proc.run(("gcc", "-static", "-o", str(tmp_path / "a"), str(tmp_path / "a.o")), env=ENV)
    proc.run((str(tmp_path / "a"),), env=ENV)


def test_the_header_is_for_c_plus_plus_too(tmp_path: Path) -> None:
    source = (
        "#include <ukl.h>\nUKL_KERNEL_FUNCTION(long long, ktime_get, void)\nint main() { return ukl_linked(); }\n"
    )
    (tmp_path / "a.cc").write_text(source)
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{HEADERS}", "-static")
    proc.run(("g++", *flags, "-o", str(tmp_path / "a"), str(tmp_path / "a.cc")), env=ENV)
    proc.run((str(tmp_path / "a"),), env=ENV)
