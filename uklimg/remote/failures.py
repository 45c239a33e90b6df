"""What went wrong between us and a registry, as the errors of ``uklimg.errors``.

Messages name hosts and paths, never queries (signed URLs have secrets there) or headers.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3

from uklimg.errors import CorruptError, ExitCode, ToolError

_T = TypeVar("_T")
_MAX_ERROR_BODY = 64 << 10
_MAX_WAIT = 30.0
_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
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
    sleep: Callable[[float], None] = time.sleep

    def call(self, action: Callable[[], _T]) -> _T:
        """The first result of ``action`` that is no TransientError."""
        for delay in self.delays():
            try:
                return action()
            except TransientError as failure:
                if delay is None:
                    raise failure.error from None
                self.sleep(max(delay, min(failure.after, _MAX_WAIT)))
        raise AssertionError("delays() ends in None")

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
        hint = (
            "put the authority's certificate into /etc/docker/certs.d/HOST/ca.crt, or name it in REQUESTS_CA_BUNDLE"
        )
        return ToolError(f"{host}: its certificate: {reason}", hint=hint, exit_code=ExitCode.NETWORK)
    if isinstance(cause, ssl.SSLError):
        reason = (cause.reason or "TLS failed").replace("_", " ").lower()
        return ToolError(f"{host}: {reason}", hint="does it speak TLS?", exit_code=ExitCode.NETWORK)
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
        return ToolError(f"{host}: no URL that can be asked for", exit_code=ExitCode.NETWORK)
    if cause is not None:
        reason = cause.strerror or str(cause) or type(cause).__name__
    elif isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)):
        reason = "no answer in time"
    else:
        reason = "the connection broke"
    return TransientError(ToolError(f"cannot reach {host}: {reason}", exit_code=ExitCode.NETWORK))


def of_response(response: requests.Response, what: str) -> TransientError | ToolError:
    """What a status that is no success means; ``what`` is what was asked for, as in "image HOST/redis:1"."""
    status = response.status_code
    codes, said = _registry_errors(response)
    host = urlsplit(response.url or "").netloc.rpartition("@")[2]
    said = f": {said}" if said else ""
    if status == 404:
        return ToolError(f"{what} is not there", exit_code=ExitCode.NOT_FOUND)
    if codes & _CORRUPT_CODES:
        return CorruptError(f"{host} refuses {what}{said}", hint="the local copy may be damaged")
    error = ToolError(f"{host} answers {status} for {what}{said}", exit_code=ExitCode.NETWORK)
    return TransientError(error, _retry_after(response)) if status in _TRANSIENT_STATUS else error


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


def _registry_errors(response: requests.Response) -> tuple[frozenset[str], str]:
    """Codes and first message of a registry's error body (distribution-spec, "Error Codes")."""
    try:
        body = json.loads(read_limited(response, _MAX_ERROR_BODY, "an error"))
        errors = [e for e in body["errors"] if isinstance(e, dict)]
    except (ValueError, TypeError, KeyError, RecursionError, ToolError, requests.RequestException):
        return frozenset(), ""
    codes = frozenset(str(e.get("code")) for e in errors)
    return codes, printable(next((e["message"] for e in errors if isinstance(e.get("message"), str)), ""))


def _retry_after(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


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
