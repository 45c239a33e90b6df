"""The compiler wrapper with this machine's own gcc: real links, each kept object linked again and run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from uklimg.recipes import toolchain as recipe
from uklimg.toolchain import elf

pytestmark = pytest.mark.integration

PACKAGE = Path(elf.__file__).parent
HELLO = '#include <stdio.h>\nint main(void) { puts("hello"); return 3; }\n'


@dataclass(frozen=True)
class Wrapper:
    """The wrapper installed below ``root``, its kept objects, and a folder to work in."""

    root: Path
    objects: Path
    work: Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.root / recipe.BINARIES}:{os.environ['PATH']}"
        return {"PATH": path, "LC_ALL": "C.UTF-8", "UKL_OBJECTS": str(self.objects), **recipe.environment()}

    def write(self, **files: str) -> None:
        """Write sources: ``main_c="…"`` becomes main.c."""
        for name, text in files.items():
            (self.work / name.replace("_", ".")).write_text(text)

    def try_run(self, *cmd: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            cmd, cwd=self.work, env=self.environment, input=stdin, capture_output=True, text=True, check=False
        )

    def run(self, *cmd: str, stdin: str = "") -> str:
        done = self.try_run(*cmd, stdin=stdin)
        assert done.returncode == 0, f"{' '.join(cmd)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def gcc(self, *args: str) -> str:
        return self.run("ukl-gcc", *args)

    def find(self, program: str) -> Path:
        return Path(self.run("ukl-find", program).strip())

    def facts(self, program: str) -> Mapping[str, Sequence[str]]:
        content: Mapping[str, Sequence[str]] = json.loads(self.find(program).with_suffix(".json").read_text())
        return content

    def relink(self, program: str, *options: str) -> str:
        """Link the kept object by itself, as LINK does, with the stock compiler; the path of what came out."""
        facts = self.facts(program)
        replay = [word for option in facts["ld_options"] for word in ("-Xlinker", option)]
        libraries = ["-Wl,--start-group", *facts["libs"], "-Wl,--end-group"]
        output = f"{program}.again"
        self.run("/usr/bin/gcc", "-static", "-o", output, str(self.find(program)), *replay, *libraries, *options)
        return output

    def same(self, program: str) -> str:
        """Run ``program`` and what its kept object links to; both must do the same. The output."""
        first, second = (self.try_run(f"./{name}") for name in (program, self.relink(program)))
        assert (first.returncode, first.stdout) == (second.returncode, second.stdout)
        return first.stdout

    def sections(self, file: str) -> str:
        return self.run("readelf", "-SW", file)

    def symbols(self, file: Path) -> dict[str, str]:
        """Symbol name -> type letter of nm."""
        lines = (line.rsplit(None, 2) for line in self.run("nm", str(file)).splitlines())
        return {words[-1]: words[-2] for words in lines}


@pytest.fixture
def wrapper(tmp_path: Path) -> Wrapper:
    source, root, work = tmp_path / "source", tmp_path / "root", tmp_path / "work"
    for file in recipe.inline(
        {name: (PACKAGE / name).read_bytes() for name in (*recipe.MODULES, recipe.HEADER)}
    ).files:
        target = source / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)
        target.chmod(file.mode)
    subprocess.run(recipe.install_cmd(str(source), str(root)), check=True)
    work.mkdir()
    return Wrapper(root, tmp_path / "objects", work)


def test_program_is_static_and_its_object_links_again(wrapper: Wrapper) -> None:
    wrapper.write(hello_c=HELLO)
    wrapper.gcc("-O2", "-g", "hello.c", "-o", "hello")
    headers = wrapper.run("readelf", "-hlW", "hello")
    assert "EXEC (Executable file)" in headers
    assert "INTERP" not in headers
    assert wrapper.same("hello") == "hello\n"
    assert wrapper.facts("hello") == {
        "version": 1,
        "program": str(wrapper.work / "hello"),
        "language": "c",
        "libs": [],
        "ld_options": [],
    }
    kept = wrapper.symbols(wrapper.find("hello"))
    assert {name: kind for name, kind in kept.items() if kind in "TU"} == {"main": "T", "puts": "U"}
    assert ".debug_info" in wrapper.sections(str(wrapper.find("hello")))


def test_moved_and_stripped_program_is_found(wrapper: Wrapper) -> None:
    wrapper.write(hello_c=HELLO)
    wrapper.gcc("hello.c", "-o", "hello")
    found = wrapper.find("hello")
    wrapper.run("x86_64-ukl-linux-gnu-strip", "-o", "elsewhere", "hello")
    wrapper.run("rm", "hello")
    assert wrapper.find("elsewhere") == found


def test_programs_without_an_object_say_why(wrapper: Wrapper) -> None:
    wrapper.write(hello_c=HELLO, own_c="void _start(void) { for (;;) ; }\n", script_sh="#!/bin/sh\n")
    wrapper.run("/usr/bin/gcc", "hello.c", "-o", "stock")
    wrapper.run("/usr/bin/gcc", "-Wl,--build-id=none", "hello.c", "-o", "noid")
    wrapper.gcc("-nostdlib", "own.c", "-o", "own")
    for program, reason in {
        "stock": "was not linked by ukl-gcc",
        "noid": "has no build ID",
        "own": "without libc's start files",
        "script.sh": "not a 64-bit little-endian ELF file (a script",
        "absent": "No such file",
    }.items():
        done = wrapper.try_run("ukl-find", program)
        assert done.returncode == 1
        assert reason in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["-fno-pie", "-no-pie"],
        ["-static-pie"],
        ["-pie", "-fPIE"],
        ["-static", "-rdynamic", "-mcmodel=small"],
        ["-fPIC"],
    ],
)
def test_options_that_choose_another_kind_of_code_are_overruled(wrapper: Wrapper, options: list[str]) -> None:
    wrapper.write(
        main_c="#include <stdio.h>\nstatic int f(void) { return 1; }\nint (*volatile p)(void) = f;\n"
        'int main(void) { int (*volatile q)(void) = f; printf("%d\\n", p == q); return 0; }\n'
    )
    wrapper.gcc(*options, "-O0", "-c", "main.c")
    assert "R_X86_64_32" not in wrapper.run("readelf", "-rW", "main.o")
    wrapper.gcc(*options, "main.o", "-o", "main")
    assert "EXEC (Executable file)" in wrapper.run("readelf", "-hW", "main")
    assert wrapper.same("main") == "1\n"


CXX_HEADER = """
#pragma once
#include <iostream>
#include <stdexcept>
#include <vector>
template <class T> struct Box { T value; static int count; Box(T v) : value(v) { ++count; } };
template <class T> int Box<T>::count = 0;
inline void fail(int n) { throw std::out_of_range("fail " + std::to_string(n)); }
int other();
"""


@pytest.mark.parametrize(
    "options", [["-O0", "-g"], ["-O2", "-flto=auto"], ["-O2", "-ffunction-sections", "-Wl,--gc-sections"]]
)
def test_cxx_with_exceptions_and_shared_templates(wrapper: Wrapper, options: list[str]) -> None:
    wrapper.write(
        box_h=CXX_HEADER,
        other_cc='#include "box.h"\nint other() { Box<int> b(1); try { fail(2); } '
        "catch (const std::exception& e) { std::cout << e.what() << '\\n'; } return Box<int>::count; }\n"
        'static struct Late { ~Late() { std::cout << "late\\n"; } } late;\n',
        main_cc='#include "box.h"\nint main() { Box<int> b(1); try { other(); fail(3); } '
        "catch (const std::out_of_range& e) { std::cout << e.what() << Box<int>::count << std::endl; } }\n",
    )
    for name in ("main", "other"):
        wrapper.run("ukl-g++", *options, "-c", f"{name}.cc")
    wrapper.run("ukl-g++", *options, "main.o", "other.o", "-o", "main")
    assert wrapper.same("main") == "fail 2\nfail 32\nlate\n"
    facts = wrapper.facts("main")
    assert facts["language"] == "c++"
    assert facts["libs"] == ["-lstdc++", "-lm"]


SPECIAL = """
#include <stdio.h>
#include <pthread.h>
int common[4];
__thread int tls = 5;
static __thread int tls_zero;
extern int absent(void) __attribute__((weak));
static void late(void) __attribute__((constructor(500)));
static void early(void) __attribute__((constructor(200)));
static void early(void) { puts("early"); }
static void late(void) { puts("late"); }
__attribute__((section("things"), used)) static int one = 1, two = 2;
extern int __start_things[], __stop_things[];
static int seven(void) { return 7; }
static int (*resolve(void))(void) { return seven; }
int chosen(void) __attribute__((ifunc("resolve")));
static void *thread(void *p) { (void)p; tls += 10; return (void *)(long)(tls + tls_zero); }
int main(void) {
  pthread_t t; void *r;
  pthread_create(&t, 0, thread, 0); pthread_join(t, &r);
  printf("%d %ld %d ", tls, (long)r, absent != 0);
  printf("%d %d %d\\n", (int)(__stop_things - __start_things), chosen(), common[3]);
  return one + two;
}
"""


@pytest.mark.parametrize("options", [[], ["-O2", "-flto"], ["-Wl,--gc-sections", "-fdata-sections"]])
def test_special_sections_and_symbols_survive(wrapper: Wrapper, options: list[str]) -> None:
    wrapper.write(
        a_c=SPECIAL, b_c="int common[4];\n__attribute__((constructor(100))) static void f(void) { common[3] = 9; }\n"
    )
    wrapper.gcc("-fcommon", *options, "a.c", "b.c", "-o", "special", "-pthread")
    assert wrapper.same("special") == "early\nlate\n5 15 0 2 7 9\n"


def test_archive_members_are_those_of_the_ordinary_link(wrapper: Wrapper) -> None:
    wrapper.write(
        start_c="int used(void);\nint main(void) { return used(); }\n",
        used_c="int more(void);\nint used(void) { return more(); }\n",
        more_c="int used(void);\nint more(void) { return sizeof used == 1 ? 4 : 5; }\n",
        unused_c="int missing_everywhere(void);\nint unused(void) { return missing_everywhere(); }\n",
        plugin_c="int plugin(void) { return 6; }\n",
    )
    for name in ("start", "used", "more", "unused", "plugin"):
        wrapper.gcc("-c", f"{name}.c")
    wrapper.run("x86_64-ukl-linux-gnu-ar", "rcs", "liba.a", "start.o", "used.o", "unused.o")
    wrapper.run("x86_64-ukl-linux-gnu-ar", "rcs", "libb.a", "more.o")
    wrapper.run("x86_64-ukl-linux-gnu-ar", "rcsT", "libp.a", "plugin.o")
    whole = "-Wl,--whole-archive,-lp,--no-whole-archive"
    wrapper.gcc("-o", "main", "-L.", "-Wl,--start-group", "-la", "-lb", "-Wl,--end-group", whole)
    wrapper.same("main")
    symbols = wrapper.symbols(wrapper.find("main"))
    assert {"main", "used", "more", "plugin"} <= symbols.keys()
    assert "unused" not in symbols


def test_private_library_with_a_name_of_libc_is_kept(wrapper: Wrapper) -> None:
    wrapper.write(
        util_c="int helper(void) { return 8; }\n", main_c="int helper(void);\nint main(void) { return helper(); }\n"
    )
    wrapper.gcc("-c", "util.c")
    wrapper.run("ar", "rcs", "libutil.a", "util.o")
    wrapper.gcc("main.c", "-L.", "-lutil", "-lm", "-o", "main")
    assert wrapper.symbols(wrapper.find("main"))["helper"] == "T"
    assert wrapper.facts("main")["libs"] == ["-lm"]
    wrapper.same("main")


@pytest.mark.parametrize("objects", [["-flto"], ["-flto=auto", "-ffat-lto-objects"]])
@pytest.mark.parametrize("link", [["-flto=auto"], []])
def test_lto_input_becomes_native(wrapper: Wrapper, objects: list[str], link: list[str]) -> None:
    wrapper.write(
        lib_c="int twice(int n) { return 2 * n; }\nint spare(void) { return 0; }\n",
        main_c="#include <stdio.h>\n#include <string.h>\nint twice(int);\n"
        'int main(int c, char **v) { printf("%d %d\\n", twice(4), (int)strlen(v[c - 1]) > 0); return 0; }\n',
    )
    wrapper.gcc("-O2", *objects, "-c", "lib.c", "main.c")
    wrapper.run("x86_64-ukl-linux-gnu-ar", "rcs", "lib.a", "lib.o")
    wrapper.run("x86_64-ukl-linux-gnu-ranlib", "lib.a")
    wrapper.gcc("-O2", *link, "main.o", "lib.a", "-lm", "-o", "main")
    kept = str(wrapper.find("main"))
    assert ".gnu.lto_" not in wrapper.sections(kept)
    assert "R_X86_64_32 " not in wrapper.run("readelf", "-rW", kept)
    wrapper.relink("main", "-fno-lto", "-fno-use-linker-plugin")
    assert wrapper.same("main") == "8 1\n"


def test_wrap_defsym_and_undefined_are_replayed(wrapper: Wrapper) -> None:
    wrapper.write(
        main_c="#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nextern int alias(void);\n"
        "int real(void) { return 11; }\nextern int calls;\n"
        'int main(void) { free(strdup("x")); printf("%d %d\\n", calls > 0, alias()); return 0; }\n',
        wrap_c="#include <stddef.h>\nint calls;\nvoid *__real_malloc(size_t);\n"
        "void *__wrap_malloc(size_t n) { calls++; return __real_malloc(n); }\n",
        extra_c="int extra(void) { return 1; }\n",
    )
    wrapper.gcc("-c", "wrap.c", "extra.c")
    wrapper.run("ar", "rcs", "w.a", "wrap.o", "extra.o")
    wrapper.gcc("main.c", "w.a", "-Wl,--wrap=malloc", "-Wl,--defsym,alias=real", "-u", "extra", "-o", "main")
    assert wrapper.facts("main")["ld_options"] == ["--undefined=extra", "--wrap=malloc", "--defsym=alias=real"]
    # strdup's malloc, inside libc, is wrapped too.
    assert wrapper.same("main") == "1 11\n"
    assert "extra" in wrapper.symbols(wrapper.find("main"))


def test_unused_code_with_missing_symbols_is_collected(wrapper: Wrapper) -> None:
    """--gc-sections lets the ordinary link ignore an undefined symbol of unused code; so must the object's."""
    wrapper.write(
        a_c="int main(void) { return 0; }\n",
        b_c="int nowhere(void);\nint dead(void) { return nowhere(); }\n",
    )
    wrapper.gcc("a.c", "b.c", "-Wl,--gc-sections", "-o", "main")
    assert wrapper.facts("main")["ld_options"] == ["--gc-sections"]
    wrapper.same("main")


def test_response_files_stdin_and_language_options(wrapper: Wrapper) -> None:
    wrapper.write(main_c="int f(void);\nint main(void) { return f(); }\n", inner_rsp="-static-pie 'main.c'\n")
    wrapper.write(outer_rsp='@inner.rsp -o "two words"\n-Wl,-rpath,/nowhere\n')
    assert wrapper.run("ukl-gcc", "-c", "-x", "c", "-", "-o", "f.o", stdin="int f(void) { return 12; }\n") == ""
    wrapper.gcc("@outer.rsp", "f.o")
    assert wrapper.try_run("./two words").returncode == 12
    wrapper.same("two words")


def test_shared_objects_and_partial_links_are_stock(wrapper: Wrapper) -> None:
    wrapper.write(f_c="int f(void) { return 1; }\n")
    wrapper.gcc("-shared", "-fPIC", "f.c", "-o", "libf.so")
    assert "DYN (Shared object file)" in wrapper.run("readelf", "-hW", "libf.so")
    wrapper.gcc("-r", "-nostdlib", "f.c", "-o", "part.o")
    assert "REL (Relocatable file)" in wrapper.run("readelf", "-hW", "part.o")
    assert not wrapper.objects.exists()


def make_shared(wrapper: Wrapper, name: str, source: str, *options: str, archive: bool = False) -> None:
    (wrapper.work / f"{name}.c").write_text(source)
    wrapper.gcc("-fPIC", "-c", f"{name}.c")
    wrapper.run(
        "/usr/bin/gcc", "-shared", f"-Wl,-soname,lib{name}.so.1", f"{name}.o", *options, "-o", f"lib{name}.so.1"
    )
    (wrapper.work / f"lib{name}.so").symlink_to(f"lib{name}.so.1")
    if archive:
        wrapper.run("ar", "rcs", f"lib{name}.a", f"{name}.o")


def test_library_without_an_archive_is_named(wrapper: Wrapper) -> None:
    make_shared(wrapper, "foo", "int foo(void) { return 1; }\n")
    wrapper.write(main_c="int foo(void);\nint main(void) { return foo(); }\n")
    for library in ("-lfoo", "./libfoo.so", "-l:libfoo.so.1"):
        done = wrapper.try_run("ukl-gcc", "main.c", "-L.", library, "-o", "main")
        assert done.returncode == 1
        assert "no static archive of libfoo, only ./libfoo.so" in done.stderr
        assert "hint: install the Debian packages" in done.stderr
    done = wrapper.try_run("ukl-gcc", "main.c", "-lnonexistent", "-o", "main")
    assert done.returncode == 1
    assert "neither libnonexistent.a nor libnonexistent.so is installed" in done.stderr
    assert not (wrapper.work / "main").exists()


@pytest.mark.parametrize("options", [[], ["-flto"]])
def test_unused_library_without_an_archive_does_no_harm(wrapper: Wrapper, options: list[str]) -> None:
    make_shared(wrapper, "foo", "int foo(void) { return 1; }\n")
    wrapper.write(hello_c=HELLO)
    for library in ("-lfoo", "./libfoo.so"):
        done = wrapper.try_run("ukl-gcc", *options, "hello.c", "-L.", library, "-lnonexistent", "-o", "hello")
        assert done.returncode == 0
        assert "note: hello is linked without libfoo libnonexistent" in done.stderr
        assert wrapper.same("hello") == "hello\n"
    assert wrapper.try_run("ukl-gcc", "hello.c", "-L.", "-lfoo", "-o", "conftest").stderr == ""
    assert wrapper.try_run("ukl-gcc", "hello.c", "-lnonexistent", "-o", "conftest").returncode == 1


@pytest.mark.parametrize("options", [[], ["-flto=auto", "-O2"]])
def test_archive_stands_in_for_a_shared_object(wrapper: Wrapper, options: list[str]) -> None:
    make_shared(wrapper, "deep", "int deep(void) { return 21; }\n", archive=True)
    make_shared(wrapper, "mid", "int deep(void);\nint mid(void) { return deep(); }\n", "-L.", "-ldeep", archive=True)
    wrapper.write(main_c="int mid(void);\nint main(void) { return mid(); }\n")
    for library in ("-lmid", "./libmid.so", "libmid.so.1"):
        wrapper.gcc(*options, "main.c", library, "-L.", "-Wl,-Bdynamic", "-o", "main")
        assert wrapper.try_run("./main").returncode == 21
        wrapper.same("main")
    system = wrapper.run("/usr/bin/gcc", "-print-file-name=libm.so").strip()
    wrapper.gcc("main.c", "-L.", "libmid.so", "libdeep.so", system, "-lgcc_s", "-o", "main")
    assert wrapper.facts("main")["libs"] == ["-lm"]


def test_failures_are_the_compilers_own(wrapper: Wrapper) -> None:
    wrapper.write(
        bad_c="int main(void) { return undeclared; }\n", undef_c="int f(void);\nint main(void) { return f(); }\n"
    )
    for args in (["-c", "bad.c"], ["bad.c", "-o", "bad"], ["absent.c"], [], ["-c", "undef.c", "--bogus"]):
        ours, stock = wrapper.try_run("ukl-gcc", *args), wrapper.try_run("/usr/bin/gcc", *args)
        assert (ours.returncode, ours.stdout, ours.stderr) == (stock.returncode, stock.stdout, stock.stderr)
        assert ours.returncode != 0
    for options in ([], ["-flto"]):
        done = wrapper.try_run("ukl-gcc", *options, "undef.c", "-o", "undef")
        assert done.returncode == 1
        assert "undefined reference to `f'" in done.stderr
        assert "ukl-ld" not in done.stderr
    assert not wrapper.objects.exists() or not list(wrapper.objects.iterdir())


def test_questions_get_the_stock_answer(wrapper: Wrapper) -> None:
    questions = [
        "--version",
        "-dumpmachine",
        "-dumpversion",
        "-print-prog-name=ld",
        "-print-search-dirs",
        "-v",
        "--help",
    ]
    for question in questions:
        for name, compiler in (("gcc", "gcc"), ("c++", "g++")):
            ours = wrapper.try_run(f"x86_64-ukl-linux-gnu-{name}", question)
            stock = wrapper.try_run(f"/usr/bin/{compiler}", question)
            assert ours.returncode == 0
            assert (ours.stdout, ours.stderr) == (stock.stdout, stock.stderr)
    linker = wrapper.root / recipe.HOME / "ld/ld"
    assert wrapper.run(str(linker), "--version") == wrapper.run("/usr/bin/ld", "--version")


def test_preprocessing_and_dependencies(wrapper: Wrapper) -> None:
    wrapper.write(main_c='#include "part.h"\nint main(void) { return PART + __PIE__; }\n', part_h="#define PART 40\n")
    assert "return 40 + 2" in wrapper.gcc("-E", "main.c")
    assert wrapper.gcc("-MM", "main.c") == "main.o: main.c part.h\n"
    wrapper.gcc("-S", "main.c")
    assert "main:" in (wrapper.work / "main.s").read_text()
    wrapper.gcc("-MMD", "-MF", "deps", "-MT", "-static", "main.c", "-o", "main")
    assert (wrapper.work / "deps").read_text() == "-static: main.c part.h\n"
    assert wrapper.try_run("./main").returncode == 42


def test_checks_of_build_systems_leave_nothing_behind(wrapper: Wrapper) -> None:
    wrapper.write(conftest_c=HELLO)
    wrapper.gcc("conftest.c", "-o", "conftest")
    wrapper.gcc("conftest.c", "-o", "/dev/null")
    (wrapper.work / "CMakeFiles").mkdir()
    wrapper.gcc("conftest.c", "-o", "CMakeFiles/a.out")
    assert wrapper.try_run("./conftest").stdout == "hello\n"
    assert not wrapper.objects.exists()


def test_links_side_by_side(wrapper: Wrapper) -> None:
    names = [f"p{n}" for n in range(12)]
    for name in names:
        wrapper.write(**{f"{name}_c": HELLO.replace("hello", name if name != "p11" else "p10")})
    rules = "".join(f"{name}: {name}.c\n" for name in names)
    wrapper.write(Makefile=f"all: {' '.join(names)}\n{rules}")
    wrapper.run("make", "-j6")
    for name in names[:-1]:
        assert wrapper.same(name) == f"{name}\n"
    assert {path.suffix for path in wrapper.objects.iterdir()} == {".o", ".json"}
    assert not [path for path in wrapper.objects.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("options", [["-g"], ["-O2", "-g", "-flto=auto"]])
def test_objects_are_reproducible(wrapper: Wrapper, options: list[str]) -> None:
    wrapper.write(a_c="int f(void);\nint main(void) { return f(); }\n", b_c="int f(void) { return 2; }\n")
    seen = set()
    for _ in range(2):
        wrapper.gcc(*options, "a.c", "b.c", "-o", "main")
        kept = wrapper.find("main")
        seen.add((kept, kept.read_bytes(), kept.with_suffix(".json").read_bytes()))
        kept.unlink()
    assert len(seen) == 1


def test_unusable_folder_of_objects_does_not_stop_the_link(wrapper: Wrapper) -> None:
    wrapper.write(hello_c=HELLO)
    wrapper.objects.write_text("a file where the folder should be")
    for options in ([], ["-flto"]):
        done = wrapper.try_run("ukl-gcc", *options, "hello.c", "-o", "hello")
        assert done.returncode == 0
        assert "no object is kept for hello" in done.stderr
        assert wrapper.try_run("./hello").stdout == "hello\n"


def test_run_time_libraries_of_options(wrapper: Wrapper) -> None:
    wrapper.write(
        omp_c="#include <stdio.h>\n#include <math.h>\nint main(int c, char **v) { (void)v; int s = 0;\n"
        '_Pragma("omp parallel for reduction(+:s)") for (int i = 0; i < 10; i++) s += i;\n'
        'printf("%d %.1f\\n", s, sqrt(c + 3.0)); return 0; }\n'
    )
    wrapper.gcc("-fopenmp", "-ffast-math", "-O1", "omp.c", "-lm", "-ldl", "-lrt", "-o", "omp")
    assert wrapper.same("omp") == "45 2.0\n"
    libraries = wrapper.facts("omp")["libs"]
    assert [name for name in libraries if name != "-lpthread"] == ["-lm", "-ldl", "-lrt", "-lgomp"]
    # crtfastmath.o is a start file that is the program's own wish.
    assert "set_fast_math" in wrapper.symbols(wrapper.find("omp"))


def test_another_linker_is_used_when_there_is_one(wrapper: Wrapper) -> None:
    wrapper.write(hello_c=HELLO)
    done = wrapper.try_run("ukl-gcc", "-fuse-ld=mold", "hello.c", "-o", "hello")
    assert done.returncode == 1
    assert "cannot find 'ld.mold'" in done.stderr
    (wrapper.root / recipe.BINARIES / "ld.mold").symlink_to("/usr/bin/ld.bfd")
    wrapper.gcc("-fuse-ld=mold", "hello.c", "-o", "hello")
    assert wrapper.same("hello") == "hello\n"


def test_other_instruction_sets_pass_through(wrapper: Wrapper) -> None:
    wrapper.write(f_c="int f(void) { return 1; }\n")
    wrapper.gcc("-m32", "-c", "f.c")
    assert "ELF32" in wrapper.run("readelf", "-hW", "f.o")


def test_a_libc_beside_the_wrapper_is_linked_and_not_kept(wrapper: Wrapper) -> None:
    """As our glibc lies there: start files, and in place of libc.a a linker script with more than one archive."""
    folder = wrapper.root / recipe.HOME / "libc"
    folder.mkdir()
    wrapper.write(mark_c="int mark(void) { return 3; }", a_c="int mark(void);\nint main(void) { return mark(); }\n")
    assert wrapper.try_run("ukl-gcc", "-o", "a", "a.c").returncode != 0, "there is no such function yet"
    wrapper.run("gcc", "-c", "-fPIE", "mark.c")
    wrapper.run("ar", "rcs", str(folder / "libmark.a"), "mark.o")
    archive = wrapper.run("gcc", "-print-file-name=libc.a").strip()
    (folder / "libc.a").write_text(f"GROUP ( {archive} {folder}/libmark.a )\n")
    for name in ("crt1.o", "crti.o", "crtn.o"):
        (folder / name).write_bytes(Path(wrapper.run("gcc", f"-print-file-name={name}").strip()).read_bytes())
    wrapper.gcc("-o", "a", "a.c")
    assert wrapper.try_run("./a").returncode == 3
    undefined = wrapper.run("nm", "--undefined-only", "--format=posix", str(wrapper.find("a")))
    assert undefined.split() == ["mark", "U"]
