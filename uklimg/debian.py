"""Resolves Debian packages and sources with the host's own apt, in a private folder.

apt verifies the mirror's indexes against Debian's archive keyring and chooses versions; nothing of the host's
package state is read or changed. What comes out has SHA-256 digests and paths below the mirror's root; downloading
is ``uklimg.fetch``'s business.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from debian.deb822 import Sources
from debian.debian_support import NativeVersion

from uklimg.definitions import BaseDefinition
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, InternalError, ToolError, UserError
from uklimg.lock import LockedFile, LockedPackage
from uklimg.mirror import display
from uklimg.proc import Completed

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[0-9][A-Za-z0-9.+:~-]*)?")
_URI_LINE = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")
_FORWARDED = ("Acquire::http::", "Acquire::https::", "Acquire::Check-")
_BAD_SIGNATURE = ("NO_PUBKEY", "is not signed", "BADSIG", "EXPKEYSIG", "REVKEYSIG", "not valid yet", "invalid since")
_BAD_CONTENT = ("Hash Sum mismatch", "File has unexpected size", "Clearsigned file isn't valid", "Splitting up")


class Run(Protocol):
    """``uklimg.proc.run`` as far as it is needed here."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        check: bool = True,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed: ...


@dataclass(frozen=True)
class SourcePackage:
    """A version of a Debian source package with its files (.dsc, tarballs), sorted by name."""

    name: str
    version: str
    files: tuple[LockedFile, ...]


class Debian:
    """One mirror, seen through apt. ``folder`` is private to this object and may be removed afterwards.

    ``mirror`` is asked for when it is first needed: a build whose lock is complete needs none. ``env`` is the host
    environment for the tools (``uklimg.proc.host_env``). Every method may raise ToolError NETWORK when the mirror
    cannot be reached, and CorruptError when its indexes are not what Debian's archive key has signed.
    """

    def __init__(
        self, mirror: Callable[[], str], run: Run, env: Mapping[str, str], folder: Path, keyring: Path = KEYRING
    ) -> None:
        self._ask_mirror = mirror
        self._run = run
        self._env = dict(env)
        self._folder = folder
        self._keyring = keyring
        self._updated: dict[tuple[str, ...], _Apt] = {}

    def base(self, definition: BaseDefinition) -> tuple[LockedPackage, ...]:
        """All packages of a base image: essential ones, those of its priorities, its list and what they need."""
        patterns = ["?essential", *(f"?priority({priority})" for priority in definition.priorities)]
        return self._binary(definition).install([*patterns, *definition.packages])

    def packages(
        self, definition: BaseDefinition, names: Sequence[str], installed: Sequence[LockedPackage]
    ) -> tuple[LockedPackage, ...]:
        """What ``names`` (``name`` or ``name=version``) add to a base image of the packages ``installed``.

        UserError NOT_FOUND for a name or version that the suite lacks, or when the mirror no longer has the
        versions installed: mixing would leave a base image that no lock describes.
        """
        for name in names:
            if not _PACKAGE.fullmatch(name):
                raise UserError(f"{name!r} is not a package name or name=version")
        pinned = [f"{package.name}={package.version}" for package in installed]
        have = {package.name for package in installed}
        try:
            found = self._binary(definition).install([*pinned, *names])
        except _MissingError as error:
            if error.name in have:
                raise UserError(
                    f"the mirror no longer has {error.name} in the version that the lock's {definition.name} has",
                    hint=f"uklimg lock --update {definition.name}",
                    exit_code=ExitCode.NOT_FOUND,
                ) from error
            raise
        return tuple(package for package in found if package.name not in have)

    def source(self, definition: BaseDefinition, name: str, version: str = "") -> SourcePackage:
        """The source package ``name`` of the suite, in ``version`` or the newest there is.

        UserError NOT_FOUND for an unknown name (did you mean) or version (which ones there are).
        """
        return find_source(self._source_index(definition), name, version, definition.suite)

    def _binary(self, definition: BaseDefinition) -> _Apt:
        return self._apt(definition, "deb")

    def _source_index(self, definition: BaseDefinition) -> str:
        apt = self._apt(definition, "deb-src")
        files = sorted(apt.lists.glob("*_Sources"))
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)

    def _apt(self, definition: BaseDefinition, kind: str) -> _Apt:
        key = (kind, definition.suite, definition.architecture, *definition.components)
        if key not in self._updated:
            folder = self._folder / f"{kind}-{len(self._updated)}"
            apt = _Apt(self._ask_mirror(), self._run, self._env, folder, definition)
            apt.update(kind, self._keyring)
            self._updated[key] = apt
        return self._updated[key]


class _MissingError(UserError):
    """apt does not know ``name`` or not in the wanted version."""

    exit_code = ExitCode.NOT_FOUND

    def __init__(self, name: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.name = name


class _Apt:
    """apt-get and its state for one suite, all below ``folder``."""

    def __init__(
        self, mirror: str, run: Run, env: Mapping[str, str], folder: Path, definition: BaseDefinition
    ) -> None:
        self._mirror = mirror
        self._run = run
        self._folder = folder.absolute()
        self._definition = definition
        self._env = {**env, "APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
        self._host_env = dict(env)

    @property
    def lists(self) -> Path:
        return self._folder / "lists"

    def update(self, kind: str, keyring: Path) -> None:
        """Fetch and verify the suite's indexes; ``kind`` is ``deb`` or ``deb-src``."""
        if not keyring.is_file():
            raise ToolError(f"{keyring} is missing", hint="apt-get install debian-archive-keyring")
        for name in ("empty", "sources", "lists/partial", "cache/archives/partial"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").write_bytes(b"")
        host = self._run(("apt-config", "dump"), env=self._host_env).text
        conf = apt_conf(str(self._folder), self._definition.architecture, forwarded_options(host))
        (self._folder / "apt.conf").write_text(conf, encoding="utf-8")
        sources = apt_source(self._mirror, self._definition, kind, str(keyring))
        (self._folder / "sources" / "debian.sources").write_text(sources, encoding="utf-8")
        done = self._run(update_cmd(), env=self._env, check=False)
        if done.status != 0:
            raise update_error(done.tail, display(self._mirror), self._definition.suite)

    def install(self, wanted: Sequence[str]) -> tuple[LockedPackage, ...]:
        """What apt would download to install ``wanted`` on an empty system, sorted."""
        done = self._run(install_cmd(wanted), env=self._env, check=False)
        if done.status != 0:
            raise self._install_error(done.tail)
        return parse_uris(done.text, self._mirror)

    def _install_error(self, tail: str) -> UserError | ToolError:
        suite = self._definition.suite
        unknown = re.search(
            r"E: Unable to locate package (\S+)|E: Package '(\S+)' has no installation candidate", tail
        )
        if unknown:
            name = unknown[1] or unknown[2]
            known = self._run(("apt-cache", "pkgnames"), env=self._env).text.split()
            return _MissingError(name, f"Debian {suite} has no package {name!r}", _did_you_mean(name, known))
        version = re.search(r"E: Version '(\S+)' for '(\S+)' was not found", tail)
        if version:
            there = re.findall(
                r"^\s*\S+ +\| +(\S+) +\|", self._run(madison_cmd(version[2]), env=self._env).text, re.M
            )
            hint = f"there is {', '.join(dict.fromkeys(there))}" if there else ""
            return _MissingError(version[2], f"Debian {suite} has no {version[2]} {version[1]}", hint)
        return ToolError(
            f"apt cannot install the wanted packages from Debian {suite}", exit_code=ExitCode.NOT_FOUND, detail=tail
        )


# --- pure ----------------------------------------------------------------------------------------------------------


def update_cmd() -> tuple[str, ...]:
    return ("apt-get", "-q", "--error-on=any", "update")


def install_cmd(wanted: Sequence[str]) -> tuple[str, ...]:
    return ("apt-get", "-q", "--yes", "--no-install-recommends", "--print-uris", "install", "--", *wanted)


def madison_cmd(name: str) -> tuple[str, ...]:
    return ("apt-cache", "madison", name)


def forwarded_options(dump: str) -> tuple[str, ...]:
    """Of ``apt-config dump`` the lines about proxies, certificates and checks: how this host reaches a mirror."""
    return tuple(line for line in dump.splitlines() if line.startswith(_FORWARDED))


def apt_conf(folder: str, architecture: str, forwarded: Iterable[str]) -> str:
    """Configuration that keeps apt away from the host's packages, hooks and lists; credentials stay the host's."""
    empty = f"{folder}/empty"
    options = {
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": empty,
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": f"{folder}/sources",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": empty,
        "Dir::Etc::trusted": "/dev/null",
        "Dir::Etc::trustedparts": empty,
        "Dir::Etc::netrc": "/etc/apt/auth.conf",
        "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
        "Dir::State": folder,
        "Dir::State::lists": f"{folder}/lists",
        "Dir::State::status": f"{folder}/status",
        "Dir::Cache": f"{folder}/cache",
        "Dir::Log": empty,
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        # The private folder may lie where the user _apt cannot go.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::GzipIndexes": "false",
        "Acquire::ForceHash": "sha256",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "20",
        "Acquire::https::Timeout": "20",
        # apt considers itself essential otherwise.
        "pkgCacheGen::ForceEssential": ",",
    }
    lines = [*(f'{name} "{value}";' for name, value in options.items()), *forwarded]
    return "\n".join(lines) + "\n"


def apt_source(mirror: str, definition: BaseDefinition, kind: str, keyring: str) -> str:
    """A sources.list.d file in deb822 format."""
    fields = {
        "Types": kind,
        "URIs": mirror,
        "Suites": definition.suite,
        "Components": " ".join(definition.components),
        "Architectures": definition.architecture,
        "Signed-By": keyring,
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def update_error(tail: str, mirror: str, suite: str) -> ToolError:
    """What a failed ``apt-get update`` means; ``tail`` is the end of its output."""
    if any(text in tail for text in _BAD_SIGNATURE):
        return CorruptError(f"the index of {suite} at {mirror} is not signed by Debian's archive key", detail=tail)
    if any(text in tail for text in _BAD_CONTENT):
        return CorruptError(f"the index of {suite} at {mirror} is not what its Release file says", detail=tail)
    if "does not have a Release file" in tail and re.search(r"404 +Not Found|File not found", tail):
        return ToolError(f"the mirror {mirror} has no suite {suite}", exit_code=ExitCode.NOT_FOUND, detail=tail)
    return ToolError(
        f"cannot reach the Debian mirror {mirror}",
        hint="another one can be named in UKLIMG_DEBIAN_MIRROR",
        exit_code=ExitCode.NETWORK,
        detail=tail,
    )


def parse_uris(text: str, mirror: str) -> tuple[LockedPackage, ...]:
    """Packages from ``apt-get --print-uris install``: lines ``'URI' NAME_VERSION_ARCH.deb SIZE SHA256:HEX``."""
    packages: list[LockedPackage] = []
    for line in text.splitlines():
        if not line.startswith("'"):
            continue
        found = _URI_LINE.fullmatch(line.strip())
        prefix = f"{mirror}/"
        if not found or not unquote(found["uri"]).startswith(unquote(prefix)):
            raise InternalError(f"apt-get prints a line we do not understand: {line}")
        path = unquote(found["uri"])[len(unquote(prefix)) :]
        name, version, architecture = unquote(found["file"]).removesuffix(".deb").split("_")
        file = LockedFile(
            name=path.rpartition("/")[2],
            digest=Digest(found["sha256"]),
            size=int(found["size"]),
            origin=f"debian:{path}",
        )
        packages.append(LockedPackage(name, version, architecture, file))
    return tuple(sorted(packages))


def find_source(index: str, name: str, version: str, suite: str) -> SourcePackage:
    """Find a source package in the text of a Sources index. UserError NOT_FOUND as for ``Debian.source``."""
    # A Sources index has 30,000 stanzas: find ours by text before parsing it.
    pattern = re.compile(rf"^Package: {re.escape(name)}$.*?(?:^$|\Z)", re.M | re.S)
    stanzas = [Sources(stanza[0]) for stanza in pattern.finditer(index)]
    if not stanzas:
        hint = _did_you_mean(name, re.findall(r"^Package: (\S+)$", index, re.M))
        raise UserError(f"Debian {suite} has no source package {name!r}", hint=hint, exit_code=ExitCode.NOT_FOUND)
    # The archive keeps superseded versions that something was built from; its newest is what "no version" means.
    stanzas = [stanza for stanza in stanzas if version or stanza.get("Extra-Source-Only", "no") != "yes"] or stanzas
    ordered = sorted(stanzas, key=lambda stanza: NativeVersion(stanza["Version"]))
    if not version:
        return _source_package(ordered[-1])
    for stanza in ordered:
        if stanza["Version"] == version:
            return _source_package(stanza)
    there = ", ".join(stanza["Version"] for stanza in reversed(ordered))
    raise UserError(f"Debian {suite} has no {name} {version}", hint=f"there is {there}", exit_code=ExitCode.NOT_FOUND)


def _source_package(stanza: Mapping[str, object]) -> SourcePackage:
    directory = str(stanza["Directory"])
    checksums = stanza["Checksums-Sha256"]
    if not isinstance(checksums, list):
        raise InternalError(f"source package {stanza['Package']} has no SHA-256 sums")
    files = [
        LockedFile(item["name"], Digest(item["sha256"]), int(item["size"]), f"debian:{directory}/{item['name']}")
        for item in checksums
    ]
    return SourcePackage(str(stanza["Package"]), str(stanza["Version"]), tuple(sorted(files)))


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.7)
    return f"did you mean {', '.join(near)}?" if near else ""
