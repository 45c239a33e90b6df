"""A first Uklfile for a folder with sources: what builds them, what the program is called, what it needs. Pure.

Everything here is a guess from the text of build files, made to be read and corrected: the Uklfile says with each
line what it is for and what was found. The guesses read files as text and run nothing.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

# Where a library of a build file comes from in Debian, for the usual ones: (recipe or "", -dev package).
_LIBRARIES = {
    "zlib": "zlib1g-dev",
    "z": "zlib1g-dev",
    "openssl": "libssl-dev",
    "libssl": "libssl-dev",
    "libcrypto": "libssl-dev",
    "ssl": "libssl-dev",
    "crypto": "libssl-dev",
    "libevent": "libevent-dev",
    "event": "libevent-dev",
    "libpcre2-8": "libpcre2-dev",
    "pcre2-8": "libpcre2-dev",
    "pcre2": "libpcre2-dev",
    "libuv": "libuv1-dev",
    "uv": "libuv1-dev",
    "lz4": "liblz4-dev",
    "liblz4": "liblz4-dev",
    "zstd": "libzstd-dev",
    "libzstd": "libzstd-dev",
    "sqlite3": "libsqlite3-dev",
    "liburing": "liburing-dev",
    "uring": "liburing-dev",
    "libaio": "libaio-dev",
    "aio": "libaio-dev",
    "jemalloc": "libjemalloc-dev",
    "ncurses": "libncurses-dev",
    "ncursesw": "libncurses-dev",
    "readline": "libreadline-dev",
    "libcurl": "libcurl4-openssl-dev",
    "curl": "libcurl4-openssl-dev",
    "expat": "libexpat1-dev",
    "libxml-2.0": "libxml2-dev",
    "libxml2": "libxml2-dev",
    "libcap": "libcap-dev",
    "cap": "libcap-dev",
    "libseccomp": "libseccomp-dev",
    "yaml-0.1": "libyaml-dev",
    "protobuf": "libprotobuf-dev",
    "boost": "libboost-dev",
}
# What every static link has.
_OF_LIBC = {"m", "pthread", "dl", "rt", "c", "util", "threads", "stdc++", "gcc", "crypt", "resolv"}
# In order: an earlier one is preferred where a folder has several.
_MAKEFILES = ("Makefile", "GNUmakefile", "makefile")
FILES = ("meson.build", "CMakeLists.txt", "configure", "configure.ac", *_MAKEFILES)
_CXX = (".cc", ".cpp", ".cxx", ".C")
# Targets that are no program, by their form or by their name.
_NO_PROGRAM = re.compile(r"[%@$]|\.(o|a|so|d|s|i|lo|la|c|cc|cpp|h|py|txt|html|[1-9])$")
_NOT_PROGRAMS = {"all", "install", "clean", "distclean", "check", "test", "help", "dist", "uninstall", "default"}


@dataclass(frozen=True)
class Guess:
    """``system`` is make, autotools, cmake or meson; ``program`` where the build leaves it, relative to the build
    folder; ``packages`` the Debian packages that the build itself needs, ``libraries`` those of its libraries
    (a -dev package, or "" where none is known, by the name the build file uses); ``compilers`` the variables that
    make must be told, because a makefile sets them itself, as in ``CC=ukl-gcc``."""

    system: str
    file: str
    program: str
    certain: bool
    packages: tuple[str, ...] = ()
    libraries: tuple[tuple[str, str], ...] = ()
    cxx: bool = False
    port: int = 0
    compilers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return posixpath.basename(self.program)


def guess(files: Mapping[str, str], names: tuple[str, ...], folder: str) -> Guess | None:
    """What builds a folder called ``folder``: ``files`` are the texts of FILES and of further build files by their
    relative paths, ``names`` of all files in it. None when nothing there says how it is built."""
    found = next((name for name in FILES if name in files), None)
    if found is None:
        return None
    texts = "\n".join(_uncommented(text) for _, text in sorted(files.items()))
    cxx = any(name.endswith(_CXX) for name in names)
    packages: tuple[str, ...]
    libraries: list[str]
    compilers: tuple[str, ...] = ()
    if found == "meson.build":
        program, certain = _meson(files, folder)
        libraries = re.findall(r"dependency\s*\(\s*'([^']+)'", texts)
        system, packages = "meson", ("meson", "ninja-build")
    elif found == "CMakeLists.txt":
        program, certain = _cmake(files, folder)
        libraries = [name.lower() for name in re.findall(r"find_package\s*\(\s*(\w+)", texts, re.IGNORECASE)]
        for names_of in re.findall(r"pkg_(?:check|search)_modules?\s*\(\s*\w+\s+([^)]*)\)", texts, re.IGNORECASE):
            libraries += [_plain(word) for word in names_of.split() if not word.isupper()]
        system, packages = "cmake", ("cmake",)
    elif found in ("configure", "configure.ac"):
        program, certain = _autotools(files, names, folder)
        text = _uncommented(files.get("configure.ac", ""))
        libraries = re.findall(r"AC_CHECK_LIB\s*\(\s*\[?([\w+.-]+)", text)
        for names_of in re.findall(r"AC_SEARCH_LIBS\s*\(\s*\[?\w+\]?\s*,\s*\[?([\w+. -]+)", text):
            libraries += names_of.split()
        for names_of in re.findall(r"PKG_CHECK_MODULES\s*\(\s*\[?\w+\]?\s*,\s*\[?([^\],)]*)", text):
            libraries += [_plain(word) for word in names_of.split() if re.match(r"[A-Za-z]", word)]
        system = "autotools"
        packages = () if found == "configure" else ("autoconf", "automake", "libtool")
    else:
        program, certain = _make(files[found], names, folder)
        if not certain and "src/Makefile" in files:
            inner, certain = _make(files["src/Makefile"], names, folder)
            program = posixpath.join("src", inner) if certain else program
        libraries = re.findall(r"(?<![\w-])-l([A-Za-z][\w+.-]*)", texts)
        libraries += [_plain(word) for word in re.findall(r"pkg-config[^)\n]*--libs\s+([\w.+-]+)", texts)]
        system, packages = "make", ()
        makefiles = [text for path, text in files.items() if posixpath.basename(path) in _MAKEFILES]
        compilers = _own_compilers(makefiles)
    wanted = dict.fromkeys(name for name in libraries if name.lower() not in _OF_LIBC)
    known = tuple((name, _LIBRARIES.get(name.lower(), "")) for name in wanted)
    if "pkg-config" in texts or "PKG_CHECK_MODULES" in texts or "pkg_check" in texts.lower() or system == "meson":
        packages = (*packages, "pkgconf")
    return Guess(system, found, program, certain, packages, known, cxx, compilers=compilers)


def _own_compilers(makefiles: list[str]) -> tuple[str, ...]:
    """The variables that win over the environment's: ``CC = gcc``, but not ``CC ?= gcc``. Our linker comes by the
    compiler, so that LD may be what it likes."""
    text = "\n".join(_uncommented(makefile) for makefile in makefiles)
    found = []
    for name, ours in (("CC", "ukl-gcc"), ("CXX", "ukl-g++")):
        if re.search(rf"^ *(?:(?:export|override) +)?{name}[ \t]*:{{0,3}}=", text, re.MULTILINE):
            found.append(f"{name}={ours}")
    return tuple(found)


def _plain(word: str) -> str:
    """A module's name without a version that it must have."""
    return re.split(r"[<>=\s]", word, maxsplit=1)[0]


def _uncommented(text: str) -> str:
    return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines())


def _meson(files: Mapping[str, str], folder: str) -> tuple[str, bool]:
    for path, text in sorted(files.items(), key=lambda item: item[0].count("/")):
        if posixpath.basename(path) == "meson.build":
            for name in re.findall(r"executable\s*\(\s*'([^']+)'", _uncommented(text)):
                return posixpath.join(posixpath.dirname(path), name), True
    project = re.search(r"project\s*\(\s*'([^']+)'", files["meson.build"])
    return project[1] if project else folder, False


def _cmake(files: Mapping[str, str], folder: str) -> tuple[str, bool]:
    project = re.search(r"project\s*\(\s*\"?([\w.+-]+)", _uncommented(files["CMakeLists.txt"]), re.IGNORECASE)
    named = project[1] if project else folder
    for path, text in sorted(files.items(), key=lambda item: item[0].count("/")):
        if posixpath.basename(path) == "CMakeLists.txt":
            for name in re.findall(r"add_executable\s*\(\s*\"?([^\s)\"]+)", _uncommented(text), re.IGNORECASE):
                name = re.sub(r"\$\{(?:CMAKE_)?PROJECT_NAME\}", named, name)
                if "$" not in name:
                    return posixpath.join(posixpath.dirname(path), name), True
    return named, False


def _autotools(files: Mapping[str, str], names: tuple[str, ...], folder: str) -> tuple[str, bool]:
    """An installed program of a Makefile.am, the likeliest one; else what a Makefile(.in) of its own links."""
    init = re.search(r"AC_INIT\s*\(\s*\[?([\w.+-]+)", files.get("configure.ac", ""))
    called = init[1] if init else folder
    found: list[str] = []
    for path, text in sorted(files.items(), key=lambda item: item[0].count("/")):
        if posixpath.basename(path) == "Makefile.am":
            for words in re.findall(
                r"^\s*s?bin_PROGRAMS\s*\+?=((?:[^\n\\]|\\\n)*)", _uncommented(text), re.MULTILINE
            ):
                plain = (word for word in words.split() if re.fullmatch(r"[\w.+-]+", word))
                found += [posixpath.join(posixpath.dirname(path), word) for word in plain]
    if found:
        return _likeliest(found, called), True
    for path in ("Makefile", "Makefile.in"):
        if path in files:
            program, certain = _make(files[path], names, called)
            if certain:
                return program, True
    return called, False


def _likeliest(programs: list[str], called: str) -> str:
    """The one that is called like the project, then one that is a server of that name, then the first."""
    plain = _letters(re.sub(r"[-_.]?[0-9.]+$", "", called))

    def rank(program: str) -> int:
        name = _letters(posixpath.basename(program))
        if plain and plain in name:
            return 0 if name == plain else 1 if name in (f"{plain}d", f"{plain}server") else 2
        return 3

    return min(programs, key=rank)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _make(text: str, names: tuple[str, ...], folder: str) -> tuple[str, bool]:
    """A target that is linked: one whose recipe has -o or $@, else the variable that such files call their program,
    else the first prerequisite of ``all``."""
    text = re.sub(r"\\\n", " ", _uncommented(text))
    variables = dict(re.findall(r"^([A-Za-z_][A-Za-z0-9_]*)\s*[:?]?=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE))

    def expanded(word: str) -> str:
        for _ in range(5):
            word = re.sub(r"\$[({](\w+)[)}]", lambda match: variables.get(match[1], ""), word)
        return re.sub(r"@\w+@", "", word).strip()  # what configure would put in

    rules = re.findall(r"^([^\s#:=][^:=\n]*):(?![:=])([^\n]*)\n((?:\t[^\n]*\n?)*)", text + "\n", re.MULTILINE)
    programs: list[str] = []
    for targets, _, recipe in rules:
        for target in expanded(targets).split():
            linked = re.search(r"-o\s*(\$@|\$\(@\)|" + re.escape(target) + r")(\s|$)", recipe)
            if linked and not _NO_PROGRAM.search(target):
                programs.append(target)
    if programs:
        return _likeliest(programs, folder), True
    for variable in ("PROGRAM", "PROG", "PROGS", "TARGET", "BIN", "EXE", "EXECUTABLE", "NAME"):
        if word := expanded(variables.get(variable, "")):
            return word.split()[0], True
    for targets, needs, _ in rules:
        for word in expanded(needs).split() if "all" in targets.split() else ():
            if word not in _NOT_PROGRAMS and not _NO_PROGRAM.search(word):
                return word, True
    sources = sorted(name for name in names if name.endswith((".c", *_CXX)) and "/" not in name)
    for target, _, _ in rules:
        if target.split()[0] not in _NOT_PROGRAMS and not target.startswith("."):
            return target.split()[0], False
    return (posixpath.splitext(sources[0])[0] if len(sources) == 1 else folder), False


# --- The Uklfile

_BUILDS = {
    "make": ("RUN make -j$(nproc)", ""),
    "autotools": ("RUN ./configure && make -j$(nproc)", ""),
    "cmake": ("RUN cmake -S . -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build -j$(nproc)", "build"),
    "meson": ("RUN meson setup build --buildtype=release && ninja -C build", "build"),
}


def uklfile(found: Guess, series: str) -> str:
    """The text of the Uklfile."""
    command, below = _BUILDS[found.system]
    if found.file == "configure.ac":
        command = command.replace("./configure", "autoreconf -fi && ./configure")
    path = posixpath.normpath(posixpath.join("/src", below, found.program))
    known = sorted({package for _, package in found.libraries if package})
    unknown = sorted({name for name, package in found.libraries if not package})
    packages = sorted({*found.packages, *known})
    lines = [
        "# syntax=uklfile/1",
        "#",
        f"# {found.name} as a unikernel, as `uklimg init` sees {found.file}; change what is not so.",
        "#",
        f"#     uklimg build -t {image_name(found.name)} .",
        f"#     uklimg run {image_name(found.name)}",
        "",
        "# The build stage: an ordinary Debian container. CC and CXX lead to uklimg's compiler wrapper, which links",
        "# an ordinary static program and keeps beside it what is needed to link it with a kernel.",
        "FROM debian:trixie AS build",
    ]
    if packages:
        lines += ["", "# Tools and libraries of the build, from Debian; Uklfile.lock keeps their versions."]
        if known:
            lines += ["# A library must have a static archive (libNAME.a), which its -dev package mostly has."]
        lines += ["PACKAGES " + " ".join(packages)]
    if unknown:
        lines += ["", f"# {found.file} also names these; add their -dev packages if the build asks for them:"]
        lines += [f"#     {' '.join(unknown)}"]
    lines += [
        "",
        "# The sources: this folder, without what .uklignore leaves out.",
        "WORKDIR /src",
        "COPY . .",
        "",
        "# Steps have no network. A changed source file runs this again, and nothing else.",
        *([f"# {found.file} names its compiler itself; make is told ours."] if found.compilers else []),
        " ".join([command, *found.compilers]),
        "",
        f"# The image: a kernel of the {series} series with the program linked into it.",
        f"FROM ukl:{series}",
    ]
    if not found.certain:
        lines += [f"# TODO {found.file} does not say what the program is called; this is a guess."]
    lines += [
        f"LINK --from=build {path}",
        "",
        "# Files that the program reads go into the initramfs; a folder for what it writes would be a VOLUME.",
        "#     COPY app.conf /etc/app.conf",
        "#     VOLUME /data",
        "",
        "# What runs: the program's name and its arguments. There is no shell that would take them apart.",
        f"CMD {_json(found.name)}",
        "",
        "# What whoever runs the image needs to know.",
        "#     EXPOSE 8080/tcp",
        "MEMORY 128M",
        "",
    ]
    return "\n".join(lines)


def image_name(program: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", program.lower()).strip("-") or "image"


def _json(word: str) -> str:
    return '["' + word.replace("\\", "\\\\").replace('"', '\\"') + '"]'


def ignore_file(found: Guess) -> str:
    """The text of the .uklignore."""
    lines = [
        "# What `COPY . .` leaves out, by the rules of .dockerignore: what is made anew, and what is private.",
        ".git",
        "Uklfile*",
        ".uklignore",
        "**/*.o",
        "**/*.a",
    ]
    if found.system in ("cmake", "meson"):
        lines += ["build"]
    if found.system == "autotools" and found.file == "configure":
        lines += ["config.log", "config.status"]
    return "\n".join(lines) + "\n"
