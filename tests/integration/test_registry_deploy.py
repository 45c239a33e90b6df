"""What registry/deploy writes is a registry: TLS, users and nobody else, collected rubbish, units that hold."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployedregistry import FOLDER, Deployed, deploy, deployed, environment, served
from test_cli import Command, add_image
from trixietools import trixie

from uklimg import oci
from uklimg.errors import ExitCode, ToolError
from uklimg.ref import Reference
from uklimg.remote.auth import Credential, Credentials, NoCredentials
from uklimg.remote.client import pull, push
from uklimg.remote.failures import Retry
from uklimg.remote.transport import Transport
from uklimg.store.layout import Layout

pytestmark = pytest.mark.integration

USERS = (("ada", "first"), ("bob", "b o:b"), ("ada", "second\n"))


class User:
    def __init__(self, name: str, password: str) -> None:
        self._credential = Credential(name, password, origin="the test")

    def find(self, host: str, repository: str) -> Credential | None:
        return self._credential


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Deployed]:
    (tmp_path / "registry").mkdir()
    with deployed(tmp_path / "registry", USERS) as running:
        yield running


def test_deployed_registry(registry: Deployed, tmp_path: Path) -> None:
    store = Layout(tmp_path / "store")
    config = store.put_bytes(oci.ImageConfig(oci.Platform("linux", "amd64"), ()).encode(), oci.CONFIG)
    root = store.put_bytes(oci.Manifest(config, (store.put_bytes(b"layer", oci.LAYER),)).encode(), oci.MANIFEST)
    ref = Reference.parse(f"{registry.host}/team/hello:1")

    def connect(credentials: Credentials) -> Transport:
        retry = Retry(attempts=2, first_delay=0.01)
        return Transport(ref, credentials, retry=retry, plain_http=False, ca_file=registry.certificate)

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


# --- units


def setting(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (FOLDER / "systemd" / unit).read_text(), re.MULTILINE)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """With the package's own unit, which the drop-in belongs to."""
    for path in (FOLDER / "systemd").iterdir():
        target = (
            tmp_path / path.name if path.suffix != ".conf" else tmp_path / "docker-registry.service.d" / path.name
        )
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    package = Path("/lib/systemd/system/docker-registry.service")
    (tmp_path / package.name).write_bytes(package.read_bytes())
    units = [str(tmp_path / name) for name in ("docker-registry.service", "docker-registry-collect.service")]
    units.append(str(tmp_path / "docker-registry-collect.timer"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *units],
        env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{tmp_path}:/lib/systemd/system"},
        capture_output=True,
        text=True,
    )
    mine = [line for line in done.stderr.splitlines() if "docker-registry" in line]
    assert (done.returncode, mine) == (0, []), done.stderr
    (schedule,) = setting("docker-registry-collect.timer", "OnCalendar")
    subprocess.run(["systemd-analyze", "calendar", schedule], check=True, capture_output=True)


def collect(registry: Deployed, folder: Path) -> list[str]:
    """Do what docker-registry-collect.service does, line by line, in the registry's places; a stand-in for systemctl
    notes which configuration the server would be started with, at each restart."""
    folder.mkdir()
    places = {
        "/run/docker-registry-collect/": f"{folder}/",
        "/run/docker-registry.collecting": f"{folder}/collecting",
        "/etc/docker/registry/": f"{registry.files}/",
    }
    assert setting("docker-registry-collect.service", "RuntimeDirectory") == ["docker-registry-collect"]
    (file,) = setting("readonly.conf", "EnvironmentFile")
    assert file.removeprefix("-") in places and setting("readonly.conf", "ExecStart")[-1].endswith("serve ${CONFIG}")
    noted = folder / "noted"
    (folder / "bin").mkdir()
    stub = folder / "bin/systemctl"
    stub.write_text(f'#!/bin/sh\necho "$* $(cat {folder}/collecting 2>/dev/null)" >> {noted}\n')
    stub.chmod(0o755)
    env = environment(registry)
    env["PATH"] = f"{folder / 'bin'}:{env['PATH']}"
    for key in ("ExecStartPre", "ExecStart", "ExecStopPost"):
        for line in setting("docker-registry-collect.service", key):
            command = line.removeprefix("+")
            for real, here in places.items():
                command = command.replace(real, here)
            done = subprocess.run(["sh", "-ec", command], env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert not (folder / "collecting").exists()
    return noted.read_text().splitlines()


def test_rubbish_is_collected_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    with deployed(folder, [("ada", "second")], quick=True) as registry:
        home = registry.home(tmp_path / "home", "ada", "second")
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "UKLIMG_STORE": str(tmp_path / "store")}
        uklimg = Command(tmp_path, environ)
        kept, gone = f"{registry.host}/kept:1", f"{registry.host}/gone:1"
        roots = {name: add_image(uklimg.store, tmp_path, name, labels={"name": name}) for name in (kept, gone)}
        for name in roots:
            pushed = uklimg("push", name)
            assert pushed.status == 0, pushed.err
        # An index, then what it lists: the registry deletes manifests by digest, one at a time.
        listed = oci.parse_index(uklimg.store.read_blob(roots[gone].digest)).manifests
        for one in (roots[gone], *listed):
            delete(registry, home, f"gone/manifests/{one.digest}")
    assert blobs(registry, roots[gone], uklimg) - blobs(registry, roots[kept], uklimg), "deleted manifests only"
    noted = collect(registry, tmp_path / "collect")
    readonly = tmp_path / "collect/config.yml"
    assert noted == [f"restart docker-registry.service CONFIG={readonly}", "restart docker-registry.service "]
    there = {path.parent.name for path in (registry.storage / "docker/registry/v2/blobs").rglob("data")}
    wanted = {blob.digest.hex for blob in uklimg.store.closure(roots[kept])}
    lost = {blob.digest.hex for blob in uklimg.store.closure(roots[gone])} - wanted
    assert wanted <= there and not lost & there and lost
    # Read-only, it gives and does not take; afterwards everything is as before.
    fresh = {"UKLIMG_STORE": str(tmp_path / "fresh")}
    with served(registry, readonly):
        assert uklimg("pull", kept, **fresh).status == 0
        refused = uklimg("push", gone)
        assert refused.status != 0 and refused.err.count("\n") == 1
    with served(registry):
        assert uklimg("push", gone).status == 0
        assert uklimg("pull", gone, **fresh).out.split()[-1] == str(roots[gone].digest)


def blobs(registry: Deployed, root: oci.Descriptor, uklimg: Command) -> set[str]:
    """Those of an image that the registry has."""
    there = {path.parent.name for path in (registry.storage / "docker/registry/v2/blobs").rglob("data")}
    return {blob.digest.hex for blob in uklimg.store.closure(root)} & there


def delete(registry: Deployed, home: Path, path: str) -> None:
    """As README.md has it."""
    auth = json.loads((home / ".docker/config.json").read_text())["auths"][registry.host]["auth"]
    done = subprocess.run(
        ["curl", "-fsS", "--cacert", str(registry.certificate), "-H", f"Authorization: Basic {auth}", "-X", "DELETE",
         f"https://{registry.host}/v2/{path}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- containers


def test_the_compose_file_is_one(tmp_path: Path) -> None:
    """By Docker Compose itself, which checks it against its schema and fills it in, without a daemon."""
    done = subprocess.run(
        [
            trixie("docker-compose"),
            "-f",
            str(FOLDER / "compose.yml"),
            "--profile",
            "collect",
            "config",
            "--format",
            "json",
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert services.keys() == {"registry", "collect"}
    # Both see the same files, and neither may change its configuration.
    mounts = {
        name: {(one["type"], one["source"], one["target"], one.get("read_only", False)) for one in service["volumes"]}
        for name, service in services.items()
    }
    assert mounts["registry"] == mounts["collect"]
    assert ("bind", str(FOLDER / "etc"), "/etc/docker/registry", True) in mounts["registry"]
    (port,) = services["registry"]["ports"]
    assert (port["target"], port["published"]) == (5000, "5000")
    containerfile = (FOLDER / "Containerfile").read_text()
    assert services["registry"]["build"]["dockerfile"] == "Containerfile" and "docker-registry" in containerfile
    storage = services["registry"]["environment"]["REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY"]
    assert storage in {target for _, _, target, _ in mounts["registry"]}
