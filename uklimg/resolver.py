"""The ``uklimg.resolve.Resolver`` of a host: Debian's archive through apt, archives by downloading them once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from urllib.parse import unquote, urlsplit

import requests

from uklimg.debian import Debian
from uklimg.definitions import BaseDefinition
from uklimg.digest import CHUNK, Digest
from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.lock import LockedFile, LockedImage, LockedPackage

_TIMEOUTS = (15.0, 60.0)  # to connect, between two packets; seconds


class HostResolver:
    """``measure`` downloads a URL and returns digest and size in bytes; ``git`` and ``image`` are ``Resolver``'s."""

    def __init__(
        self,
        debian: Debian,
        measure: Callable[[str], tuple[Digest, int]],
        git: Callable[[str, str], tuple[str, LockedFile]],
        image: Callable[[str], LockedImage],
    ) -> None:
        self._debian = debian
        self._measure = measure
        self._git = git
        self._image = image

    def base(self, definition: BaseDefinition, /) -> tuple[LockedPackage, ...]:
        return self._debian.base(definition)

    def packages(
        self, definition: BaseDefinition, names: Sequence[str], installed: Sequence[LockedPackage], /
    ) -> tuple[LockedPackage, ...]:
        return self._debian.packages(definition, names, installed)

    def source(self, definition: BaseDefinition, name: str, version: str, /) -> tuple[str, tuple[LockedFile, ...]]:
        found = self._debian.source(definition, name, version)
        return found.version, found.files

    def image(self, reference: str, /) -> LockedImage:
        return self._image(reference)

    def git(self, url: str, commit: str, /) -> tuple[str, LockedFile]:
        return self._git(url, commit)

    def archive(self, url: str, checksum: Digest | None, /) -> LockedFile:
        """A stated checksum is believed: whoever downloads the file checks it."""
        if checksum is not None:
            return LockedFile(archive_name(url), checksum, 0, url)
        digest, size = self._measure(url)
        return LockedFile(archive_name(url), digest, size, url)


def archive_name(url: str) -> str:
    """The file name that a URL's path ends in; UserError when there is none."""
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if not re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9_.+~-]*", name):
        raise UserError(f"{url} does not end in a file name")
    return name


def measure_url(url: str, session: requests.Session | None = None) -> tuple[Digest, int]:
    """Digest and size in bytes of what ``url`` serves; nothing is kept.

    ToolError NETWORK when the server cannot be reached or the transfer breaks off, NOT_FOUND when it lacks the file.
    """
    host = urlsplit(url).netloc.rpartition("@")[2]
    hasher, size = hashlib.sha256(), 0
    try:
        # "identity": the digest is that of the file, not of a packed transfer of it.
        with (session or requests.Session()).get(
            url, stream=True, timeout=_TIMEOUTS, headers={"Accept-Encoding": "identity"}
        ) as response:
            if response.status_code != 200:
                status = f"HTTP {response.status_code} {response.reason}".rstrip()
                code = ExitCode.NETWORK if response.status_code >= 500 else ExitCode.NOT_FOUND
                raise ToolError(f"{host} does not give {archive_name(url)}: {status}", exit_code=code)
            for chunk in response.iter_content(CHUNK):
                hasher.update(chunk)
                size += len(chunk)
            expected = response.headers.get("Content-Length", "")
    except requests.RequestException as error:
        raise ToolError(f"cannot fetch {archive_name(url)} from {host}", exit_code=ExitCode.NETWORK) from error
    if expected.isdigit() and size != int(expected):
        raise ToolError(f"the transfer of {archive_name(url)} from {host} broke off", exit_code=ExitCode.NETWORK)
    return Digest(hasher.hexdigest()), size
