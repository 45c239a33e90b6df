"""The command line of GNU ld, read into words with a meaning, and the two links made of it. Pure.

``parse`` reads, ``Link`` answers. ``executable_cmd`` is the link the user asked for, as a static executable;
``relocatable_cmd`` is `ld -r` of the same inputs less libc, the compiler's run-time libraries and start files.
"""

# Paths are words of a command line here.
# ruff: noqa: PTH118

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Options whose argument is the next word, unless written --name=argument. Long ones are known with one dash as well.
SHORT_WITH_ARGUMENT = word_set("-o -e -u -L -l -m -T -h -z -y -Y -A -b -c -F -f -G -I -R -a -P")
GLUED = word_set("-o -e -u -L -l -m -T -h -z -y -R")  # …or is glued to them
LONG_WITH_ARGUMENT = word_set(
    """
    architecture assert auxiliary default-script defsym dependency-file dT dynamic-linker dynamic-list entry
    error-handling-script exclude-libs filter fini format gpsize hash-style init just-symbols library library-path
    Map max-cache-size oformat orphan-handling output plugin plugin-opt remap-inputs remap-inputs-file
    require-defined retain-symbols-file rpath rpath-link script section-start soname sort-section
    spare-dynamic-tags stats-file sysroot Tbss Tdata Tldata-segment trace-symbol Trodata-segment Ttext
    Ttext-segment undefined version-script wrap image-base
    """
)
# One spelling for each option that we look at.
CANONICAL = {
    "u": "undefined",
    "e": "entry",
    "o": "output",
    "T": "script",
    "l": "library",
    "L": "library-path",
    "(": "start-group",
    ")": "end-group",
    "E": "export-dynamic",
    "I": "dynamic-linker",
    "b": "format",
    "M": "print-map",
    "t": "trace",
    "r": "relocatable",
    "i": "relocatable",
    "Ur": "relocatable",
    "R": "just-symbols",
    "dT": "default-script",
    "pic-executable": "pie",
    "Bshareable": "shared",
    "call_shared": "Bdynamic",
    "dy": "Bdynamic",
    "dn": "Bstatic",
    "non_shared": "Bstatic",
    "static": "Bstatic",
    "h": "soname",
    "c": "mri-script",
    "v": "version",
    "V": "version",
}
START_FILES = word_set(
    """
    crt1.o Scrt1.o rcrt1.o gcrt1.o grcrt1.o Mcrt1.o crti.o crtn.o crtbegin.o crtbeginS.o crtbeginT.o crtend.o
    crtendS.o
    """
)
# Libraries of libc and of the compiler: the final link brings its own. Only those of the system's own folders count,
# since a program's private libutil.a is its own code.
RUN_TIME = word_set(
    """
    c m mvec pthread dl rt util resolv anl nsl g mcheck BrokenLocale c_nonshared pthread_nonshared gcc gcc_eh
    gcc_s stdc++ stdc++exp stdc++fs supc++ atomic gomp itm quadmath ssp ssp_nonshared gcov backtrace gfortran objc
    asan tsan lsan ubsan hwasan asan_preinit
    """
)
ALWAYS_LINKED = word_set("c gcc gcc_eh gcc_s g")

# Said again at the final link, in this order of appearance.
REPLAYED = word_set(
    """
    wrap defsym gc-sections no-gc-sections undefined require-defined allow-multiple-definition unresolved-symbols
    warn-unresolved-symbols noinhibit-exec sort-section
    """
)
REPLAYED_Z = ("muldefs", "stack-size=", "stacksize=")
# What stands between inputs and changes how the following ones are read.
POSITIONAL = word_set("whole-archive no-whole-archive start-group end-group push-state pop-state format")
KEPT_RELOCATABLE = POSITIONAL | word_set("library-path m sysroot allow-multiple-definition")
# Never in an executable of ours: another kind of output, or what has no meaning without a dynamic linker.
# --fatal-warnings goes because a static libc warns about every getaddrinfo and dlopen.
UNWANTED = word_set(
    """
    pie no-pie export-dynamic dynamic-linker Bdynamic dynamic-list dynamic-list-data dynamic-list-cpp-new
    dynamic-list-cpp-typeinfo build-id fatal-warnings rpath rpath-link
    """
)
# Layouts of the program's own making, which a unikernel cannot follow.
OWN_LAYOUT = word_set(
    "script default-script section-start Ttext Tdata Tbss Ttext-segment Tdata-segment entry image-base oformat"
)


class Kind(Enum):
    OPTION = "option"
    FILE = "file"
    LIBRARY = "library"  # -lname


@dataclass(frozen=True)
class Word:
    """One option with its argument, one file, or one library. ``words`` is how it was written."""

    kind: Kind
    name: str  # canonical option name without dashes; path; library name
    value: str
    words: tuple[str, ...]


# Long options that begin like one of GLUED. Written with one dash they are still long options, as in ld itself.
LIKE_GLUED = word_set(
    """
    eh-frame-hdr emit-relocs emit-stub-syms embedded-relocs enable-new-dtags enable-non-contiguous-regions
    enable-non-contiguous-regions-warnings enable-linker-version error-unresolved-symbols error-execstack
    error-rwx-segments export-dynamic export-dynamic-symbol export-dynamic-symbol-list end-group unique
    unresolved-symbols undefined-version ld-generated-unwind-info lto-O0 lto-O1 lto-O2 lto-O3 mri-script help
    relax retain-symbols-file reduce-memory-overheads relocatable rosegment
    """
)


def _option(text: str, following: Callable[[], str | None]) -> Word:
    """Read the option ``text``, taking its argument from ``following`` when it is a word of its own."""
    name, equals, value = text.lstrip("-").partition("=")
    words: tuple[str, ...] = (text,)
    if name in LIKE_GLUED or name in LONG_WITH_ARGUMENT or text.startswith("--"):
        glued = False
    else:
        glued = text[:2] in GLUED and len(text) > 2
    if glued:
        name, value = text[1], text[2:]
    elif not equals and (name in LONG_WITH_ARGUMENT or text in SHORT_WITH_ARGUMENT):
        argument = following()
        if argument is not None:
            value, words = argument, (text, argument)
    return Word(Kind.OPTION, CANONICAL.get(name, name), value, words)


def parse(args: Iterable[str]) -> tuple[Word, ...]:
    """Read the arguments of ld (without argv[0], response files expanded)."""
    result: list[Word] = []
    words = iter(args)

    def following() -> str | None:
        return next(words, None)

    for text in words:
        if not text.startswith("-") or text == "-":
            result.append(Word(Kind.FILE, text, "", (text,)))
            continue
        word = _option(text, following)
        if word.name == "library":
            word = Word(Kind.LIBRARY, word.value, "", word.words)
        result.append(word)
    return tuple(result)


@dataclass(frozen=True)
class Missing:
    """A library that exists only as a shared object. ``shared`` is its path, or "" when there is none at all."""

    name: str
    shared: str


@dataclass(frozen=True)
class Link:
    """One link. ``exists`` says whether a path is a file; ``real`` resolves symbolic links in a path."""

    words: tuple[Word, ...]
    exists: Callable[[str], bool]
    real: Callable[[str], str]

    def options(self, name: str) -> tuple[Word, ...]:
        return tuple(w for w in self.words if w.kind is Kind.OPTION and w.name == name)

    def has(self, *names: str) -> bool:
        return any(self.options(name) for name in names)

    @property
    def output(self) -> str:
        found = self.options("output")
        return found[-1].value if found else "a.out"

    @property
    def is_executable(self) -> bool:
        """Not a shared object, a relocatable object or a question such as ``ld --version``."""
        inputs = any(w.kind is not Kind.OPTION for w in self.words)
        return inputs and not self.has("shared", "relocatable", "version", "help", "target-help")

    def is_start_file(self, word: Word) -> bool:
        base = word.name.rpartition("/")[2]
        return word.kind is Kind.FILE and word.name.startswith("/") and base in START_FILES

    def system_folders(self) -> frozenset[str]:
        """Where gcc and libc live: the folders of the start files (real paths)."""
        found = {self.real(w.name.rpartition("/")[0]) for w in self.words if self.is_start_file(w)}
        return frozenset(found | {"/usr/lib", "/lib", "/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu"})

    def search_folders(self) -> tuple[str, ...]:
        return (*(w.value for w in self.options("library-path")), "/usr/lib/x86_64-linux-gnu", "/usr/lib")

    def find(self, file: str) -> str:
        """The first ``file`` in the search folders, or ""."""
        return next((p for f in self.search_folders() if self.exists(p := os.path.join(f, file))), "")

    def run_time_name(self, word: Word) -> str:
        """The name of the run-time library that ``word`` is (``m`` for -lm and for …/libm.a), or ""."""
        if word.kind is Kind.LIBRARY:
            name = library_name(word.name[1:]) if word.name.startswith(":") else word.name
            path = self.find(word.name[1:] if word.name.startswith(":") else f"lib{name}.a")
        elif word.kind is Kind.FILE and not self.is_start_file(word):
            name, path = library_name(word.name), word.name
        else:
            return ""
        if name not in RUN_TIME:
            return ""
        own = path and self.real(path.rpartition("/")[0] or ".") not in self.system_folders()
        return "" if own else name

    def run_time_libraries(self) -> tuple[str, ...]:
        """``-lname`` of each run-time library, in order, once; without libc and libgcc, which are always linked."""
        names = dict.fromkeys(filter(None, map(self.run_time_name, self.words)))
        return tuple(f"-l{name}" for name in names if name not in ALWAYS_LINKED)

    def replayed_options(self) -> tuple[str, ...]:
        """Options that the final link must hear again, in order."""
        found: list[str] = []
        for word in self.words:
            if word.kind is not Kind.OPTION:
                continue
            if word.name in REPLAYED:
                found.append(f"--{word.name}={word.value}" if word.value else f"--{word.name}")
            elif word.name == "z" and word.value.startswith(REPLAYED_Z):
                found += ["-z", word.value]
        return tuple(found)

    def why_not_relocatable(self) -> str:
        """Why this program cannot become a unikernel, seen from its link alone; "" if nothing speaks against it."""
        if not any(self.is_start_file(w) for w in self.words):
            return "it is linked without libc's start files (-nostdlib or -nostartfiles)"
        for word in self.words:
            if word.kind is Kind.OPTION and word.name in OWN_LAYOUT:
                return f"it is linked with a layout of its own ({' '.join(word.words)})"
        machine = self.options("m")
        if machine and machine[-1].value != "elf_x86_64":
            return f"it is not 64-bit x86 code ({' '.join(machine[-1].words)})"
        return ""

    def static_file(self, word: Word) -> Word:
        """``word`` with a shared object replaced by the static archive of the same library, where there is one."""
        if word.kind is Kind.LIBRARY:
            if word.name == "gcc_s":
                return Word(Kind.LIBRARY, "gcc_eh", "", ("-lgcc_eh",))
            if word.name.startswith(":") and (archive := _archive_of(word.name[1:])) and self.find(archive):
                return Word(Kind.LIBRARY, f":{archive}", "", (f"-l:{archive}",))
        elif word.kind is Kind.FILE and (archive := _archive_of(word.name)):
            base = archive.rpartition("/")[2]
            found = archive if self.exists(archive) else self.find(base) if self.is_system_file(word) else ""
            if found:
                return Word(Kind.FILE, found, "", (found,))
        return word

    def is_system_file(self, word: Word) -> bool:
        return self.real(word.name.rpartition("/")[0] or ".") in self.system_folders()

    def missing_name(self, word: Word) -> str:
        """The name of the library that ``word`` asks for and of which no static archive is found, or ""."""
        word = self.static_file(word)
        if word.kind is Kind.LIBRARY:
            exact = word.name.startswith(":")
            file = word.name[1:] if exact else f"lib{word.name}.a"
            if not self.find(file) or _archive_of(file):
                return library_name(file) or word.name
        elif word.kind is Kind.FILE and _archive_of(word.name) and self.exists(word.name):
            return library_name(word.name)
        return ""

    def missing_archives(self) -> tuple[Missing, ...]:
        """Libraries for which no static archive is found: what the message after a failed link is about."""
        found: dict[Missing, None] = {}
        for word in self.words:
            if name := self.missing_name(word):
                shared = word.name if word.kind is Kind.FILE else self.find(f"lib{name}.so")
                found[Missing(name, shared)] = None
        return tuple(found)

    def executable_cmd(self, linker: str, relocatable: str = "") -> list[str]:
        """The ordinary link as a static executable with a build ID.

        With ``relocatable`` the path of what ``relocatable_cmd`` made, that object stands in for all user inputs.
        """
        cmd = [linker]
        for word in map(self.static_file, self.words):
            if word.kind is Kind.OPTION and word.name in UNWANTED:
                continue
            if relocatable and self.is_user_input(word):
                if relocatable not in cmd:
                    cmd.append(relocatable)
                continue
            cmd += word.words
        return [*cmd, "--build-id=sha1"]

    def is_user_input(self, word: Word) -> bool:
        return word.kind is not Kind.OPTION and not self.is_start_file(word) and not self.run_time_name(word)

    def relocatable_cmd(self, linker: str, output: str) -> list[str]:
        """`ld -r` of the user's inputs, pulling the archive members that the executable's link pulls.

        Nothing is merged that the final link could treat apart: with --gc-sections each input section of the
        common names stays a section of its own. Symbols that only options mention are asked for with -u; one that
        stays undefined does no harm. LTO input becomes native code (the caller sets -flinker-output=nolto-rel).
        """
        cmd = [linker, "-r", "-o", output, "--build-id=none", "-u", "main"]
        if self.has("gc-sections"):
            cmd += [f"--unique={name}" for name in (".text", ".rodata", ".data", ".bss", ".data.rel.ro")]
        lto = False
        for word in map(self.static_file, self.words):
            if word.kind is not Kind.OPTION:
                if self.is_user_input(word):
                    cmd += word.words
            elif word.name == "wrap":
                cmd += ["-u", f"__wrap_{word.value}", "-u", word.value]
            elif word.name in ("undefined", "require-defined"):
                cmd += ["-u", word.value]
            elif word.name == "defsym":
                target = word.value.partition("=")[2]
                cmd += ["-u", target] if target.isidentifier() else []
            elif word.name == "plugin":
                lto = True
                cmd += word.words
            elif word.name == "plugin-opt":
                cmd += [] if word.value.startswith("-pass-through=") else word.words
            elif word.name in KEPT_RELOCATABLE or (word.name == "z" and word.value == "muldefs"):
                cmd += word.words
        if lto:
            cmd.append("-plugin-opt=-linker-output-known")
        return cmd


def library_name(path: str) -> str:
    """``m`` for …/libm.so.6, …/libm.a and …/libm-2.41.a; "" for what is not named like a library."""
    base = path.rpartition("/")[2]
    if not base.startswith("lib"):
        return ""
    if base.endswith(".a"):
        stem = base[3:-2]
    elif ".so" in base:
        stem = base[3 : base.index(".so")]
    else:
        return ""
    name, dash, version = stem.rpartition("-")
    return name if dash and version[:1].isdigit() and name in RUN_TIME else stem


def _archive_of(path: str) -> str:
    """``…/libz.a`` for …/libz.so or …/libz.so.1.3; "" for what is not a shared object's name."""
    folder, slash, base = path.rpartition("/")
    stem, so, version = base.partition(".so")
    if not so or (version and not version.startswith(".")):
        return ""
    return f"{folder}{slash}{stem}.a"
