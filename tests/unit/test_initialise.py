"""What `uklimg init` makes of build files, and that it never writes over anything."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from uklimg.cli.main import main
from uklimg.initialise import Guess, guess, ignore_file, uklfile
from uklimg.spec import SeriesInfo, build_spec
from uklimg.uklfile.ignore import parse_rules
from uklimg.uklfile.parser import parse

pytestmark = pytest.mark.unit

MAKEFILE = "Makefile"


def found(files: dict[str, str], names: tuple[str, ...] = ("main.c",), folder: str = "folder") -> Guess:
    made = guess(files, names, folder)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("text", "program", "certain"),
    [
        ("all: server\nserver: a.o b.o\n\t$(CC) -o $@ $^ -lz\n", "server", True),
        ("PROG=echod\nOBJS = a.o\nall: $(PROG)\n\n$(PROG): $(OBJS)\n\tcc $(OBJS) -o $(PROG)\n", "echod", True),
        ("TARGET := bin/app\n$(TARGET): x.c\n\t$(CC) x.c -o $@\n%.o: %.c\n\t$(CC) -c $< -o $@\n", "bin/app", True),
        ("all: tool\nclean:\n\trm -f tool\n", "tool", True),
        ("BIN = thing\ninclude rules.mk\n", "thing", True),
        ("liba.a: a.o\n\tar rcs $@ a.o\nx: liba.a\n\t$(CC) \\\n\t  -o x main.c liba.a\n", "x", True),
        ("include rules.mk\n", "main", False),
        ("# PROG = no\nhello:\n", "hello", False),
    ],
)
def test_the_program_of_a_makefile(text: str, program: str, certain: bool) -> None:
    made = found({MAKEFILE: text})
    assert (made.program, made.certain, made.system) == (program, certain, "make")


def test_libraries_of_a_makefile() -> None:
    text = (
        "LIBS = -lm -lpthread -lssl -lcrypto -lfoo\nx: a.o\n\t$(CC) -o x $(LIBS) $(shell pkg-config --libs libuv)\n"
    )
    made = found({MAKEFILE: text})
    assert dict(made.libraries) == {"ssl": "libssl-dev", "crypto": "libssl-dev", "foo": "", "libuv": "libuv1-dev"}
    assert made.packages == ("pkgconf",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CC = gcc\nx: a.o\n\t$(CC) -o x\n", "CC=ukl-gcc"),
        ("export CC:=clang\n  CXX ::= g++\nx: a.o\n\t$(CC) -o x\n", "CC=ukl-gcc CXX=ukl-g++"),
        ("CC ?= gcc\nCCFLAGS = -O2\n# CC = gcc\nx: a.o\n\t$(CC) -o x\n", ""),
        ("x: CCOPT = 1\nx: a.o\n\tCC=gcc ./build -o x\n", ""),
    ],
)
def test_a_makefile_that_names_its_compiler(text: str, words: str) -> None:
    """`CC = gcc` wins over the environment, and the program would not be one for LINK."""
    for path in (MAKEFILE, "src/Makefile"):
        made = found({MAKEFILE: "x: a.o\n\t$(CC) -o x\n", path: text})
        assert " ".join(made.compilers) == words
        assert f"RUN make -j$(nproc) {words}".strip() in uklfile(made, "6.12").splitlines()


def test_cmake() -> None:
    files = {
        "CMakeLists.txt": "cmake_minimum_required(VERSION 3.20)\nproject(Demo C)\nfind_package(ZLIB REQUIRED)\n"
        "find_package(Threads)\nfind_package(Odd)\n"
        "pkg_check_modules(EV REQUIRED libevent>=2.1)\nadd_subdirectory(src)\n# add_executable(not this)\n",
        "src/CMakeLists.txt": 'add_executable("${PROJECT_NAME}d" main.c)\n',
    }
    made = found(files, ("src/main.cpp",))
    assert (made.program, made.certain, made.system, made.cxx) == ("src/Demod", True, "cmake", True)
    assert dict(made.libraries) == {"zlib": "zlib1g-dev", "odd": "", "libevent": "libevent-dev"}
    assert "LINK --from=build /src/build/src/Demod\n" in uklfile(made, "6.12")


def test_meson() -> None:
    files = {
        "meson.build": "project('demo', 'c')\nsubdir('src')\ndep = dependency('zlib', static: true)\n",
        "src/meson.build": "executable('demod', 'main.c', dependencies: [dep, dependency('threads')])\n",
    }
    made = found(files)
    assert (made.program, made.certain) == ("src/demod", True)
    assert dict(made.libraries) == {"zlib": "zlib1g-dev"}
    assert set(made.packages) == {"meson", "ninja-build", "pkgconf"}


def test_autotools() -> None:
    files = {
        "configure.ac": "AC_INIT([demo], [1.0])\nAC_CHECK_LIB([z], [deflate])\n"
        "PKG_CHECK_MODULES([EV], [libevent >= 2.1])\n",
        "src/Makefile.am": "bin_PROGRAMS = demod other\n",
    }
    made = found(files)
    assert (made.program, made.certain, made.file) == ("src/demod", True, "configure.ac")
    assert dict(made.libraries) == {"z": "zlib1g-dev", "libevent": "libevent-dev"}
    assert "RUN autoreconf -fi && ./configure && make" in uklfile(made, "6.12")
    generated = found({**files, "configure": ""})
    assert "autoconf" not in generated.packages
    assert "RUN ./configure && make" in uklfile(generated, "6.12")


def test_the_likeliest_of_several_programs() -> None:
    files = {
        "configure.ac": "AC_INIT([iperf],[3.1])\nAC_SEARCH_LIBS([socket], [socket])\nAC_SEARCH_LIBS(deflate, z)\n",
        "examples/Makefile.am": "noinst_PROGRAMS = mic mis\n",
        "src/Makefile.am": "noinst_PROGRAMS = t_timer\nbin_PROGRAMS = helper \\\n  iperf3\n",
    }
    made = found(files)
    assert (made.program, made.certain) == ("src/iperf3", True)
    assert [name for name, _ in made.libraries] == ["socket", "z"]


def test_a_server_comes_before_its_client() -> None:
    rule = "redis-cli: a.o\n\t$(CC) -o $@ a.o\nredis-server: b.o\n\t$(CC) -o $@ b.o\nx.lo: x.c\n\t$(CC) -o $@ x.c\n"
    assert found({MAKEFILE: rule}, folder="redis-8.0").program == "redis-server"
    assert found({MAKEFILE: rule}, folder="other").program == "redis-cli"


def test_a_configure_that_is_nobodys_and_a_makefile_in_src() -> None:
    rule = "tool$(EXEEXT): a.o\n\t$(CC) -o $@ a.o\nserverd$(EXEEXT): b.o\n\t$(LINK) -o $@ b.o\n"
    made = found({"configure": "", "Makefile.in": rule}, folder="server-1.2")
    assert (made.program, made.certain) == ("serverd", True)
    made = found({MAKEFILE: "default: all\n.DEFAULT:\n\tcd src && $(MAKE) $@\n", "src/Makefile": rule})
    assert (made.program, made.certain, made.system) == ("src/tool", True, "make")


def test_a_folder_without_a_build_file() -> None:
    assert guess({}, ("main.c",), "x") is None


@pytest.mark.parametrize(
    "files",
    [
        {MAKEFILE: "x: a.o\n\t$(CC) -o x\n"},
        {"configure.ac": "AC_INIT([demo])\n"},
        {"CMakeLists.txt": 'project("a b")\n'},
        {"meson.build": ""},
    ],
    ids=["make", "autotools", "cmake", "meson"],
)
def test_what_is_written_is_sound(files: dict[str, str]) -> None:
    made = found(files)
    text = uklfile(made, "6.12")
    spec = build_spec(
        parse(text, "Uklfile"),
        build_args={},
        base_images=["debian-trixie"],
        series={"6.12": SeriesInfo("6.12", ())},
    )
    assert not spec.warnings
    assert spec.image.link.path == f"/src/{'build/' if made.system in ('cmake', 'meson') else ''}{made.program}"
    assert max(map(len, text.splitlines())) < 130
    rules = parse_rules(ignore_file(made), ".uklignore")
    assert rules.ignored("src/a.o")
    assert not rules.ignored("main.c")


def init(folder: Path, *words: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    status = main(["init", *words, str(folder)], {}, folder, 0, out, err)
    return status, out.getvalue() + err.getvalue()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    status, said = init(tmp_path)
    assert status == 1
    assert "has no Makefile" in said
    (tmp_path / MAKEFILE).write_text("x: a.o\n\t$(CC) -o x a.o\n")
    assert init(tmp_path)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {MAKEFILE, "Uklfile", ".uklignore"}
    (tmp_path / "Uklfile").write_text("mine")
    status, said = init(tmp_path)
    assert (status, said.count("\n")) == (1, 1)
    assert "Uklfile is there already (--force replaces it)" in said
    assert (tmp_path / "Uklfile").read_text() == "mine"
    (tmp_path / "Uklfile").unlink()
    (tmp_path / ".uklignore").write_text("mine")
    assert init(tmp_path)[0] == 1
    assert not (tmp_path / "Uklfile").exists()
    assert init(tmp_path, "--force")[0] == 0
    assert "FROM ukl:" in (tmp_path / "Uklfile").read_text()
    assert init(tmp_path / "nowhere")[0] == 1
