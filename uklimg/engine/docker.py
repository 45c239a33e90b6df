"""Steps in containers of a Docker or Podman that serves the Docker Engine API on a socket.

Images and containers have names of our own, which differ from store to store: the user's stay untouched. A step's
container ends when the connection to it does, so nothing runs on when we get SIGKILL; what such a death leaves (a
container that has ended, an image) the next run removes: a locked file says which owners are alive.

The engine must see our files, because inputs and the log are mounted from them. One on another machine does not, and
is refused. What a step makes comes back through the API, so it does not matter as which users of this machine the
container's run.
"""

from __future__ import annotations

import os
import posixpath
import select
import shutil
import socket
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from uklimg import locks, proc
from uklimg.digest import Digest
from uklimg.engine.archive import (
    Small,
    folder_archive,
    image_archive,
    lacking,
    mentioned,
    read_manifest,
    read_small,
    smalls_archive,
    top_layer,
    unpack_output,
    whiteout,
    without,
)
from uklimg.engine.base import ENGINE_PATHS, LOG, OUT, Job, JobResult, Line, Rootfs
from uklimg.engine.containers import (
    GO,
    INTRUDERS,
    Wanted,
    docker_body,
    intruders,
    podman_body,
    prepare_cmd,
    processor_list,
)
from uklimg.engine.output import Follower, log_mount
from uklimg.errors import ExitCode, ToolError
from uklimg.graph import Kind

# docker.APIClient; the package is large, and imported when the first step runs.
_Client: TypeAlias = Any

_POLL = 0.1  # seconds between looks at a step's log
_LOOK = 20  # polls between looks whether the container still runs
_TIMEOUT = 600  # seconds for one answer; loading a large image takes a while
HINT = "apt-get install docker.io, or podman and start its podman.socket; DOCKER_HOST says where another socket is"
# Where Docker and Podman listen, the latter two below XDG_RUNTIME_DIR.
SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")
_USER_SOCKETS = ("docker.sock", "podman/podman.sock")


def find_socket(environ: Mapping[str, str]) -> str:
    """DOCKER_HOST, or the first socket that there is; "" when there is none."""
    if environ.get("DOCKER_HOST"):
        return environ["DOCKER_HOST"]
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    own = [Path(runtime, name) for name in _USER_SOCKETS] if runtime else []
    for path in (*own, *map(Path, SOCKETS)):
        if path.is_socket() and os.access(path, os.W_OK):
            return f"unix://{path}"
    return ""


@dataclass(frozen=True)
class _Facts:
    """What does not change about an engine."""

    version: str
    podman: bool
    cpuset: bool


@dataclass(frozen=True)
class _Daemon:
    """A connection, for one thread at a time."""

    api: _Client
    host: str
    facts: _Facts

    @property
    def podman(self) -> bool:
        return self.facts.podman

    @property
    def docker_url(self) -> str:
        return f"{self.api.base_url}/v{self.facts.version}"

    @property
    def podman_url(self) -> str:
        return f"{self.api.base_url}/v4.0.0/libpod"


class DockerEngine:
    """The engine; ``root`` is a folder of its own for locks and temporary files, on a disk with room; ``environ`` the
    caller's environment (of which DOCKER_HOST, DOCKER_TLS_VERIFY, DOCKER_CERT_PATH and XDG_RUNTIME_DIR are used)."""

    name = "docker"

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self._root = root.absolute()
        self._live = self._root / "live"
        self._environ = environ
        self._store = Digest.of(os.fsencode(self._root)).hex[:12]
        self._image = f"localhost/uklimg-{self._store}"
        self._commit = f"localhost/uklimg-commit-{self._store}"
        self._setup_lock = threading.Lock()
        self._facts: _Facts | None = None
        self._swept = False

    # Contract of Engine

    def run(self, job: Job, on_line: Line, cancel: threading.Event | None = None) -> JobResult:
        with self._connected() as daemon, self._container(daemon) as (container, work):
            self._import(daemon, job.rootfs)
            removed = self._find_intruders(job)
            self._create(daemon, container, job)
            kept = () if daemon.podman else self._restore(daemon, container, job, removed)
            self._execute(daemon, container, removed, job, on_line, cancel)
            if job.kind is Kind.TREE:
                self._fetch_output(daemon, container, job)
                return JobResult()
            layer = self._export(daemon, container, job, work, kept)
            folders = {posixpath.dirname(file.name) for file in kept}
            mounts = (LOG.strip("/"), *(mount.target.strip("/") for mount in job.mounts))
            return JobResult(layer, (*ENGINE_PATHS, *mounts, *map(whiteout, removed), *folders))

    def prune(self, keep: Collection[Digest]) -> None:
        wanted = {f"{self._image}:{digest.hex}" for digest in keep}
        with self._connected() as daemon:
            for image in daemon.api.images(name=self._image):
                for name in image.get("RepoTags") or ():
                    if name.startswith(f"{self._image}:") and name not in wanted:
                        daemon.api.remove_image(name, force=True)

    # Connecting

    @contextmanager
    def _connected(self) -> Iterator[_Daemon]:
        """A connection; the first one of a process also removes what killed builds left."""
        import docker
        import requests

        host = find_socket(self._environ)
        if not host:
            raise ToolError("no Docker or Podman listens on a socket here", hint=HINT)
        daemon = self._connect(host)
        try:
            self._sweep(daemon)
            yield daemon
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise ToolError(f"{_kind(host)}: {_reason(error)}") from error
        finally:
            daemon.api.close()

    def _connect(self, host: str) -> _Daemon:
        import docker
        from docker.utils import kwargs_from_env

        with self._setup_lock:
            facts = self._facts
            try:
                tls = kwargs_from_env(environment=dict(self._environ)).get("tls", False)
                version = facts.version if facts else "auto"
                api = docker.APIClient(base_url=host, version=version, timeout=_TIMEOUT, tls=tls)
                if facts is None:
                    parts = api.version().get("Components") or [{}]
                    podman = "Podman" in str(parts[0].get("Name", ""))
                    facts = self._facts = _Facts(api.api_version, podman, bool(api.info().get("CPUSet", False)))
            except Exception as error:  # its transports raise what they like, about odd addresses too
                raise ToolError(f"no Docker or Podman answers at {host}: {_reason(error)}", hint=HINT) from error
        return _Daemon(api, host, facts)

    def _sweep(self, daemon: _Daemon) -> None:
        with self._setup_lock:
            if self._swept:
                return
            try:
                self._live.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ToolError(f"cannot write below {self._root}: {error.strerror}") from error
            for lock in sorted(self._live.glob("*.lock")):
                with locks.abandoned(lock) as abandoned:
                    if abandoned:
                        self._discard(daemon, lock.stem, lock.with_suffix(""), lock)
            self._swept = True

    @contextmanager
    def _container(self, daemon: _Daemon) -> Iterator[tuple[str, Path]]:
        """A name for a container and a folder for temporary files; both are gone at the end."""
        container = f"uklimg-{uuid.uuid4().hex}"
        work, lock = self._live / container, self._live / f"{container}.lock"
        fd = locks.create_locked(lock)
        try:
            work.mkdir()
            yield container, work
        finally:
            self._discard(daemon, container, work, lock)
            os.close(fd)

    def _discard(self, daemon: _Daemon, container: str, work: Path, lock: Path) -> None:
        """Remove a container, dead or alive, its folder and the image made of it; the lock last, so that what cannot
        be removed now is tried again."""
        import docker
        import requests

        try:
            with suppress(docker.errors.NotFound):
                daemon.api.remove_container(container, force=True, v=True)
            with suppress(docker.errors.NotFound):
                daemon.api.remove_image(f"{self._commit}:{container}", force=True)
        except (docker.errors.DockerException, requests.RequestException):
            return
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            lock.unlink(missing_ok=True)

    # Images in and out

    def _import(self, daemon: _Daemon, rootfs: Rootfs) -> None:
        """Give the engine the image, unless it has it."""
        import docker

        name = f"{self._image}:{rootfs.manifest.hex}"
        with locks.locked(self._root / "import.lock"):
            if _exists(daemon, name):
                return
            manifest = read_manifest(rootfs.layout, rootfs.manifest)
            if len(manifest.layers) > 1 and not daemon.podman:
                # Docker takes an archive without layers that it has, which saves copying them for each step. It
                # refuses one without a layer that it lacks.
                known = len(manifest.layers) - 1
                with suppress(docker.errors.APIError, ToolError):
                    self._load(daemon, image_archive(rootfs.layout, manifest, name, known))
            if not _exists(daemon, name):
                self._load(daemon, image_archive(rootfs.layout, manifest, name))
            if not _exists(daemon, name):
                raise ToolError(f"{_kind(daemon.host)} loaded an image and does not have it")

    @staticmethod
    def _load(daemon: _Daemon, archive: Iterator[bytes]) -> None:
        for answer in daemon.api.load_image(archive):
            if "error" in answer:
                raise ToolError(f"{_kind(daemon.host)} cannot load an image: {answer['error']}")

    def _export(self, daemon: _Daemon, container: str, job: Job, work: Path, kept: Collection[Small]) -> Path:
        """The container's changes as a tar below the job's output folder; ``kept`` is none unless it was changed."""
        daemon.api.commit(container, repository=self._commit, tag=container)
        saved = work / "saved.tar"
        with saved.open("wb") as file:
            for piece in daemon.api.get_image(f"{self._commit}:{container}"):
                file.write(piece)
        result, changes = job.output / "layer.tar", work / "changes.tar"
        top_layer(saved, read_manifest(job.rootfs.layout, job.rootfs.manifest), changes if kept else result)
        if kept:
            without(changes, kept, result)
        return result

    @staticmethod
    def _fetch_output(daemon: _Daemon, container: str, job: Job) -> None:
        pieces, _ = daemon.api.get_archive(container, OUT)
        unpack_output(pieces, OUT.strip("/"), job.output)

    # Running

    def _create(self, daemon: _Daemon, container: str, job: Job) -> None:
        image = f"{self._image}:{job.rootfs.manifest.hex}"
        processors = processor_list(os.sched_getaffinity(0), os.cpu_count() or 1) if daemon.facts.cpuset else ""
        wanted = Wanted(job, image, (*job.mounts, log_mount(job)), self._store, processors)
        api = daemon.api
        if daemon.podman:
            made = api.post(f"{daemon.podman_url}/containers/create", json=podman_body(wanted, container))
        else:
            body = docker_body(wanted)
            made = api.post(f"{daemon.docker_url}/containers/create", json=body, params={"name": container})
        if not made.ok:
            raise self._refused(daemon, job, made.text)
        if job.kind is Kind.TREE:
            api.put_archive(container, "/", folder_archive(OUT.strip("/")))

    def _find_intruders(self, job: Job) -> tuple[str, ...]:
        """What the engine will add to the image that has to go again, relative to the root."""
        layers = read_manifest(job.rootfs.layout, job.rootfs.manifest).layers
        return lacking([self._mentioned(job.rootfs.layout, layer.digest) for layer in layers], intruders(job.network))

    def _restore(self, daemon: _Daemon, container: str, job: Job, removed: Collection[str]) -> tuple[Small, ...]:
        """Docker hides files of the image under what it adds: those are put into the container again."""
        names = [name for name in intruders(job.network) if name not in removed]
        if not names:
            return ()
        blobs = job.rootfs.layout / "blobs" / "sha256"
        layers = [blobs / layer.digest.hex for layer in read_manifest(job.rootfs.layout, job.rootfs.manifest).layers]
        kept = tuple(read_small(layers, name) for name in names)
        daemon.api.put_archive(container, "/", smalls_archive(kept))
        return kept

    def _mentioned(self, layout: Path, layer: Digest) -> Sequence[str]:
        """What the layer says about intruders; reading a large one takes a second, so that it is noted."""
        note = self._root / "layers" / layer.hex
        try:
            return note.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            found = mentioned(layout / "blobs" / "sha256" / layer.hex, INTRUDERS)
        note.parent.mkdir(exist_ok=True)
        temporary = note.with_name(f".{uuid.uuid4().hex}")
        temporary.write_text("\n".join(found), encoding="utf-8")
        temporary.rename(note)
        return found

    def _execute(
        self,
        daemon: _Daemon,
        container: str,
        removed: Sequence[str],
        job: Job,
        on_line: Line,
        cancel: threading.Event | None,
    ) -> None:
        import docker

        try:
            connection = _attach(daemon, container)
            daemon.api.start(container)
        except docker.errors.APIError as error:
            raise self._refused(daemon, job, _reason(error)) from error
        try:
            with Follower(job.log, on_line) as output:
                self._prepare_container(daemon, container, removed)
                connection.sendall(GO)
                said = self._wait(daemon, container, connection, output, cancel)
                status = int(daemon.api.wait(container)["StatusCode"])
                output.poll()
                if status != 0:
                    output.add(said)
        finally:
            connection.close()
        if status != 0:
            raise ToolError(
                f"{job.name}: the command {proc.describe(status)}; the whole log is {job.log}",
                exit_code=ExitCode.STEP,
                detail=output.tail,
            )

    @staticmethod
    def _prepare_container(daemon: _Daemon, container: str, removed: Sequence[str]) -> None:
        made = daemon.api.exec_create(container, prepare_cmd(removed), user="0:0", workdir="/")
        said = daemon.api.exec_start(made["Id"])
        if daemon.api.exec_inspect(made["Id"])["ExitCode"] != 0:
            detail = said.decode("utf-8", "replace")
            raise ToolError(f"{_kind(daemon.host)} cannot prepare a container", detail=detail)

    @staticmethod
    def _wait(
        daemon: _Daemon, container: str, connection: socket.socket, output: Follower, cancel: threading.Event | None
    ) -> list[str]:
        """Until the container has ended, or is about to; what the engine itself said on the connection."""
        said = bytearray()
        polls = 0
        while True:
            readable, _, _ = select.select([connection], [], [], _POLL)
            output.poll()
            if cancel is not None and cancel.is_set():
                raise KeyboardInterrupt
            piece = connection.recv(1 << 16) if readable else b""
            said += piece
            polls += 1
            ended = bool(readable and not piece)
            if not ended and polls % _LOOK == 0:
                ended = not daemon.api.inspect_container(container)["State"]["Running"]
            if ended:
                return [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]

    @staticmethod
    def _refused(daemon: _Daemon, job: Job, answer: str) -> ToolError:
        """Why no container was made or started."""
        sources = [str(mount.source) for mount in job.mounts] + [str(job.log)]
        if any(source in answer for source in sources) and all(Path(source).exists() for source in sources):
            return ToolError(
                f"the container engine at {daemon.host} does not see this machine's files",
                hint="builds need an engine on the same machine, or --engine buildah",
                detail=answer.strip(),
            )
        return ToolError(f"{_kind(daemon.host)} makes no container: {answer.strip()}")


def _attach(daemon: _Daemon, container: str) -> socket.socket:
    """The container's input and outputs."""
    found: Any = daemon.api.attach_socket(container, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    connection: socket.socket = getattr(found, "_sock", found)
    return connection


def _exists(daemon: _Daemon, image: str) -> bool:
    import docker

    try:
        daemon.api.inspect_image(image)
    except docker.errors.NotFound:
        return False
    return True


def _kind(host: str) -> str:
    return f"the container engine at {host}"


def _reason(error: Exception) -> str:
    """The engine's own words, on one line."""
    text = str(getattr(error, "explanation", "") or error)
    return " ".join(text.split())
