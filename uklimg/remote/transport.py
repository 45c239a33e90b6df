"""Requests to one repository of one registry.

URLs of a repository are Python oras' (``oras.container``). Its client is not used: it reads files whole to push them,
writes blobs that it never hashes, takes a wrong password for a right one, cannot go on with a broken transfer, and
importing it brings jsonschema along, which takes longer than a pull of what is there. Here waiting is limited, only
what can be repeated is repeated, and credentials go to nobody but the registry and the token server it names.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import oras.container
import requests
import urllib3

from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.oci import INDEX, INDEXES, MANIFESTS, MAX_MANIFEST, Descriptor
from uklimg.ref import Reference
from uklimg.remote.auth import Credentials
from uklimg.remote.authenticator import Authenticator, with_query
from uklimg.remote.certificates import Contexts, Trust
from uklimg.remote.door import Body, Door
from uklimg.remote.failures import (
    TRANSIENT_STATUS,
    Retry,
    TransientError,
    of_exception,
    of_response,
    read_limited,
)

_T = TypeVar("_T")
_CHUNK = 512 << 10  # what of it a broken connection leaves incomplete may be lost, so it is not larger
_MAX_REDIRECTS = 5
_ROUNDS = 6  # a 401 may come for the action, for a token that ran out, and for one that another thread wanted
_ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS, key=lambda t: (".docker." in t, t)))


class Transport:
    """One repository. ``ref``'s tag and digest do not matter. Use it from one thread; ``sibling`` is for another.

    Plain HTTP is spoken to loopback addresses, and to others only with ``plain_http``; ``plain_http=False`` wants TLS
    on this machine, too. ``ca_file`` holds authorities to trust beside ``trust`` and the system's.
    """

    def __init__(
        self,
        ref: Reference,
        credentials: Credentials,
        *,
        retry: Retry | None = None,
        plain_http: bool | None = None,
        ca_file: Path | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.ref = ref.on_registry()
        self.retry = retry or Retry()
        self.cancel = threading.Event()
        trust = trust or Trust()
        if ca_file is not None:
            trust = replace(trust, authorities=(*trust.authorities, ca_file))
        self._contexts = Contexts(trust)
        self._plain = ref.is_loopback if plain_http is None else plain_http
        self.prefix = "http" if self._plain else "https"
        self._door = self._new_door()
        self.auth = Authenticator(self.ref, credentials, self._new_door().send)
        self._container = oras.container.Container(f"x/{ref.repository or 'x'}", registry=ref.host)
        # Its own parser takes a first component with a dot for a host.
        self._container.registry = ref.host
        self._container.namespace, _, self._container.repository = ref.repository.rpartition("/")

    def _new_door(self) -> Door:
        return Door(self.ref, self._contexts, plain=self._plain)

    def sibling(self, cancel: threading.Event) -> Transport:
        """A connection of its own with the same credentials, for another thread. Setting ``cancel`` ends what it does
        as KeyboardInterrupt."""
        twin = copy.copy(self)
        twin._door = self._new_door()
        twin.cancel = cancel
        if self.retry.sleep is time.sleep:
            twin.retry = replace(self.retry, sleep=cancel.wait)
        return twin

    def close(self) -> None:
        self._door.close()

    def go_on(self) -> None:
        """Raises KeyboardInterrupt when it was cancelled."""
        if self.cancel.is_set():
            raise KeyboardInterrupt

    # Requests

    def once(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | Body | None = None, *, what: str = ""
    ) -> requests.Response:
        """One attempt with authentication and redirects; TransientError when another one may help.

        The body of the answer is not read yet, but of a HEAD: close it.
        """
        self.go_on()
        for _ in range(_ROUNDS):
            sent = self.auth.header
            response, at = self._follow(method, url, headers, data, sent)
            if response.status_code not in (401, 403):
                break
            with response:
                # What another host wants, to which the registry sent us, does not concern our credentials.
                if response.status_code == 403 or not self._is_ours(at):
                    raise self._forbidden()
                self.auth.answer(response, sent)
        else:
            raise self.auth.refused()
        if response.status_code in TRANSIENT_STATUS:
            with response:
                raise of_response(response, what or f"{method} {urlsplit(url).path}")
        return response

    def _forbidden(self) -> ToolError:
        return ToolError(
            f"{self.ref.host} forbids this for {self.ref.repository}",
            hint=f"who may is the registry's to say; `uklimg login {self.ref.host}` changes who asks",
            exit_code=ExitCode.AUTH,
        )

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | Body | None, header: str
    ) -> tuple[requests.Response, str]:
        """The last answer of a chain of redirects, and its URL."""
        for _ in range(_MAX_REDIRECTS):
            sent = dict(headers)
            if header and self._is_ours(url):
                sent["Authorization"] = header
            response = self._door.send(method, url, sent, data)
            if method == "HEAD":
                response.content  # noqa: B018  # gives the connection back
            if method not in ("GET", "HEAD") or not response.is_redirect:
                return response, url
            response.close()
            url = urljoin(url, response.headers["location"])
        raise ToolError(f"{self.ref.host} redirects without end", exit_code=ExitCode.NETWORK)

    def _is_ours(self, url: str) -> bool:
        return urlsplit(url)[:2] == (self.prefix, self.ref.host)

    def _read(self, url: str, accept: str, what: str, read: Callable[[requests.Response], _T]) -> _T:
        """What ``read`` makes of the answer to a GET, again when it breaks off."""

        def get() -> _T:
            with self.once("GET", url, {"Accept": accept}, what=what) as response:
                try:
                    return read(response)
                except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                    raise of_exception(error, url) from error

        return self.retry.call(get)

    def manifest_url(self, reference: str) -> str:
        return f"{self.prefix}://{self._container.manifest_url(reference)}"

    def blob_url(self, digest: Digest) -> str:
        return f"{self.prefix}://{self._container.get_blob_url(str(digest))}"

    def uploads_url(self) -> str:
        return f"{self.prefix}://{self._container.upload_blob_url()}"

    # What the distribution specification calls pull.

    def ping(self) -> None:
        """Ask whether the registry knows us. ToolError AUTH when it does not, NETWORK when there is none."""
        url = f"{self.prefix}://{self.ref.host}/v2/"
        what = f"a registry on {self.ref.host}"

        def check(response: requests.Response) -> None:
            if response.status_code != 200:
                raise of_response(response, what)

        self._read(url, "*/*", what, check)

    def manifest(self, reference: str, what: str) -> tuple[bytes, str]:
        """Bytes of the manifest or index under a tag or digest, and the digest header ("" if none); not verified."""

        def read(response: requests.Response) -> tuple[bytes, str]:
            if response.status_code != 200:
                raise of_response(response, what)
            data = read_limited(response, MAX_MANIFEST, what)
            return data, response.headers.get("Docker-Content-Digest", "")

        return self._read(self.manifest_url(reference), _ACCEPT, what, read)

    def referrers(self, subject: Digest, artifact_type: str) -> bytes | None:
        """The index of what is about ``subject``, not verified; None when the registry has no such interface."""
        what = f"what is attached to {subject}"
        path = self.manifest_url(str(subject)).replace("/manifests/", "/referrers/")

        def read(response: requests.Response) -> bytes | None:
            if response.status_code != 200 or not response.headers.get("Content-Type", "").startswith(INDEX):
                return None
            return read_limited(response, MAX_MANIFEST, what)

        return self._read(with_query(path, {"artifactType": artifact_type}), INDEX, what, read)

    def blob_chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """The blob's bytes as they come: never more than ``blob.size``, and not verified. Errors: as ``Download``."""
        return iter(Download(self, blob))

    # And push.

    def has_blob(self, digest: Digest) -> bool:
        return self._is_there(self.blob_url(digest), f"blob {digest}")

    def has_manifest(self, digest: Digest) -> bool:
        return self._is_there(self.manifest_url(str(digest)), f"manifest {digest}")

    def has_tag(self, tag: str) -> bool:
        return self._is_there(self.manifest_url(tag), f"{self.ref.name}:{tag}")

    def _is_there(self, url: str, what: str) -> bool:
        response = self.retry.call(lambda: self.once("HEAD", url, {"Accept": f"{_ACCEPT}, */*"}, what=what))
        if response.status_code not in (200, 404):
            raise of_response(response, what)
        return response.status_code == 200

    def put_manifest(self, reference: str, manifest: Descriptor, data: bytes, what: str) -> bool:
        """Store ``data`` byte for byte under a tag or digest; whether the registry noted what it is about, so that
        ``referrers`` lists it."""

        def put() -> bool:
            headers = {"Content-Type": manifest.media_type}
            with self.once("PUT", self.manifest_url(reference), headers, data, what=what) as response:
                if response.status_code not in (200, 201, 202):
                    raise of_response(response, what)
                check_digest_header(response, manifest.digest, what)
                return bool(response.headers.get("OCI-Subject"))

        return self.retry.call(put)


class Download:
    """The bytes of ``blob`` from ``start`` on, as they come: never more than ``blob.size``, and not verified.

    A connection that breaks is taken up where it broke (Range), as long as each attempt brings something. ``resumed``
    tells whether what came is of more than one answer, and may be right in each part and wrong as a whole. Errors:
    CORRUPT when the registry sends something else than asked for; NOT_FOUND, AUTH, NETWORK.
    """

    def __init__(self, transport: Transport, blob: Descriptor, start: int = 0) -> None:
        self._transport = transport
        self._blob = blob
        self._what = f"blob {blob.digest}"
        self._done = start
        self.resumed = start > 0

    def __iter__(self) -> Iterator[bytes]:
        retry, size = self._transport.retry, self._blob.size
        delays = retry.delays()
        while True:
            try:
                for chunk in self._rest():
                    self._transport.go_on()
                    self._done += len(chunk)
                    if self._done > size:
                        raise CorruptError(f"{self._what} is longer than the {size} bytes that the manifest promises")
                    delays = retry.delays()
                    yield chunk
                return
            except TransientError as failure:
                if self._done == size and size:
                    return
                delay = next(delays, None)
                if delay is None:
                    raise failure.error from None
                self.resumed = self.resumed or self._done > 0
                retry.pause(delay, failure)

    def _rest(self) -> Iterator[bytes]:
        url, start = self._transport.blob_url(self._blob.digest), self._done
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._transport.once("GET", url, headers, what=self._what) as response:
            if response.status_code == 416 and start:
                raise CorruptError(f"{self._what}: the registry has less of it than it sent before")
            if response.status_code not in (200, 206):
                raise of_response(response, self._what)
            # A server without ranges begins again, and so do we, without showing it.
            skip = start if response.status_code == 200 else 0
            if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(
                f"bytes {start}-"
            ):
                raise CorruptError(f"{self._what}: the registry sends another part than asked for")
            try:
                while chunk := response.raw.read(_CHUNK, decode_content=False):
                    rest = chunk[skip:]
                    skip = max(0, skip - len(chunk))
                    if rest:
                        yield rest
            except (OSError, urllib3.exceptions.HTTPError) as error:
                raise of_exception(error, url) from error
            if self._done < self._blob.size and not {"Content-Length", "Transfer-Encoding"} & response.headers.keys():
                # It ends where the connection ends: who knows why.
                failure = f"cannot reach {self._transport.ref.host}: the connection broke"
                raise TransientError(ToolError(failure, exit_code=ExitCode.NETWORK))


def check_digest_header(response: requests.Response, digest: Digest, what: str) -> None:
    said = response.headers.get("Docker-Content-Digest", "")
    if said.startswith("sha256:") and said != str(digest):
        raise CorruptError(f"the registry stored {what} as something else: {said[:71]}")
