"""Build our glibc inside a container, its static archives and start files only.

    glibc.py --source FILE --patches DIR --home DIR --out DIR

OUT gets crt1.o, crti.o, crtn.o and the archives, whose system calls are calls of ``__ukl_syscall``. libc.a is for
ordinary programs: a linker script for libc-ukl.a and libukl.a, where ``__ukl_syscall`` is the instruction. HOME is
where OUT will lie. Headers are the base image's, of the same version. Standard library only. Exit status: 0; 1 with
one line on stderr that starts with ``uklimg-glibc:``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.inside import source
else:  # in the container there is this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import source

WORK = Path("/usr/src/ukl-glibc")
TRIPLET = "x86_64-ukl-linux-gnu"
# As Debian's, where a static program can tell.
CONFIGURE = (
    f"--build={TRIPLET}",
    f"--host={TRIPLET}",
    "--prefix=/usr",
    "--libdir=/usr/lib/x86_64-linux-gnu",
    "--sysconfdir=/etc",
    "--localstatedir=/var",
    "--enable-stack-protector=strong",
    "--disable-nscd",
    "--disable-build-nscd",
    "--disable-profile",
    "--disable-werror",
)
# Of the build, by their names in OUT. libm.a is a linker script, as everywhere. Other archives of glibc are empty
# in the base image, too, since what was in them is in libc.a.
WANTED = {
    "crt1.o": "csu/crt1.o",
    "crti.o": "csu/crti.o",
    "crtn.o": "csu/crtn.o",
    "libc-ukl.a": "libc.a",
    "libm-ukl.a": "math/libm.a",
    "libmvec.a": "mathvec/libmvec.a",
    "libresolv.a": "resolv/libresolv.a",
}
ENTRY = "csu/ukl-syscall.o"


class GlibcError(Exception):
    """One line for the user."""


def run(argv: list[str], folder: Path, environment: dict[str, str]) -> None:
    print("+ " + " ".join(argv), flush=True)
    done = subprocess.run(argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise GlibcError(f"{argv[0]} failed with status {done.returncode}")


def configure_cmd(tree: Path, build: Path) -> list[str]:
    """Run in ``build``. No path of this build is left in what it makes."""
    maps = f"-ffile-prefix-map={build}=build -ffile-prefix-map={tree}=glibc"
    return [f"{tree}/configure", *CONFIGURE, "CC=gcc", "CXX=g++", f"CFLAGS=-O2 {maps}"]


def make_cmds(tree: Path, build: Path, jobs: int) -> list[list[str]]:
    """Run in ``build``: static objects alone, since the shared ones take as long again.

    glibc 2.41 does not build when it is configured without shared objects: what makes its headers is missing then. So
    it is configured with them, one folder makes the headers, and the rest is told that there are none.
    """
    make = ["make", f"-j{jobs}"]
    static = "build-shared=no"

    def part(folder: str, *files: str) -> list[str]:
        where = ["-r", "-C", f"{tree}/{folder}", f"subdir={folder}", "..=../", f"objdir={build}"]
        return [*make, *where, static, *(f"{build}/{folder}/{file}" for file in files)]

    return [
        [*make, "csu/subdir_lib", "object-suffixes=.o"],
        [*make, "lib", static],
        part("math", "libm.a"),
        part("mathvec", "libmvec.a"),
        part("resolv", "libresolv.a"),
    ]


def group(*files: str) -> str:
    """A linker script that stands for archives."""
    return f"OUTPUT_FORMAT(elf64-x86-64)\nGROUP ( {' '.join(files)} )\n"


def collect(build: Path, out: Path, home: str) -> None:
    """What was built, in ``out``."""
    for name, path in WANTED.items():
        if not (build / path).is_file():
            raise GlibcError(f"the build has not made {path}")
        shutil.copyfile(build / path, out / name)
    (out / "libm.a").write_text(group(f"{home}/libm-ukl.a", f"{home}/libmvec.a"))
    (out / "libc.a").write_text(group(f"{home}/libc-ukl.a", f"{home}/libukl.a"))
    environment = dict(os.environ)
    run(["ar", "crsD", str(out / "libukl.a"), str(build / ENTRY)], build, environment)
    files = [str(out / name) for name in WANTED]
    run(["strip", "--strip-debug", "--enable-deterministic-archives", *files], build, environment)
    for file in out.iterdir():
        file.chmod(0o644)


def build(tree: Path, folder: Path, archive: Path, patches: Path) -> None:
    """Build what ``collect`` takes, in ``folder`` of the source that becomes ``tree``."""
    folder.mkdir(parents=True)
    source.unpack(archive, tree, None)
    source.apply_patches(patches, tree)
    environment = {**os.environ, "LC_ALL": "C"}
    # The compiler wrapper's variables are not meant here: nothing of this becomes a unikernel by itself.
    for name in ("CC", "CXX", "AR", "NM", "RANLIB", "CFLAGS", "CXXFLAGS", "LDFLAGS"):
        environment.pop(name, None)
    run(configure_cmd(tree, folder), folder, environment)
    for argv in make_cmds(tree, folder, len(os.sched_getaffinity(0))):
        run(argv, folder, environment)


def main() -> int:
    parser = argparse.ArgumentParser(prog="uklimg-glibc")
    for name in ("source", "patches", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--home", required=True)
    try:
        args = parser.parse_args()
        build(WORK / "source", WORK / "build", args.source, args.patches)
        collect(WORK / "build", args.out, args.home)
    except (GlibcError, source.SourceError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        print(f"uklimg-glibc: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
