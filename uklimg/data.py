"""Finds and reads the folders that travel with the package: kernel/, glibc/, libs/, base-images/; and apps/ and
workloads/, whose files are used where they lie.

They lie beside the package in a checkout, and in ``uklimg/_data`` in an installed wheel.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from uklimg.definitions import BaseDefinition, BuildSystem, SourceFolder, parse_base, parse_source
from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.patchset import parse_patchset
from uklimg.spec.model import UKL_LIBC

_PACKAGE = Path(__file__).resolve().parent


def find_data(package: Path = _PACKAGE) -> Path:
    """The folder that holds kernel/ and base-images/. ToolError HOST when the installation lacks it.

    The installed copy wins: next to an installed package lie other packages, which may have a folder "kernel" too.
    """
    for folder in (package / "_data", package.parent):
        if (folder / "base-images").is_dir() and (folder / "kernel").is_dir():
            return folder
    raise ToolError("the installation has no kernel/ and base-images/ folders", hint="install uklimg again")


class Data:
    """Reads what is in the data folders; every unknown name is a UserError listing what there is."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def kernels(self) -> tuple[str, ...]:
        """Kernel series, sorted."""
        return self._folders("kernel")

    def libcs(self) -> tuple[str, ...]:
        """Versions of our own C library, the newest last."""
        return tuple(sorted(self._folders("glibc"), key=lambda name: [int(part) for part in name.split(".")]))

    def libraries(self) -> tuple[str, ...]:
        return self._folders("libs")

    def base_images(self) -> tuple[str, ...]:
        """Folder names (``debian-trixie`` for FROM's ``debian:trixie``), sorted."""
        return self._folders("base-images")

    def kernel(self, series: str) -> SourceFolder:
        return self._source("kernel", series, "kernel series")

    def libc(self, version: str) -> SourceFolder:
        """``ukl`` means the newest."""
        if version == UKL_LIBC:
            version = self.libcs()[-1]
        return self._source("glibc", version, "glibc")

    def library(self, name: str) -> SourceFolder:
        """Its definition has a section [library], and there is a build.sh when that says so."""
        found = self._source("libs", name, "library")
        script = self.root / found.folder / "build.sh"
        if found.library.build is not BuildSystem.SCRIPT:
            return found
        return replace(found, script=_text(script).encode())

    def base_image(self, name: str) -> BaseDefinition:
        if name not in self.base_images():
            raise _unknown("base image", name, self.base_images())
        path = self.root / "base-images" / name / "source.toml"
        return parse_base(_text(path), self._name(path), name)

    def _source(self, kind: str, name: str, word: str) -> SourceFolder:
        if name not in self._folders(kind):
            raise _unknown(word, name, self._folders(kind))
        folder = self.root / kind / name
        toml = folder / "source.toml"
        configs = _files(folder / "config", ".config")
        return SourceFolder(
            folder=f"{kind}/{name}",
            definition=parse_source(_text(toml), self._name(toml)),
            patches=parse_patchset(_files(folder / "patches", ".patch"), self._name(folder / "patches")),
            configs={file.removesuffix(".config"): content for file, content in configs.items()},
        )

    def _folders(self, kind: str) -> tuple[str, ...]:
        """Folders that have a source.toml: one without is being prepared."""
        return tuple(sorted(path.parent.name for path in (self.root / kind).glob("*/source.toml")))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _unknown(word: str, name: str, known: tuple[str, ...]) -> UserError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "there is " + (", ".join(known) or "none")
    if word == "library" and name.endswith("-dev"):
        hint = f"Debian's own package is debian:{name}"
    return UserError(f"unknown {word} {name!r}", hint=hint, exit_code=ExitCode.USER)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"cannot read {path}: {error}") from error


def _files(folder: Path, suffix: str) -> Mapping[str, bytes]:
    try:
        return {path.name: path.read_bytes() for path in sorted(folder.glob(f"*{suffix}"))}
    except OSError as error:
        raise ToolError(f"cannot read {folder}: {error}") from error
