"""One request to one URL: limits, TLS, and where a registry may lead us."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import requests
import requests.adapters
import urllib3

import uklimg
from uklimg.errors import ExitCode, ToolError
from uklimg.ref import Reference, is_loopback
from uklimg.remote.failures import of_exception

_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte
_SENT_AT_ONCE = 256 << 10  # bytes of a body that are read and sent at a time; http.client's 16 KiB cost time


class SizedStream(Protocol):
    """What is sent: its ``len`` in bytes, and reads in order."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


Body: TypeAlias = Callable[[], SizedStream]
"""Opens what is sent, from its beginning, each time that it is sent."""


class _NoNetrc(requests.auth.AuthBase):
    """Keeps requests from sending what ~/.netrc has for a host, over our own header."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class _Adapter(requests.adapters.HTTPAdapter):
    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__(pool_connections=4, pool_maxsize=2)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **options, **self._ours())

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, **options, **self._ours())

    def _ours(self) -> dict[str, Any]:
        ours: dict[str, Any] = {"blocksize": _SENT_AT_ONCE}
        return ours | {"ssl_context": self._context} if self._context else ours


class Door:
    """Requests on behalf of the registry of ``ref``; for one thread. Nothing is added to them, nothing is followed.

    ``plain``: the registry itself may be asked without TLS. What else it leads to needs TLS, unless both are on this
    machine.
    """

    def __init__(self, ref: Reference, context: Callable[[], ssl.SSLContext | None], *, plain: bool) -> None:
        """``context`` is for TLS, asked when that is first spoken: one takes long to make."""
        self._ref = ref
        self._plain = plain
        self._context = context
        self._speaks_tls = False
        self._session = requests.Session()
        self._session.mount("http://", _Adapter(None))
        self._session.auth = _NoNetrc()
        # A proxy that the environment names has nothing to do with a server on this machine.
        self._session.trust_env = not ref.is_loopback
        # "identity": what is hashed is what was sent.
        self._session.headers.update({"User-Agent": f"uklimg/{uklimg.__version__}", "Accept-Encoding": "identity"})

    def send(self, method: str, url: str, headers: Mapping[str, str], data: bytes | Body | None) -> requests.Response:
        """The answer, whose body is not read yet. TransientError or ToolError NETWORK."""
        self._check_url(url)
        if not self._speaks_tls and url.startswith("https:"):
            self._speaks_tls = True
            self._session.mount("https://", _Adapter(self._context()))
        body = data() if callable(data) else data
        try:
            return self._session.request(
                method, url, data=body, headers=dict(headers), stream=True, timeout=_TIMEOUT, allow_redirects=False
            )
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise of_exception(error, url) from error
        finally:
            if body is not None and not isinstance(body, bytes):
                body.close()

    def close(self) -> None:
        self._session.close()

    def _check_url(self, url: str) -> None:
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.scheme not in ("https", "http") or not parts.hostname:
            raise ToolError(f"{self._ref.host} leads to a URL that is not followed", exit_code=ExitCode.NETWORK)
        if parts.scheme == "https" or (self._ref.is_loopback and is_loopback(parts.netloc)):
            return
        if not (self._plain and parts.netloc == self._ref.host):
            raise ToolError(
                f"{self._ref.host} leads to plain HTTP on {parts.netloc}",
                hint="it needs TLS",
                exit_code=ExitCode.NETWORK,
            )
