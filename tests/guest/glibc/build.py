"""Build glibc's own tests that link statically into one program, inside a build stage with our glibc.

    build.py --source FILE --patches DIR --out DIR [TESTS...]

FILE and DIR are as for uklimg/inside/glibc.py, which lies beside this file. TESTS are glibc's folders (nptl, posix),
each perhaps as nptl/tst-cancel* for some of its tests; none means all that have tests. OUT gets ``suite``, the
program; ``tests``, a line a test: its name in the program, folder, file, input, environment and arguments, separated
by tabs; ``skipped``, a line a test that is not in the program, and why; ``data``, files that tests read, by folder.

The tests are compiled with glibc's own makefiles, which only lack the command that links: here it makes a relocatable
object of a test. main becomes a name of its own, and every other name stays within the test.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.inside import glibc
else:  # in the container they lie in one folder
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    glibc = import_module("glibc")

HERE = Path(__file__).resolve().parent
# Tests of programs or of what an installed system has; po, manual and the like have none.
FOLDERS = """
argp assert catgets csu ctype debug dirent elf gmon gnulib iconv inet intl io libio locale login malloc math misc nptl
nss posix resolv resource rt setjmp signal socket stdio-common stdlib string support sysvipc time timezone wcsmbs
wctype
"""
# The compiler wrapper's variables: glibc's makefiles know their tools.
WRAPPER = ("CC", "CXX", "AR", "NM", "RANLIB", "PKG_CONFIG")
LIST = "ukl-tests.list"
# $1: a test's object of all its parts; and what it wants to be run with.
LINK = (
    "ld -r -o $@ $(filter-out $(+preinit) $(+postinit) $(csu-objpfx)%,$(filter %.o,$^)) && "
    r"printf '%s\t%s\t%s\t%s\n' '$@' '$(LDFLAGS-$(@F))' '$($(@F)-ENV)' '$($(@F)-ARGS)' >> $(common-objpfx)" + LIST
)
LINKS = ("+link-static-tests", "+link-tests", "+link-static", "+link")
NAMES = "ukl-names: ; @echo $(sort $(filter-out $(tests-special) %.out,$(tests) $(tests-internal) $(tests-static)))"
DEFINED = "defined-only"
# Without a meaning for a static program.
DYNAMIC = ("-rdynamic", "-Wl,-z,now", "-Wl,--disable-new-dtags", "-Wl,--eh-frame-hdr")
DATA_LIMIT = 1 << 18  # bytes of a file
CONSTRUCTORS = re.compile(r"\s\.(?:init_array|preinit_array|fini_array|ctors|dtors)\b")


@dataclass(frozen=True)
class Test:
    """``path`` is the object of all parts; the others as in glibc's makefiles."""

    path: Path
    ldflags: str
    environment: str
    arguments: str

    @property
    def folder(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        """As a C name; there are tst-swscanf and tst_swscanf."""
        return re.sub(r"\W", "_", f"{self.folder}/{self.path.name}".replace("_", "__"))


def make(tree: Path, build: Path, folder: str, *words: str) -> str:
    """make in one of glibc's folders, for static programs; what it says. Tests that do not build are no failure."""
    where = ["-C", f"{tree}/{folder}", f"subdir={folder}", "..=../", f"objdir={build}", "build-shared=no"]
    argv = ["make", "-r", "-k", f"-j{os.cpu_count()}", "--no-print-directory", *where, "run-built-tests=no", *words]
    environment = {name: value for name, value in os.environ.items() if name not in WRAPPER}
    environment["LC_ALL"] = "C"
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False, env=environment).stdout


def build_tests(tree: Path, build: Path, wanted: list[str]) -> list[tuple[str, str]]:
    """Compile the tests of ``wanted``; those that did not build, and why."""
    (build / LIST).unlink(missing_ok=True)
    make(tree, build, "support", f"{build}/support/libsupport.a")
    failed = []
    for word in wanted:
        folder, _, pattern = word.partition("/")
        names = make(tree, build, folder, "--silent", f"--eval={NAMES}", "ukl-names").split()
        chosen = [name for name in names if fnmatch.fnmatch(name, pattern or "*")]
        links = [f"{link}=$(call ukl-link)" for link in LINKS]
        make(tree, build, folder, f"ukl-link={LINK}", *links, *(f"{build}/{folder}/{name}" for name in chosen))
        failed += [(f"{folder}/{n}", "does not link statically") for n in chosen if not (build / folder / n).exists()]
    return failed


def read_list(build: Path) -> list[Test]:
    lines = (build / LIST).read_text().splitlines()
    tests = {fields[0]: Test(Path(fields[0]), *fields[1:]) for line in lines if len(fields := line.split("\t")) == 4}
    return [tests[path] for path in sorted(tests)]


def names(path: Path, which: str) -> set[str]:
    """Global names of an object or archive: ``defined-only`` or ``undefined-only``."""
    argv = ["nm", "--extern-only", f"--{which}", "--format=posix", str(path)]
    text = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    words = (line.split() for line in text.splitlines())
    # A weak name that nobody defines is no trouble.
    return {word[0] for word in words if len(word) > 1 and word[1] not in "wv"}


def provided(build: Path) -> set[str]:
    """What libraries define for tests."""
    found = {
        "__tls_get_addr",
        "_GLOBAL_OFFSET_TABLE_",
        "_DYNAMIC",
        "_end",
        "_edata",
        "__bss_start",
        "__executable_start",
        "__ehdr_start",
    }
    for name in ("libstdc++.a", "libgcc.a", "libgcc_eh.a"):
        argv = ["g++", f"-print-file-name={name}"]
        found |= names(
            Path(subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()), DEFINED
        )
    for path in ("libc.a", "math/libm.a", "mathvec/libmvec.a", "resolv/libresolv.a", "support/libsupport.a"):
        found |= names(build / path, DEFINED)
    return found


def why_not(test: Test, libc: set[str], libraries: set[str]) -> str:
    """Why a test cannot share a program with others; "" if nothing speaks against it.

    ``libc``: the names that libc has; ``libraries``: those of all libraries."""
    sections = subprocess.run(
        ["readelf", "--wide", "--sections", str(test.path)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    if CONSTRUCTORS.search(sections):
        return "has constructors, which every program would run"
    own = names(test.path, DEFINED)
    if "main" not in own:
        return "has no main"
    if replaced := sorted(name for name in own & libc if not name.startswith("DW.ref.")):
        return f"replaces {replaced[0]} of libc"
    if flags := [word for word in test.ldflags.replace("-z now", "").split() if word not in DYNAMIC]:
        return f"is linked with {' '.join(flags)}"
    wanted = {name for name in names(test.path, "undefined-only") if not name.startswith(("__start_", "__stop_"))}
    if missing := sorted(wanted - libraries):
        return f"needs {missing[0]} of a shared object"
    return ""


def adopt(test: Test, out: Path) -> Path:
    """The test's object as one part of the program."""
    name, target = f"main_{test.name}", out / f"{test.name}.o"
    # C++'s inline functions become the test's own before they lose their names. The options of objcopy mean names as
    # they are in its input.
    subprocess.run(["ld", "-r", "--force-group-allocation", "-o", str(target), str(test.path)], check=True)
    # String tests have a table in a section that the linker gives names to.
    table = [f"--rename-section=impls=impls_{name}"]
    for edge in ("start", "stop"):
        table += ["--redefine-sym", f"__{edge}_impls=__{edge}_impls_{name}"]
    subprocess.run(["objcopy", "--redefine-sym", f"main={name}", *table, str(target)], check=True)
    subprocess.run(["objcopy", f"--keep-global-symbol={name}", str(target)], check=True)
    return target


def line(test: Test, tree: Path) -> str:
    given = tree / test.folder / f"{test.path.name}.input"
    there = given.name if given.is_file() else "-"
    fields = (test.name, test.folder, test.path.name, there, test.environment, test.arguments)
    return "\t".join(" ".join(field.split()) or "-" for field in fields)


def program(tests: list[Test], out: Path, build: Path) -> None:
    """Link ``out/suite``."""
    objects = out / "objects"
    objects.mkdir()
    (out / "suite.inc").write_text("".join(f"PROGRAM({test.name})\n" for test in tests))
    main = out / "suite.o"
    subprocess.run(["ukl-gcc", "-O2", f"-I{out}", "-c", str(HERE / "suite.c"), "-o", str(main)], check=True)
    files = [str(main), *(str(adopt(test, objects)) for test in tests)]
    (out / "files").write_text("\n".join([*files, str(build / "support/libsupport.a")]) + "\n")
    subprocess.run(["ukl-g++", f"@{out}/files", "-lresolv", "-lm", "-o", str(out / "suite")], check=True)
    shutil.rmtree(objects)


def copy_data(tests: list[Test], tree: Path, out: Path) -> None:
    """What is not a source: most of it tests' input."""
    for folder in sorted({test.folder for test in tests}):
        for path in sorted((tree / folder).iterdir()):
            if path.is_file() and path.suffix not in (".c", ".h", ".S", ".cc") and path.stat().st_size <= DATA_LIMIT:
                target = out / folder / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("source", "patches", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("tests", nargs="*")
    args = parser.parse_args()
    tree, build = glibc.WORK / "source", glibc.WORK / "build"
    if not tree.exists():
        glibc.build(tree, build, args.source, args.patches)
    args.out.mkdir(parents=True)
    skipped = build_tests(tree, build, args.tests or FOLDERS.split())
    libc, libraries = names(build / "libc.a", DEFINED), provided(build)
    tests = []
    for test in read_list(build):
        if reason := why_not(test, libc, libraries):
            skipped.append((f"{test.folder}/{test.path.name}", reason))
        else:
            tests.append(test)
    program(tests, args.out, build)
    copy_data(tests, tree, args.out / "data")
    (args.out / "tests").write_text("".join(f"{line(test, tree)}\n" for test in tests))
    (args.out / "skipped").write_text("".join(f"{name}\t{reason}\n" for name, reason in sorted(skipped)))
    shutil.rmtree(glibc.WORK)  # half a gigabyte that nobody needs in a layer
    print(f"{len(tests)} tests, {len(skipped)} left out", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
