"""What went wrong between us and a registry, as the errors of ``uklimg.errors``.

Messages name hosts and paths, never queries (signed URLs have secrets there) or headers.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3

from uklimg.errors import CorruptError, ExitCode, ToolError

_T = TypeVar("_T")
_MAX_ERROR_BODY = 64 << 10
MAX_WAIT = 30.0  # seconds; what a server that wants more patience gets
TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_CORRUPT_CODES = frozenset({"DIGEST_INVALID", "SIZE_INVALID", "MANIFEST_UNVERIFIED"})


class TransientError(Exception):
    """Worth another attempt; ``error`` is what the user sees when none is left. ``after``: seconds to wait."""

    def __init__(self, error: ToolError, after: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after


@dataclass(frozen=True)
class Retry:
    """``attempts`` in all; the wait doubles from ``first_delay`` seconds."""

    attempts: int = 4
    first_delay: float = 0.5
    sleep: Callable[[float], object] = time.sleep

    def call(self, action: Callable[[], _T]) -> _T:
        """The first result of ``action`` that is no TransientError."""
        for delay in self.delays():
            try:
                return action()
            except TransientError as failure:
                if delay is None:
                    raise failure.error from None
                self.pause(delay, failure)
        raise AssertionError("delays() ends in None")

    def pause(self, delay: float, failure: TransientError) -> None:
        """Wait ``delay`` seconds, or as long as the server asks, within reason."""
        self.sleep(max(delay, min(failure.after, MAX_WAIT)))

    def delays(self) -> Iterator[float | None]:
        """The wait after each failed attempt; None after the last."""
        yield from (self.first_delay * 2**n for n in range(self.attempts - 1))
        yield None


def of_exception(error: Exception, url: str) -> TransientError | ToolError:
    """What an exception of requests or urllib3 on the way to ``url`` means."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    cause = _system_error(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        reason = cause.verify_message or "it is not valid"
        hint = f"put the authority's certificate into /etc/docker/certs.d/{host}/ca.crt, or name it in SSL_CERT_FILE"
        return ToolError(f"{host}: its certificate: {reason}", hint=hint, exit_code=ExitCode.NETWORK)
    if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        # How a connection that breaks looks under TLS.
        return TransientError(ToolError(f"cannot reach {host}: the connection broke", exit_code=ExitCode.NETWORK))
    if isinstance(cause, ssl.SSLError):
        reason = (cause.reason or "TLS failed").replace("_", " ").lower()
        hint = "does it speak TLS?"
        if "certificate required" in reason or "bad certificate" in reason:
            hint = f"it wants a certificate of ours: client.cert and client.key in certs.d/{host}"
        return ToolError(f"{host}: {reason}", hint=hint, exit_code=ExitCode.NETWORK)
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
        return ToolError(f"{host}: no URL that can be asked for", exit_code=ExitCode.NETWORK)
    if cause is not None:
        reason = cause.strerror or str(cause) or type(cause).__name__
    elif isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)):
        reason = "no answer in time"
    else:
        reason = "the connection broke"
    failure = ToolError(f"cannot reach {host}: {reason}", exit_code=ExitCode.NETWORK)
    # A name that nobody has will be nobody's in a second, too; a name server that does not answer may yet.
    unknown = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
    return failure if unknown else TransientError(failure)


def of_response(response: requests.Response, what: str) -> TransientError | ToolError:
    """What a status that is no success means; ``what`` is what was asked for, as in "image HOST/redis:1"."""
    status = response.status_code
    body = _error_body(response)
    codes, said = _registry_errors(body)
    host = urlsplit(response.url or "").netloc.rpartition("@")[2]
    said = f": {said}" if said else ""
    if status == 404:
        return ToolError(f"{what} is not there", exit_code=ExitCode.NOT_FOUND)
    if codes & _CORRUPT_CODES:
        return CorruptError(f"{host} refuses {what}{said}", hint="the local copy may be damaged")
    if status == 400 and b"HTTP request to an HTTPS server" in body:  # Go's words
        hint = "say --no-plain-http, or put its authority into certs.d"
        return ToolError(f"{host} speaks TLS", hint=hint, exit_code=ExitCode.NETWORK)
    error = ToolError(f"{host} answers {status} for {what}{said}", exit_code=ExitCode.NETWORK)
    return TransientError(error, _retry_after(response)) if status in TRANSIENT_STATUS else error


def read_limited(response: requests.Response, limit: int, what: str) -> bytes:
    """The whole body; CorruptError beyond ``limit`` bytes."""
    parts, size = [], 0
    for chunk in response.iter_content(64 << 10):
        size += len(chunk)
        if size > limit:
            raise CorruptError(f"{what} has more than {limit} bytes")
        parts.append(chunk)
    return b"".join(parts)


def printable(text: str, limit: int = 200) -> str:
    """What somebody else wrote, fit for a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:limit])


def _error_body(response: requests.Response) -> bytes:
    try:
        return read_limited(response, _MAX_ERROR_BODY, "an error")
    except (ToolError, OSError, urllib3.exceptions.HTTPError):
        return b""


def _registry_errors(body: bytes) -> tuple[frozenset[str], str]:
    """Codes and first message of a registry's error body (distribution-spec, "Error Codes")."""
    try:
        errors = [e for e in json.loads(body)["errors"] if isinstance(e, dict)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return frozenset(), ""
    codes = frozenset(str(e.get("code")) for e in errors)
    return codes, printable(next((e["message"] for e in errors if isinstance(e.get("message"), str)), ""))


def _retry_after(response: requests.Response) -> float:
    """Seconds, out of a number or a date (RFC 9110, section 10.2.3)."""
    text = response.headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 6 else MAX_WAIT
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _system_error(error: BaseException) -> OSError | None:
    """The operating system's error at the bottom of a chain, where there is one."""
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo:
        item = todo.pop(0)
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, OSError) and not isinstance(
            item, (requests.RequestException, urllib3.exceptions.HTTPError)
        ):
            return item
        todo += [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]
    return None
