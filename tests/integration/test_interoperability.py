"""What other people's programs make of our images, over TLS and with a password: every digest survives.

The registry is what registry/deploy makes. The clients are this machine's skopeo and podman, Debian 13's skopeo, oras
and umoci (scripts/trixie.sh), and crane where there is a Go toolchain to build it with.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from deployedregistry import Deployed, deployed
from test_cli import Command, add_image
from trixietools import trixie

from uklimg import locks, oci
from uklimg.cli.run import boot_file
from uklimg.digest import Digest
from uklimg.oci import layer
from uklimg.settings import read_settings
from uklimg.store import Store

pytestmark = pytest.mark.integration

DOCS = Path(__file__).parents[2] / "docs" / "interoperability.md"
CRANE = "github.com/google/go-containerregistry/cmd/crane@v0.20.6"


def run(argv: Sequence[str], env: dict[str, str], cwd: Path | None = None) -> str:
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


# --- clients


@dataclass(frozen=True)
class Place:
    """A registry, and a user's home folder from which it can be used."""

    registry: Deployed
    home: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DOCKER_CONFIG": str(self.home / ".docker"),
            "REGISTRY_AUTH_FILE": str(self.home / ".config/containers/auth.json"),
            "SSL_CERT_FILE": str(self.registry.certificate),  # oras and crane trust what Go trusts
            "TMPDIR": str(self.home),
        }

    @property
    def certificates(self) -> str:
        return str(self.home / ".config/containers/certs.d" / self.registry.host)


class Skopeo:
    def __init__(self, program: str) -> None:
        self._program = program

    def _copy(self, place: Place, source: str, target: str, *options: str) -> None:
        policy = place.home / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        certificates = [f"--{end}-cert-dir={place.certificates}" for end in ("src", "dest")]
        copy = ["copy", *(options or ("--all",)), "--preserve-digests", *certificates]
        run([self._program, "--policy", str(policy), *copy, source, target], place.env)

    def copy(self, place: Place, source: str, target: str) -> None:
        self._copy(place, f"docker://{source}", f"docker://{target}")

    def to_layout(self, place: Place, source: str, folder: Path) -> None:
        self._copy(place, f"docker://{source}", f"oci:{folder}:it")

    def one_platform(self, place: Place, source: str, folder: Path) -> None:
        linux = ("--override-os", "linux", "--override-arch", "amd64")
        self._copy(place, f"docker://{source}", f"oci:{folder}:it", *linux)

    def from_layout(self, place: Place, folder: Path, root: oci.Descriptor, target: str) -> None:
        self._copy(place, f"oci:{folder}:it", f"docker://{target}")

    def from_archive(self, place: Place, file: Path, root: oci.Descriptor, target: str) -> None:
        self._copy(place, f"oci-archive:{file}", f"docker://{target}")

    def to_archive(self, place: Place, source: str, file: Path) -> None:
        self._copy(place, f"docker://{source}", f"oci-archive:{file}:it")

    def seen(self, place: Place, source: str) -> Digest:
        raw = run(
            [self._program, "inspect", "--raw", f"--cert-dir={place.certificates}", f"docker://{source}"], place.env
        )
        return Digest.of(raw.encode())


class Oras:
    def _oras(self, place: Place, *argv: str) -> str:
        return run([trixie("oras"), *argv], place.env)

    def copy(self, place: Place, source: str, target: str) -> None:
        self._oras(place, "cp", source, target)

    def to_layout(self, place: Place, source: str, folder: Path) -> None:
        self._oras(place, "cp", "--to-oci-layout", source, f"{folder}:it")

    def from_layout(self, place: Place, folder: Path, root: oci.Descriptor, target: str) -> None:
        self._oras(place, "cp", "--from-oci-layout", f"{folder}:it", target)

    def from_archive(self, place: Place, file: Path, root: oci.Descriptor, target: str) -> None:
        self._oras(place, "cp", "--from-oci-layout", f"{file}@{root.digest}", target)

    def to_archive(self, place: Place, source: str, file: Path) -> None:
        self.to_layout(place, source, place.home / "packed")
        pack(place.home / "packed", file)

    def seen(self, place: Place, source: str) -> Digest:
        return Digest.parse(self._oras(place, "resolve", source).strip())


class Crane:
    def _crane(self, place: Place, *argv: str) -> str:
        return run([str(crane()), *argv], place.env)

    def copy(self, place: Place, source: str, target: str) -> None:
        self._crane(place, "copy", source, target)

    def to_layout(self, place: Place, source: str, folder: Path) -> None:
        self._crane(place, "pull", "--format=oci", source, str(folder))

    def from_layout(self, place: Place, folder: Path, root: oci.Descriptor, target: str) -> None:
        self._crane(place, "push", str(folder), target)

    def from_archive(self, place: Place, file: Path, root: oci.Descriptor, target: str) -> None:
        # It knows layouts as folders, and no archives but Docker's.
        folder = place.home / "unpacked"
        folder.mkdir()
        run(["tar", "-C", str(folder), "-xf", str(file)], place.env)
        self.from_layout(place, folder, root, target)

    def to_archive(self, place: Place, source: str, file: Path) -> None:
        self.to_layout(place, source, place.home / "packed")
        pack(place.home / "packed", file)

    def seen(self, place: Place, source: str) -> Digest:
        return Digest.parse(self._crane(place, "digest", source).strip())


def pack(folder: Path, file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        archive.add(folder, ".")


@cache
def crane() -> Path:
    """Built from its Go module, once, into the user's cache."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uklimg-crane"
    folder = cached / CRANE.rpartition("@")[2]
    folder.mkdir(parents=True, exist_ok=True)
    with locks.locked(folder / "lock"):
        if not (folder / "crane").exists():
            run(["go", "install", CRANE], {**os.environ, "GOBIN": str(folder)})
    return folder / "crane"


CLIENTS: dict[str, Skopeo | Oras | Crane] = {
    "skopeo": Skopeo("skopeo"),
    "skopeo-trixie": Skopeo(trixie("skopeo")),
    "oras": Oras(),
    # A machine without Go has one client less.
    **({"crane": Crane()} if shutil.which("go") else {}),
}
EACH = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


# --- what they are given


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("deployed"), [("ada", "correct horse")], quick=True) as running:
        yield running


@pytest.fixture
def place(registry: Deployed, tmp_path: Path) -> Place:
    return Place(registry, registry.home(tmp_path / "home", "ada", "correct horse"))


@dataclass(frozen=True)
class World:
    """An image in a store of its own, and in the registry under ``name``."""

    place: Place
    uklimg: Command
    name: str
    root: oci.Descriptor

    def ref(self, name: str) -> str:
        return f"{self.name.rpartition('/')[0]}/{name}"

    def pulled(self, name: str) -> Digest:
        """What a store with nothing in it gets; everything of it was verified."""
        folder = self.uklimg.cwd / f"store-{len(list(self.uklimg.cwd.iterdir()))}"
        done = self.uklimg("pull", name, UKLIMG_STORE=str(folder))
        assert done.status == 0, done.err
        root = Store(folder).tags()[name]
        Store(folder).verify(root)
        return root.digest


@pytest.fixture
def world(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> World:
    work = tmp_path / "work"
    work.mkdir()
    uklimg = Command(work, {**place.env, "UKLIMG_STORE": str(tmp_path / "store")})
    title = re.sub(r"[^a-z0-9]+", "-", request.node.name).strip("-")
    name = f"{place.registry.host}/{title}/ours:1"
    root = add_image(uklimg.store, tmp_path, name, labels={"title": title}, cmd=("redis-server", "/etc/redis.conf"))
    done = uklimg("push", name)
    assert done.status == 0, done.err
    return World(place, uklimg, name, root)


def blob_names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "blobs/sha256").iterdir() if path.is_file()}


@EACH
def test_copies_keep_every_digest(world: World, client: Skopeo | Oras | Crane, tmp_path: Path) -> None:
    copied, back = world.ref("copied:1"), world.ref("back:1")
    client.copy(world.place, world.name, copied)
    assert client.seen(world.place, copied) == client.seen(world.place, world.name) == world.root.digest
    assert world.pulled(copied) == world.root.digest
    client.to_layout(world.place, copied, tmp_path / "layout")
    assert blob_names(tmp_path / "layout") == {blob.digest.hex for blob in world.uklimg.store.closure(world.root)}
    client.from_layout(world.place, tmp_path / "layout", world.root, back)
    assert world.pulled(back) == world.root.digest


@EACH
def test_archives_go_both_ways(world: World, client: Skopeo | Oras | Crane, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    assert world.uklimg("save", "-o", str(ours), world.name).status == 0
    sent = world.ref("sent:1")
    client.from_archive(world.place, ours, world.root, sent)
    assert world.pulled(sent) == world.root.digest
    client.to_archive(world.place, sent, theirs)
    store = tmp_path / "loaded"
    loaded = world.uklimg("load", "-i", str(theirs), "--format", "json", UKLIMG_STORE=str(store))
    assert loaded.status == 0, loaded.err
    assert str(world.root.digest) in {one["digest"] for one in json.loads(loaded.out)}
    Store(store).verify(world.root)


@pytest.mark.parametrize("program", ["skopeo", trixie("skopeo")], ids=["skopeo", "skopeo-trixie"])
def test_umoci_unpacks_what_skopeo_took_out(world: World, program: str, tmp_path: Path) -> None:
    Skopeo(program).one_platform(world.place, world.name, tmp_path / "layout")
    umoci = trixie("umoci")
    assert run([umoci, "ls", "--layout", str(tmp_path / "layout")], world.place.env).split() == ["it"]
    stat = json.loads(run([umoci, "stat", "--json", "--image", f"{tmp_path / 'layout'}:it"], world.place.env))
    assert [line["created_by"] for line in stat["history"]] == [
        *(f"uklimg {role}" for role in oci.PATHS),
        "uklimg /urunc.json",
    ]
    run([umoci, "unpack", "--image", f"{tmp_path / 'layout'}:it", str(tmp_path / "bundle")], world.place.env)
    rootfs = tmp_path / "bundle/rootfs"
    for role, path in oci.PATHS.items():
        assert (rootfs / path[1:]).read_bytes() == role.encode() * 100
    spec = json.loads((tmp_path / "bundle/config.json").read_text())
    # urunc takes the command from here, and the rest from the annotations, or the file beside the kernel.
    assert spec["process"]["args"] == ["/ukl/redis-server", "/etc/redis.conf"]
    assert "com.urunc.unikernel.binary" in json.loads((rootfs / "urunc.json").read_text())


def test_podman(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    # Podman refuses a runroot of more than 50 characters, which pytest's own folders reach.
    short = tempfile.TemporaryDirectory(prefix="uklimg-", dir="/var/tmp")
    request.addfinalizer(short.cleanup)

    def podman(*argv: str) -> str:
        storage = ["--root", str(tmp_path / "root"), "--runroot", short.name, "--storage-driver", "vfs"]
        return run(["podman", *storage, "--events-backend", "file", "--cgroup-manager", "cgroupfs", *argv], env)

    settings = tmp_path / "containers.conf"
    settings.write_text("[containers]\ndefault_ulimits = []\n")
    policy = world.place.home / ".config/containers/policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    env = {**world.place.env, "CONTAINERS_CONF": str(settings)}
    podman("pull", "--cert-dir", world.place.certificates, world.name)
    (seen,) = json.loads(podman("image", "inspect", world.name))
    assert seen["Digest"] == str(world.root.digest)
    (linux, *_) = oci.parse_index(world.uklimg.store.read_blob(world.root.digest)).manifests
    digests = {name.partition("@")[2] for name in seen["RepoDigests"]}
    assert digests == {str(world.root.digest), str(linux.digest)}
    assert (seen["Os"], seen["Architecture"]) == ("linux", "amd64")
    assert seen["Labels"]["com.urunc.unikernel.hypervisor"] == "qemu"
    # What it unpacks is what went in.
    container = podman("create", world.name).strip()
    podman("export", "-o", str(tmp_path / "files.tar"), container)
    with tarfile.open(tmp_path / "files.tar") as archive:
        for role, path in oci.PATHS.items():
            content = archive.extractfile(path[1:])
            assert content is not None and content.read() == role.encode() * 100
    podman("rm", container)
    # An archive of ours; one of podman's, which knows one platform, of which we make the same image.
    podman("rmi", world.name)
    saved, written = tmp_path / "ours.tar", tmp_path / "podmans.tar"
    assert world.uklimg("save", "-o", str(saved), world.name).status == 0
    assert world.name in podman("load", "-i", str(saved))
    podman("save", "--format", "oci-archive", "--uncompressed", "-o", str(written), world.name)
    store = {"UKLIMG_STORE": str(tmp_path / "from-podman")}
    loaded = world.uklimg("load", "-i", str(written), **store)
    assert loaded.status == 0, loaded.err
    told = json.loads(world.uklimg("inspect", world.name, "--format", "json", **store).out)
    assert told["program"] == "redis-server"
    other = Store(tmp_path / "from-podman")
    image = oci.read_image(lambda blob: other.read_blob(blob.digest), other.tags()[world.name])
    ours = oci.read_image(lambda blob: world.uklimg.store.read_blob(blob.digest), world.root)
    for role in oci.PATHS:
        assert image.file(role).digest == ours.file(role).digest
        assert boot_file(other, image, role).read_bytes() == role.encode() * 100
    # Back in a registry: the layers are the same blobs, the manifest is podman's.
    pushed = world.ref("podmans:1")
    podman("push", "--cert-dir", world.place.certificates, world.name, pushed)
    world.pulled(pushed)


# --- boots


@dataclass(frozen=True)
class Guest:
    """The example's files as a runtime finds them."""

    kernel: Path
    initrd: Path

    def boot(self, *argv: str, until: Callable[[str], bool] = lambda text: False) -> str:
        """The console of QEMU, which ends by itself or once ``until`` has seen enough."""
        command = ["qemu-system-x86_64", "-kernel", str(self.kernel), "-initrd", str(self.initrd), *argv]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            try:
                return listen(process, until)
            finally:
                process.terminate()


def listen(process: subprocess.Popen[bytes], until: Callable[[str], bool]) -> str:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line.decode(errors="replace").replace("\r", "")
        if until(text):
            return text
    return text


@pytest.fixture(scope="module")
def example() -> tuple[Store, oci.Image]:
    """What tests/conftest.py built before the first boot test."""
    store = Store(read_settings(os.environ, Path.cwd()).store)
    root = store.tags()["uklimg-test/example:base"]
    return store, oci.read_image(lambda blob: store.read_blob(blob.digest), root)


@pytest.fixture(scope="module")
def guest(example: tuple[Store, oci.Image]) -> Guest:
    return Guest(*(boot_file(*example, role) for role in (oci.VMLINUX, oci.INITRAMFS)))


@pytest.mark.boot
def test_urunc_boots_it(guest: Guest, example: tuple[Store, oci.Image]) -> None:
    """The command line and the flags of urunc for a Linux guest with an initrd, without a network."""
    program, *_ = example[1].config.cmd
    words = f"panic=-1 console=ttyS0 root=/dev/ram0 rw URUNIT_DEFROUTE=1 rdinit={program} -- --version"
    flags = ("-m", "256M", "-cpu", "max", "-no-reboot", "-serial", "stdio", "-nodefaults", "-display", "none")
    assert re.search(r"^Redis server v=[0-9]", guest.boot(*flags, "-append", words), re.MULTILINE)


@pytest.mark.boot
def test_kraftkit_boots_it(guest: Guest, tmp_path: Path) -> None:
    """As `kraft run` starts QEMU for a guest with a network: parameters that mean nothing to Linux, "--", and the
    command of the qemu/x86_64 manifest; the console is a file, and no parameter says which."""
    flags = ("-m", "256M", "-cpu", "max", "-no-reboot", "-nodefaults", "-display", "none", "-machine", "pc")
    log = tmp_path / "machine.log"
    words = "netdev.ip=172.44.0.2/24:172.44.0.1:::unikernel: -- --version"
    guest.boot(*flags, "-rtc", "base=utc", "-parallel", "none", "-serial", f"file:{log}", "-append", words)
    assert re.search(r"^Redis server v=[0-9]", log.read_text(), re.MULTILINE)


def lines_of(heading: str) -> str:
    """The commands below a heading of the docs."""
    text = DOCS.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))


@pytest.mark.boot
def test_the_docs_lines_boot_what_oras_pulled(place: Place, example: tuple[Store, oci.Image], tmp_path: Path) -> None:
    """The page's very lines, but for the names of the registry and of the port."""
    store, image = example
    name = f"{place.registry.host}/docs/redis:8"
    uklimg = Command(tmp_path, {**place.env, "UKLIMG_STORE": str(store.root)})
    pushed = uklimg("push", "uklimg-test/example:base", name)
    assert pushed.status == 0, pushed.err
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = lines_of("By hand, without uklimg")
    assert script.count("registry.example/redis:8") == 1 and script.count("127.0.0.1:6379") == 1
    script = script.replace("registry.example/redis:8", name).replace("127.0.0.1:6379", f"127.0.0.1:{port}")
    # bash gives its place to QEMU, so that the process that is ended is the one that runs.
    script = script.replace("qemu-system-x86_64 ", "exec qemu-system-x86_64 ")
    work = tmp_path / "by-hand"
    work.mkdir()
    env = {**place.env, "PATH": f"{Path(trixie('oras')).parent}:{os.environ['PATH']}"}
    argv = ["bash", "-euo", "pipefail", "-c", script]
    with subprocess.Popen(argv, cwd=work, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            console = listen(process, lambda text: "Ready to accept connections" in text)
            assert "Ready to accept connections" in console
            assert ping(port) == b"+PONG\r\n"
        finally:
            process.terminate()
    with (work / "vmlinux.tar").open("rb") as file:
        assert layer.file_size(file.read(512), "/unikraft/bin/kernel", image.file(oci.VMLINUX).size) > 1 << 20


def ping(port: int) -> bytes:
    for _ in range(600):
        try:
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(b"PING\r\n")
                if answer := connection.recv(100):
                    return answer
        except OSError:
            pass
        time.sleep(0.1)
    return b""
