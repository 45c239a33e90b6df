"""What registry/deploy writes is a registry: TLS, users, and nobody else."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from uklimg import oci
from uklimg.errors import ExitCode, ToolError
from uklimg.ref import Reference
from uklimg.remote.auth import Credential, Credentials, NoCredentials
from uklimg.remote.client import pull, push
from uklimg.remote.failures import Retry
from uklimg.remote.transport import Transport
from uklimg.store.layout import Layout

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).parents[2] / "registry"


class User:
    def __init__(self, name: str, password: str) -> None:
        self._credential = Credential(name, password, origin="the test")

    def find(self, host: str, repository: str) -> Credential | None:
        return self._credential


def deploy(into: Path, user: str, password: str) -> subprocess.CompletedProcess[str]:
    argv = ["sh", str(FOLDER / "deploy"), "--into", str(into), "127.0.0.1", user]
    return subprocess.run(argv, input=password, capture_output=True, text=True)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    files = tmp_path / "etc"
    for user, password in (("ada", "first"), ("bob", "b o:b"), ("ada", "second\n")):
        done = deploy(files, user, password)
        assert done.returncode == 0, done.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = {
        "PATH": os.environ["PATH"],
        "REGISTRY_HTTP_ADDR": address,
        "REGISTRY_HTTP_TLS_CERTIFICATE": str(files / "tls.crt"),
        "REGISTRY_HTTP_TLS_KEY": str(files / "tls.key"),
        "REGISTRY_AUTH_HTPASSWD_PATH": str(files / "htpasswd"),
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(tmp_path / "storage"),
    }
    log = tmp_path / "log"
    with log.open("wb") as out:
        argv = ["docker-registry", "serve", str(files / "config.yml")]
        process = subprocess.Popen(argv, env=env, stdout=out, stderr=out)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 10).close()
                break
            except OSError:
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def test_deployed_registry(host: str, tmp_path: Path) -> None:
    store = Layout(tmp_path / "store")
    config = store.put_bytes(oci.ImageConfig(oci.Platform("linux", "amd64"), ()).encode(), oci.CONFIG)
    root = store.put_bytes(oci.Manifest(config, (store.put_bytes(b"layer", oci.LAYER),)).encode(), oci.MANIFEST)
    ref = Reference.parse(f"{host}/team/hello:1")

    def connect(credentials: Credentials) -> Transport:
        authority = tmp_path / "etc" / "tls.crt"
        retry = Retry(attempts=2, first_delay=0.01)
        return Transport(ref, credentials, retry=retry, plain_http=False, ca_file=authority)

    push(ref, root, store, connect(User("ada", "second")))
    assert pull(ref, Layout(tmp_path / "second"), connect(User("bob", "b o:b"))).digest == root.digest
    for nobody in (User("ada", "first"), User("eve", "second"), NoCredentials()):
        with pytest.raises(ToolError) as caught:
            pull(ref, Layout(tmp_path / "third"), connect(nobody))
        assert caught.value.exit_code == ExitCode.AUTH


def test_deploy_keeps_secrets_and_refuses_nonsense(tmp_path: Path) -> None:
    assert deploy(tmp_path / "etc", "ada", "hunter2").returncode == 0
    certificate = (tmp_path / "etc/tls.crt").read_bytes()
    assert deploy(tmp_path / "etc", "ada", "hunter2").returncode == 0
    assert (tmp_path / "etc/tls.crt").read_bytes() == certificate
    for name in ("tls.key", "htpasswd"):
        assert (tmp_path / "etc" / name).stat().st_mode & 0o077 == 0
    lines = (tmp_path / "etc/htpasswd").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ada:$2b$10$") and "hunter2" not in lines[0]
    for user, password, said in (("a:b", "x", "bad user"), ("ada", "", "no password"), ("ada", "x" * 73, "longer")):
        done = deploy(tmp_path / "etc", user, password)
        assert done.returncode != 0 and said in done.stderr
    assert (tmp_path / "etc/htpasswd").read_text().splitlines() == lines
