"""Requests to one repository of one registry, through Python oras.

``Transport`` is oras' ``Registry`` with its door replaced: ``do_request`` here limits waiting, retries only what can
be repeated, answers Basic as well as Bearer challenges, and sends credentials to nobody but the registry and the
token server it names. From oras come URLs, the session and the request sequences that go through that door; its
``push``, ``pull``, ``login`` and ``download_blob`` are not used, since they read files whole and verify nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import oras.container
import oras.provider
import requests
import urllib3

import uklimg
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.oci import INDEX, INDEXES, MANIFESTS, MAX_MANIFEST, Descriptor, parse_json
from uklimg.ref import Reference, is_loopback
from uklimg.remote.auth import Credential, Credentials
from uklimg.remote.challenge import Challenge, parse_challenges
from uklimg.remote.failures import Retry, TransientError, of_exception, of_response, read_limited

_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte
_CHUNK = 128 << 10  # what of it a broken connection leaves incomplete is lost, so it is small
_MAX_REDIRECTS = 5
_MAX_TOKEN = 1 << 20
_ROUNDS = 3  # a 401 may come for the action and, once more, for a token that ran out
_ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS, key=lambda t: (".docker." in t, t)))


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


class _Authenticator:
    """Turns challenges into Authorization headers for one repository."""

    def __init__(self, ref: Reference, credentials: Credentials, send: Callable[..., requests.Response]) -> None:
        self._ref = ref
        self._credentials = credentials
        self._send = send
        self._asked = False
        self._credential: Credential | None = None
        self.header = ""

    def answer(self, response: requests.Response) -> None:
        """Take up the challenge of a 401. Raises ToolError AUTH when nothing new can be said."""
        before = self.header
        challenges = {c.scheme: c for c in parse_challenges(response.headers.get("WWW-Authenticate", ""))}
        if "bearer" in challenges:
            self.header = f"Bearer {self._token(challenges['bearer'])}"
        elif "basic" in challenges and (credential := self._find()) and not credential.identity_token:
            self.header = credential.basic()
        if self.header == before:
            raise self.refused()

    def refused(self) -> ToolError:
        host, credential = self._ref.host, self._find()
        hint = f"`podman login {host}` or `docker login {host}`"
        if credential is None:
            message = f"{host} wants a user and password, and there are none for it"
        else:
            message = f"{host} does not accept the credentials of {credential.username!r} from {credential.origin}"
        return ToolError(message, hint=hint, exit_code=ExitCode.AUTH)

    def _find(self) -> Credential | None:
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


class Transport(oras.provider.Registry):  # type: ignore[misc]  # oras has no types
    """One repository. ``ref``'s tag and digest do not matter. Use it from one thread.

    Plain HTTP is spoken to loopback addresses and nobody else; ``plain_http=False`` wants TLS there too. ``ca_file``
    holds the authorities to trust instead of the system's.
    """

    def __init__(
        self,
        ref: Reference,
        credentials: Credentials,
        *,
        retry: Retry | None = None,
        plain_http: bool | None = None,
        ca_file: Path | None = None,
    ) -> None:
        ref = ref.on_registry()
        if plain_http and not ref.is_loopback:
            raise UserError(f"{ref.host} is not this machine", hint="plain HTTP is for loopback addresses only")
        insecure = ref.is_loopback if plain_http is None else plain_http
        super().__init__(ref.host, insecure=insecure, tls_verify=str(ca_file) if ca_file else True)
        self.ref = ref
        self.retry = retry or Retry()
        self.session.auth = _NoNetrc()
        # A proxy that the environment names has nothing to do with a server on this machine.
        self.session.trust_env = not ref.is_loopback
        # "identity": what is hashed is what was sent.
        self.session.headers.update({"User-Agent": f"uklimg/{uklimg.__version__}", "Accept-Encoding": "identity"})
        self.auth = _Authenticator(ref, credentials, self._plain)
        self.container = oras.container.Container(f"x/{ref.repository}", registry=ref.host)
        # Its own parser takes a first component with a dot for a host.
        self.container.registry = ref.host
        self.container.namespace, _, self.container.repository = ref.repository.rpartition("/")

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        json: None = None,
        stream: bool = True,
    ) -> requests.Response:
        """oras' door. Repeats what failed on the way; returns any answer but 401, 403 and passing failures.

        The body of the answer is not read yet, but of a HEAD: close it.
        """
        response = self.retry.call(lambda: self.once(method, url, headers or {}, data))
        if method == "HEAD":
            response.content  # noqa: B018  # gives the connection back
        return response

    def once(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | Body | None = None, *, what: str = ""
    ) -> requests.Response:
        """One attempt with authentication and redirects; TransientError when another one may help."""
        for _ in range(_ROUNDS):
            response, at = self._follow(method, url, headers, data)
            if response.status_code not in (401, 403):
                break
            with response:
                # What another host wants, to which the registry sent us, does not concern our credentials.
                if response.status_code == 403 or not self._is_ours(at):
                    raise self._forbidden()
                self.auth.answer(response)
        else:
            raise self.auth.refused()
        if response.status_code in (408, 429) or response.status_code >= 500:
            with response:
                raise of_response(response, what or f"{method} {urlsplit(url).path}")
        return response

    def _forbidden(self) -> ToolError:
        return ToolError(
            f"{self.ref.host} forbids this for {self.ref.repository}",
            hint=f"who may is the registry's to say; `podman login {self.ref.host}` changes who asks",
            exit_code=ExitCode.AUTH,
        )

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | Body | None
    ) -> tuple[requests.Response, str]:
        """The last answer of a chain of redirects, and its URL."""
        for _ in range(_MAX_REDIRECTS):
            sent = dict(headers)
            if self.auth.header and self._is_ours(url):
                sent["Authorization"] = self.auth.header
            response = self._plain(method, url, sent, data)
            if method not in ("GET", "HEAD") or not response.is_redirect:
                return response, url
            response.close()
            url = urljoin(url, response.headers["location"])
        raise ToolError(f"{self.ref.host} redirects without end", exit_code=ExitCode.NETWORK)

    def _plain(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | Body | None
    ) -> requests.Response:
        """One request, nothing added."""
        self._check_url(url)
        body = data() if callable(data) else data
        try:
            response: requests.Response = self.session.request(
                method,
                url,
                data=body,
                headers=dict(headers),
                stream=True,
                verify=self._tls_verify,
                timeout=_TIMEOUT,
                allow_redirects=False,
            )
            return response
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise of_exception(error, url) from error
        finally:
            if body is not None and not isinstance(body, bytes):
                body.close()

    def _check_url(self, url: str) -> None:
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.scheme not in ("https", "http") or not parts.hostname:
            raise ToolError(f"{self.ref.host} leads to a URL that is not followed", exit_code=ExitCode.NETWORK)
        if parts.scheme == "http" and not (self.ref.is_loopback and is_loopback(parts.netloc)):
            raise ToolError(
                f"{self.ref.host} leads to plain HTTP on {parts.netloc}",
                hint="it needs TLS",
                exit_code=ExitCode.NETWORK,
            )

    def _is_ours(self, url: str) -> bool:
        return urlsplit(url)[:2] == (self.prefix, self.ref.host)

    # What the distribution specification calls pull.

    def manifest(self, reference: str, what: str) -> tuple[bytes, str]:
        """Bytes of the manifest or index under a tag or digest, and the digest header ("" if none); not verified."""
        url = f"{self.prefix}://{self.container.manifest_url(reference)}"

        def get() -> tuple[bytes, str]:
            with self.once("GET", url, {"Accept": _ACCEPT}, what=what) as response:
                if response.status_code != 200:
                    raise of_response(response, what)
                try:
                    data = read_limited(response, MAX_MANIFEST, what)
                except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                    raise of_exception(error, url) from error
                return data, response.headers.get("Docker-Content-Digest", "")

        return self.retry.call(get)

    def referrers(self, subject: Digest, artifact_type: str) -> bytes | None:
        """The index of what is about ``subject``, not verified; None when the registry has no such interface."""
        what = f"what is attached to {subject}"
        path = self.container.manifest_url(str(subject)).replace("/manifests/", "/referrers/")
        url = with_query(f"{self.prefix}://{path}", {"artifactType": artifact_type})

        def get() -> bytes | None:
            with self.once("GET", url, {"Accept": INDEX}, what=what) as response:
                if response.status_code != 200 or not response.headers.get("Content-Type", "").startswith(INDEX):
                    return None
                try:
                    return read_limited(response, MAX_MANIFEST, what)
                except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                    raise of_exception(error, url) from error

        return self.retry.call(get)

    def blob_chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """The blob's bytes as they come: never more than ``blob.size``, and not verified.

        A connection that breaks is taken up where it broke (Range), as long as each attempt brings something.
        """
        what = f"blob {blob.digest}"
        url = f"{self.prefix}://{self.container.get_blob_url(str(blob.digest))}"
        done, delays = 0, self.retry.delays()
        while True:
            try:
                for chunk in self._rest_of_blob(url, what, done):
                    done += len(chunk)
                    if done > blob.size:
                        raise CorruptError(f"{what} is longer than the {blob.size} bytes that the manifest promises")
                    delays = self.retry.delays()
                    yield chunk
                return
            except TransientError as failure:
                if done == blob.size:
                    return
                delay = next(delays, None)
                if delay is None:
                    raise failure.error from None
                self.retry.sleep(max(delay, failure.after))

    def _rest_of_blob(self, url: str, what: str, start: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self.once("GET", url, headers, what=what) as response:
            if response.status_code not in (200, 206):
                raise of_response(response, what)
            # A server without ranges begins again, and so do we, without showing it.
            skip = start if response.status_code == 200 else 0
            if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(
                f"bytes {start}-"
            ):
                raise CorruptError(f"{what}: the registry sends another part than asked for")
            try:
                for chunk in response.iter_content(_CHUNK):
                    rest = chunk[skip:]
                    skip = max(0, skip - len(chunk))
                    if rest:
                        yield rest
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise of_exception(error, url) from error

    # And push.

    def has_blob(self, digest: Digest) -> bool:
        return bool(self.blob_exists({"digest": str(digest)}, self.container))

    def has_manifest(self, digest: Digest) -> bool:
        url = f"{self.prefix}://{self.container.manifest_url(str(digest))}"
        return bool(self.do_request(url, "HEAD", headers={"Accept": _ACCEPT}).status_code == 200)

    def has_tag(self, tag: str) -> bool:
        url = f"{self.prefix}://{self.container.manifest_url(tag)}"
        response = self.do_request(url, "HEAD", headers={"Accept": _ACCEPT})
        if response.status_code not in (200, 404):
            raise of_response(response, f"{self.ref.name}:{tag}")
        return bool(response.status_code == 200)

    def upload(self, blob: Descriptor, body: Body) -> None:
        """Send a blob in one streamed PUT; a failure begins a new upload."""
        self.retry.call(lambda: self._upload_once(blob, body))

    def _upload_once(self, blob: Descriptor, body: Body) -> None:
        what = f"blob {blob.digest}"
        url = f"{self.prefix}://{self.container.upload_blob_url()}"
        with self.once("POST", url, {"Content-Length": "0"}, b"", what=what) as response:
            location = response.headers.get("Location", "")
            if response.status_code not in (201, 202) or not location:
                raise of_response(response, f"an upload to {self.ref.name}")
        target = with_query(urljoin(url, location), {"digest": str(blob.digest)})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        with self.once("PUT", target, headers, body if blob.size else b"", what=what) as response:
            if response.status_code not in (201, 202, 204):
                raise of_response(response, what)
            _check_digest_header(response, blob.digest, what)

    def put_manifest(self, reference: str, manifest: Descriptor, data: bytes, what: str) -> bool:
        """Store ``data`` byte for byte under a tag or digest; whether the registry noted what it is about, so that
        ``referrers`` lists it."""
        url = f"{self.prefix}://{self.container.manifest_url(reference)}"

        def put() -> bool:
            with self.once("PUT", url, {"Content-Type": manifest.media_type}, data, what=what) as response:
                if response.status_code not in (200, 201, 202):
                    raise of_response(response, what)
                _check_digest_header(response, manifest.digest, what)
                return bool(response.headers.get("OCI-Subject"))

        return self.retry.call(put)


def with_query(url: str, fields: Mapping[str, str]) -> str:
    """``url`` with ``fields`` added to its query, whose other fields stay, empty ones too."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True) + list(fields.items())
    return urlunsplit(parts._replace(query=urlencode(query)))


def _check_digest_header(response: requests.Response, digest: Digest, what: str) -> None:
    said = response.headers.get("Docker-Content-Digest", "")
    if said.startswith("sha256:") and said != str(digest):
        raise CorruptError(f"the registry stored {what} as something else: {said[:71]}")
