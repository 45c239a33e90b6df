"""`uklimg check`: what it finds in sources, in objects that a compiler made here, and in what is none."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from uklimg.advice import objects
from uklimg.advice.findings import OPTIONS, WORDS, Finding
from uklimg.advice.objects import scan_object
from uklimg.advice.sources import scan_source
from uklimg.cli.main import main
from uklimg.link import link

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
BASE_CONFIG = (ROOT / "kernel/6.12/config/base.config").read_text()
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler here")


def rules(text: str, programs: bool = False) -> list[tuple[int, int, str]]:
    return [(f.location.line, f.location.column, f.rule) for f in scan_source(text, "f.c", programs=programs)]


def test_calls_are_found_and_comments_strings_members_and_declarations_are_not() -> None:
    text = """#include <dlfcn.h>
int system(const char *);
extern FILE *popen(const char *command, const char *type);
// dlopen("x")
/* system("x"); */
static void my_system(void);
int main(void)
{
\tconst char *s = "execve(\\"x\\")";
\tif (dlopen(s, 1))
\t\treturn system ("ls");
\tx.system(1); y->execv(2); z::popen(3);
\tint r = std::system(s) + ::execv(s, 0);
}
int execvp(const char *file, char *const argv[])
{
}
"""
    assert rules(text) == [(10, 6, "dlopen"), (11, 10, "exec"), (13, 15, "exec"), (13, 29, "exec")]
    assert rules(text, programs=True) == [(10, 6, "dlopen")]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("p = mmap(0, n, PROT_READ | PROT_EXEC, f, -1, 0);", "run-time-code"),
        ('asm("int $0x80");', "int80"),
        ("\tsysenter", "int80"),
        ('asm volatile("mov %%gs:0, %0" : "=r"(x));', "segments"),
        ("syscall(SYS_arch_prctl, ARCH_SET_GS, x);", "segments"),
        ("struct rseq_cs cs;", "rseq"),
        ('readlink("/proc/self/exe", path, sizeof(path));', "own-path"),
        ("iopl(3);", "kernel-option"),
        ("syscall(__NR_bpf, 1);", "kernel-option"),
        ("setuid(1);", "users"),
        ("ptrace(PTRACE_TRACEME);", "ptrace"),
    ],
)
def test_each_rule(text: str, rule: str) -> None:
    assert [found for _, _, found in rules(text)] == [rule]


def test_nothing_in_ordinary_code() -> None:
    assert not rules('int main(void) { fork(); pthread_create(&t, 0, f, 0); asm("syscall"); return vfork(); }')


def test_an_option_that_the_uklfile_sets_is_there() -> None:
    assert not list(scan_source("iopl(3);", "f", options=["X86_IOPL_IOPERM"]))


def test_options_are_those_that_base_leaves_out() -> None:
    for option in {*OPTIONS.values(), *WORDS.values()}:
        assert f"CONFIG_{option}=y" not in BASE_CONFIG


def test_limits_are_those_of_the_link() -> None:
    assert link.DATA_REACH == objects.DATA_LIMIT
    patches = "".join(path.read_text() for path in (ROOT / "kernel/6.12/patches").glob("*.patch"))
    assert "+config UKL_TEXT_MIB" in patches
    assert objects.TEXT_LIMIT >> 20 == 256
    assert "default 256" in patches[patches.index("+config UKL_TEXT_MIB") :][:400]


def compiled(folder: Path, source: str, *options: str, language: str = "c") -> Path:
    path = folder / "out.o"
    subprocess.run(
        ["gcc", "-x", language, "-c", "-o", str(path), *options, "-"], input=source, text=True, check=True, cwd=folder
    )
    return path


def found_in(path: Path, programs: bool = False) -> list[tuple[str, str]]:
    return [(f.level.value, f.rule) for f in scan_object(path.read_bytes(), path.name, programs=programs)]


@needs_gcc
def test_an_ordinary_object(tmp_path: Path) -> None:
    source = "int x = 1; static int y[10]; int f(int *p) { return *p + y[1]; } int (*table)(int *) = f;"
    for options in ((), ("-fPIE",), ("-fPIC", "-O2"), ("-ffunction-sections",)):
        assert found_in(compiled(tmp_path, source, *options)) == []


@needs_gcc
def test_addresses_of_code_in_32_bits(tmp_path: Path) -> None:
    source = "extern void g(void (*)(void)); static void f(void) {} int x; void h(void) { g(f); x = 1; }"
    path = compiled(tmp_path, source, "-fno-pie", "-O0")
    (finding,) = scan_object(path.read_bytes(), "a.o")
    assert (finding.rule, finding.level.value) == ("position", "error")
    # Addresses of data are below 1 GiB and fit.
    assert found_in(compiled(tmp_path, "int x; int *f(void) { x = 1; return &x; }", "-fno-pie", "-O0")) == []


@needs_gcc
def test_what_an_object_calls(tmp_path: Path) -> None:
    source = "void *dlopen(const char *, int); int system(const char *); int iopl(int);"
    source += "int f(void) { dlopen(0, 1); return system(0) + iopl(3); }"
    path = compiled(tmp_path, source)
    assert sorted(found_in(path)) == [("warning", "dlopen"), ("warning", "exec"), ("warning", "kernel-option")]
    assert ("warning", "exec") not in found_in(path, programs=True)


@needs_gcc
def test_a_nested_function_on_the_stack(tmp_path: Path) -> None:
    source = "void g(int (*)(void)); void f(int x) { int n(void) { return x; } g(n); }"
    assert found_in(compiled(tmp_path, source)) == [("warning", "executable-stack")]


@needs_gcc
def test_sizes(tmp_path: Path) -> None:
    assert found_in(compiled(tmp_path, "char x[1 << 29], y[1 << 29];")) == [("error", "size")]
    code = compiled(tmp_path, ".text\n.globl f\nf: .zero 270000000, 0x90\n", language="assembler")
    assert found_in(code) == [("error", "size")]
    code.unlink()


@needs_gcc
def test_archives_programs_and_libraries(tmp_path: Path) -> None:
    compiled(tmp_path, "int system(const char *); int f(void) { return system(0); }")
    (tmp_path / "out.o").rename(tmp_path / "a_name_that_is_longer_than_sixteen.o")
    compiled(tmp_path, "int g(void) { return 0; }")
    names = ["a_name_that_is_longer_than_sixteen.o", "out.o"]
    subprocess.run(["ar", "rcs", "lib.a", *names], cwd=tmp_path, check=True)
    (finding,) = scan_object((tmp_path / "lib.a").read_bytes(), "lib.a")
    assert (finding.rule, finding.member) == ("exec", "a_name_that_is_longer_than_sixteen.o")
    assert finding.line().startswith("lib.a(a_name_that_is_longer_than_sixteen.o): warning: system: ")
    subprocess.run(["ar", "rcsT", "thin.a", *names], cwd=tmp_path, check=True)
    assert found_in(tmp_path / "thin.a") == [("error", "not-an-object")]
    subprocess.run(["gcc", "-shared", "-o", "lib.so", "out.o"], cwd=tmp_path, check=True)
    assert found_in(tmp_path / "lib.so")[0] == ("error", "shared")
    (tmp_path / "main.c").write_text("int main(void) { return 0; }")
    subprocess.run(["gcc", "-o", "main", "main.c"], cwd=tmp_path, check=True)
    assert found_in(tmp_path / "main")[0] == ("error", "shared")


def test_what_is_no_object(tmp_path: Path) -> None:
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    for content, rule in (
        (b"", "not-an-object"),
        (b"text", "not-an-object"),
        (b"!<arch>\n" + b"x" * 60, "not-an-object"),
        (b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x01\x00\x03\x00" + bytes(60), "machine"),
        (header + b"\x01\x00\xb7\x00" + bytes(60), "machine"),
        (header + b"\x04\x00\x3e\x00" + bytes(60), "not-an-object"),
        (header + b"\x01\x00\x3e\x00" + b"\xff" * 60, "not-an-object"),
    ):
        assert [finding.rule for finding in scan_object(content, "f")] == [rule]


def check(folder: Path, *words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = main(["check", *words], {}, folder, 0, out, err)
    return status, out.getvalue(), err.getvalue()


def test_a_folder_with_its_uklfile(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.c").write_text("int f(void) { return system(0); }\n")
    (tmp_path / "src/skip.c").write_text("int f(void) { return dlopen(0, 1); }\n")
    (tmp_path / ".uklignore").write_text("src/skip.c\n")
    status, out, err = check(tmp_path)
    assert (status, err) == (0, "1 warning in 1 file\n")
    assert out.startswith("src/a.c:1:22: warning: system: ")
    (tmp_path / "Uklfile").write_text("FROM debian:trixie AS b\nRUNN x\nFROM ukl:6.12\nLINK /p\nMEMORY x\n")
    status, out, err = check(tmp_path)
    assert status == 1
    assert [line.split(" ")[0] for line in out.splitlines()] == ["Uklfile:2:1:", "Uklfile:5:8:", "src/a.c:1:22:"]
    (tmp_path / "Uklfile").write_text("FROM debian:trixie AS b\nRUN x\nFROM ukl:6.12\nLINK /p\nUSERLAND busybox\n")
    assert check(tmp_path) == (0, "", "nothing found in 2 files\n")
    status, out, _ = check(tmp_path, "--format", "json", "src")
    assert [(found["file"], found["line"], found["rule"]) for found in json.loads(out)] == [
        ("src/a.c", 1, "exec"),
        ("src/skip.c", 1, "dlopen"),
    ]
    status, out, err = check(tmp_path, "gone")
    assert (status, err) == (1, "uklimg: 'gone' is not there\n")
    (tmp_path / "empty").mkdir()
    status, out, err = check(tmp_path, "empty")
    assert (status, out) == (1, "") and err.startswith("uklimg: 'empty' has neither a Uklfile nor C")
    (tmp_path / "two.c").write_text('int f(void) { asm("mov %%gs:0, %0"); return system(0) + popen(0, 0); }\n')
    status, out, err = check(tmp_path, "two.c")
    assert err == "3 warnings in 1 file\n"
    assert "two.c:1:24: warning: %%gs: in the program" in out
    (tmp_path / "x.o").write_text("no object")
    assert check(tmp_path, "x.o")[0] == 1


def test_a_finding_is_one_line() -> None:
    for finding in scan_source("dlopen(); system(); iopl(); setuid();", "f"):
        assert isinstance(finding, Finding)
        assert "\n" not in finding.line()
        assert finding.line().endswith(f"[{finding.rule}]")
