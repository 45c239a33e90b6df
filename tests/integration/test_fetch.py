"""Downloads from a server on loopback that misbehaves in all the usual ways."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.events import Event, TransferFinished, TransferProgress, TransferStarted
from uklimg.fetch import TRIES, Fetcher, Mirrors
from uklimg.graph import Blob
from uklimg.store import Store

pytestmark = pytest.mark.integration

DATA = bytes(range(256)) * 4096
BLOB_DIGEST = Digest.of(DATA)


class Handler(BaseHTTPRequestHandler):
    """Answers by path; counts requests in ``server.seen``."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.seen.append(self.path)
        name = self.path.rpartition("/")[2]
        times = server.seen.count(self.path)
        if name == "missing":
            self.send_error(404)
        elif name == "down" or (name == "flaky" and times < 3):
            self.send_response(503)
            self.send_header("Retry-After", "7")
            self.end_headers()
        elif name == "cut" or (name == "cut-once" and times < 2):
            self._send(DATA[:1000], len(DATA))
        elif name == "short":
            self._send(DATA[:-1], len(DATA) - 1)
        elif name == "endless":
            self._send(DATA * 2, 2 * len(DATA))
        elif name == "other":
            self._send(b"x" + DATA[1:], len(DATA))
        else:
            self._send(DATA, len(DATA))

    def _send(self, data: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class World:
    def __init__(self, store: Store, mirrors: Mirrors) -> None:
        self.store = store
        self.events: list[Event] = []
        self.pauses: list[float] = []
        session = requests.Session()
        session.trust_env = False  # a proxy of the machine has no business with loopback
        self.fetcher = Fetcher(mirrors, store, self.events.append, session=session, sleep=self.pauses.append)

    def blobs(self) -> list[str]:
        return sorted(path.name for path in (self.store.root / "blobs" / "sha256").iterdir())

    def leftovers(self) -> list[Path]:
        return list(self.store.tmp.iterdir())


@pytest.fixture
def world(tmp_path: Path, server: Server) -> World:
    return World(Store(tmp_path / "store"), Mirrors((f"{server.url}/first/", f"{server.url}/second")))


def blob(*urls: str, size: int = len(DATA)) -> Blob:
    return Blob("file.tar", BLOB_DIGEST, size, urls)


def test_a_download_and_then_none(world: World, server: Server) -> None:
    path = world.fetcher.fetch(blob("debian:pool/f/file"))
    assert path.read_bytes() == DATA
    assert server.seen == ["/first/pool/f/file"]
    started, *progress, finished = world.events
    assert started == TransferStarted(str(BLOB_DIGEST), "fetch", "file.tar", len(DATA))
    assert sum(event.advanced for event in progress if isinstance(event, TransferProgress)) == len(DATA)
    assert finished == TransferFinished(str(BLOB_DIGEST))
    world.events.clear()
    assert world.fetcher.fetch(blob("debian:pool/f/file")) == path
    assert len(server.seen) == 1
    assert world.events[-1] == TransferFinished(str(BLOB_DIGEST), skipped=True)


def test_the_next_mirror_is_asked(world: World, server: Server) -> None:
    first = blob(f"{server.url}/missing", f"{server.url}/other", "debian:good")
    assert world.fetcher.fetch(first).read_bytes() == DATA
    assert server.seen == ["/missing", "/other", "/first/good"]


def test_what_passes_is_tried_again_with_growing_pauses(world: World, server: Server) -> None:
    assert world.fetcher.fetch(blob(f"{server.url}/flaky")).read_bytes() == DATA
    assert world.pauses == [7.0, 7.0]  # the server asked for that


def test_a_broken_transfer_is_tried_again(world: World, server: Server) -> None:
    assert world.fetcher.fetch(blob(f"{server.url}/cut-once", size=0)).read_bytes() == DATA
    advanced = sum(event.advanced for event in world.events if isinstance(event, TransferProgress))
    assert advanced == len(DATA)


@pytest.mark.parametrize("name", ["down", "cut"])
def test_a_server_that_stays_broken(world: World, server: Server, name: str) -> None:
    with pytest.raises(ToolError) as caught:
        world.fetcher.fetch(blob(f"{server.url}/{name}"))
    assert caught.value.exit_code is ExitCode.NETWORK
    assert f"cannot fetch file.tar from 127.0.0.1:{server.server_port}" in caught.value.line()
    assert len(server.seen) == TRIES
    assert world.pauses == sorted(world.pauses) and len(world.pauses) == TRIES - 1
    assert world.blobs() == [] and world.leftovers() == []


def test_an_unreachable_mirror_is_one_line(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = taken.getsockname()[1]
        with pytest.raises(ToolError) as caught:
            world.fetcher.fetch(blob(f"http://user:secret@127.0.0.1:{port}/x"))
    assert caught.value.exit_code is ExitCode.NETWORK
    assert f"cannot fetch file.tar from 127.0.0.1:{port}: Connection refused" in caught.value.line()
    assert "secret" not in caught.value.line() and "\n" not in caught.value.line()


def test_not_found(world: World, server: Server) -> None:
    with pytest.raises(ToolError) as caught:
        world.fetcher.fetch(blob(f"{server.url}/missing"))
    assert caught.value.exit_code is ExitCode.NOT_FOUND
    assert "has no file.tar (HTTP 404" in caught.value.line()
    assert world.pauses == []


def test_checksum_mismatch_says_expected_got_and_where(world: World, server: Server) -> None:
    with pytest.raises(CorruptError) as caught:
        world.fetcher.fetch(blob(f"{server.url}/other"))
    got = Digest.of(b"x" + DATA[1:])
    for part in (f"expected {BLOB_DIGEST}", f"got {got}", f"{server.url}/other"):
        assert part in caught.value.line()
    assert world.blobs() == [] and world.leftovers() == []


@pytest.mark.parametrize("name", ["short", "endless"])
def test_another_size_is_corrupt(world: World, server: Server, name: str) -> None:
    with pytest.raises(CorruptError, match="bytes"):
        world.fetcher.fetch(blob(f"{server.url}/{name}"))
    assert world.blobs() == [] and world.leftovers() == []


def test_the_most_telling_failure_wins(world: World, server: Server) -> None:
    with pytest.raises(CorruptError):
        world.fetcher.fetch(blob(f"{server.url}/missing", f"{server.url}/other", f"{server.url}/down"))


def test_a_corrupt_copy_is_fetched_again(world: World, server: Server) -> None:
    path = world.fetcher.fetch(blob("debian:x"))
    path.chmod(0o644)
    path.write_bytes(b"y" + DATA[1:])
    assert world.fetcher.fetch(blob("debian:x")).read_bytes() == DATA
    assert len(server.seen) == 2


def test_without_mirror_or_address(tmp_path: Path) -> None:
    bare = World(Store(tmp_path / "s"), Mirrors())
    with pytest.raises(ToolError, match="no mirror is configured") as caught:
        bare.fetcher.fetch(blob("debian:x"))
    assert caught.value.exit_code is ExitCode.NETWORK
    with pytest.raises(ToolError, match="has no address"):
        bare.fetcher.fetch(blob())
    with pytest.raises(UserError, match="cannot fetch file:///etc/passwd"):
        bare.fetcher.fetch(blob("file:///etc/passwd"))
