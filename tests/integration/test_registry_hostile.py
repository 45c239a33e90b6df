"""Registries that lie, break off, redirect and ask for tokens: a server of the test's own plays them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

import pytest

from uklimg import oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.ref import Reference
from uklimg.remote.auth import Credential, Credentials, NoCredentials
from uklimg.remote.client import pull, push
from uklimg.remote.failures import Retry
from uklimg.remote.transport import Transport
from uklimg.store.layout import Layout

pytestmark = pytest.mark.integration

RETRY = Retry(attempts=3, first_delay=0.001)
LAYER = bytes(range(256)) * 4096
CONFIG = b'{"architecture":"amd64","config":{},"os":"linux","rootfs":{"diff_ids":[],"type":"layers"}}'
LAYER_BLOB = oci.Descriptor.of(oci.LAYER, LAYER)
CONFIG_BLOB = oci.Descriptor.of(oci.CONFIG, CONFIG)
MANIFEST = oci.Manifest(CONFIG_BLOB, (LAYER_BLOB,)).encode()
ROOT = oci.Descriptor.of(oci.MANIFEST, MANIFEST)


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """``cut``: send only so many bytes of the body, then close the connection."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = -1


Play: TypeAlias = Callable[[Request], Answer]


class Server:
    """Answers each request with ``play``, and remembers them."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.seen: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                parts = urlsplit(self.path)
                request = Request(self.command, parts.path, parse_qs(parts.query), dict(self.headers), body)
                outer.seen.append(request)
                answer = outer.play(request)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in answer.headers:
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body if answer.cut < 0 else answer.body[: answer.cut])
                if answer.cut >= 0:
                    self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.host = f"127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def paths(self, method: str) -> list[str]:
        return [request.path for request in self.seen if request.method == method]


def honest(request: Request) -> Answer:
    """A registry that has one image, ``a:1``, and takes nothing."""
    if request.path in ("/v2/a/manifests/1", f"/v2/a/manifests/{ROOT.digest}"):
        return Answer(
            body=MANIFEST, headers={"Content-Type": oci.MANIFEST, "Docker-Content-Digest": str(ROOT.digest)}
        )
    blobs = {f"/v2/a/blobs/{CONFIG_BLOB.digest}": CONFIG, f"/v2/a/blobs/{LAYER_BLOB.digest}": LAYER}
    if request.path in blobs:
        return Answer(body=blobs[request.path])
    return Answer(404)


Starter: TypeAlias = Callable[[Play], Server]


@pytest.fixture
def start() -> Iterator[Starter]:
    running: list[Server] = []

    def begin(play: Play) -> Server:
        running.append(Server(play))
        return running[-1]

    yield begin
    for server in running:
        server.close()


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "store")


def connect(server: Server, credentials: Credentials | None = None) -> tuple[Reference, Transport]:
    ref = Reference.parse(f"{server.host}/a:1")
    return ref, Transport(ref, credentials or NoCredentials(), retry=RETRY)


def fetch(server: Server, store: Layout, credentials: Credentials | None = None) -> oci.Descriptor:
    ref, transport = connect(server, credentials)
    return pull(ref, store, transport)


def assert_untouched(store: Layout) -> None:
    assert store.tags() == {}
    assert list(store.tmp.iterdir()) == []
    names = {path.name for path in (store.root / "blobs/sha256").iterdir()}
    assert names <= {CONFIG_BLOB.digest.hex}


def is_layer(request: Request) -> bool:
    return request.path.endswith(str(LAYER_BLOB.digest))


def test_the_honest_one(start: Starter, store: Layout) -> None:
    assert fetch(start(honest), store).digest == ROOT.digest
    store.verify(ROOT)


# Breaking off


def test_a_broken_download_goes_on_where_it_broke(start: Starter, store: Layout) -> None:
    def play(request: Request) -> Answer:
        if not is_layer(request):
            return honest(request)
        asked = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        rest = LAYER[int(asked) :]
        if asked == "0":
            return Answer(200, rest, cut=300_000)
        return Answer(206, rest, {"Content-Range": f"bytes {asked}-{len(LAYER) - 1}/{len(LAYER)}"}, cut=400_000)

    server = start(play)
    fetch(server, store)
    store.verify(ROOT)
    ranges = [r.headers.get("Range", "") for r in server.seen if is_layer(r)]
    assert ranges[0] == "" and len(ranges) >= 3
    assert all(text.startswith("bytes=") for text in ranges[1:])


def test_a_server_without_ranges_begins_again(start: Starter, store: Layout) -> None:
    cuts = iter([100_000, 700_000, -1])
    server = start(lambda r: Answer(body=LAYER, cut=next(cuts)) if is_layer(r) else honest(r))
    fetch(server, store)
    store.verify(ROOT)
    assert server.paths("GET").count(f"/v2/a/blobs/{LAYER_BLOB.digest}") == 3


def test_breaking_off_for_ever_is_a_network_error(start: Starter, store: Layout) -> None:
    server = start(lambda r: Answer(body=LAYER, cut=0) if is_layer(r) else honest(r))
    with pytest.raises(ToolError) as caught:
        fetch(server, store)
    assert caught.value.exit_code == ExitCode.NETWORK
    assert server.paths("GET").count(f"/v2/a/blobs/{LAYER_BLOB.digest}") == RETRY.attempts
    assert_untouched(store)


def test_another_range_than_asked_for(start: Starter, store: Layout) -> None:
    def play(request: Request) -> Answer:
        if not is_layer(request):
            return honest(request)
        if "Range" in request.headers:
            return Answer(206, LAYER[5:], {"Content-Range": f"bytes 5-{len(LAYER) - 1}/{len(LAYER)}"})
        return Answer(body=LAYER, cut=300_000)

    with pytest.raises(CorruptError, match="another part"):
        fetch(start(play), store)
    assert_untouched(store)


def test_a_registry_that_is_busy_for_a_moment(start: Starter, store: Layout) -> None:
    busy = {503: 1, 429: 1, 500: 1}

    def play(request: Request) -> Answer:
        wanted = {"1": 503, str(CONFIG_BLOB.digest): 429, str(LAYER_BLOB.digest): 500}
        status = wanted[request.path.rpartition("/")[2]]
        if busy[status]:
            busy[status] -= 1
            return Answer(status, headers={"Retry-After": "0"})
        return honest(request)

    fetch(start(play), store)
    store.verify(ROOT)
    assert busy == {503: 0, 429: 0, 500: 0}


def test_a_registry_that_is_broken(start: Starter, store: Layout) -> None:
    server = start(lambda r: Answer(500, b'{"errors":[{"code":"UNKNOWN","message":"disk on fire"}]}'))
    with pytest.raises(ToolError, match=r"answers 500.*disk on fire") as caught:
        fetch(server, store)
    assert caught.value.exit_code == ExitCode.NETWORK
    assert len(server.seen) == RETRY.attempts


# Lying


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(body=LAYER + b"x"), "longer than"),
        (Answer(body=LAYER[:-1]), "bytes instead of"),
        (Answer(body=LAYER[:-1] + b"x"), "is damaged"),
        (Answer(body=b""), "bytes instead of"),
    ],
)
def test_blobs_that_are_not_what_they_should_be(start: Starter, store: Layout, answer: Answer, said: str) -> None:
    with pytest.raises(CorruptError, match=said):
        fetch(start(lambda r: answer if is_layer(r) else honest(r)), store)
    assert_untouched(store)


def test_an_endless_blob_ends(start: Starter, store: Layout) -> None:
    headers = {"Content-Length": str(1 << 40)}
    endless = Answer(body=LAYER * 8, headers=headers, cut=len(LAYER) * 8)
    with pytest.raises(CorruptError, match="longer than"):
        fetch(start(lambda r: endless if is_layer(r) else honest(r)), store)
    assert_untouched(store)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=b"<html>log in</html>", headers={"Content-Type": "text/html"}),
        Answer(body=b""),
        Answer(body=b"[" * 100_000),
        Answer(body=b" " * (5 << 20)),
        Answer(body=MANIFEST, headers={"Docker-Content-Digest": "sha256:" + "0" * 64}),
        Answer(body=b'{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}'),
    ],
)
def test_manifests_that_are_none(start: Starter, store: Layout, answer: Answer) -> None:
    with pytest.raises(CorruptError) as caught:
        fetch(start(lambda r: answer), store)
    assert "\n" not in caught.value.line()
    assert_untouched(store)


def test_another_manifest_than_the_digest_asked_for(start: Starter, store: Layout) -> None:
    server = start(lambda r: Answer(body=MANIFEST))
    ref = Reference.parse(f"{server.host}/a@sha256:{'1' * 64}")
    with pytest.raises(CorruptError, match="the registry sends"):
        pull(ref, store, Transport(ref, NoCredentials(), retry=RETRY))
    assert_untouched(store)


def index_of(*entries: oci.Descriptor) -> bytes:
    return oci.Index(entries).encode()


def test_an_index_of_itself_or_of_lies(start: Starter, store: Layout) -> None:
    nested = {"1": index_of(oci.Descriptor.of(oci.INDEX, MANIFEST))}
    level = MANIFEST
    for _ in range(6):
        wrapped = index_of(oci.Descriptor.of(oci.MANIFEST if level == MANIFEST else oci.INDEX, level))
        nested[str(Digest.of(level))] = level
        nested[str(Digest.of(wrapped))] = wrapped
        level = wrapped
    deep = {**nested, "1": level}
    for tree, said in ((nested, "listed as"), (deep, "index in an index")):

        def play(request: Request, tree: dict[str, bytes] = tree) -> Answer:
            found = tree.get(request.path.rpartition("/")[2]) if "/manifests/" in request.path else None
            return Answer(body=found) if found else honest(request)

        with pytest.raises(CorruptError, match=said):
            fetch(start(play), store)
        assert store.tags() == {}


# Redirects and credentials

ADA = Credential("ada", "hunter2", origin="the test")
BASIC = "Basic " + base64.b64encode(b"ada:hunter2").decode()


class Ada:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def find(self, host: str, repository: str) -> Credential | None:
        self.asked.append((host, repository))
        return ADA


def wants_basic(play: Play) -> Play:
    def closed(request: Request) -> Answer:
        if request.headers.get("Authorization") != BASIC:
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        return play(request)

    return closed


def test_a_redirect_does_not_carry_credentials(start: Starter, store: Layout) -> None:
    other = start(lambda r: Answer(body=LAYER) if r.path == "/signed" else Answer(404))

    def play(request: Request) -> Answer:
        if is_layer(request):
            return Answer(307, headers={"Location": f"http://{other.host}/signed?key=k"})
        return honest(request)

    server = start(wants_basic(play))
    fetch(server, store, Ada())
    store.verify(ROOT)
    assert [r.query for r in other.seen] == [{"key": ["k"]}]
    assert all("Authorization" not in r.headers for r in other.seen)
    assert any(r.headers.get("Authorization") == BASIC for r in server.seen)


def test_who_is_redirected_to_gets_nothing_by_asking(start: Starter, store: Layout) -> None:
    other = start(lambda r: Answer(401, headers={"WWW-Authenticate": f'Bearer realm="http://{r.headers["Host"]}/t"'}))
    server = start(wants_basic(lambda r: Answer(302, headers={"Location": f"http://{other.host}/x"})))
    with pytest.raises(ToolError) as caught:
        fetch(server, store, Ada())
    assert caught.value.exit_code == ExitCode.AUTH
    assert [r.path for r in other.seen] == ["/x"]
    assert "Authorization" not in other.seen[0].headers


@pytest.mark.parametrize(
    "target",
    [
        "http://registry.invalid/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://ada:pw@127.0.0.1:1/x",
    ],
)
def test_redirects_that_are_not_followed(start: Starter, store: Layout, target: str) -> None:
    server = start(lambda r: Answer(307, headers={"Location": target}) if is_layer(r) else honest(r))
    with pytest.raises(ToolError, match="leads to") as caught:
        fetch(server, store)
    assert caught.value.exit_code == ExitCode.NETWORK
    assert_untouched(store)


def test_redirects_without_end(start: Starter, store: Layout) -> None:
    server = start(lambda r: Answer(307, headers={"Location": r.path}))
    with pytest.raises(ToolError, match="without end"):
        fetch(server, store)


def test_tokens(start: Starter, store: Layout) -> None:
    """Distribution's token authentication: the token server gets the password, the registry the token."""
    scope = "repository:a:pull"

    def tokens(request: Request) -> Answer:
        if request.headers.get("Authorization") != BASIC:
            return Answer(401)
        return Answer(body=json.dumps({"token": "t-" + request.query["scope"][0]}).encode())

    issuer = start(tokens)
    realm = f'Bearer realm="http://{issuer.host}/token",service="s",scope="{scope}"'

    def play(request: Request) -> Answer:
        if request.headers.get("Authorization") != f"Bearer t-{scope}":
            return Answer(401, headers={"WWW-Authenticate": realm})
        return honest(request)

    server, ada = start(play), Ada()
    fetch(server, store, ada)
    store.verify(ROOT)
    assert ada.asked == [(server.host, "a")]
    assert [(r.method, r.path, r.query) for r in issuer.seen] == [
        ("GET", "/token", {"service": ["s"], "scope": [scope]})
    ]
    assert all(r.headers.get("Authorization") != BASIC for r in server.seen)

    with pytest.raises(ToolError, match="wants a user and password") as caught:
        fetch(server, Layout(store.root / "other"))
    assert caught.value.exit_code == ExitCode.AUTH


def test_identity_tokens(start: Starter, store: Layout) -> None:
    class Identity:
        def find(self, host: str, repository: str) -> Credential | None:
            return Credential("<token>", "refresh", True, "the test")

    def issue(request: Request) -> Answer:
        fields = parse_qs(request.body.decode())
        good = request.method == "POST" and fields["refresh_token"] == ["refresh"]
        return Answer(body=b'{"access_token":"t"}') if good else Answer(401)

    issuer = start(issue)

    def play(request: Request) -> Answer:
        if request.headers.get("Authorization") != "Bearer t":
            return Answer(401, headers={"WWW-Authenticate": f'Bearer realm="http://{issuer.host}/t",service="s"'})
        return honest(request)

    fetch(start(play), store, Identity())
    assert "Authorization" not in issuer.seen[0].headers


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "Negotiate",
        'Bearer realm="ftp://x/"',
        "Bearer",
        'Bearer realm="http://registry.invalid/token"',
        'Basic realm="again"',
    ],
)
def test_challenges_without_end(start: Starter, store: Layout, challenge: str) -> None:
    server = start(lambda r: Answer(401, headers={"WWW-Authenticate": challenge}))
    with pytest.raises(ToolError) as caught:
        fetch(server, store, Ada())
    assert caught.value.exit_code in (ExitCode.AUTH, ExitCode.NETWORK)
    assert "hunter2" not in caught.value.line()
    assert len(server.seen) <= 3


def test_forbidden(start: Starter, store: Layout) -> None:
    with pytest.raises(ToolError, match="forbids") as caught:
        fetch(start(lambda r: Answer(403)), store, Ada())
    assert caught.value.exit_code == ExitCode.AUTH


# Pushing


@pytest.fixture
def full(store: Layout) -> Layout:
    for data in (LAYER, CONFIG, MANIFEST):
        store.put_bytes(data)
    return store


def takes(request: Request) -> Answer:
    """A registry that takes everything and has nothing."""
    if request.method == "POST":
        return Answer(202, headers={"Location": "/v2/a/blobs/uploads/1?_state=x%3D&empty="})
    return Answer(201 if request.method == "PUT" else 404)


def send(server: Server, store: Layout, credentials: Credentials | None = None) -> None:
    ref, transport = connect(server, credentials)
    push(ref, ROOT, store, transport)


def test_push_sends_blobs_before_manifests(start: Starter, full: Layout) -> None:
    server = start(wants_basic(takes))
    send(server, full, Ada())
    puts = [r for r in server.seen if r.method == "PUT" and "Authorization" in r.headers]
    # Blobs go beside one another, before the manifest.
    sent = {str(r.query.get("digest")): r for r in puts[:2]}
    assert {name: r.body for name, r in sent.items()} == {
        str([str(CONFIG_BLOB.digest)]): CONFIG,
        str([str(LAYER_BLOB.digest)]): LAYER,
    }
    assert all(r.query["_state"] == ["x="] for r in puts[:2])
    assert len(puts) == 3 and puts[2].body == MANIFEST
    assert puts[2].path == "/v2/a/manifests/1" and puts[2].headers["Content-Type"] == oci.MANIFEST
    assert all("Transfer-Encoding" not in r.headers for r in puts)


def test_push_begins_an_upload_again(start: Starter, full: Layout) -> None:
    failures = iter([True])
    server = start(
        lambda r: Answer(502) if r.method == "PUT" and r.body == CONFIG and next(failures, False) else takes(r)
    )
    send(server, full)
    assert len(server.paths("POST")) == 3  # config twice, layer once
    bodies = [r.body for r in server.seen if r.method == "PUT"]
    assert sorted(bodies[:3]) == sorted([CONFIG, CONFIG, LAYER]) and bodies[3:] == [MANIFEST]


def test_push_goes_on_after_the_credentials_are_asked_for_late(start: Starter, full: Layout) -> None:
    """A body that was sent in vain is sent from its beginning."""

    def play(request: Request) -> Answer:
        if request.method == "PUT" and request.headers.get("Authorization") != BASIC:
            return Answer(401, headers={"WWW-Authenticate": "Basic"})
        return takes(request)

    server = start(play)
    send(server, full, Ada())
    asked = [r.body for r in server.seen if r.method == "PUT" and "Authorization" not in r.headers]
    taken = [r.body for r in server.seen if r.method == "PUT" and "Authorization" in r.headers]
    assert sorted(taken[:2]) == sorted([CONFIG, LAYER]) and taken[2:] == [MANIFEST]
    assert asked and set(asked) <= {CONFIG, LAYER}


def test_push_to_a_host_that_the_registry_names_without_credentials(start: Starter, full: Layout) -> None:
    other = start(lambda r: Answer(201))

    def play(request: Request) -> Answer:
        if request.method == "POST":
            return Answer(202, headers={"Location": f"http://{other.host}/upload"})
        return takes(request)

    send(start(wants_basic(play)), full, Ada())
    assert sorted(r.body for r in other.seen) == sorted([CONFIG, LAYER])
    assert all("Authorization" not in r.headers for r in other.seen)


@pytest.mark.parametrize(
    ("answer", "exit_code"),
    [
        (Answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}'), ExitCode.CORRUPT),
        (Answer(201, headers={"Docker-Content-Digest": "sha256:" + "0" * 64}), ExitCode.CORRUPT),
        (Answer(413), ExitCode.NETWORK),
        (Answer(404), ExitCode.NOT_FOUND),
        (Answer(403), ExitCode.AUTH),
    ],
)
def test_push_that_is_refused(start: Starter, full: Layout, answer: Answer, exit_code: ExitCode) -> None:
    server = start(lambda r: answer if r.method == "PUT" else takes(r))
    with pytest.raises(ToolError) as caught:
        send(server, full)
    assert caught.value.exit_code == exit_code
    assert not any("manifests" in path for path in server.paths("PUT"))


def test_netrc_and_proxies_of_the_environment_stay_out(
    start: Starter, store: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ada password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server = start(honest)
    fetch(server, store)
    assert all("Authorization" not in r.headers for r in server.seen)
