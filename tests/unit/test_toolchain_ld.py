"""The wrapper's reading of ld's command line, and the links it makes of it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from uklimg.toolchain import archives, elf, ldargs
from uklimg.toolchain.ldargs import Kind, Link, Missing

pytestmark = pytest.mark.unit

LIB = "/usr/lib/x86_64-linux-gnu"
GCC = "/usr/lib/gcc/x86_64-linux-gnu/14"
START = f"{GCC}/../../../x86_64-linux-gnu/crt1.o {GCC}/crtbeginT.o -L{GCC} -L{LIB}"
END = f"--start-group -lgcc -lgcc_eh -lc --end-group {GCC}/crtend.o"
SYSTEM = {f"{LIB}/lib{name}.a" for name in ("m", "c", "util", "pthread", "z")} | {
    f"{GCC}/libgcc.a",
    f"{GCC}/libgcc_eh.a",
    f"{GCC}/libstdc++.a",
}


def link(text: str, *files: str) -> Link:
    """A link in a world where the system's archives and ``files`` exist."""

    def real(path: str) -> str:
        return LIB if path.endswith("/../../../x86_64-linux-gnu") else path

    return Link(ldargs.parse(text.split()), (SYSTEM | set(files)).__contains__, real)


def program(text: str, *files: str) -> Link:
    return link(f"-o prog {START} {text} {END}", *files)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("-o out", "output", "out"),
        ("-oout", "output", "out"),
        ("--output=out", "output", "out"),
        ("-u sym", "undefined", "sym"),
        ("-usym", "undefined", "sym"),
        ("--undefined=sym", "undefined", "sym"),
        ("-estart", "entry", "start"),
        ("-export-dynamic", "export-dynamic", ""),
        ("-enable-new-dtags", "enable-new-dtags", ""),
        ("-unresolved-symbols=ignore-all", "unresolved-symbols", "ignore-all"),
        ("-znow", "z", "now"),
        ("-z muldefs", "z", "muldefs"),
        ("-melf_x86_64", "m", "elf_x86_64"),
        ("-Map=m", "Map", "m"),
        ("-Map m", "Map", "m"),
        ("-rpath /x", "rpath", "/x"),
        ("-plugin-opt=-pass-through=-lc", "plugin-opt", "-pass-through=-lc"),
        ("--defsym=a=b", "defsym", "a=b"),
        ("--defsym a=b", "defsym", "a=b"),
        ("-Tscript.ld", "script", "script.ld"),
        ("-Ttext 0x1000", "Ttext", "0x1000"),
        ("-(", "start-group", ""),
        ("-dy", "Bdynamic", ""),
        ("-as-needed", "as-needed", ""),
        ("--build-id", "build-id", ""),
        ("-build-id=md5", "build-id", "md5"),
        ("-E", "export-dynamic", ""),
    ],
)
def test_options(text: str, name: str, value: str) -> None:
    (word,) = ldargs.parse(text.split())
    assert (word.kind, word.name, word.value) == (Kind.OPTION, name, value)
    assert list(word.words) == text.split()


def test_files_and_libraries() -> None:
    words = ldargs.parse(["a.o", "-lz", "-l", "m", "--library=c", "-l:libx.a"])
    assert [(w.kind, w.name) for w in words] == [
        (Kind.FILE, "a.o"),
        (Kind.LIBRARY, "z"),
        (Kind.LIBRARY, "m"),
        (Kind.LIBRARY, "c"),
        (Kind.LIBRARY, ":libx.a"),
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [("a.o", True), ("-shared a.o", False), ("-r a.o", False), ("--version", False), ("", False), ("-v", False)],
)
def test_what_is_an_executable(text: str, answer: bool) -> None:
    assert link(text).is_executable is answer


def test_executable_is_static_with_a_build_id() -> None:
    found = program(
        "a.o -pie -E -dynamic-linker /lib64/ld.so --build-id=none -rpath /x -Bdynamic --fatal-warnings -lz"
    )
    text = " ".join(found.executable_cmd("ld"))
    assert text == f"ld -o prog {START} a.o -lz {END} --build-id=sha1"


def test_executable_from_the_kept_object() -> None:
    found = program("a.o --whole-archive b.a --no-whole-archive -lz -lm --wrap=f", "b.a")
    cmd = " ".join(found.executable_cmd("ld", "kept.o"))
    assert cmd == f"ld -o prog {START} kept.o --whole-archive --no-whole-archive -lm --wrap=f {END} --build-id=sha1"


def test_relocatable_link_leaves_libc_out() -> None:
    found = program("-m elf_x86_64 a.o -Lsub --start-group x.a -lz --end-group -lm -lpthread -s -Map m --gc-sections")
    cmd = found.relocatable_cmd("ld", "kept.o")
    assert cmd[:7] == ["ld", "-r", "-o", "kept.o", "--build-id=none", "-u", "main"]
    assert " ".join(w for w in cmd[7:] if not w.startswith("--unique=")) == (
        f"-L{GCC} -L{LIB} -m elf_x86_64 a.o -Lsub --start-group x.a -lz --end-group --start-group --end-group"
    )
    assert "--unique=.text" in cmd
    assert found.run_time_libraries() == ("-lm", "-lpthread")
    assert found.replayed_options() == ("--gc-sections",)


def test_relocatable_link_asks_for_what_only_options_mention() -> None:
    cmd = " ".join(
        program("a.o --wrap=f --defsym=g=h --defsym=i=0x10 -u k -z muldefs -z now").relocatable_cmd("ld", "o")
    )
    for wanted in ("-u __wrap_f", "-u f", "-u h", "-u k", "-z muldefs"):
        assert f" {wanted}" in cmd
    for unwanted in ("--wrap", "--defsym", "-u 0x10", "-z now"):
        assert unwanted not in cmd


def test_relocatable_link_with_the_lto_plugin() -> None:
    found = program("-plugin p.so -plugin-opt=lto-wrapper -plugin-opt=-pass-through=-lc a.o")
    cmd = found.relocatable_cmd("ld", "kept.o")
    assert cmd[-1] == "-plugin-opt=-linker-output-known"
    assert "-plugin-opt=lto-wrapper" in cmd
    assert "-plugin-opt=-pass-through=-lc" not in cmd


def test_run_time_libraries_in_order_once() -> None:
    found = program(f"a.o -lm -lstdc++ {LIB}/libm.so -lpthread -lm -lc")
    assert found.run_time_libraries() == ("-lm", "-lstdc++", "-lpthread")


def test_private_library_is_told_from_libcs() -> None:
    private = link(f"-o prog -L. {START} a.o -lutil ./libm.a {END}", "./libutil.a", "./libm.a")
    assert private.run_time_libraries() == ()
    assert "-lutil" in private.relocatable_cmd("ld", "o")
    assert program("a.o -lutil").run_time_libraries() == ("-lutil",)


def test_users_file_named_like_a_start_file_is_an_input() -> None:
    found = program("sub/crt1.o")
    assert "sub/crt1.o" in found.relocatable_cmd("ld", "o")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.o", ""),
        ("a.o -T own.ld", "layout of its own (-T own.ld)"),
        ("a.o -e begin", "layout of its own (-e begin)"),
        ("a.o --section-start=.x=0", "layout of its own (--section-start=.x=0)"),
        ("-m elf_i386 a.o", "not 64-bit x86 code (-m elf_i386)"),
    ],
)
def test_what_cannot_become_a_unikernel(text: str, reason: str) -> None:
    found = program(text).why_not_relocatable()
    assert found.endswith(reason)
    assert bool(found) == bool(reason)
    assert "start files" in link("a.o -o prog").why_not_relocatable()


def test_shared_objects_give_way_to_archives() -> None:
    found = program(f"a.o sub/libx.so.1.2 {LIB}/libz.so -l:libz.so -lgcc_s other.so.c", "sub/libx.a")
    cmd = found.executable_cmd("ld")
    assert "sub/libx.a" in cmd
    assert f"{LIB}/libz.a" in cmd
    assert "-l:libz.a" in cmd
    assert cmd.count("-lgcc_eh") == 2
    assert "other.so.c" in cmd


def test_missing_archives_are_named() -> None:
    found = program("-L. -lfoo -lbar ./libown.so -l:libexact.so -lz", f"{LIB}/libfoo.so", "./libown.so")
    assert found.missing_archives() == (
        Missing("foo", f"{LIB}/libfoo.so"),
        Missing("bar", ""),
        Missing("own", "./libown.so"),
        Missing("exact", ""),
    )


NEEDS: Mapping[str, tuple[str, ...]] = {
    f"{LIB}/libcurl.so": ("libssl.so.3", "libldap.so.2", "libc.so.6"),
    f"{LIB}/libssl.so.3": ("libcrypto.so.3", "libm.so.6", "libssl.so.3"),
    f"{LIB}/libform.so": ("libform.so.6", "-ltinfo"),
}
CURL = tuple(f"{LIB}/lib{name}" for name in ("curl.so", "curl.a", "ssl.so.3", "ssl.a", "crypto.a", "ldap.so.2"))


def read(path: str) -> tuple[str, ...]:
    return NEEDS.get(path, ())


def test_closure_of_what_shared_objects_need() -> None:
    found = archives.closure(program("a.o -lcurl", *CURL), read)
    assert [word.name for word in found.archives] == ["ssl", "crypto", "m"]
    assert found.lacking == (Missing("ldap", f"{LIB}/libldap.so.2"),)
    scripts = program("a.o -lform", f"{LIB}/libform.so", f"{LIB}/libform.a", f"{LIB}/libtinfo.a")
    assert [word.name for word in archives.closure(scripts, read).archives] == ["form", "tinfo"]


def test_second_try_adds_and_leaves_out() -> None:
    found = program("a.o -lcurl -lonly -lnowhere -lm", *CURL, f"{LIB}/libonly.so")
    again = archives.second_try(found, is_check=False, read=read)
    assert again is not None
    assert again.without == ("only", "nowhere")
    cmd = " ".join(again.link.executable_cmd("ld"))
    assert f"a.o -lcurl --start-group -lssl -lcrypto -lm --end-group -lm {END}" in cmd
    assert " ".join(again.link.relocatable_cmd("ld", "o")).count("-lssl") == 1


def test_second_try_of_a_check_keeps_what_is_not_installed() -> None:
    found = program("a.o -lonly -lnowhere", f"{LIB}/libonly.so")
    again = archives.second_try(found, is_check=True, read=read)
    assert again is not None
    assert again.without == ("only",)
    assert "-lnowhere" in again.link.executable_cmd("ld")
    assert archives.second_try(program("a.o -lz -lnowhere"), is_check=True, read=read) is None


def test_linker_script_in_place_of_a_shared_object(tmp_path: Path) -> None:
    script = tmp_path / "libncurses.so"
    script.write_text("/* GNU ld script */\nINPUT(libncurses.so.6 AS_NEEDED(-ltinfo))\n")
    assert archives.needs(str(script)) == ("libncurses.so.6", "-ltinfo")
    assert archives.needs(str(tmp_path / "absent")) == ()


def elf_file(*headers: tuple[int, bytes]) -> bytes:
    """An ELF program of program headers (type, content), nothing else."""
    start = 64 + 56 * len(headers)
    table = body = b""
    for kind, content in headers:
        offset = start + len(body)
        table += struct.pack("<IIQQQQQQ", kind, 4, offset, 0x400000 + offset, 0, len(content), len(content), 4)
        body += content
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(headers), 0, 0, 0) + table + body


def note(kind: int, name: bytes, content: bytes) -> bytes:
    return struct.pack("<III", len(name), len(content), kind) + name + content


def test_build_id_is_read_from_the_program_headers(tmp_path: Path) -> None:
    file = tmp_path / "program"
    notes = (
        note(1, b"GNU\0", bytes(16)) + note(3, b"Go\0\0", b"no") + bytes(2) + note(3, b"GNU\0", b"\xab\xcd\xef\x01")
    )
    file.write_bytes(elf_file((1, b"text"), (4, note(1, b"GNU\0", b"xxxx")), (4, notes)))
    assert elf.build_id(file) == "abcdef01"
    file.write_bytes(elf_file((1, b"text")))
    assert elf.build_id(file) == ""


def test_what_is_not_elf(tmp_path: Path) -> None:
    file = tmp_path / "file"
    whole = elf_file((4, note(3, b"GNU\0", b"\x01\x02\x03\x04")))
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(58), whole[:80], whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(elf.NotElf):
            elf.build_id(file)


def test_needed_of_this_interpreters_own_library() -> None:
    import _ctypes

    assert "libc.so.6" in elf.needed(Path(_ctypes.__file__))
