"""What tests of container engines share: a store with a tiny root file system, and the ways to run a step in it.

Docker and Podman run as daemons of the tests' own, with folders of their own, and are ended by their process id.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from uklimg import oci
from uklimg.digest import Digest
from uklimg.engine.base import Engine, Job, Rootfs
from uklimg.engine.buildah import BuildahEngine
from uklimg.engine.commands import CHROOT, OCI
from uklimg.engine.docker import DockerEngine
from uklimg.graph import Kind
from uklimg.store import StepResult, Store

BUSYBOX = Path("/bin/busybox")
BASE = Digest.of(b"busybox base")
ENVIRON = {"PATH": os.environ["PATH"], "SECRET_OF_THE_HOST": "1", "http_proxy": "http://proxy.invalid"}
DOCKER, PODMAN = "docker", "podman"
WAYS = (OCI, CHROOT, DOCKER, PODMAN)

# Podman of Debian 12 as root where control groups are mixed and limits cannot be raised.
_CONTAINERS_CONF = """
[containers]
default_ulimits = []
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"""


def write_base(path: Path) -> None:
    """A tar with busybox, its applets, and a few files that any system has."""
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, check=True, text=True).stdout.split()
    with tarfile.open(path, "w") as archive:

        def add(name: str, kind: bytes, mode: int, link: str = "", content: Path | None = None) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname, info.mtime = kind, mode, link, oci.EPOCH
            if content is None:
                archive.addfile(info)
            else:
                info.size = content.stat().st_size
                with content.open("rb") as file:
                    archive.addfile(info, file)

        for folder in ("bin", "etc", "root", "usr"):
            add(folder, tarfile.DIRTYPE, 0o755)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        passwd = path.with_name("passwd")
        passwd.write_text("root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1000::/:/bin/sh\n")
        add("etc/passwd", tarfile.REGTYPE, 0o644, content=passwd)
        add("bin/busybox", tarfile.REGTYPE, 0o755, content=BUSYBOX)
        for applet in applets:
            if applet != "busybox":
                add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, "busybox")


@dataclass(frozen=True)
class Way:
    """A way to run steps: buildah with one isolation, or a daemon (``socket``). ``environ`` is what it needs."""

    name: str
    socket: Path | None = None

    @property
    def environ(self) -> Mapping[str, str]:
        return ENVIRON if self.socket is None else {**ENVIRON, "DOCKER_HOST": f"unix://{self.socket}"}

    def engine(self, root: Path) -> Engine:
        if self.socket is None:
            return BuildahEngine(root, self.environ, isolation=self.name or None)
        return DockerEngine(root / "docker", self.environ)

    def ask(self) -> Any:
        """A client of the daemon."""
        import docker

        return docker.APIClient(base_url=f"unix://{self.socket}", version="auto")


class Bench:
    """A store with the base in it, and an engine."""

    def __init__(self, root: Path, way: Way) -> None:
        self.store = Store(root)
        self.way = way
        self.engine = way.engine(self.store.root / "engine")
        base = self.store.lookup(BASE)
        if base is None:
            write_base(root / "base.tar")
            base = self.store.commit_rootfs(BASE, root / "base.tar", {})
        self.base = base

    def job(self, script: str, output: Path, base: StepResult | None = None, **more: Any) -> Job:
        rootfs = Rootfs(*self.store.rootfs_layout(base or self.base))
        return Job("step", rootfs, ("sh", "-euc", script), output, output.with_name("log"), **more)

    def tree(self, script: str, **more: Any) -> tuple[list[str], dict[str, str]]:
        """Run a TREE step; its output lines, and the files it left."""
        lines: list[str] = []
        with self.store.session(), self.store.scratch() as folder:
            (folder / "out").mkdir()
            self.engine.run(self.job(script, folder / "out", **more), lines.append)
            assert (folder / "log").read_text() == "".join(f"{line}\n" for line in lines)
            made = {p.relative_to(folder / "out").as_posix(): p for p in (folder / "out").rglob("*") if p.is_file()}
            return lines, {name: path.read_text() for name, path in made.items()}

    def rootfs(self, script: str, name: str, base: StepResult | None = None, **more: Any) -> StepResult:
        """Run a ROOTFS step and store its result."""
        base = base or self.base
        with self.store.session(), self.store.scratch() as folder:
            (folder / "out").mkdir()
            job = self.job(script, folder / "out", base, kind=Kind.ROOTFS, **more)
            result = self.engine.run(job, lambda line: None)
            assert result.layer is not None
            key = Digest.of(name.encode())
            return self.store.commit_rootfs(key, result.layer, {}, base=base, drop=result.drop)

    def names(self, result: StepResult) -> list[str]:
        with tarfile.open(self.store.blob_path(result.layer.digest)) as archive:
            return archive.getnames()

    def containers(self) -> Sequence[str]:
        """Those of this store, dead ones too."""
        if self.way.socket is not None:
            label = f"org.uklimg.store={Digest.of(os.fsencode(self._folder)).hex[:12]}"
            return [found["Id"] for found in self.way.ask().containers(all=True, filters={"label": label})]
        folder = self._folder / "overlay"
        argv = ["buildah", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "containers", "--quiet"]
        return subprocess.run(argv, capture_output=True, check=True, encoding="utf-8").stdout.split()

    def images(self) -> str:
        """The names of this store's images."""
        if self.way.socket is not None:
            store = Digest.of(os.fsencode(self._folder)).hex[:12]
            names = [name for image in self.way.ask().images() for name in image["RepoTags"] or ()]
            return " ".join(name for name in names if store in name)
        folder = self._folder / "overlay"
        argv = ["buildah", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "images"]
        argv += ["--format", "{{.Name}}:{{.Tag}}"]
        names = subprocess.run(argv, capture_output=True, check=True, encoding="utf-8").stdout.split()
        return " ".join(name for name in names if name.startswith("localhost/uklimg:"))

    def leftovers(self) -> list[Path]:
        return list((self._folder / "live").iterdir())

    @property
    def _folder(self) -> Path:
        engine = self.store.root / "engine"
        return engine if self.way.socket is None else engine / "docker"


# Daemons


@contextmanager
def _daemon(argv: Sequence[str], socket: Path, environ: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run a daemon until its socket is there, and as long as the caller wants."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ, start_new_session=True
        )
    try:
        wait_for(lambda: socket.exists() or process.poll() is not None)
        if process.poll() is not None:
            pytest.fail(f"{argv[0]} has ended:\n{log.read_text()}")
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def _own_folder(name: str) -> Iterator[Path]:
    """Short, because sockets in it have long names; on a file system on which overlays can be stacked."""
    folder = Path(tempfile.mkdtemp(prefix=f"uklimg-{name}-", dir="/var/tmp"))
    try:
        yield folder
    finally:
        # Daemons leave mounts: dockerd that of the host's network, podman those of images.
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
            subprocess.run(["umount", mount], check=True)
        shutil.rmtree(folder)


@contextmanager
def running_dockerd(hides: Path | None = None) -> Iterator[Way]:
    """``hides`` is a folder that it shall not see."""
    with _own_folder(DOCKER) as folder:
        socket = folder / "docker.sock"
        (folder / "daemon.json").write_text("{}")
        argv = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-p", f"{folder}/pid"]
        argv += ["-H", f"unix://{socket}", "--config-file", f"{folder}/daemon.json", "--iptables=false"]
        argv += ["--ip6tables=false", "--bridge=none"]
        if hides is not None:
            script = 'mount -t tmpfs tmpfs "$1"; shift; exec "$@"'
            argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", str(hides), *argv]
        with _daemon(argv, socket, dict(os.environ), folder / "log"):
            yield Way(DOCKER, socket)


@contextmanager
def running_podman() -> Iterator[Way]:
    with _own_folder(PODMAN) as folder:
        socket = folder / "podman.sock"
        (folder / "containers.conf").write_text(_CONTAINERS_CONF)
        storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
        (folder / "storage.conf").write_text(storage)
        (folder / "tmp").mkdir()
        environ = {
            **os.environ,
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "TMPDIR": f"{folder}/tmp",
        }
        command = ["podman", "--tmpdir", f"{folder}/libpod"]
        argv = [*command, "system", "service", "--time=0", f"unix://{socket}"]
        with _daemon(argv, socket, environ, folder / "log"):
            yield Way(PODMAN, socket)
            subprocess.run([*command, "rm", "--all", "--force"], env=environ, check=True, capture_output=True)


# Waiting


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(1200):
        if condition():
            return
        pause.wait(0.05)
    pytest.fail("it did not happen within a minute")


def running(mark: str) -> list[int]:
    """Processes with ``mark`` as an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


# Steps in processes of their own

_CHILD = "import sys; sys.path.insert(1, sys.argv[1]); import enginelib; enginelib.run_step(sys.argv[2:])"


def step_argv(bench: Bench, name: str, script: str) -> list[str]:
    """A command that makes the ROOTFS step ``name`` unless the store has it."""
    way = bench.way
    argv = [str(bench.store.root), name, script, way.name, str(way.socket or "")]
    return [sys.executable, "-c", _CHILD, str(Path(__file__).parent), *argv]


def run_step(argv: Sequence[str]) -> None:
    root, name, script, way, socket = argv
    bench = Bench(Path(root), Way(way, Path(socket) if socket else None))
    store, key = bench.store, Digest.of(name.encode())
    with store.session(), store.key_lock(key):
        if store.lookup(key) is None:
            with store.scratch() as folder:
                (folder / "out").mkdir()
                job = bench.job(script, folder / "out", kind=Kind.ROOTFS)
                result = bench.engine.run(job, lambda line: print(line, flush=True))
                assert result.layer is not None
                store.commit_rootfs(key, result.layer, {}, base=bench.base, drop=result.drop)
