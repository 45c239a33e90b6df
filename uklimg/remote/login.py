"""Logging in: a password is kept only after the registry took it, and was seen to refuse what is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from uklimg.errors import ExitCode, ToolError
from uklimg.ref import Reference
from uklimg.remote.auth import TOKEN_USER, Credential, NoCredentials
from uklimg.remote.authfile import AuthWriter
from uklimg.remote.client import connect
from uklimg.remote.failures import Retry


class _Given:
    """What the user typed, for every repository."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def find(self, host: str, repository: str) -> Credential | None:
        return self._credential


def login(
    registry: Reference,
    user: str,
    secret: str,
    files: Sequence[Path],
    environ: Mapping[str, str],
    *,
    plain_http: bool | None = None,
    retry: Retry | None = None,
) -> str:
    """Check with ``registry``, and keep the credential in one of ``files`` or its helper; says where.

    ``user`` may be ``<token>``: then ``secret`` is an identity token. ToolError AUTH when they are refused, and when
    the registry asks nobody who he is, so that nothing can be checked: then nothing is kept. NETWORK when there is no
    registry.
    """
    credential = Credential(user, secret, user == TOKEN_USER, "the command line")
    uid = 0  # of no matter where credentials are given
    if _lets_in(registry, environ, uid, plain_http, retry):
        raise ToolError(f"{registry.host} lets everybody in: there is nothing to log in to", exit_code=ExitCode.AUTH)
    connect(registry, environ, uid, retry, plain_http=plain_http, credentials=_Given(credential)).ping()
    return AuthWriter(files, environ).store(registry.host, credential)


def _lets_in(
    registry: Reference, environ: Mapping[str, str], uid: int, plain_http: bool | None, retry: Retry | None
) -> bool:
    """Whether the registry answers to nobody in particular."""
    nobody = connect(registry, environ, uid, retry, plain_http=plain_http, credentials=NoCredentials())
    try:
        nobody.ping()
    except ToolError as error:
        if error.exit_code == ExitCode.AUTH:
            return False
        raise
    return not nobody.auth.header
