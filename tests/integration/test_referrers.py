"""What is attached to an image, at registries that list referrers themselves and at some that lie about them.

`test_verify` has the real registry, which does not list them. A small one of the test's own plays the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_registry_hostile import Answer, Request, Server

from uklimg import oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.ref import Reference
from uklimg.remote.auth import NoCredentials
from uklimg.remote.client import push
from uklimg.remote.failures import Retry
from uklimg.remote.referrers import fallback_tag, pull_referrer, push_referrer
from uklimg.remote.transport import Transport
from uklimg.store.layout import Layout

pytestmark = pytest.mark.integration

TYPE = "application/vnd.example.note.v1"
CONFIG = b'{"architecture":"amd64","config":{},"os":"linux","rootfs":{"diff_ids":[],"type":"layers"}}'
IMAGE = oci.Manifest(oci.Descriptor.of(oci.CONFIG, CONFIG), ()).encode()
ROOT = oci.Descriptor.of(oci.MANIFEST, IMAGE)


def note(text: str, subject: oci.Descriptor = ROOT, artifact_type: str = TYPE) -> oci.Manifest:
    config = oci.Descriptor.of(oci.EMPTY, b"{}")
    layer = oci.Descriptor.of("text/plain", text.encode())
    return oci.Manifest(config, (layer,), artifact_type=artifact_type, subject=subject)


class Registry:
    """Keeps what is pushed to the repository ``a``, in memory. With ``lists`` it has the referrers API."""

    def __init__(self, *, lists: bool) -> None:
        self.lists = lists
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.media_types: dict[str, str] = {}

    def __call__(self, request: Request) -> Answer:
        kind, _, name = request.path.removeprefix("/v2/a/").partition("/")
        if kind == "manifests" and request.method == "PUT":
            return self.put(name, request)
        if kind == "manifests" and name in self.manifests:
            headers = {"Content-Type": self.media_types[name]}
            return Answer(body=self.manifests[name], headers=headers)
        if kind == "referrers" and self.lists:
            return Answer(body=self.referrers(name), headers={"Content-Type": oci.INDEX})
        if kind == "blobs" and request.method == "POST":
            return Answer(202, headers={"Location": "/v2/a/blobs/uploads/1"})
        if kind == "blobs" and request.method == "PUT":
            self.blobs[request.query["digest"][0]] = request.body
            return Answer(201)
        if kind == "blobs" and name in self.blobs:
            return Answer(body=self.blobs[name])
        return Answer(404, b"404 page not found\n", {"Content-Type": "text/plain"})

    def put(self, name: str, request: Request) -> Answer:
        for key in (name, str(Digest.of(request.body))):
            self.manifests[key] = request.body
            self.media_types[key] = request.headers["Content-Type"]
        subject = json.loads(request.body).get("subject")
        return Answer(201, headers={"OCI-Subject": subject["digest"]} if subject and self.lists else {})

    def referrers(self, subject: str) -> bytes:
        found = [
            oci.Descriptor.of(oci.MANIFEST, data)
            for name, data in sorted(self.manifests.items())
            if name.startswith("sha256:") and (json.loads(data).get("subject") or {}).get("digest") == subject
        ]
        listed = []
        for entry in found:
            parsed = oci.parse_manifest(self.manifests[str(entry.digest)])
            listed.append(replace(entry, artifact_type=parsed.artifact_type))
        return oci.Index(tuple(listed)).encode()


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "store")
    for data in (CONFIG, IMAGE, b"{}"):
        made.put_bytes(data)
    return made


@pytest.fixture
def serve() -> Iterator[Callable[[Registry], Server]]:
    servers: list[Server] = []

    def start(registry: Registry) -> Server:
        servers.append(Server(registry))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def connect(server: Server) -> tuple[Reference, Transport]:
    ref = Reference.parse(f"{server.host}/a:1")
    return ref, Transport(ref, NoCredentials(), retry=Retry(attempts=2, first_delay=0.001))


def attach(store: Layout, text: str, transport: Transport, made: oci.Manifest | None = None) -> oci.Descriptor:
    made = made or note(text)
    store.put_bytes(text.encode())
    entry = store.put_bytes(made.encode(), oci.MANIFEST)
    artifact = oci.Descriptor(entry.media_type, entry.digest, entry.size, artifact_type=made.artifact_type)
    push_referrer(artifact, ROOT.digest, store, transport)
    return artifact


@pytest.mark.parametrize("lists", [True, False])
def test_what_is_attached_is_found(
    lists: bool, store: Layout, tmp_path: Path, serve: Callable[[Registry], Server]
) -> None:
    registry = Registry(lists=lists)
    server = serve(registry)
    ref, transport = connect(server)
    push(ref, ROOT, store, transport)
    assert pull_referrer(ref, ROOT.digest, TYPE, Layout(tmp_path / "empty"), transport) is None
    attach(store, "other", transport, note("other", artifact_type="application/vnd.example.other"))
    artifact = attach(store, "hello", transport)
    attach(store, "hello", transport)  # twice is once
    other = Layout(tmp_path / "other")
    found = pull_referrer(ref, ROOT.digest, TYPE, other, transport)
    assert found == artifact
    assert other.read_blob(Digest.of(b"hello")) == b"hello"
    assert not other.has(Digest.of(b"other"))
    tag = fallback_tag(ROOT.digest)
    assert (tag in registry.manifests) != lists
    if not lists:
        listed = oci.parse_index(registry.manifests[tag]).manifests
        assert [entry.artifact_type for entry in listed] == ["application/vnd.example.other", TYPE]


def test_of_several_the_newest_counts(store: Layout, tmp_path: Path, serve: Callable[[Registry], Server]) -> None:
    ref, transport = connect(serve(Registry(lists=False)))
    attach(store, "first", transport)
    second = attach(store, "second", transport)
    assert pull_referrer(ref, ROOT.digest, TYPE, Layout(tmp_path / "1"), transport) == second
    first = attach(store, "first", transport)
    assert pull_referrer(ref, ROOT.digest, TYPE, Layout(tmp_path / "2"), transport) == first


def listing(registry: Registry, *manifests: oci.Manifest, artifact_type: str = TYPE) -> None:
    """Let the registry list these as attached to the image, and have them."""
    entries = []
    for made in manifests:
        data = made.encode()
        entry = oci.Descriptor.of(oci.MANIFEST, data)
        registry.manifests[str(entry.digest)] = data
        registry.media_types[str(entry.digest)] = oci.MANIFEST
        entries.append(oci.Descriptor(entry.media_type, entry.digest, entry.size, artifact_type=artifact_type))
    tag = fallback_tag(ROOT.digest)
    registry.manifests[tag] = oci.Index(tuple(entries)).encode()
    registry.media_types[tag] = oci.INDEX


def test_a_registry_that_attaches_something_else(
    store: Layout, tmp_path: Path, serve: Callable[[Registry], Server]
) -> None:
    registry = Registry(lists=False)
    ref, transport = connect(serve(registry))
    for text in ("x", "{}"):
        registry.blobs[str(Digest.of(text.encode()))] = text.encode()
    elsewhere = oci.Descriptor.of(oci.MANIFEST, b"another image")
    for made in (note("x", elsewhere), note("x", artifact_type="application/vnd.example.other")):
        listing(registry, made)
        with pytest.raises(CorruptError, match="as attached to sha256:"):
            pull_referrer(ref, ROOT.digest, TYPE, Layout(tmp_path / "other"), transport)
    # One whose bytes are not there, or are others.
    listing(registry, note("gone"))
    with pytest.raises(ToolError) as caught:
        pull_referrer(ref, ROOT.digest, TYPE, Layout(tmp_path / "other"), transport)
    assert caught.value.exit_code == ExitCode.NOT_FOUND
    registry.blobs[str(Digest.of(b"gone"))] = b"lies"
    with pytest.raises(CorruptError):
        pull_referrer(ref, ROOT.digest, TYPE, Layout(tmp_path / "other"), transport)
    # A list that is none.
    for junk in (b"junk", b"{}", IMAGE):
        registry.manifests[fallback_tag(ROOT.digest)] = junk
        with pytest.raises(CorruptError):
            pull_referrer(ref, ROOT.digest, TYPE, Layout(tmp_path / "other"), transport)


def test_a_list_of_another_kind_is_no_list(store: Layout, tmp_path: Path) -> None:
    """Some registries answer with a page of HTML, or with success and nothing in it."""
    registry = Registry(lists=False)

    def page(request: Request) -> Answer:
        if "/referrers/" in request.path:
            return Answer(200, b"<html>not here</html>", {"Content-Type": "text/html"})
        return registry(request)

    server = Server(page)
    try:
        ref, transport = connect(server)
        artifact = attach(store, "hello", transport)
        assert pull_referrer(ref, ROOT.digest, TYPE, Layout(tmp_path / "other"), transport) == artifact
    finally:
        server.close()
