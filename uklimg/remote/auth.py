"""Credentials for registries, out of Docker's and Podman's files and credential helpers.

Only when a registry asks; ``authfile`` writes them. A secret is never part of a message, an event or a ``repr``.
Formats: containers-auth.json(5), Docker's config.json, and the docker-credential-helpers protocol.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from uklimg import proc
from uklimg.errors import ToolError, UserError
from uklimg.oci import parse_json

_MAX_FILE = 4 << 20
HELPER_SECONDS = 60.0
HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
TOKEN_USER = "<token>"  # how helpers say that the secret is an identity token

_Object: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class Credential:
    """``secret`` is a password, or, with ``identity_token``, an OAuth2 refresh token. ``origin`` is where it was."""

    username: str
    secret: str = field(repr=False)
    identity_token: bool = False
    origin: str = ""

    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.secret}".encode()).decode()


class Credentials(Protocol):
    """Where credentials come from."""

    def find(self, host: str, repository: str) -> Credential | None:
        """Those for ``repository`` on ``host[:port]``; None when there are none."""
        ...


class NoCredentials:
    """Always anonymous."""

    def find(self, host: str, repository: str) -> Credential | None:
        return None


Helper: TypeAlias = Callable[[str, str], bytes | None]
"""(program, server) -> what ``program get`` prints for ``server``, None when it knows nothing."""


def auth_files(environ: Mapping[str, str], uid: int) -> tuple[Path, ...]:
    """Where Podman and Docker keep credentials, in the order of containers-auth.json(5); they need not exist."""
    home = Path(environ.get("HOME") or "/root")
    chosen = environ.get("REGISTRY_AUTH_FILE")
    runtime = environ.get("XDG_RUNTIME_DIR")
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    docker = Path(environ.get("DOCKER_CONFIG") or home / ".docker")
    return (
        *([Path(chosen)] if chosen else []),
        (Path(runtime) if runtime else Path(f"/run/containers/{uid}"))
        / ("containers/auth.json" if runtime else "auth.json"),
        config / "containers" / "auth.json",
        docker / "config.json",
    )


class AuthFiles:
    """Credentials out of ``paths``, the first file that has any winning."""

    def __init__(self, paths: Sequence[Path], helper: Helper) -> None:
        self._paths = tuple(paths)
        self._helper = helper

    def find(self, host: str, repository: str) -> Credential | None:
        """Within a file: the helper of the host, the entry of the longest matching name, the general helper.

        Raises UserError for a file that cannot be understood, ToolError when a helper that is named for this very
        host does not work. A general helper that is missing counts as knowing nothing: files outlive programs.
        """
        for path in self._paths:
            content = load_file(path)
            found = self._in_file(path, content, host, repository) if content else None
            if found:
                return found
        return None

    def _in_file(self, path: Path, content: _Object, host: str, repository: str) -> Credential | None:
        helpers = _section(content, "credHelpers", path)
        if isinstance(name := helpers.get(host), str):
            found = self._ask(name, host)
            if found:
                return found
        auths = {bare_key(key): entry for key, entry in _section(content, "auths", path).items()}
        for key in _names(host, repository):
            entry = auths.get(key)
            if isinstance(entry, dict) and (credential := _of_entry(entry, path)):
                return credential
        if isinstance(name := content.get("credsStore"), str) and name:
            try:
                return self._ask(name, host)
            except ToolError:
                return None
        return None

    def _ask(self, name: str, host: str) -> Credential | None:
        if not HELPER_NAME.fullmatch(name):
            raise UserError(f"bad credential helper {name[:64]!r}")
        program = f"docker-credential-{name}"
        printed = self._helper(program, host)
        if printed is None:
            return None
        try:
            answer = json.loads(printed)
            user, secret = answer["Username"], answer["Secret"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ToolError(f"{program} answers with something else than a credential") from None
        if not isinstance(user, str) or not isinstance(secret, str) or not secret:
            return None
        return Credential(user, secret, user == TOKEN_USER, program)


def process_helper(environ: Mapping[str, str]) -> Helper:
    """A ``Helper`` that starts the program with ``environ`` (helpers need D-Bus, GnuPG and the like)."""

    def ask(program: str, server: str) -> bytes | None:
        try:
            result = proc.run(
                [program, "get"], env=environ, stdin=server.encode(), check=False, timeout=HELPER_SECONDS
            )
        except ToolError as error:
            # Without its detail, which has what the helper printed.
            raise ToolError(error.message, hint=error.hint) from None
        return result.stdout if result.status == 0 else None

    return ask


def default_credentials(environ: Mapping[str, str], uid: int) -> Credentials:
    """What Podman and Docker would use."""
    return AuthFiles(auth_files(environ, uid), process_helper(environ))


def load_file(path: Path) -> _Object | None:
    """What is in a credentials file; None when there is none. UserError when it cannot be understood."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not data.strip():
        return None
    try:
        return parse_json(data, str(path), _MAX_FILE)
    except ToolError as error:
        raise UserError(error.message, hint="this is a credentials file of Docker's or Podman's") from None


def _section(content: _Object, name: str, path: Path) -> _Object:
    value = content.get(name) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} is no object")
    return value


def bare_key(key: str) -> str:
    """Docker has written keys as ``https://host/v1/``; Podman writes ``host`` or ``host/namespace``."""
    if "://" not in key:
        return key
    return re.sub(r"/v[12]$", "", key.split("://", 1)[1].rstrip("/"))


def _names(host: str, repository: str) -> Iterator[str]:
    """``host/a/b``, ``host/a``, ``host``."""
    name = f"{host}/{repository}" if repository else host
    while "/" in name:
        yield name
        name = name.rpartition("/")[0]
    yield name


def _of_entry(entry: _Object, path: Path) -> Credential | None:
    auth, token = entry.get("auth"), entry.get("identitytoken")
    user, secret = entry.get("username"), entry.get("password")
    if isinstance(auth, str) and auth:
        try:
            user, _, secret = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise UserError(f"{path}: an auth entry is no base64 text", hint="log in again") from None
        secret = secret.rstrip("\0")
    if isinstance(token, str) and token:
        return Credential(user if isinstance(user, str) else "", token, True, str(path))
    if isinstance(user, str) and isinstance(secret, str) and user and secret:
        return Credential(user, secret, False, str(path))
    return None
