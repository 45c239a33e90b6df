"""Answers to a registry's challenges: Basic, and tokens of the server that it names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import requests

from uklimg.errors import ExitCode, ToolError
from uklimg.oci import parse_json
from uklimg.ref import Reference
from uklimg.remote.auth import Credential, Credentials
from uklimg.remote.challenge import Challenge, parse_challenges
from uklimg.remote.failures import of_response, read_limited

_MAX_TOKEN = 1 << 20


class Authenticator:
    """Turns challenges into Authorization headers for one repository. Several threads may ask."""

    def __init__(self, ref: Reference, credentials: Credentials, send: Callable[..., requests.Response]) -> None:
        self._ref = ref
        self._credentials = credentials
        self._send = send
        self._asked = False
        self._credential: Credential | None = None
        self._guard = threading.RLock()
        self.header = ""

    def answer(self, response: requests.Response, sent: str) -> None:
        """Take up the challenge of a 401 to a request with the header ``sent``. Raises ToolError AUTH when nothing
        new can be said."""
        with self._guard:
            if self.header != sent:
                return  # another thread has answered meanwhile
            challenges = {c.scheme: c for c in parse_challenges(response.headers.get("WWW-Authenticate", ""))}
            if "bearer" in challenges:
                self.header = f"Bearer {self._token(challenges['bearer'])}"
            elif "basic" in challenges and (credential := self._find()) and not credential.identity_token:
                self.header = credential.basic()
            if self.header == sent:
                raise self.refused()

    def refused(self) -> ToolError:
        host, credential = self._ref.host, self._find()
        if credential is None:
            message = f"{host} wants a user and password, and there are none for it"
        else:
            message = f"{host} does not accept the credentials of {credential.username!r} from {credential.origin}"
        return ToolError(message, hint=f"`uklimg login {host}`", exit_code=ExitCode.AUTH)

    def _find(self) -> Credential | None:
        with self._guard:
            if not self._asked:
                self._asked = True
                self._credential = self._credentials.find(self._ref.host, self._ref.repository)
            return self._credential

    def _token(self, challenge: Challenge) -> str:
        """Ask the token server (distribution's token authentication); anonymous without a credential."""
        realm = challenge.parameters.get("realm", "")
        if urlsplit(realm).scheme not in ("https", "http"):
            raise ToolError(f"{self._ref.host} names no token server", exit_code=ExitCode.AUTH)
        fields = {name: challenge.parameters[name] for name in ("service", "scope") if name in challenge.parameters}
        credential = self._find()
        headers: dict[str, str] = {}
        if credential and credential.identity_token:
            fields |= {"grant_type": "refresh_token", "client_id": "uklimg", "refresh_token": credential.secret}
            response = self._send("POST", realm, headers, urlencode(fields).encode())
        else:
            if credential:
                headers["Authorization"] = credential.basic()
            response = self._send("GET", with_query(realm, fields), headers, None)
        with response:
            if response.status_code in (400, 401, 403):
                raise self.refused()
            if response.status_code != 200:
                raise of_response(response, "a token")
            answer = parse_json(
                read_limited(response, _MAX_TOKEN, "a token"), "the token server's answer", _MAX_TOKEN
            )
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise ToolError(f"{self._ref.host}: its token server sends no token", exit_code=ExitCode.AUTH)
        return token


def with_query(url: str, fields: Mapping[str, str]) -> str:
    """``url`` with ``fields`` added to its query, whose other fields stay, empty ones too."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True) + list(fields.items())
    return urlunsplit(parts._replace(query=urlencode(query)))
