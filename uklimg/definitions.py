"""``source.toml`` of the folders kernel/, glibc/, libs/ and base-images/: types and reading. Pure.

A source (kernel, libc, library)::

    [source]
    name = "linux"                 # upstream's name
    version = "6.12.107"
    license = "GPL-2.0-only WITH Linux-syscall-note"   # an SPDX expression, for bills of materials
    file = "linux_6.12.107.orig.tar.xz"
    size = 151398592               # bytes
    sha256 = "…"
    urls = ["debian:pool/main/l/linux/linux_6.12.107.orig.tar.xz"]   # debian:<path below a mirror's root>, or https://…
    signature = "…"                # where its signature is checked, for people

    [series]                       # a kernel's only
    libc = "debian"                # the libc that follows
    ukl = { BYP = "image", NSS = "kernel" }   # options that the patches know: UklHow

    [libc]                         # a libc's only
    packages = ["gawk"]            # Debian packages that its build needs beside the base image

    [library]                      # a static library's only, all keys but the first two optional
    build = "configure"            # configure, cmake, make, or script for build.sh in the folder
    archives = ["libz.a"]          # what must be in lib/ afterwards
    needs = ["openssl"]            # libraries of ours that it is built with
    packages = ["cmake"]           # Debian packages that its build needs beside the base image
    folder = "build/cmake"         # where in the source the build system's files are
    options = ["--static"]         # for configure; -D… for cmake; NAME=value for make
    targets = ["libz.a"]           # what make builds (cmake: by --target); none: the default
    install = ["install"]          # targets of make that install

A base image::

    [base]
    suite = "trixie"
    components = ["main"]
    architecture = "amd64"
    priorities = ["required"]      # all packages of these priorities, beside Essential: yes
    packages = ["gcc", …]
    exclude = ["/usr/share/man/*", …]   # dpkg's path-exclude
    include = ["/usr/share/doc/*/copyright"]   # dpkg's path-include, exceptions of exclude
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from uklimg.digest import Digest
from uklimg.errors import Location, UserError
from uklimg.lock import LockedFile, toml_location
from uklimg.patchset import PatchSet

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]*")
_URL = re.compile(r"(debian:|https://)[^\s]+")
_ARCHIVE = re.compile(r"lib[A-Za-z0-9.+_-]+\.a")
_UKL = re.compile(r"[A-Z][A-Z_]*")
_LIBRARY = re.compile(r"[a-z0-9][a-z0-9.+_-]*")


class BuildSystem(Enum):
    """How a library is built: by its own build system, or by ``build.sh`` of its folder."""

    CONFIGURE = "configure"  # ./configure --prefix=… options, make, make install; Autoconf's or one like it
    CMAKE = "cmake"
    MAKE = "make"
    SCRIPT = "script"


class UklHow(Enum):
    """How an image gets a UKL option."""

    BASE = "base"  # every kernel with an application does it
    IMAGE = "image"  # every kernel can do it; the linked application asks for it
    KERNEL = "kernel"  # by the kernel's configuration, CONFIG_UKL_<name>


@dataclass(frozen=True)
class LibraryBuild:
    """The section [library]. ``archives`` are file names in lib/; ``folder`` is relative to the source."""

    build: BuildSystem
    archives: tuple[str, ...]
    needs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    folder: str = "."
    options: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    install: tuple[str, ...] = ("install",)


@dataclass(frozen=True)
class SourceDefinition:
    """What ``source.toml`` says of an upstream source. ``libc`` and ``ukl`` are a kernel series' only, ``library`` is
    a static library's, ``packages`` a libc's. ``license`` is an SPDX expression, "" where nobody wrote it down."""

    name: str
    version: str
    file: LockedFile
    urls: tuple[str, ...]
    signature: str
    libc: str = ""
    ukl: Mapping[str, UklHow] = field(default_factory=dict)
    license: str = ""
    library: LibraryBuild | None = None
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceFolder:
    """A whole folder: definition, patches, and configuration fragments by name without ``.config``. ``script`` is a
    library's build.sh, empty when there is none."""

    folder: str
    definition: SourceDefinition
    patches: PatchSet
    configs: Mapping[str, bytes]
    script: bytes = b""

    @property
    def library(self) -> LibraryBuild:
        """How a library of ours is built; UserError when this is none."""
        if self.definition.library is None:
            raise UserError("section [library] is missing", location=Location(f"{self.folder}/source.toml"))
        return self.definition.library


@dataclass(frozen=True)
class BaseDefinition:
    """What a base image asks for.

    ``name`` is its folder's (``debian-trixie``, for FROM's ``debian:trixie``); ``digest`` is in the lock, so that an
    edited definition is noticed.
    """

    name: str
    suite: str
    components: tuple[str, ...]
    architecture: str
    priorities: tuple[str, ...]
    packages: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    @property
    def digest(self) -> Digest:
        return Digest.of_json(
            {
                "name": self.name,
                "suite": self.suite,
                "components": list(self.components),
                "architecture": self.architecture,
                "priorities": sorted(self.priorities),
                "packages": sorted(self.packages),
                "exclude": list(self.exclude),
                "include": list(self.include),
            }
        )


def parse_source(text: str, file: str) -> SourceDefinition:
    """Read a source's ``source.toml``; ``file`` is only named in errors. UserError for whatever is wrong."""
    document = _load(text, file)
    source = _Section(document, "source", file)
    name, version = source.text("name"), source.text("version")
    file_name, size, sha256 = source.text("file"), source.number("size"), source.text("sha256")
    urls, signature, license = source.texts("urls"), source.text("signature"), source.text("license", " ").strip()
    source.done()
    if not _FILE_NAME.fullmatch(file_name):
        raise source.error(f"file: {file_name!r} is not a file name")
    if not urls or not all(_URL.fullmatch(url) for url in urls):
        raise source.error("urls: wants at least one, each debian:<path> or https://…")
    try:
        digest = Digest(sha256)
    except ValueError as error:
        raise source.error(f"sha256: {error}") from error
    libc = ""
    ukl: dict[str, UklHow] = {}
    if "series" in document:
        series = _Section(document, "series", file)
        libc, ukl = series.text("libc"), _ukl(series)
        series.done()
    library = _library(_Section(document, "library", file)) if "library" in document else None
    packages = _packages(_Section(document, "libc", file)) if "libc" in document else ()
    _no_more(document, file)
    locked = LockedFile(file_name, digest, size, urls[0])
    return SourceDefinition(name, version, locked, urls, signature, libc, ukl, license, library, packages)


def _packages(section: _Section) -> tuple[str, ...]:
    packages = section.texts("packages", ())
    section.done()
    if wrong := [word for word in packages if not _LIBRARY.fullmatch(word)]:
        raise section.error(f"packages: {wrong[0]!r} is not a name")
    return packages


def _ukl(series: _Section) -> dict[str, UklHow]:
    known = {how.value: how for how in UklHow}
    found = series.table("ukl")
    for name, how in found.items():
        if not _UKL.fullmatch(name):
            raise series.error(f"ukl: {name!r} is not the name of an option")
        if how not in known:
            raise series.error(f"ukl: {name}: {how!r} is not one of {', '.join(known)}")
    return {name: known[how] for name, how in found.items()}


def _library(section: _Section) -> LibraryBuild:
    build, archives = section.text("build"), section.texts("archives")
    known = {system.value: system for system in BuildSystem}
    if build not in known:
        raise section.error(f"build: {build!r} is not one of {', '.join(known)}")
    if not archives or not all(_ARCHIVE.fullmatch(name) for name in archives):
        raise section.error("archives: wants at least one, each lib….a")
    found = LibraryBuild(
        build=known[build],
        archives=archives,
        needs=section.texts("needs", ()),
        packages=section.texts("packages", ()),
        folder=section.text("folder", "."),
        options=section.texts("options", ()),
        targets=section.texts("targets", ()),
        install=section.texts("install", ("install",)),
    )
    section.done()
    if found.folder.startswith("/") or ".." in found.folder.split("/"):
        raise section.error(f"folder: {found.folder!r} leaves the source")
    for key, words in (("needs", found.needs), ("packages", found.packages)):
        if wrong := [word for word in words if not _LIBRARY.fullmatch(word)]:
            raise section.error(f"{key}: {wrong[0]!r} is not a name")
    return found


def parse_base(text: str, file: str, name: str) -> BaseDefinition:
    """Read the ``source.toml`` of the base image folder ``name``; ``file`` is named in errors, all UserErrors."""
    document = _load(text, file)
    base = _Section(document, "base", file)
    definition = BaseDefinition(
        name=name,
        suite=base.text("suite"),
        components=base.texts("components"),
        architecture=base.text("architecture"),
        priorities=base.texts("priorities"),
        packages=base.texts("packages"),
        exclude=base.texts("exclude"),
        include=base.texts("include"),
    )
    base.done()
    _no_more(document, file)
    return definition


def _load(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not TOML: {error}", location=toml_location(file, error)) from error


def _no_more(document: Mapping[str, Any], file: str) -> None:
    if document:
        raise UserError(f"unknown section [{sorted(document)[0]}]", location=Location(file))


class _Section:
    """Takes typed values out of one section and the section out of its document."""

    def __init__(self, document: dict[str, Any], name: str, file: str) -> None:
        self._name = name
        self._file = file
        table = document.pop(name, None)
        if not isinstance(table, dict):
            raise UserError(f"section [{name}] is missing", location=Location(file))
        self._table: dict[str, Any] = dict(table)

    def error(self, problem: str) -> UserError:
        return UserError(f"[{self._name}] {problem}", location=Location(self._file))

    def text(self, key: str, default: str | None = None) -> str:
        value = self._table.pop(key, default)
        if not isinstance(value, str) or not value:
            raise self.error(f"{key}: wants a string")
        return value

    def number(self, key: str) -> int:
        value = self._table.pop(key, None)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(f"{key}: wants a number greater than 0")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = self._table.pop(key, default if default is None else list(default))
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{key}: wants a list of strings")
        return tuple(value)

    def table(self, key: str) -> dict[str, str]:
        value = self._table.pop(key, None)
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise self.error(f"{key}: wants a table of strings")
        return value

    def done(self) -> None:
        if self._table:
            raise self.error(f"unknown key {sorted(self._table)[0]!r}")
