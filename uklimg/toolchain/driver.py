"""ukl-gcc and ukl-g++: gcc with the flags a unikernel needs, and our linker folder first in COMPILER_PATH.

Every command becomes exactly one exec() of the real compiler. Code is compiled as PIE, since the program's code
lands at kernel addresses where 32-bit absolute addresses do not reach. An executable is linked static and not PIE:
that needs no relocation at start, accepts every static archive, and is the layout a unikernel has.
"""

# os.path and not pathlib, whose import would double the start-up time of every compilation.
# ruff: noqa: PTH112, PTH118, PTH119, PTH120

from __future__ import annotations

import os
import sys

COMPILERS = {"gcc": "/usr/bin/gcc", "cc": "/usr/bin/gcc", "g++": "/usr/bin/g++", "c++": "/usr/bin/g++"}


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Options whose next word is their argument, so that `-o -shared` or `-MT -static` is not mistaken for an option.
WITH_ARGUMENT = word_set(
    """
    -o -x -I -L -D -U -A -B -T -u -z -e -b -l -G -h -include -imacros -isystem -iquote -idirafter -iprefix
    -iwithprefix -iwithprefixbefore -isysroot -imultilib -imultiarch -MF -MT -MQ -Xlinker -Xassembler
    -Xpreprocessor -aux-info -dumpbase -dumpbase-ext -dumpdir -wrapper --sysroot --param --entry --force-link
    --for-assembler --for-linker --output --language --include --imacros --include-directory
    --include-directory-after --include-prefix --include-with-prefix --library-directory --define-macro
    --undefine-macro --assert --prefix -Tbss -Tdata -Ttext -Ttext-segment
    """
)
# Modes in which nothing is linked.
NO_LINK = word_set("-c -S -E -M -MM -fsyntax-only --compile --assemble --preprocess --dependencies")
# Links of plug-ins and shared libraries: the real compiler's business alone.
SHARED = word_set("-shared --shared -Wl,-shared -Wl,--shared")
PARTIAL = word_set("-r -Wl,-r -Wl,--relocatable")
# Other instruction sets: not a unikernel's code, so the real compiler gets them untouched.
OTHER_TARGET = word_set("-m32 -m16 -mx32")
POSITION_INDEPENDENT = word_set("-fPIC -fpic -fPIE -fpie")
# Would make position-dependent code, or choose another kind of executable than ours.
DROPPED = word_set(
    """
    -fno-pie -fno-PIE -fno-pic -fno-PIC -mcmodel=small -mcmodel=kernel -no-pie -nopie -pie --pie --no-pie
    -static-pie --static-pie -static --static -rdynamic -fno-use-linker-plugin
    """
)
QUERIES = (
    "--version",
    "--help",
    "-dumpmachine",
    "-dumpversion",
    "-dumpfullversion",
    "-dumpspecs",
    "-print-",
    "--print-",
    "--target-help",
)


def options_and_files(args: list[str]) -> tuple[list[str], list[str]]:
    """Words that are options (without their separate arguments), and words that are input files or libraries."""
    options: list[str] = []
    files: list[str] = []
    words = iter(args)
    for word in words:
        if word in WITH_ARGUMENT:
            argument = next(words, "")
            if word in ("-l", "-Xlinker"):
                files.append(argument)
            options.append(word)
        elif word.startswith("-") and word != "-":
            options.append(word)
            if word.startswith(("-l", "-Wl,")):
                files.append(word)
        else:
            files.append(word)
    return options, files


def without_conflicts(args: list[str]) -> list[str]:
    """``args`` less the options of DROPPED; the argument of another option is never touched."""
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if word in WITH_ARGUMENT:
            kept.append(word)
            kept.extend([argument] if (argument := next(words, None)) is not None else [])
        elif word not in DROPPED:
            kept.append(word)
    return kept


def command(args: list[str]) -> tuple[list[str], bool]:
    """Arguments for the real compiler, and whether this is a command that may link an executable of ours.

    Response files are opened only to see what they say; they are passed on unless something in them must change.
    """
    words = args
    if any(arg.startswith("@") for arg in args):
        from uklimg.toolchain import response  # rare, and every compilation would pay for the import

        words = response.expand(args)
    options, files = options_and_files(words)
    seen = set(options)
    query = any(option.startswith(QUERIES) for option in options)
    if not files or query or seen & OTHER_TARGET or seen & SHARED or ("-Xlinker" in seen and "-shared" in files):
        return args, False
    kept = without_conflicts(words)
    if kept == words:
        kept = args
    if not seen & POSITION_INDEPENDENT:
        kept = ["-fPIE", *kept]
    if seen & (NO_LINK | PARTIAL):
        return kept, False
    return ["-static", "-no-pie", *kept], True


def libc_options(folder: str) -> list[str]:
    """What leads gcc to the libc in ``folder``, if there is one (uklimg/inside/glibc.py); else it links its own."""
    return [f"-B{folder}/"] if os.path.isdir(folder) else []


def compiler_path(folder: str, old: str) -> str:
    return f"{folder}:{old}" if old else folder


def main() -> None:
    name = os.path.basename(sys.argv[0]).rpartition("-")[2]
    compiler = COMPILERS.get(name, COMPILERS["gcc"])
    args, links = command(sys.argv[1:])
    environment = dict(os.environ)
    if links:
        home = os.path.dirname(os.path.realpath(sys.argv[0]))
        args = [*libc_options(os.path.join(home, "libc")), *args]
        folder = os.path.join(home, "ld")
        environment["COMPILER_PATH"] = compiler_path(folder, environment.get("COMPILER_PATH", ""))
    try:
        os.execve(compiler, [compiler, *args], environment)
    except OSError as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {compiler}: {error.strerror}")
