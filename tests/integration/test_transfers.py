"""Transfers that break, are killed, go on, go beside one another, or need not be made: which bytes move then."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from test_registry import RUN, Events, Stored, registry, stored
from test_registry import connect as to_real
from test_registry_hostile import (
    CONFIG,
    CONFIG_BLOB,
    LAYER,
    LAYER_BLOB,
    MANIFEST,
    ROOT,
    Ada,
    Answer,
    Request,
    Server,
    Starter,
    connect,
    fetch,
    full,
    honest,
    is_layer,
    start,
    store,
    takes,
)

from uklimg import locks, oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.events import Event, TransferProgress, TransferStarted
from uklimg.imagebuild import build_image
from uklimg.ref import Reference
from uklimg.remote import parallel, uploads
from uklimg.remote.auth import NoCredentials
from uklimg.remote.client import pull, push
from uklimg.remote.failures import Retry, TransientError
from uklimg.remote.transport import Transport
from uklimg.store.layout import Layout

__all__ = ["full", "start", "store", "stored"]
pytestmark = pytest.mark.integration

PART = 300_000


def partial_of(store: Layout) -> Path:
    return store.tmp / f"{LAYER_BLOB.digest.hex}.partial"


def ranges(server: Server) -> list[str]:
    """What was asked for of the layer: the Range header of each request."""
    return [request.headers.get("Range", "") for request in server.seen if is_layer(request)]


def with_ranges(request: Request, cut: int = -1) -> Answer:
    """A registry that gives parts of the layer; of each at most ``cut`` bytes arrive."""
    if not is_layer(request):
        return honest(request)
    first = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    if not first:
        return Answer(200, LAYER, cut=cut)
    return Answer(206, LAYER[first:], {"Content-Range": f"bytes {first}-{len(LAYER) - 1}/{len(LAYER)}"}, cut=cut)


def dies_after(count: int) -> Callable[[Request], Answer]:
    """A registry that sends so many bytes of the layer and no more of it, whoever asks again."""
    first = iter([True])
    return lambda r: Answer(body=LAYER, cut=count if next(first, False) else 0) if is_layer(r) else honest(r)


# Pulls


@pytest.mark.parametrize("tenth", range(1, 10))
def test_cut_at_every_tenth(start: Starter, store: Layout, tenth: int) -> None:
    """Each connection breaks after so many bytes: nothing is sent twice."""
    step = len(LAYER) * tenth // 10
    server, events = start(lambda r: with_ranges(r, step)), Events()
    ref, transport = connect(server)
    pull(ref, store, transport, events)
    store.verify(ROOT)
    expected = ["", *(f"bytes={at}-" for at in range(step, len(LAYER), step))]
    assert ranges(server) == expected
    assert events.moved() == len(LAYER) + len(CONFIG)


@pytest.mark.parametrize("tenth", range(1, 10))
def test_the_next_pull_moves_what_was_missing(start: Starter, store: Layout, tenth: int) -> None:
    there = len(LAYER) * tenth // 10
    with pytest.raises(ToolError) as caught:
        fetch(start(dies_after(there)), store)
    assert caught.value.exit_code == ExitCode.NETWORK and "\n" not in caught.value.line()
    # Kept for the next attempt, and nothing but that: no name, no blob.
    assert partial_of(store).read_bytes() == LAYER[:there]
    assert store.tags() == {} and not store.has(LAYER_BLOB.digest) and not store.has(ROOT.digest)

    server, events = start(with_ranges), Events()
    ref, transport = connect(server)
    pull(ref, store, transport, events)
    store.verify(ROOT)
    assert ranges(server) == [f"bytes={there}-"]
    assert sum(e.advanced for e in events.all if isinstance(e, TransferProgress)) == len(LAYER) - there
    totals = [e.total for e in events.all if isinstance(e, TransferStarted) and e.id == str(LAYER_BLOB.digest)]
    assert totals == [len(LAYER) - there]
    assert list(store.tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        (b"\0" * 500_000, ["bytes=500000-", ""]),  # damaged
        (LAYER[:-1] + b"x", [""]),  # all there, and wrong
        (LAYER + b"more", [""]),
        (LAYER, []),  # all there: it only lacks its name
        (b"", [""]),
    ],
)
def test_what_an_earlier_attempt_left(start: Starter, store: Layout, left: bytes, asked: list[str]) -> None:
    partial_of(store).write_bytes(left)
    server = start(with_ranges)
    fetch(server, store)
    store.verify(ROOT)
    assert ranges(server) == asked
    assert list(store.tmp.iterdir()) == []


def test_put_together_wrong_and_wrong_as_a_whole(start: Starter, store: Layout) -> None:
    """One more attempt, and then the truth: nothing stays."""
    partial_of(store).write_bytes(LAYER[:1000])
    bad = LAYER[:-1] + b"x"

    def play(request: Request) -> Answer:
        answer = with_ranges(request)
        return Answer(answer.status, bad[-len(answer.body) :], answer.headers) if is_layer(request) else answer

    server = start(play)
    with pytest.raises(CorruptError, match="is damaged"):
        fetch(server, store)
    assert ranges(server) == ["bytes=1000-", ""]
    assert not partial_of(store).exists() and not store.has(LAYER_BLOB.digest)


def test_a_registry_that_has_less_than_it_sent(start: Starter, store: Layout) -> None:
    partial_of(store).write_bytes(LAYER[:1000])
    server = start(lambda r: Answer(416) if "Range" in r.headers else with_ranges(r))
    fetch(server, store)
    assert ranges(server) == ["bytes=1000-", ""]
    store.verify(ROOT)


def test_two_pulls_of_the_same(start: Starter, store: Layout) -> None:
    """What another process is writing is left alone."""
    fd = locks.create_locked(partial_of(store))
    partial_of(store).write_bytes(LAYER[:1000])
    server = start(with_ranges)
    fetch(server, store)
    assert ranges(server) == [""]
    store.verify(ROOT)
    assert [path.name for path in store.tmp.iterdir()] == [partial_of(store).name]
    assert partial_of(store).read_bytes() == LAYER[:1000]
    os.close(fd)


def test_prune_keeps_what_is_of_today(store: Layout) -> None:
    partial_of(store).write_bytes(b"new")
    old = partial_of(store).with_name("0" * 64 + ".partial")
    old.write_bytes(b"old")
    os.utime(old, (time.time() - 90_000,) * 2)
    store.sweep()
    assert list(store.tmp.iterdir()) == [partial_of(store)]


def test_the_real_registry_goes_on(tmp_path: Path, stored: Stored) -> None:
    with registry(tmp_path / "registry") as running:
        ref = running.ref("hello:1")
        push(ref, stored.root, stored.store, to_real(ref))
        second, events = Layout(tmp_path / "second"), Events()
        layer = stored.layer
        left = second.tmp / f"{layer.digest.hex}.partial"
        left.write_bytes(stored.store.read_blob(layer.digest)[: layer.size // 2])
        pull(ref, second, to_real(ref), events)
        second.verify(stored.root)
        moved = sum(e.advanced for e in events.all if isinstance(e, TransferProgress) and e.id == str(layer.digest))
        assert moved == layer.size - layer.size // 2


# Patience


class Waits:
    """A Retry's sleep that notes how long it was to be."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.all.append(seconds)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_a_storm_ends(start: Starter, store: Layout, status: int) -> None:
    """Of a registry that always answers so, each request is made four times, with pauses that it may lengthen."""
    waits = Waits()
    server = start(lambda r: Answer(status, headers={"Retry-After": "7" if status == 429 else "86400"}))
    ref = Reference.parse(f"{server.host}/a:1")
    with pytest.raises(ToolError, match=f"answers {status}") as caught:
        pull(ref, store, Transport(ref, NoCredentials(), retry=Retry(sleep=waits)))
    assert caught.value.exit_code == ExitCode.NETWORK and "\n" not in caught.value.line()
    assert len(server.seen) == 4
    assert waits.all == ([7.0, 7.0, 7.0] if status == 429 else [30.0, 30.0, 30.0])


@pytest.mark.parametrize("status", [400, 404, 405, 410, 451, 501])
def test_what_will_not_pass_is_not_tried_again(start: Starter, store: Layout, status: int) -> None:
    waits = Waits()
    server = start(lambda r: Answer(status))
    ref = Reference.parse(f"{server.host}/a:1")
    with pytest.raises(ToolError):
        pull(ref, store, Transport(ref, NoCredentials(), retry=Retry(sleep=waits)))
    assert len(server.seen) == 1 and waits.all == []


def test_a_storm_in_the_middle_passes(start: Starter, store: Layout) -> None:
    """Bytes that arrive start the count anew: ten breaks with a refusal after each are survived."""
    turn = iter(range(1000))

    def play(request: Request) -> Answer:
        if is_layer(request) and next(turn) % 2:
            return Answer(503)
        return with_ranges(request, 100_000)

    fetch(start(play), store)
    store.verify(ROOT)


# Several at once


def many(count: int) -> tuple[dict[str, bytes], bytes]:
    """Blobs by digest, and the manifest of an image of them."""
    layers = [bytes([number]) * 1000 for number in range(count)]
    blobs = [oci.Descriptor.of(oci.LAYER, data) for data in layers]
    manifest = oci.Manifest(CONFIG_BLOB, tuple(blobs)).encode()
    there = {str(blob.digest): data for blob, data in zip(blobs, layers, strict=True)}
    return there | {str(CONFIG_BLOB.digest): CONFIG}, manifest


def test_four_blobs_at_once(start: Starter, store: Layout) -> None:
    blobs, manifest = many(9)
    together = threading.Barrier(parallel.AT_ONCE)
    guard = threading.Lock()
    seen, active, most = 0, 0, 0

    def play(request: Request) -> Answer:
        nonlocal seen, active, most
        name = request.path.rpartition("/")[2]
        if name not in blobs:
            return Answer(body=manifest)
        with guard:
            seen, active = seen + 1, active + 1
            most = max(most, active)
            first = seen <= parallel.AT_ONCE
        if first:
            together.wait(60)  # breaks, and fails the test, unless four are here
        with guard:
            active -= 1
        return Answer(body=blobs[name])

    fetch(start(play), store)
    assert most == parallel.AT_ONCE and seen == 10


def test_the_first_failure_ends_the_others(start: Starter, store: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_PATIENCE", 0.1)
    blobs, manifest = many(8)
    bad = str(oci.Descriptor.of(oci.LAYER, bytes([1]) * 1000).digest)
    over = threading.Event()

    def play(request: Request) -> Answer:
        name = request.path.rpartition("/")[2]
        if name == bad:
            return Answer(404)
        if name in blobs:
            over.wait(60)  # the others never come
        return Answer(body=blobs.get(name, manifest))

    server = start(play)
    with pytest.raises(ToolError, match="is not there"):
        fetch(server, store)
    over.set()
    assert store.tags() == {}
    assert len([r for r in server.seen if "/blobs/" in r.path]) <= parallel.AT_ONCE + 1


def test_too_many_bytes_of_manifests(start: Starter, store: Layout) -> None:
    """Each is small enough, all together are not."""
    notes = [{f"org.example.{n}": "x" * (3 << 20)} for n in range(6)]
    manifests = [oci.Manifest(CONFIG_BLOB, (), annotations=note).encode() for note in notes]
    entries = tuple(oci.Descriptor.of(oci.MANIFEST, data) for data in manifests)
    there = {str(entry.digest): data for entry, data in zip(entries, manifests, strict=True)}
    index = oci.Index(entries).encode()
    with pytest.raises(CorruptError, match="bytes of manifests"):
        fetch(start(lambda r: Answer(body=there.get(r.path.rpartition("/")[2], index))), store)
    assert store.tags() == {} and list((store.root / "blobs/sha256").iterdir()) == []


def test_an_index_that_points_at_itself(start: Starter, store: Layout) -> None:
    """It cannot have its own digest in it, so it is not what it says it is."""
    claimed = Digest.of(b"itself")
    index = oci.Index((oci.Descriptor(oci.INDEX, claimed, 400),)).encode()
    server = start(lambda r: Answer(body=index))
    with pytest.raises(CorruptError, match=str(claimed)) as caught:
        fetch(server, store)
    assert "\n" not in caught.value.line() and len(server.seen) == 2
    assert store.tags() == {} and list((store.root / "blobs/sha256").iterdir()) == []


def test_sixty_four_entries_of_the_same_are_one(start: Starter, store: Layout) -> None:
    index = oci.Index((ROOT,) * 64).encode()
    server = start(lambda r: Answer(body=index) if r.path.endswith("/1") else honest(r))
    fetch(server, store)
    assert server.paths("GET").count(f"/v2/a/manifests/{ROOT.digest}") == 1


# Pushes


class Taker:
    """A registry that keeps unfinished uploads as the specification has it.

    ``cuts`` are byte counts: of the next request with a body so much is read, then the connection is closed.
    ``refuse`` may answer a request (method, path) with a status instead.
    """

    def __init__(self, refuse: Callable[[str, str], int] = lambda method, path: 0) -> None:
        self.cuts: list[int] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: list[bytes] = []
        self.begun: dict[str, bytearray] = {}
        self.seen: list[tuple[str, str, int]] = []  # method, Content-Range, bytes taken
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def body(self, into: bytearray) -> bool:
                """Read what comes; whether it is all."""
                length = int(self.headers.get("Content-Length", "0"))
                wanted = min(length, outer.cuts.pop(0)) if length and outer.cuts else length
                data = self.rfile.read(wanted)
                into += data
                outer.seen.append((self.command, self.headers.get("Content-Range", ""), len(data)))
                self.close_connection = wanted < length
                return wanted == length

            def say(self, status: int, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def handle_upload(self) -> None:
                parts = urlsplit(self.path)
                name = parts.path.rpartition("/")[2]
                if status := refuse(self.command, parts.path):
                    self.rfile.read(int(self.headers.get("Content-Length", "0")))
                    return self.say(status)
                if self.command == "HEAD":
                    return self.say(200 if name in outer.blobs else 404)
                if self.command == "POST":
                    self.rfile.read(int(self.headers.get("Content-Length", "0")))
                    key = str(len(outer.begun))
                    outer.begun[key] = bytearray()
                    return self.say(202, Location=f"/v2/a/blobs/uploads/{key}")
                if "/manifests/" in parts.path:
                    data = bytearray()
                    self.body(data)
                    outer.manifests.append(bytes(data))
                    return self.say(201)
                if name not in outer.begun:
                    return self.say(404)
                upload = outer.begun[name]
                first = self.headers.get("Content-Range", f"{len(upload)}-").partition("-")[0]
                if self.command != "GET" and int(first) != len(upload):
                    return self.say(416)
                if self.command == "GET" or not self.body(upload):
                    pass
                if self.close_connection:
                    return None
                where = {"Location": f"/v2/a/blobs/uploads/{name}", "Range": f"0-{max(0, len(upload) - 1)}"}
                if self.command != "PUT":
                    return self.say(204 if self.command == "GET" else 202, **where)
                digest = parse_qs(parts.query)["digest"][0]
                if str(Digest.of(bytes(upload))) != digest:
                    return self.say(400)
                outer.blobs[digest] = bytes(upload)
                return self.say(201)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_upload

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.host = f"127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def bodies(self) -> list[tuple[str, str, int]]:
        """Requests with parts of the layer."""
        return [seen for seen in self.seen if seen[2] not in (0, len(CONFIG), len(MANIFEST))]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PART", PART)


@pytest.fixture
def taker(small_parts: None) -> Iterator[Taker]:
    server = Taker()
    yield server
    server.close()


def send(taker: Taker, store: Layout, sink: Callable[[Event], None] | None = None) -> None:
    ref = Reference.parse(f"{taker.host}/a:1")
    transport = Transport(ref, NoCredentials(), retry=Retry(attempts=3, first_delay=0.001))
    push(ref, ROOT, store, transport, sink or (lambda event: None))


def only_layer(taker: Taker) -> None:
    """The configuration is there, so that what is counted and cut is the layer's."""
    taker.blobs[str(CONFIG_BLOB.digest)] = CONFIG


def test_a_push_goes_in_one_request(taker: Taker, full: Layout) -> None:
    send(taker, full)
    assert taker.bodies() == [("PUT", "", len(LAYER))]
    assert taker.blobs[str(LAYER_BLOB.digest)] == LAYER and taker.manifests == [MANIFEST]
    assert list(full.tmp.iterdir()) == []


def test_a_push_that_breaks_goes_on_in_parts(taker: Taker, full: Layout) -> None:
    only_layer(taker)
    taker.cuts = [500_000, 100_000]
    events = Events()
    send(taker, full, events)
    assert taker.blobs[str(LAYER_BLOB.digest)] == LAYER
    assert taker.bodies() == [
        ("PUT", "", 500_000),
        ("PATCH", "500000-799999", 100_000),
        ("PATCH", "600000-899999", 300_000),
        ("PUT", f"900000-{len(LAYER) - 1}", len(LAYER) - 900_000),
    ]
    assert events.moved() == len(LAYER)  # shown again is what went twice, and taken back


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_push_cut_at_every_tenth(taker: Taker, full: Layout, tenth: int) -> None:
    only_layer(taker)
    taker.cuts = [len(LAYER) * tenth // 10]
    send(taker, full)
    assert taker.blobs[str(LAYER_BLOB.digest)] == LAYER
    assert sum(count for _, _, count in taker.bodies()) == len(LAYER)


def test_a_killed_push_goes_on(taker: Taker, full: Layout) -> None:
    only_layer(taker)
    taker.cuts = [500_000]

    def killed(event: Event) -> None:
        if isinstance(event, TransferProgress) and event.advanced < 0:
            raise KeyboardInterrupt  # while the second attempt begins

    with pytest.raises(KeyboardInterrupt):
        send(taker, full, killed)
    (note,) = full.tmp.iterdir()
    assert note.suffix == ".upload" and note.stat().st_mode & 0o777 == 0o600
    assert json.loads(note.read_text())["location"].startswith(f"http://{taker.host}/v2/a/blobs/uploads/")

    before = len(taker.bodies())
    events = Events()
    send(taker, full, events)
    assert taker.blobs[str(LAYER_BLOB.digest)] == LAYER
    assert sum(count for _, _, count in taker.bodies()[before:]) == len(LAYER) - 500_000
    assert list(full.tmp.iterdir()) == []


@pytest.mark.parametrize(
    "left", [b"", b"{", b"[1]", b'{"location": 7}', b'{"location": "http://registry.invalid/x"}', b"gone"]
)
def test_notes_that_are_of_no_use(taker: Taker, full: Layout, left: bytes) -> None:
    only_layer(taker)
    key = Digest.of(f"http://{taker.host}/a@{LAYER_BLOB.digest}".encode())
    if left == b"gone":
        left = json.dumps({"location": f"http://{taker.host}/v2/a/blobs/uploads/77"}).encode()
    (full.tmp / f"{key.hex}.upload").write_bytes(left)
    send(taker, full)
    assert taker.blobs[str(LAYER_BLOB.digest)] == LAYER
    assert list(full.tmp.iterdir()) == []


def test_what_was_left_there_is_damaged(taker: Taker, full: Layout) -> None:
    """The registry finds the digest wrong: all of it is sent once more."""
    only_layer(taker)
    taker.begun["77"] = bytearray(500_000)
    key = Digest.of(f"http://{taker.host}/a@{LAYER_BLOB.digest}".encode())
    location = json.dumps({"location": f"http://{taker.host}/v2/a/blobs/uploads/77"})
    (full.tmp / f"{key.hex}.upload").write_text(location)
    send(taker, full)
    assert taker.blobs[str(LAYER_BLOB.digest)] == LAYER
    assert taker.bodies()[-1] == ("PUT", "", len(LAYER))


@pytest.mark.parametrize("status", [400, 404, 405, 416, 501])
def test_a_registry_that_wants_no_parts(small_parts: None, full: Layout, status: int) -> None:
    server = Taker(lambda method, path: status if method == "PATCH" else 0)
    try:
        only_layer(server)
        server.cuts = [100]
        send(server, full)
        assert server.blobs[str(LAYER_BLOB.digest)] == LAYER
    finally:
        server.close()


def test_a_registry_that_forgets(small_parts: None, full: Layout) -> None:
    """No status of what was begun, as distribution after a break within a request: it begins again."""
    server = Taker(lambda method, path: 404 if method == "GET" else 0)
    try:
        only_layer(server)
        server.cuts = [500_000]
        send(server, full)
        assert server.blobs[str(LAYER_BLOB.digest)] == LAYER
    finally:
        server.close()


def test_the_real_registry_takes_parts(
    tmp_path: Path, stored: Stored, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docker-registry: after a failure before the first byte the blob goes in parts, and a push that ends between two
    of them goes on with the next."""
    layer = stored.layer
    once, failed, seen = Transport.once, set[str](), list[tuple[str, str]]()

    def fail_first(self: Transport, method: str, url: str, headers: dict[str, str], *rest: object, **more: object):  # type: ignore[no-untyped-def]
        digest = "".join(parse_qs(urlsplit(url).query).get("digest", []))
        if method == "PUT" and digest and digest not in failed:
            failed.add(digest)
            raise TransientError(ToolError("a test", exit_code=ExitCode.NETWORK))
        if method == "PATCH":
            seen.append((url.rpartition("/")[2].partition("?")[0], headers["Content-Range"]))
        return once(self, method, url, headers, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Transport, "once", fail_first)
    with registry(tmp_path / "registry") as running:
        ref = running.ref("hello:1")

        def killed(event: Event) -> None:
            if isinstance(event, TransferProgress) and event.id == str(layer.digest):
                sent[0] += event.advanced
                if sent[0] > 2 * PART:
                    raise KeyboardInterrupt

        sent = [0]
        with pytest.raises(KeyboardInterrupt):
            push(ref, stored.root, stored.store, to_real(ref), killed)
        before = list(seen)
        push(ref, stored.root, stored.store, to_real(ref))
        assert running.blob(layer.digest).read_bytes() == stored.store.read_blob(layer.digest)
        second = Layout(tmp_path / "second")
        assert pull(ref, second, to_real(ref)).digest == stored.root.digest
    after = seen[len(before) :]
    gone_on = {name for name, _ in before} & {name for name, _ in after}
    assert gone_on
    for name in gone_on:
        # The part under way when it was killed is sent again, and none before it.
        taken = [part for upload, part in before if upload == name]
        assert set(taken) & {part for upload, part in after if upload == name} <= {taken[-1]}


# What need not be sent


def test_another_repository_has_it(tmp_path: Path, stored: Stored) -> None:
    """docker-registry mounts blobs from where the store knows them: by a push, or by a name."""
    with registry(tmp_path / "registry") as running:
        first = running.ref("team/hello:1")
        push(first, stored.root, stored.store, to_real(first))
        for name in ("other/hello:1", "third:1"):
            ref, events = running.ref(name), Events()
            push(ref, stored.root, stored.store, to_real(ref), events)
            assert events.moved() == 0 and events.skipped() == {True}
        fresh = Layout(tmp_path / "fresh")
        pull(first, fresh, to_real(first))
        ref, events = running.ref("fourth:1"), Events()
        push(ref, stored.root, fresh, to_real(ref), events)
        assert events.moved() == 0
        second = Layout(tmp_path / "second")
        assert pull(ref, second, to_real(ref)).digest == stored.root.digest
        # Who knows nothing sends it.
        stranger, events = Layout(tmp_path / "stranger"), Events()
        for blob in stored.store.closure(stored.root):
            stranger.put_bytes(stored.store.read_blob(blob.digest))
        ref = running.ref("fifth:1")
        push(ref, stored.root, stranger, to_real(ref), events)
        assert events.moved() > 0


@pytest.mark.parametrize("answer", [Answer(401), Answer(403), Answer(404), Answer(503), Answer(202)])
def test_a_mount_that_is_refused(start: Starter, full: Layout, answer: Answer) -> None:
    server = start(lambda r: answer if "mount" in r.query and answer.status != 202 else takes(r))
    ref, transport = connect(server, Ada())
    full.tag(f"{server.host}/b:1", ROOT)
    push(ref, ROOT, full, transport)
    asked = [r.query for r in server.seen if "mount" in r.query]
    assert all(query["from"] == ["b"] for query in asked) and len(asked) >= 2
    assert sorted(r.body for r in server.seen if r.method == "PUT") == sorted([CONFIG, LAYER, MANIFEST])


def test_only_what_changed_is_sent_and_nothing_is_asked_for_twice(tmp_path: Path, stored: Stored) -> None:
    """A second push with another initramfs sends that layer, the configurations and manifests; a pull of what is
    there asks for no blob."""
    inputs = {role: tmp_path / "made/in" / role for role in oci.PATHS}
    inputs[oci.INITRAMFS] = tmp_path / "another"
    inputs[oci.INITRAMFS].write_bytes(b"another initramfs")
    changed = build_image(inputs, tmp_path / "changed", RUN)
    for blob in sorted((tmp_path / "changed/blobs/sha256").iterdir()):
        stored.store.put_file(blob)
    with registry(tmp_path / "registry") as running:
        ref = running.ref("hello:1")
        push(ref, stored.root, stored.store, to_real(ref))
        events = Events()
        push(ref, changed, stored.store, to_real(ref), events)
        before = {blob.digest for blob in stored.store.closure(stored.root)}
        new = [b for b in stored.store.closure(changed) if b.digest not in before and b.media_type != oci.MANIFEST]
        expected = sum(blob.size for blob in new if blob.media_type in (oci.LAYER, oci.CONFIG))
        assert events.moved() == expected < 100_000

        second = Layout(tmp_path / "second")
        pull(ref, second, to_real(ref))
        asked: list[str] = []
        transport = to_real(ref)
        once = transport.once

        def listening(method: str, url: str, *rest: object, **more: object):  # type: ignore[no-untyped-def]
            asked.append(urlsplit(url).path)
            return once(method, url, *rest, **more)  # type: ignore[arg-type]

        transport.once = listening  # type: ignore[method-assign]
        pull(ref, second, transport)
        assert asked == ["/v2/hello/manifests/1"]
