"""Whom to trust for TLS, as Docker and Podman have it: ``certs.d/HOST[:PORT]/`` with ``*.crt`` (authorities) and
pairs of ``*.cert`` and ``*.key`` (our own certificate for that registry), beside the system's authorities.

Formats: containers-certs.d(5), and Docker's "Verify repository client with certificates".
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from uklimg.errors import UserError

_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@dataclass(frozen=True)
class Trust:
    """Authorities to trust as well as the system's, and what to show a server that asks who we are: a certificate
    and its key."""

    authorities: tuple[Path, ...] = ()
    client: tuple[Path, Path] | None = None

    def __bool__(self) -> bool:
        return bool(self.authorities or self.client)

    def beside(self, environ: Mapping[str, str]) -> Trust:
        """With the authorities that ``environ`` names."""
        named = next((environ[name] for name in _BUNDLES if environ.get(name) and Path(environ[name]).is_file()), "")
        return replace(self, authorities=(*self.authorities, Path(named))) if named else self

    def context(self) -> ssl.SSLContext:
        """For connections; raises UserError naming a file that cannot be used."""
        context = ssl.create_default_context()
        for path in self.authorities:
            _use(path, partial(context.load_verify_locations, path))
        if self.client is not None:
            certificate, key = self.client
            # An empty password, so that OpenSSL does not ask the terminal for that of a locked key.
            _use(key, partial(context.load_cert_chain, certificate, key, ""))
        return context


class Contexts:
    """One context for all connections that trust the same; made when the first one is. For several threads."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._guard = threading.Lock()
        self._made: ssl.SSLContext | None = None

    def __call__(self) -> ssl.SSLContext | None:
        """None when only the system's authorities are trusted. Errors: as ``Trust.context``."""
        with self._guard:
            if self._made is None and self._trust:
                self._made = self._trust.context()
            return self._made


def _use(path: Path, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ssl.SSLError) as error:
        why = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else "it is no such file"
        raise UserError(
            f"cannot use the certificate or key {path}: {why}", hint="PEM, a key without password"
        ) from None


def certificate_folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where such folders are, the user's own first."""
    home = Path(environ.get("HOME") or "/root")
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    own = (config / "containers/certs.d", home / ".docker/certs.d")
    return (*own, Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))


def find_trust(host: str, folders: Sequence[Path]) -> Trust:
    """For ``host[:port]``, from the first folder that has files for it.

    Raises UserError for a certificate of ours without its key.
    """
    for folder in folders:
        files = folder / host
        authorities = tuple(sorted(files.glob("*.crt")))
        certificates = sorted(files.glob("*.cert"))
        if not authorities and not certificates:
            continue
        if not certificates:
            return Trust(authorities)
        key = certificates[0].with_suffix(".key")
        if not key.is_file():
            raise UserError(f"{certificates[0]} has no key beside it", hint=f"it must be {key.name}")
        return Trust(authorities, (certificates[0], key))
    return Trust()
