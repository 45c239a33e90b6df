"""Image references, parsed once.

The grammar is Docker's (distribution's reference.go): ``[HOST[:PORT]/]NAME[/NAME…][:TAG][@sha256:HEX]``. The first
component is a registry's host when it has a dot or a colon, is ``localhost`` or is a bracketed IPv6 address. Unlike
Docker nothing is added to a name without a host: ``redis:latest`` is an image of the local store.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from uklimg.digest import Digest
from uklimg.errors import UserError

DEFAULT_TAG = "latest"
_MAX_NAME = 255

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_PATH_PART = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, order=True)
class Reference:
    """``host`` is "" for a name of the local store; ``tag`` is "" only where there is a digest."""

    host: str
    repository: str
    tag: str = DEFAULT_TAG
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises UserError with what is wrong; a missing tag is ``latest`` unless a digest is given."""
        name, digest = _split_digest(text)
        name, tag = _split_tag(text, name)
        host, repository = _split_host(name)
        if host and not _HOST.fullmatch(host):
            raise _bad(text, f"{host!r} is no registry host")
        if host and len(name) > _MAX_NAME:
            raise _bad(text[:60] + "…", f"the name is longer than {_MAX_NAME} characters")
        for part in repository.split("/"):
            if not _PATH_PART.fullmatch(part):
                hint = (
                    "names are lower case" if part.lower() != part else "use a-z, 0-9 and single . _ - between them"
                )
                raise _bad(text, f"{part!r} is no part of a name", hint)
        if len(repository) > _MAX_NAME:
            raise _bad(text[:60] + "…", f"the name is longer than {_MAX_NAME} characters")
        return cls(host, repository, tag or ("" if digest else DEFAULT_TAG), digest)

    def __str__(self) -> str:
        return f"{self.name}{':' + self.tag if self.tag else ''}{'@' + str(self.digest) if self.digest else ''}"

    @property
    def name(self) -> str:
        """Host and repository without tag and digest."""
        return f"{self.host}/{self.repository}" if self.host else self.repository

    @property
    def remote_tag(self) -> str:
        """What a registry's manifest URL ends in: the digest where there is one, else the tag."""
        return str(self.digest) if self.digest else self.tag

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def with_digest(self, digest: Digest) -> Reference:
        return replace(self, digest=digest)

    def on_registry(self) -> Reference:
        """Itself; raises UserError when no registry is named."""
        if not self.host:
            raise UserError(
                f"{str(self)!r} names no registry",
                hint=f"write HOST/{self}, and `uklimg tag` gives an image that name",
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` is this machine: ``localhost``, 127.0.0.0/8 or ``[::1]``. No name is looked up."""
    bare = host.split("]", 1)[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if bare.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def _split_digest(text: str) -> tuple[str, Digest | None]:
    name, at, digits = text.partition("@")
    if not name:
        raise _bad(text, "the name is missing", "as in redis:latest or HOST/redis:latest")
    if not at:
        return name, None
    try:
        return name, Digest.parse(digits)
    except ValueError:
        raise _bad(text, f"{digits!r} is no digest", "sha256: and 64 lower-case hexadecimal digits") from None


def _split_tag(text: str, name: str) -> tuple[str, str]:
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, f"{tag!r} is no tag", "letters, digits, _ . -, at most 128")
    return head + slash + last, tag


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or first.startswith("[") or "." in first or ":" in first):
        return first, rest
    return "", name


def _bad(text: str, why: str, hint: str = "") -> UserError:
    return UserError(f"bad image reference {text!r}: {why}", hint=hint)
