"""Downloads of files that are known by digest.

Nothing gets its name in the store before its size and SHA-256 were checked. URLs are tried in order; what may be
over in a moment (no connection, 5xx, 429) is tried again after a pause.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import requests

from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, InternalError, ToolError, UserError
from uklimg.events import Sink, TransferFinished, TransferProgress, TransferStarted, discard
from uklimg.graph import Blob

DEBIAN = "debian:"
TRIES = 4
CONNECT_TIMEOUT, READ_TIMEOUT = 15.0, 60.0  # seconds
_CHUNK = 1 << 18
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 30.0
# A file of unknown size cannot fill the disk.
_MAX_UNKNOWN = 8 << 30


@dataclass(frozen=True)
class Mirrors:
    """Where ``debian:<path>`` is found: base URLs (the folders that hold ``pool/``), tried in order."""

    debian: tuple[str, ...] = ()

    def complete(self, url: str) -> tuple[str, ...]:
        """The URLs that ``url`` stands for; none when there is no mirror for it. UserError for an odd scheme."""
        if url.startswith(DEBIAN):
            path = url.removeprefix(DEBIAN).lstrip("/")
            return tuple(f"{base.rstrip('/')}/{path}" for base in self.debian)
        if urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"cannot fetch {url}", hint="only http, https and debian: URLs")
        return (url,)


class BlobWriter(Protocol):
    """A blob being written; nothing is kept before ``commit``."""

    def write(self, data: bytes, /) -> object: ...

    def commit(self, expected: Digest, /) -> object:
        """CorruptError when what was written has another digest."""
        ...


class Blobs(Protocol):
    """Where the files go; the store."""

    def has(self, digest: Digest, size: int = 0, /) -> bool: ...

    def verified_path(self, digest: Digest, /) -> Path: ...

    def writer(self) -> AbstractContextManager[BlobWriter]: ...


class _Temporary(Exception):
    """Worth trying again, after ``pause`` seconds if the server said so."""

    def __init__(self, reason: str, pause: float = 0) -> None:
        super().__init__(reason)
        self.pause = pause


class _Gone(Exception):
    """This URL has no such file."""


class Fetcher:
    """Brings blobs into ``blobs``. ``sleep`` waits some seconds (tests give their own); ``session`` is for callers
    with settings of their own: by default proxies and CA files come from the environment, as requests has them.
    Setting ``cancel`` from another thread ends a download, which leaves as KeyboardInterrupt."""

    def __init__(
        self,
        mirrors: Mirrors,
        blobs: Blobs,
        sink: Sink = discard,
        *,
        session: requests.Session | None = None,
        sleep: Callable[[float], object] | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._mirrors = mirrors
        self._blobs = blobs
        self._sink = sink
        self._session = session or requests.Session()
        self._sleep = sleep or (cancel.wait if cancel else time.sleep)
        self._cancel = cancel

    def fetch(self, blob: Blob) -> Path:
        """The path of the blob's verified bytes, downloaded unless the store has them.

        ToolError NETWORK (no mirror could be reached), NOT_FOUND (none has the file), CorruptError (other bytes than
        promised). Of several failures the most telling one is raised.
        """
        if self._blobs.has(blob.digest, blob.size):
            try:
                path = self._blobs.verified_path(blob.digest)
            except CorruptError:
                pass  # the store has moved it aside
            else:
                self._sink(TransferStarted(str(blob.digest), "fetch", blob.name, blob.size))
                self._sink(TransferFinished(str(blob.digest), skipped=True))
                return path
        self._download(blob)
        return self._blobs.verified_path(blob.digest)

    def _download(self, blob: Blob) -> None:
        urls = [full for url in blob.urls for full in self._mirrors.complete(url)]
        if not urls:
            reason = "no mirror is configured" if blob.urls else "it is not in the store and has no address"
            raise ToolError(f"cannot fetch {blob.name}: {reason}", exit_code=ExitCode.NETWORK)
        self._sink(TransferStarted(str(blob.digest), "fetch", blob.name, blob.size))
        failures: list[ToolError] = []
        for url in urls:
            try:
                self._try_url(blob, url)
            except ToolError as error:
                failures.append(error)
            else:
                self._sink(TransferFinished(str(blob.digest)))
                return
        raise max(failures, key=_weight)

    def _try_url(self, blob: Blob, url: str) -> None:
        host = urlsplit(url).netloc.rpartition("@")[2]
        for attempt in range(TRIES):
            self._go_on()
            last = attempt == TRIES - 1
            try:
                self._once(blob, url)
                return
            except _Gone as error:
                raise ToolError(
                    f"{host} has no {blob.name} ({error})",
                    hint="the archive may have dropped this version: update the lock, or vendor the file",
                    exit_code=ExitCode.NOT_FOUND,
                ) from None
            except _Temporary as error:
                if last:
                    raise ToolError(
                        f"cannot fetch {blob.name} from {host}: {error}",
                        hint="check the network, the proxy settings and the mirror",
                        exit_code=ExitCode.NETWORK,
                    ) from None
                self._sleep(min(max(error.pause, 2.0**attempt), _LONGEST_PAUSE))
        raise InternalError("no attempt was made")

    def _once(self, blob: Blob, url: str) -> None:
        advanced = 0
        try:
            with self._get(url) as response, self._blobs.writer() as writer:
                limit = blob.size or _MAX_UNKNOWN
                for chunk in _chunks(response):
                    self._go_on()
                    advanced += len(chunk)
                    if advanced > limit:
                        raise CorruptError(f"{blob.name} from {url} is larger than {limit} bytes")
                    writer.write(chunk)
                    self._sink(TransferProgress(str(blob.digest), len(chunk)))
                self._finish(blob, url, writer, advanced)
        except BaseException:
            if advanced:  # the next attempt begins from nothing
                self._sink(TransferProgress(str(blob.digest), -advanced))
            raise

    def _go_on(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise KeyboardInterrupt

    def _finish(self, blob: Blob, url: str, writer: BlobWriter, size: int) -> None:
        if blob.size and size != blob.size:
            raise CorruptError(f"{blob.name} from {url} has {size} bytes instead of {blob.size}")
        try:
            writer.commit(blob.digest)
        except CorruptError as error:
            raise CorruptError(
                f"checksum mismatch of {blob.name} from {url}: {error.message}",
                hint="the file there changed, or the lock names another one",
            ) from None

    def _get(self, url: str) -> requests.Response:
        try:
            # "identity": the digest is that of the file, not of a packed transfer of it.
            response = self._session.get(
                url, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT), headers={"Accept-Encoding": "identity"}
            )
        except requests.RequestException as error:
            raise _Temporary(_reason(error)) from None
        if response.status_code == 200:
            return response
        response.close()
        status = f"HTTP {response.status_code} {response.reason}".rstrip()
        if response.status_code in _AGAIN:
            raise _Temporary(status, _retry_after(response))
        raise _Gone(status)


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body; _Temporary when it breaks off, which a Content-Length tells even when the connection ends well."""
    expected = response.headers.get("Content-Length", "")
    received = 0
    try:
        for chunk in response.iter_content(_CHUNK):
            received += len(chunk)
            yield chunk
    except requests.RequestException as error:
        raise _Temporary(_reason(error)) from None
    if expected.isdigit() and received < int(expected):
        raise _Temporary(f"the transfer ended after {received} of {expected} bytes")


def _retry_after(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0


def _reason(error: requests.RequestException) -> str:
    """In a few words, without URLs: a proxy's may hold a password."""
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refuses or cannot be reached"
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate cannot be verified"
    if isinstance(error, requests.Timeout):
        return "it does not answer in time"
    cause: object = error
    while isinstance(cause, BaseException):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        nested = [item for item in cause.args if isinstance(item, BaseException)]
        cause = nested[0] if nested else getattr(cause, "reason", None) or cause.__cause__
    return "no connection"


def _weight(error: ToolError) -> int:
    """Which failure tells most: other bytes, then no such file, then no connection."""
    order = {ExitCode.CORRUPT: 2, ExitCode.NOT_FOUND: 1}
    return order.get(error.exit_code, 0)
