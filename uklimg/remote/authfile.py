"""Writing credentials where Docker and Podman keep them, and taking them out; only `login` and `logout` do that.

Formats: containers-auth.json(5), Docker's config.json, and the docker-credential-helpers protocol.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from uklimg import proc
from uklimg.errors import ToolError, UserError
from uklimg.remote.auth import HELPER_NAME, HELPER_SECONDS, TOKEN_USER, Credential, bare_key, load_file

_Content: TypeAlias = dict[str, object]


class AuthWriter:
    """Changes the files ``paths`` (those of ``auth.auth_files``), or the helpers that they name, which are started
    with ``environ``. A secret goes to a helper on its standard input, to a file of which only the user may read, and
    nowhere else."""

    def __init__(self, paths: Sequence[Path], environ: Mapping[str, str]) -> None:
        self._paths = tuple(paths)
        self._environ = environ

    def store(self, host: str, credential: Credential) -> str:
        """Keep ``credential`` for ``host[:port]``, where reading will find it first; says where.

        That is the file that has something for this host, else the first one that exists, else the first; there the
        helper that it names, if it does.
        """
        path = self._chosen(host)
        helper = _helper(load_file(path) or {}, host)
        if helper:
            self._ask(helper, "store", _json(host, credential))
            return helper
        with _changing(path) as content:
            auths = _auths(content, path)
            for key in [key for key in auths if bare_key(key) == host]:
                del auths[key]
            auths[host] = _entry(credential)
        return str(path)

    def erase(self, host: str) -> tuple[str, ...]:
        """Take out what every file and helper has for ``host[:port]``; says where something was."""
        done: list[str] = []
        for path in self._paths:
            content = load_file(path)
            if not content:
                continue
            helper = _helper(content, host)
            if helper and self._knows(helper, host):
                self._ask(helper, "erase", host.encode())
                done.append(helper)
            if any(bare_key(key) == host for key in _auths(dict(content), path)):
                with _changing(path) as changed:
                    auths = _auths(changed, path)
                    for key in [key for key in auths if bare_key(key) == host]:
                        del auths[key]
                done.append(str(path))
        return tuple(done)

    def _chosen(self, host: str) -> Path:
        existing = [path for path in self._paths if load_file(path)]
        for path in existing:
            content = load_file(path) or {}
            named = content.get("credHelpers")
            if any(bare_key(key) == host for key in _auths(dict(content), path)):
                return path
            if isinstance(named, dict) and host in named:
                return path
        return next(iter(existing), self._paths[0])

    def _knows(self, helper: str, host: str) -> bool:
        try:
            argv = [helper, "get"]
            return not proc.run(
                argv, env=self._environ, stdin=host.encode(), check=False, timeout=HELPER_SECONDS
            ).status
        except ToolError:
            return False  # a general helper that is missing knows nothing

    def _ask(self, helper: str, action: str, stdin: bytes) -> None:
        try:
            result = proc.run([helper, action], env=self._environ, stdin=stdin, check=False, timeout=HELPER_SECONDS)
        except ToolError as error:
            # Without its detail, which has what the helper printed.
            raise ToolError(error.message, hint=error.hint) from None
        if result.status:
            raise ToolError(f"{helper} {action} failed with status {result.status}")


def _helper(content: Mapping[str, object], host: str) -> str:
    """The program that keeps what belongs to ``host``, "" when it is this file."""
    named = content.get("credHelpers")
    name = named.get(host) if isinstance(named, dict) else None
    name = name or content.get("credsStore")
    if not isinstance(name, str) or not name:
        return ""
    if not HELPER_NAME.fullmatch(name):
        raise UserError(f"bad credential helper {name[:64]!r}")
    return f"docker-credential-{name}"


def _json(host: str, credential: Credential) -> bytes:
    user = TOKEN_USER if credential.identity_token else credential.username
    return json.dumps({"ServerURL": host, "Username": user, "Secret": credential.secret}).encode()


def _entry(credential: Credential) -> dict[str, str]:
    secret = "" if credential.identity_token else credential.secret
    entry = {"auth": base64.b64encode(f"{credential.username}:{secret}".encode()).decode()}
    return entry | ({"identitytoken": credential.secret} if credential.identity_token else {})


def _auths(content: _Content, path: Path) -> dict[str, object]:
    auths = content.setdefault("auths", {})
    if not isinstance(auths, dict):
        raise UserError(f"{path}: auths is no object")
    return auths


@contextmanager
def _changing(path: Path) -> Iterator[_Content]:
    """What is in the file, to be changed in place; written at the end, atomically, for the user alone to read."""
    path = path.resolve()  # a link stays one
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        content = dict(load_file(path) or {})
        yield content
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent="\t")
            file.write("\n")
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
        os.fsync(folder)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
        os.close(folder)
