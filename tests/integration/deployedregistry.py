"""A registry as registry/deploy makes one: TLS, users, and nobody else; a real docker-registry, ended by its pid."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "registry"


@dataclass(frozen=True)
class Deployed:
    """``files`` is what would be /etc/docker/registry; ``storage`` what would be /var/lib/docker-registry."""

    host: str
    files: Path
    storage: Path

    @property
    def certificate(self) -> Path:
        return self.files / "tls.crt"

    def home(self, folder: Path, user: str, password: str) -> Path:
        """A home folder in ``folder`` whose user trusts the registry and is logged in, for Podman's files and
        Docker's."""
        trusted = folder / ".config/containers/certs.d" / self.host
        trusted.mkdir(parents=True)
        shutil.copy(self.certificate, trusted / "ca.crt")
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        (folder / ".docker").mkdir()
        for path in (folder / ".docker/config.json", folder / ".config/containers/auth.json"):
            path.write_text(json.dumps({"auths": {self.host: {"auth": secret}}}))
        return folder


def deploy(into: Path, user: str, password: str) -> subprocess.CompletedProcess[str]:
    argv = ["sh", str(FOLDER / "deploy"), "--into", str(into), "127.0.0.1", user]
    return subprocess.run(argv, input=password, capture_output=True, text=True)


@contextmanager
def deployed(folder: Path, users: Sequence[tuple[str, str]], *, quick: bool = False) -> Iterator[Deployed]:
    """Deploy into ``folder`` for the users and their passwords, and serve. ``quick``: with hashes that cost little,
    since the server reckons the password's anew for every request."""
    files = folder / "etc"
    for user, password in users:
        done = deploy(files, user, password)
        assert done.returncode == 0, done.stderr
    if quick:
        script = 'my ($user, $word) = @ARGV; print "$user:", crypt($word, q($2b$04$abcdefghijklmnopqrstuu)), "\\n"'
        lines = [subprocess.check_output(["perl", "-e", script, *user], text=True) for user in users]
        (files / "htpasswd").write_text("".join(lines))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    made = Deployed(host, files, folder / "storage")
    with served(made):
        yield made


def environment(registry: Deployed) -> dict[str, str]:
    """What puts the deployed configuration to another place than /etc and /var."""
    return {
        "PATH": os.environ["PATH"],
        "REGISTRY_HTTP_ADDR": registry.host,
        "REGISTRY_HTTP_TLS_CERTIFICATE": str(registry.files / "tls.crt"),
        "REGISTRY_HTTP_TLS_KEY": str(registry.files / "tls.key"),
        "REGISTRY_AUTH_HTPASSWD_PATH": str(registry.files / "htpasswd"),
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(registry.storage),
    }


@contextmanager
def served(registry: Deployed, config: Path | None = None) -> Iterator[None]:
    """The server itself, with another configuration than the deployed one if one is given."""
    log = registry.files.parent / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config or registry.files / "config.yml")],
            env=environment(registry),
            stdout=out,
            stderr=out,
        )
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", int(registry.host.rpartition(":")[2])), 10).close()
                break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()
