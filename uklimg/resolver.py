"""The ``uklimg.resolve.Resolver`` of a host: Debian's archive through apt, archives by downloading them once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from urllib.parse import unquote, urlsplit

from uklimg.debian import Debian
from uklimg.definitions import BaseDefinition
from uklimg.digest import Digest
from uklimg.errors import UserError
from uklimg.lock import LockedFile, LockedPackage


class HostResolver:
    """``measure`` downloads a URL and returns digest and size in bytes; it may keep what it has downloaded."""

    def __init__(self, debian: Debian, measure: Callable[[str], tuple[Digest, int]]) -> None:
        self._debian = debian
        self._measure = measure

    def base(self, definition: BaseDefinition, /) -> tuple[LockedPackage, ...]:
        return self._debian.base(definition)

    def packages(
        self, definition: BaseDefinition, names: Sequence[str], installed: Sequence[LockedPackage], /
    ) -> tuple[LockedPackage, ...]:
        return self._debian.packages(definition, names, installed)

    def source(self, definition: BaseDefinition, name: str, version: str, /) -> tuple[str, tuple[LockedFile, ...]]:
        found = self._debian.source(definition, name, version)
        return found.version, found.files

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
