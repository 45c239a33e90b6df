"""Push and pull against Debian's docker-registry on loopback, and what skopeo makes of our images."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from uklimg import oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.events import Event, TransferFinished, TransferProgress, TransferStarted
from uklimg.imagebuild import build_image
from uklimg.ref import Reference
from uklimg.remote.auth import AuthFiles, Credential, Credentials, NoCredentials
from uklimg.remote.client import pull, push
from uklimg.remote.failures import Retry
from uklimg.remote.transport import Transport
from uklimg.store.layout import Layout

pytestmark = pytest.mark.integration

RUN = oci.RunConfig(
    program="hello", cmd=("hello", "world"), memory=64 << 20, exposed_ports=("80/tcp",), kernel_version="6.12.107"
)
RETRY = Retry(attempts=2, first_delay=0.01)
SKOPEO_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}

# user "ada", password "correct horse"; bcrypt, as docker-registry wants it
HTPASSWD = "ada:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2"


@dataclass(frozen=True)
class Server:
    host: str
    storage: Path

    def ref(self, name: str) -> Reference:
        return Reference.parse(f"{self.host}/{name}")

    def blob(self, digest: Digest) -> Path:
        """Where the registry keeps a blob."""
        return self.storage / "docker/registry/v2/blobs/sha256" / digest.hex[:2] / digest.hex / "data"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def registry(folder: Path, auth: str = "", tls: str = "") -> Iterator[Server]:
    """A docker-registry of its own on a free port, ended by its pid."""
    folder.mkdir()
    port = free_port()
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: warn}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'storage'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'{tls}}}\n" + auth
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        wait_for(port, process, folder / "log", "https" if tls else "http")
        yield Server(f"127.0.0.1:{port}", folder / "storage")
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path, scheme: str) -> None:
    unchecked = ssl._create_unverified_context()
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked)
    )
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            opener.open(f"{scheme}://127.0.0.1:{port}/v2/", timeout=10).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, if only to ask who we are
        except OSError as error:
            if not isinstance(getattr(error, "reason", error), ConnectionRefusedError):
                return  # it listens, if only to end a connection without a certificate of ours
            time.sleep(0.05)
    raise AssertionError(f"docker-registry does not answer: {log.read_text()}")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with registry(tmp_path / "registry") as running:
        yield running


def make_image(folder: Path, run: oci.RunConfig = RUN) -> oci.Descriptor:
    """An image in the layout ``folder``, of a megabyte or three."""
    inputs = {}
    folder.mkdir()
    (folder / "in").mkdir()
    for number, role in enumerate(oci.PATHS):
        inputs[role] = folder / "in" / role
        inputs[role].write_bytes(bytes([number, 1, 2, 3, 4, 5, 6, 7]) * (200_000 + number))
    return build_image(inputs, folder / "image", run)


@dataclass(frozen=True)
class Stored:
    """A store that holds one image, tagged ``hello:latest``."""

    store: Layout
    root: oci.Descriptor

    @property
    def layer(self) -> oci.Descriptor:
        """The layer with the kernel."""
        return oci.read_image(lambda b: self.store.read_blob(b.digest), self.root).file(oci.VMLINUX)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    root = make_image(tmp_path / "made")
    store = Layout(tmp_path / "store")
    for blob in sorted((tmp_path / "made/image/blobs/sha256").iterdir()):
        store.put_file(blob)
    store.tag("hello:latest", root)
    return Stored(store, root)


def connect(ref: Reference, credentials: Credentials | None = None) -> Transport:
    return Transport(ref, credentials or NoCredentials(), retry=RETRY)


def blob_names(store: Layout) -> set[str]:
    return {path.name for path in (store.root / "blobs/sha256").iterdir()}


class Events:
    def __init__(self) -> None:
        self.all: list[Event] = []

    def __call__(self, event: Event, /) -> None:
        self.all.append(event)

    def moved(self) -> int:
        return sum(e.advanced for e in self.all if isinstance(e, TransferProgress))

    def skipped(self) -> set[bool]:
        return {e.skipped for e in self.all if isinstance(e, TransferFinished)}


def test_push_and_pull_keep_every_digest(server: Server, stored: Stored, tmp_path: Path) -> None:
    ref = server.ref("team/hello:1")
    events = Events()
    push(ref, stored.root, stored.store, connect(ref), events)
    blobs = {b.digest: b for b in stored.store.closure(stored.root) if b.media_type in (oci.LAYER, oci.CONFIG)}
    assert events.moved() == sum(b.size for b in blobs.values())
    assert {e.id for e in events.all if isinstance(e, TransferStarted)} == {str(d) for d in blobs}
    assert events.skipped() == {False}

    second = Layout(tmp_path / "second")
    events = Events()
    pulled = pull(ref, second, connect(ref), events)
    assert pulled.digest == stored.root.digest
    assert events.moved() == sum(b.size for b in blobs.values())
    assert blob_names(second) == blob_names(stored.store)
    second.verify(pulled)
    assert second.tags()[str(ref)].digest == stored.root.digest
    image = oci.read_image(lambda blob: second.read_blob(blob.digest), pulled)
    assert image.run == RUN

    by_digest = ref.with_digest(stored.root.digest)
    third = Layout(tmp_path / "third")
    assert pull(by_digest, third, connect(by_digest)).digest == stored.root.digest


def test_what_is_there_is_not_sent_again(server: Server, stored: Stored) -> None:
    ref = server.ref("hello:1")
    push(ref, stored.root, stored.store, connect(ref))
    events = Events()
    push(server.ref("hello:2"), stored.root, stored.store, connect(ref), events)
    pull(server.ref("hello:2"), stored.store, connect(ref), events)
    assert events.moved() == 0
    assert events.skipped() == {True}


def test_one_platform_of_an_index(server: Server, stored: Stored, tmp_path: Path) -> None:
    ref = server.ref("hello:1")
    push(ref, stored.root, stored.store, connect(ref))
    second = Layout(tmp_path / "second")
    pulled = pull(ref, second, connect(ref), platform=oci.Platform("linux", "amd64"))
    assert pulled.media_type == oci.MANIFEST
    assert len(second.verify(pulled)) == len(blob_names(second)) == 6  # itself, config, four layers
    with pytest.raises(ToolError, match="not there for linux/s390x") as caught:
        pull(ref, second, connect(ref), platform=oci.Platform("linux", "s390x"))
    assert caught.value.exit_code == ExitCode.NOT_FOUND


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend"])
def test_a_corrupt_layer_never_gets_a_name(server: Server, stored: Stored, tmp_path: Path, damage: str) -> None:
    ref = server.ref("hello:1")
    push(ref, stored.root, stored.store, connect(ref))
    victim = server.blob(stored.layer.digest)
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "truncate":
        del data[-1000:]
    else:
        data += b"more"
    victim.write_bytes(data)

    second = Layout(tmp_path / "second")
    with pytest.raises(CorruptError, match=str(stored.layer.digest)) as caught:
        pull(ref, second, connect(ref))
    assert caught.value.exit_code == ExitCode.CORRUPT
    assert "\n" not in caught.value.line()
    assert second.tags() == {}
    # What of other blobs was under way when this one failed may stay for the next attempt; of this one nothing.
    assert all(path.suffix == ".partial" for path in second.tmp.iterdir())
    assert not (second.tmp / f"{stored.layer.digest.hex}.partial").exists()
    # Nothing but whole blobs under their own digests: neither that layer nor anything that refers to it.
    left = blob_names(second)
    assert all(Digest.of((second.root / "blobs/sha256" / name).read_bytes()).hex == name for name in left)
    assert stored.layer.digest.hex not in left and stored.root.digest.hex not in left
    manifests = {e.digest.hex for e in oci.parse_index(stored.store.read_blob(stored.root.digest)).manifests}
    assert not left & manifests

    # And a repaired registry serves the rest.
    with stored.store.open_blob(stored.layer.digest) as good:
        victim.write_bytes(good.read())
    assert pull(ref, second, connect(ref)).digest == stored.root.digest


def test_a_corrupt_manifest_is_refused(server: Server, stored: Stored, tmp_path: Path) -> None:
    ref = server.ref("hello:1")
    push(ref, stored.root, stored.store, connect(ref))
    child = oci.parse_index(stored.store.read_blob(stored.root.digest)).manifests[0]
    path = server.blob(child.digest)
    path.write_bytes(path.read_bytes().replace(b"6.12.107", b"6.12.108"))
    second = Layout(tmp_path / "second")
    with pytest.raises(ToolError) as caught:
        pull(ref, second, connect(ref))
    assert caught.value.exit_code == ExitCode.CORRUPT
    assert second.tags() == {}
    assert blob_names(second) == set()


def test_a_corrupt_local_blob_is_not_pushed(server: Server, stored: Stored) -> None:
    victim = stored.store.blob_path(stored.layer.digest)
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[1000] ^= 1
    victim.write_bytes(data)
    ref = server.ref("hello:1")
    with pytest.raises(CorruptError) as caught:
        push(ref, stored.root, stored.store, connect(ref))
    assert caught.value.exit_code == ExitCode.CORRUPT
    assert not server.blob(stored.layer.digest).exists()
    with pytest.raises(ToolError) as missing:
        pull(ref, stored.store, connect(ref))
    assert missing.value.exit_code == ExitCode.NOT_FOUND


@pytest.mark.parametrize("name", ["hello:missing", "nothing:1", "hello@sha256:" + "0" * 64])
def test_missing_images(server: Server, stored: Stored, tmp_path: Path, name: str) -> None:
    push(server.ref("hello:1"), stored.root, stored.store, connect(server.ref("hello:1")))
    ref = server.ref(name)
    with pytest.raises(ToolError, match="is not there") as caught:
        pull(ref, Layout(tmp_path / "second"), connect(ref))
    assert caught.value.exit_code == ExitCode.NOT_FOUND


def test_registry_down(stored: Stored, tmp_path: Path) -> None:
    ref = Reference.parse(f"127.0.0.1:{free_port()}/hello:1")
    for action in (
        lambda: pull(ref, Layout(tmp_path / "second"), connect(ref)),
        lambda: push(ref, stored.root, stored.store, connect(ref)),
    ):
        with pytest.raises(ToolError, match=r"cannot reach 127\.0\.0\.1:.*Connection refused") as caught:
            action()
        assert caught.value.exit_code == ExitCode.NETWORK


def test_unknown_host(tmp_path: Path) -> None:
    ref = Reference.parse("registry.invalid/hello:1")
    with pytest.raises(ToolError, match="cannot reach") as caught:
        pull(ref, Layout(tmp_path / "second"), connect(ref))
    assert caught.value.exit_code == ExitCode.NETWORK


def test_plain_http_is_for_this_machine_or_on_request() -> None:
    other, here = Reference.parse("registry.invalid/hello"), Reference.parse("127.0.0.1:1/hello")
    assert (
        Transport(other, NoCredentials()).prefix
        == Transport(here, NoCredentials(), plain_http=False).prefix
        == "https"
    )
    assert Transport(here, NoCredentials()).prefix == "http"
    asked = Transport(other, NoCredentials(), plain_http=True, retry=RETRY)
    assert asked.prefix == "http"
    # The request is for that registry, and for nobody to whom it leads.
    with pytest.raises(ToolError, match=r"leads to plain HTTP on elsewhere\.invalid"):
        asked.once("GET", "http://elsewhere.invalid/v2/", {})


def test_tls(tmp_path: Path, stored: Stored) -> None:
    """A registry with a certificate of its own: refused, and accepted when its authority is known."""
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate),
         "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    with registry(tmp_path / "tls", tls=f", tls: {{certificate: {certificate}, key: {key}}}") as running:
        ref = running.ref("hello:1")
        trusting = Transport(ref, NoCredentials(), retry=RETRY, plain_http=False, ca_file=certificate)
        push(ref, stored.root, stored.store, trusting)
        second = Layout(tmp_path / "second")
        assert pull(ref, second, trusting).digest == stored.root.digest
        with pytest.raises(ToolError, match=r"its certificate: self.signed certificate") as caught:
            pull(ref, second, Transport(ref, NoCredentials(), retry=RETRY, plain_http=False))
        assert caught.value.exit_code == ExitCode.NETWORK
    with registry(tmp_path / "plain") as running:
        ref = running.ref("hello:1")
        with pytest.raises(ToolError, match="wrong version number") as caught:
            pull(ref, second, Transport(ref, NoCredentials(), retry=RETRY, plain_http=False))
        assert caught.value.exit_code == ExitCode.NETWORK


# Users and passwords


class One:
    """Credentials for everything."""

    def __init__(self, password: str) -> None:
        self._credential = Credential("ada", password, origin="the test")

    def find(self, host: str, repository: str) -> Credential | None:
        return self._credential


@pytest.fixture
def closed_server(tmp_path: Path) -> Iterator[Server]:
    users = tmp_path / "htpasswd"
    users.write_text(HTPASSWD + "\n")
    with registry(tmp_path / "closed", f"auth: {{htpasswd: {{realm: test, path: {users}}}}}\n") as running:
        yield running


def test_users(closed_server: Server, stored: Stored, tmp_path: Path) -> None:
    ref = closed_server.ref("hello:1")
    push(ref, stored.root, stored.store, connect(ref, One("correct horse")))
    second = Layout(tmp_path / "second")
    assert pull(ref, second, connect(ref, One("correct horse"))).digest == stored.root.digest

    for credentials, said in (
        (One("battery staple"), "does not accept the credentials of 'ada' from the test"),
        (NoCredentials(), "wants a user and password"),
    ):
        for action in (
            lambda c=credentials: push(ref, stored.root, stored.store, connect(ref, c)),
            lambda c=credentials: pull(ref, Layout(tmp_path / "third"), connect(ref, c)),
        ):
            with pytest.raises(ToolError, match=said) as caught:
                action()
            assert caught.value.exit_code == ExitCode.AUTH
            assert "battery" not in caught.value.line() + caught.value.detail
            assert "login" in caught.value.hint


def test_passwords_written_by_skopeo(closed_server: Server, stored: Stored, tmp_path: Path) -> None:
    """Log in as a user of skopeo or podman does, and push with what that left behind."""
    file = tmp_path / "auth.json"
    skopeo(
        "login", "--tls-verify=false", "--authfile", str(file), "-u", "ada", "--password-stdin", closed_server.host,
        stdin="correct horse",
    )  # fmt: skip
    ref = closed_server.ref("hello:1")
    credentials = AuthFiles([tmp_path / "missing.json", file], lambda program, server: None)
    push(ref, stored.root, stored.store, connect(ref, credentials))
    with pytest.raises(ToolError) as caught:
        connect(ref).has_blob(stored.layer.digest)
    assert caught.value.exit_code == ExitCode.AUTH


# Other people's tools


def skopeo(*arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["skopeo", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TMPDIR": "/tmp"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_reads_and_copies_our_images(server: Server, stored: Stored, tmp_path: Path) -> None:
    ref = server.ref("hello:1")
    push(ref, stored.root, stored.store, connect(ref))
    source = f"docker://{ref}"
    raw = skopeo("inspect", "--raw", "--tls-verify=false", source)
    assert Digest.of(raw.encode()) == stored.root.digest
    seen = json.loads(skopeo("inspect", "--tls-verify=false", source))
    assert seen["Digest"] == str(stored.root.digest)
    assert seen["Os"] == "linux" and seen["Architecture"] == "amd64"
    assert seen["Labels"]["com.urunc.unikernel.binary"] == "/unikraft/bin/kernel"

    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(SKOPEO_POLICY))
    copy = ("--policy", str(policy), "copy", "--all", "--preserve-digests")
    layout = tmp_path / "layout"
    skopeo(*copy, "--src-tls-verify=false", source, f"oci:{layout}:hello")
    assert {p.name for p in (layout / "blobs/sha256").iterdir()} == blob_names(stored.store)
    # Back under another name, and into a store of ours.
    again = server.ref("copied:1")
    skopeo(*copy, "--dest-tls-verify=false", f"oci:{layout}:hello", f"docker://{again}")
    assert pull(again, Layout(tmp_path / "second"), connect(again)).digest == stored.root.digest


def test_skopeo_reads_our_store(stored: Stored) -> None:
    raw = skopeo("inspect", "--raw", f"oci:{stored.store.root}:hello:latest")
    assert Digest.of(raw.encode()) == stored.root.digest


def test_images_of_others_are_pulled_as_they_are(server: Server, stored: Stored, tmp_path: Path) -> None:
    """An image manifest without an index, pushed by skopeo, with Docker's media types."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(SKOPEO_POLICY))
    ref = server.ref("single:1")
    skopeo(
        "--policy", str(policy), "copy", "--format", "v2s2", "--dest-tls-verify=false",
        f"oci:{stored.store.root}:hello:latest", f"docker://{ref}",
    )  # fmt: skip
    second = Layout(tmp_path / "second")
    pulled = pull(ref, second, connect(ref))
    assert pulled.media_type == oci.DOCKER_MANIFEST
    assert len(second.verify(pulled)) == len(blob_names(second))


TRANSFER = """
import re, sys
from pathlib import Path
from uklimg import oci
from uklimg.digest import Digest
from uklimg.ref import Reference
from uklimg.remote.auth import NoCredentials
from uklimg.remote.client import pull, push
from uklimg.remote.transport import Transport
from uklimg.store.layout import Layout
name, digest, size, made, second = sys.argv[1:]
def peak():  # in bytes, of this program alone: ru_maxrss begins with that of whoever started it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
ref = Reference.parse(name)
before = peak()
root = oci.Descriptor(oci.INDEX, Digest.parse(digest), int(size))
push(ref, root, Layout(Path(made)), Transport(ref, NoCredentials()))
pushed = peak()
assert str(pull(ref, Layout(Path(second)), Transport(ref, NoCredentials())).digest) == digest
print(before, pushed, peak())
"""


def test_large_blobs_pass_through_little_memory(server: Server, stored: Stored, tmp_path: Path) -> None:
    """400 MB there and back, two blobs at a time, in a process that stays below 64 MB, Python and all."""
    inputs = {role: tmp_path / "made/in" / role for role in oci.PATHS}
    for role, start in ((oci.VMLINUX, 0), (oci.BZIMAGE, 100)):
        inputs[role] = tmp_path / role
        with inputs[role].open("wb") as stream:
            for number in range(192):
                stream.write(bytes([(start + number) % 256]) * (1 << 20))
    made = tmp_path / "bigimage"
    root = build_image(inputs, made, replace(RUN, labels={"size": "big"}))
    arguments = [f"{server.host}/big:1", str(root.digest), str(root.size), str(made), str(tmp_path / "second")]
    done = subprocess.run(
        [sys.executable, "-c", TRANSFER, *arguments], capture_output=True, text=True, cwd=Path.cwd(), check=False
    )
    assert done.returncode == 0, done.stderr
    before, pushed, pulled = (int(word) for word in done.stdout.split())
    assert pushed - before < 20 << 20, (before, pushed)
    assert pulled < 64_000_000, (before, pushed, pulled)
    shutil.rmtree(made)
    shutil.rmtree(tmp_path / "second")
