"""DEPENDS for real: libraries of ours are built, and ordinary projects link with them and run, unchanged.

In the user's store: each library is built once for all tests, and again only when its key changes. The expensive ones
(openssl, sqlite3, jemalloc, pcre2, zstd) are checked by ``python scripts/check_libraries.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_build import Project

from uklimg import proc
from uklimg.cli.host import Host
from uklimg.errors import ExitCode
from uklimg.events import discard
from uklimg.graph import Graph
from uklimg.plan import Options
from uklimg.project import open_project, plan_project, resolve_project
from uklimg.settings import read_settings

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
CHEAP = ("libaio", "liburing", "lz4", "zlib")

C = r"""
#include <lz4.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>
int main(void)
{
    const char *text = "hello";
    unsigned long sum = crc32(0, (const unsigned char *)text, strlen(text));
    printf("%08lx %d %s\n", sum, LZ4_versionNumber() / 100, zlibVersion());
    return 0;
}
"""
CXX = r"""
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>
#include <zlib.h>
static thread_local unsigned long sum;
int main()
{
    std::vector<std::string> caught(4);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < caught.size(); i++)
        threads.emplace_back([i, &caught] {
            try {
                std::ostringstream text;
                text << "thread " << i;
                sum = adler32(sum, reinterpret_cast<const Bytef *>(text.str().data()), text.str().size());
                throw std::runtime_error(text.str());
            } catch (const std::exception &error) {
                caught[i] = error.what();
            }
        });
    for (auto &thread : threads)
        thread.join();
    for (const auto &text : caught)
        std::cout << text << std::endl;
}
"""
FILES = {
    "main.c": C,
    "main.cc": CXX,
    "autotools/configure.ac": """AC_INIT([prog], [1])
AM_INIT_AUTOMAKE([foreign subdir-objects])
AC_PROG_CC
AC_CHECK_HEADERS([zlib.h], [], [AC_MSG_ERROR([no zlib.h])])
AC_CHECK_LIB([z], [inflate], [], [AC_MSG_ERROR([no zlib])])
PKG_CHECK_MODULES([LZ4], [liblz4 >= 1.9])
AC_CONFIG_FILES([Makefile])
AC_OUTPUT
""",
    "autotools/Makefile.am": """bin_PROGRAMS = prog
prog_SOURCES = ../main.c
prog_CFLAGS = $(LZ4_CFLAGS)
prog_LDADD = $(LZ4_LIBS)
""",
    "cmake/CMakeLists.txt": """cmake_minimum_required(VERSION 3.13)
project(prog C)
find_package(ZLIB 1.3 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(LZ4 REQUIRED IMPORTED_TARGET liblz4)
add_executable(prog ../main.c)
target_link_libraries(prog ZLIB::ZLIB PkgConfig::LZ4)
""",
    "meson/meson.build": """project('prog', 'c')
executable('prog', 'main.c', dependencies: [dependency('zlib'), dependency('liblz4')])
""",
    "meson/main.c": C,
}
UKLFILE = """FROM debian:trixie AS build
PACKAGES autoconf automake cmake meson
DEPENDS lz4 zlib
COPY . /src/
WORKDIR /src
RUN $CC -o /c main.c -lz -llz4 -Wl,--trace >/trace && /c
RUN $CXX -O2 -pthread -o /cxx main.cc -lz && /cxx
RUN cp -r /src /autotools && cd /autotools/autotools && autoreconf -i && ./configure && make && ./prog
RUN cmake -S cmake -B /cmake && cmake --build /cmake && /cmake/prog
RUN meson setup /meson meson && meson compile -C /meson && /meson/prog
RUN cat /trace; for prog in /c /cxx /autotools/autotools/prog /cmake/prog /meson/prog; do \\
        test -f "$(ukl-find $prog)" || exit 1; \\
        if readelf -lW $prog | grep INTERP; then exit 1; fi; \\
    done; : NONCE
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "scripts/example.lock", folder / "Uklfile.lock")
    return Project(folder)


def test_ordinary_projects_link_with_the_libraries_unchanged(project: Project) -> None:
    for name, text in FILES.items():
        path = project.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    project.write(UKLFILE)
    found = project.stage()
    assert found.status == 0
    # What gcc finds by -lz is ours, although the base image has a zlib, too.
    assert re.search(r"^ +\| \S+/x86_64-linux-gnu/lib/\.\./lib/libz\.a$", found.err, re.MULTILINE)
    lock = (project.folder / "Uklfile.lock").read_text()
    assert re.search(r'kind = "library"\nname = "lz4"\nversion = "1\.10\.0"', lock)
    assert re.search(r'kind = "library"\nname = "zlib"\nversion = "1\.3\.1"', lock)
    assert project.stage("--locked", "--offline").status == 0


def check_libraries(*names: str) -> proc.Completed:
    argv = [sys.executable, str(ROOT / "scripts/check_libraries.py"), *names]
    return proc.run(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)


def test_libraries_build_and_a_program_of_each_runs() -> None:
    done = check_libraries(*CHEAP)
    assert done.status == 0, done.tail
    lines = [line.split(maxsplit=1) for line in done.text.splitlines()]
    assert [name for name, _ in lines] == list(CHEAP)


def test_a_library_is_the_same_bytes_when_it_is_built_again(project: Project) -> None:
    project.write("FROM debian:trixie AS build\nDEPENDS zlib\n")
    assert project.stage().status == 0
    settings = read_settings(os.environ, Path.cwd())
    host = Host(os.environ, Path.cwd(), os.getuid(), sys.stdout, sys.stderr, settings)
    opened = open_project(project.folder / "Uklfile", project.folder, {}, host.data())
    graph = plan_project(opened, resolve_project(opened, host.data(), None), Options(target="build")).graph
    step = graph.step("library:debian-trixie:zlib")
    # Another key, and nothing else: no build before this one has it.
    twin = replace(step, recipe_version=time.time_ns())
    store = host.store(discard)
    with store.session():
        first = store.lookup(graph.keys[step.id])
        assert first is not None
        others = [other for other in graph.steps if other.id not in (step.id, graph.target)]
        again = host.executor(store, discard, offline=True).run(Graph.of([*others, twin], twin.id))
    assert again.ran == (twin.id,)
    assert again.result.layer.digest == first.layer.digest


def test_debians_own_static_archives(project: Project) -> None:
    (project.folder / "main.c").write_text(
        "#include <lzo/lzo1x.h>\n#include <stdio.h>\nint main(void) { return puts(lzo_version_string()) < 0; }\n"
    )
    project.write(
        "FROM debian:trixie AS build\nDEPENDS debian:liblzo2-dev zlib=1.3.1\n"
        "COPY main.c /\nRUN $CC -o /p main.c -llzo2 -lz && /p # NONCE\n"
    )
    found = project.stage()
    assert found.status == 0
    assert "| 2.10" in found.err
    assert 'requested = ["liblzo2-dev"]' in (project.folder / "Uklfile.lock").read_text()


def test_a_package_without_static_archives_is_refused_where_it_is_named(project: Project) -> None:
    project.write("FROM debian:trixie AS build\nRUN : NONCE\nDEPENDS debian:libudev-dev\n")
    found = project.uklimg("build", "--target", "build")
    assert found.status == ExitCode.STEP
    assert "uklimg-depends: libudev-dev has no static archive of libudev, and a unikernel is linked" in found.err
    assert "uklimg: Uklfile:3:1: [build 2/2] DEPENDS debian:libudev-dev" in found.err.splitlines()[-1]


def test_what_there_is_not_is_said_all_at_once(project: Project) -> None:
    words = ("zlib=1.2.13", "zlb", "zlib1g-dev", "debian:zlib1g-devv")
    project.write("FROM debian:trixie AS build\n" + "".join(f"DEPENDS {word}\n" for word in words))
    found = project.uklimg("build", "--target", "build")
    assert found.status in (ExitCode.USER, ExitCode.NOT_FOUND)
    lines = [line.removeprefix("uklimg: ") for line in found.err.splitlines()[-4:]]
    assert [line.partition(" (did you mean zlib1g-dev")[0] for line in lines] == [
        "Uklfile:2:1: there is no recipe for zlib 1.2.13 (libs/ has zlib 1.3.1)",
        "Uklfile:3:1: unknown library 'zlb' (did you mean 'zlib'?)",
        "Uklfile:4:1: unknown library 'zlib1g-dev' (Debian's own package is debian:zlib1g-dev)",
        "Uklfile:5:1: Debian trixie has no package 'zlib1g-devv'",
    ]


def test_the_lock_of_an_older_recipe_is_moved_forward_by_name(project: Project) -> None:
    project.write("FROM debian:trixie AS build\nDEPENDS lz4 zlib\n")
    assert project.uklimg("lock").status == 0
    path = project.folder / "Uklfile.lock"
    now = path.read_text()
    path.write_text(now.replace('name = "zlib"\nversion = "1.3.1"', 'name = "zlib"\nversion = "1.3"'))
    assert path.read_text() != now
    found = project.uklimg("build", "--target", "build")
    assert found.status == ExitCode.USER
    assert "uklimg: Uklfile:2:1: the version of library zlib changed since Uklfile.lock was made" in found.err
    assert "uklimg lock --update zlib" in found.err
    assert project.uklimg("lock", "--update", "zlib").status == 0
    assert path.read_text() == now


def test_the_check_of_libraries_refuses_what_there_is_not() -> None:
    done = check_libraries("nobodys")
    assert done.status == 1
    assert "unknown library 'nobodys'" in done.tail
