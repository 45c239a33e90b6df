"""Steps in containers of buildah, with a storage of our own (the user's images and containers stay untouched).

Every command of a step runs below ``unshare`` in namespaces of its own, which end with it: no process and no mount
outlives a step, not even when we get SIGKILL. Inside, runc isolates it, or where runc cannot run, buildah's chroot
isolation. Works as root; an ordinary user's commands go through ``buildah unshare``.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from uklimg import locks, oci, proc
from uklimg.digest import Digest
from uklimg.engine.archive import read_manifest
from uklimg.engine.base import ENGINE_PATHS, LOG, OUT, Job, JobResult, Line, Mount, Rootfs
from uklimg.engine.commands import (
    CHROOT,
    OCI,
    PROBE_STATUS,
    RUNTIME,
    Isolation,
    Storage,
    buildah_cmd,
    from_cmd,
    probe_job,
    run_cmd,
)
from uklimg.engine.output import Follower, log_mount
from uklimg.errors import ExitCode, ToolError
from uklimg.graph import Kind

_DRIVERS = ("overlay", "vfs")
_POLL = 0.1  # seconds between looks at a step's log
_CGROUPS = Path("/sys/fs/cgroup")
_IMAGE = "localhost/uklimg"
_COMMIT = "localhost/uklimg-commit"
_GZIP = f"{oci.LAYER}+gzip"

# What buildah and its helpers say about the end of a command, beside what the command said.
_NOISE = re.compile(
    r"Error: (while running runtime: )?exit status \d+"
    r"|subprocess exited with status \d+|(container|subprocess) exited on \w+"
)


class BuildahEngine:
    """The engine; ``root`` is a folder of its own on a disk with room, ``environ`` the caller's environment (of which
    PATH and XDG_RUNTIME_DIR are used). ``isolation`` is for tests: it is found out unless given."""

    name = "buildah"

    def __init__(self, root: Path, environ: Mapping[str, str], *, isolation: str | None = None) -> None:
        self._root = root.absolute()
        self._live = self._root / "live"
        self._environ = environ
        self._allowed = (isolation,) if isolation else (OCI, CHROOT)
        self._isolation: Isolation | None = None
        self._storage: Storage | None = None
        self._setup_lock = threading.Lock()
        self._probe_lock = threading.Lock()

    @property
    def isolation(self) -> str | None:
        """The isolation that works here; None before the first step."""
        return self._isolation.name if self._isolation else None

    # Contract of Engine

    def run(self, job: Job, on_line: Line, cancel: threading.Event | None = None) -> JobResult:
        storage = self._ready()
        with self._container(storage) as (container, work):
            self._import(storage, job.rootfs, work)
            image = f"{_IMAGE}:{job.rootfs.manifest.hex}"
            self._buildah(from_cmd(storage, container, image, network=job.network))
            isolation = self._working_isolation(storage, container, job, work)
            self._execute(storage, container, isolation, job, work, on_line, cancel)
            if job.kind is Kind.TREE:
                return JobResult()
            layer = self._export(storage, container, job, work, cancel)
            return JobResult(
                layer, (*ENGINE_PATHS, LOG.strip("/"), *(mount.target.strip("/") for mount in job.mounts))
            )

    def prune(self, keep: Collection[Digest]) -> None:
        storage = self._ready()
        wanted = {f"{_IMAGE}:{digest.hex}" for digest in keep}
        listing = self._buildah(buildah_cmd(storage, "images", "--json"))
        for image in json.loads(listing.text or "null") or ():
            if wanted.isdisjoint(image.get("names") or ()):
                self._buildah(buildah_cmd(storage, "rmi", "--force", str(image["id"])), check=False)

    # Setting up

    def _ready(self) -> Storage:
        """Configuration, storage driver, and what killed builds left, once a process."""
        with self._setup_lock:
            if self._storage is None:
                for program in ("buildah", "unshare"):
                    proc.find(program, self._env)
                self._configure()
                self._storage = self._find_driver()
                self._sweep(self._storage)
            return self._storage

    @property
    def _env(self) -> dict[str, str]:
        env = proc.host_env({"PATH": self._environ.get("PATH", "")}, TZ="UTC")
        env["HOME"] = str(self._root / "home")
        env["CONTAINERS_CONF"] = str(self._root / "containers.conf")
        env["CONTAINERS_STORAGE_CONF"] = str(self._root / "storage.conf")
        env["CONTAINERS_REGISTRIES_CONF"] = str(self._root / "registries.conf")
        env["TMPDIR"] = str(self._root / "tmp")
        if "XDG_RUNTIME_DIR" in self._environ:
            env["XDG_RUNTIME_DIR"] = self._environ["XDG_RUNTIME_DIR"]
        return env

    def _configure(self) -> None:
        """Files that stand between buildah and the host's configuration."""
        policy = self._root / "home" / ".config" / "containers" / "policy.json"
        try:
            for folder in (self._live, self._root / "tmp", policy.parent):
                folder.mkdir(parents=True, exist_ok=True)
            for path, text in (
                (self._root / "containers.conf", "[containers]\ndefault_ulimits = []\n"),
                (self._root / "storage.conf", '[storage]\ndriver = "overlay"\n'),
                (self._root / "registries.conf", "unqualified-search-registries = []\n"),
                (policy, '{"default":[{"type":"insecureAcceptAnything"}]}\n'),
            ):
                if not path.exists() or path.read_text() != text:
                    temporary = path.with_name(f".{uuid.uuid4().hex}")
                    temporary.write_text(text)
                    temporary.rename(path)
        except OSError as error:
            raise ToolError(f"cannot write below {self._root}: {error.strerror}") from error

    def _find_driver(self) -> Storage:
        """overlay, or vfs (which copies every layer) where overlay file systems cannot be stacked or are missing."""
        rootless = os.geteuid() != 0
        failures = []
        for driver in _DRIVERS:
            storage = Storage(self._root, driver, rootless)
            storage.folder.mkdir(exist_ok=True)
            result = self._buildah(buildah_cmd(storage, "images", "--quiet"), check=False)
            if result.status == 0:
                return storage
            failures.append(f"{driver}: {result.tail}")
        hint = "as an ordinary user it needs uidmap, and your name in /etc/subuid and /etc/subgid" if rootless else ""
        raise ToolError("buildah cannot use its storage here", hint=hint, detail="\n".join(failures))

    def _sweep(self, storage: Storage) -> None:
        """Remove containers and folders whose owner is dead."""
        for lock in sorted(self._live.glob("*.lock")):
            with locks.abandoned(lock) as abandoned:
                if abandoned:
                    self._discard(storage, lock.stem, lock.with_suffix(""), lock)
        if not any(self._live.iterdir()):
            for left in (self._root / "tmp").iterdir():
                # The control groups of a killed runc have the name of its bundle's folder. Others vanish
                # meanwhile, at which os.walk does not stop.
                for folder, groups, _ in os.walk(_CGROUPS):
                    if (group := f"buildah-{left.name}") in groups:
                        with suppress(OSError):
                            Path(folder, group).rmdir()
                shutil.rmtree(left, ignore_errors=True)

    def _discard(self, storage: Storage, container: str, work: Path, lock: Path) -> None:
        self._buildah(buildah_cmd(storage, "rm", container), check=False)
        if (work / "committed").exists():
            with locks.locked(self._root / "commit.lock"):
                self._forget_commit(storage, container, work)
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            lock.unlink(missing_ok=True)

    @contextmanager
    def _container(self, storage: Storage) -> Iterator[tuple[str, Path]]:
        """A name for a container and a folder for temporary files; both are gone at the end."""
        container = f"uklimg-{uuid.uuid4().hex}"
        work = self._live / container
        lock = _lock(work)
        fd = locks.create_locked(lock)
        try:
            work.mkdir()
            yield container, work
        finally:
            self._discard(storage, container, work, lock)
            os.close(fd)

    # Images in and out

    def _import(self, storage: Storage, rootfs: Rootfs, work: Path) -> None:
        """Bring the image into buildah's storage, unless it is there. buildah verifies every layer's digest."""
        image = f"{_IMAGE}:{rootfs.manifest.hex}"
        exists = buildah_cmd(storage, "inspect", "--type", "image", "--format", "{{.FromImageID}}", image)
        with locks.locked(self._root / "import.lock"):
            if self._buildah(exists, check=False).status == 0:
                return
            layout = work / "import"
            manifest = rootfs.layout / "blobs" / "sha256" / rootfs.manifest.hex
            _write_layout(layout, oci.Descriptor(oci.MANIFEST, rootfs.manifest, manifest.stat().st_size))
            (layout / "blobs").symlink_to(rootfs.layout / "blobs")
            # A relative path, because the folder's name becomes part of an image name with strict rules.
            pulled = self._buildah(buildah_cmd(storage, "pull", "--quiet", "oci:import:image"), cwd=work)
            self._buildah(buildah_cmd(storage, "tag", pulled.text.splitlines()[-1], image))

    def _export(self, storage: Storage, container: str, job: Job, work: Path, cancel: threading.Event | None) -> Path:
        """The container's changes as a tar below the job's output folder."""
        layout = work / "export"
        blobs = layout / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        # What buildah finds there it does not write again.
        base = read_manifest(job.rootfs.layout, job.rootfs.manifest)
        for layer in base.layers:
            with suppress(FileExistsError):
                (blobs / layer.digest.hex).symlink_to(job.rootfs.layout / "blobs" / "sha256" / layer.digest.hex)
        image = f"{_COMMIT}:{container}"
        stamp = ("--timestamp", str(oci.EPOCH), "--omit-history")
        # Equal changes make equal images, of which buildah has one: who removes his must not do so while another step
        # has just made the same.
        with locks.locked(self._root / "commit.lock", cancel=cancel):
            (work / "committed").touch()
            self._buildah(buildah_cmd(storage, "commit", "--quiet", *stamp, container, image))
            self._buildah(buildah_cmd(storage, "push", "--quiet", image, "oci:export:image"), cwd=work)
            self._forget_commit(storage, container, work)
        entry = oci.parse_index((layout / "index.json").read_bytes(), "index.json").manifests[0]
        made = read_manifest(layout, entry.digest)
        below, top = made.layers[:-1], made.layers[-1]
        if [layer.digest for layer in below] != [layer.digest for layer in base.layers]:
            raise ToolError(f"{job.name}: buildah committed other layers than it was given")
        result = job.output / "layer.tar"
        source = blobs / top.digest.hex
        with _opened(source, top.media_type) as packed, result.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        return result

    def _forget_commit(self, storage: Storage, container: str, work: Path) -> None:
        """The caller holds commit.lock."""
        self._buildah(buildah_cmd(storage, "rmi", "--force", f"{_COMMIT}:{container}"), check=False)
        (work / "committed").unlink(missing_ok=True)

    # Running

    def _working_isolation(self, storage: Storage, container: str, job: Job, work: Path) -> Isolation:
        """The first isolation that really runs a command here; found out once a process."""
        with self._probe_lock:
            failures = []
            for name in self._allowed if self._isolation is None else ():
                reason = self._probe(storage, container, job, work, name)
                if reason is None:
                    break
                failures.append(f"{name}: {reason}")
            if self._isolation is None:
                raise ToolError("no container can run here", detail="\n".join(failures))
            return self._isolation

    def _probe(self, storage: Storage, container: str, job: Job, work: Path, name: str) -> str | None:
        """Remember the isolation ``name`` if it works, else say why not."""
        try:
            isolation = Isolation(name, str(proc.find(RUNTIME, self._env)) if name == OCI else "")
        except ToolError as error:
            return error.line()
        probe = probe_job(job, work / f"probe-{name}")
        mounts = _nameable((log_mount(probe),), work)
        result = self._buildah(
            run_cmd(storage, container, isolation, probe, mounts, _dev(work), _lock(work)), check=False
        )
        if result.status != PROBE_STATUS:
            return result.tail
        self._isolation = isolation
        return None

    def _execute(
        self,
        storage: Storage,
        container: str,
        isolation: Isolation,
        job: Job,
        work: Path,
        on_line: Line,
        cancel: threading.Event | None,
    ) -> None:
        mounts = [*job.mounts, log_mount(job)]
        if job.kind is Kind.TREE:
            mounts.append(Mount(job.output, OUT, read_only=False))
        argv = run_cmd(storage, container, isolation, job, _nameable(mounts, work), _dev(work), _lock(work))
        said: list[str] = []
        with Follower(job.log, on_line) as output:
            with proc.spawn(argv, env=self._env, on_line=said.append, merge=True) as process:
                while not process.ended(_POLL):
                    output.poll()
                    if cancel is not None and cancel.is_set():
                        raise KeyboardInterrupt
            result = process.completed()
            output.poll()
            if result.status != 0:
                output.add(line for line in said if not _NOISE.fullmatch(line))
        if result.status != 0:
            raise ToolError(
                f"{job.name}: the command {proc.describe(result.status)}; the whole log is {job.log}",
                exit_code=ExitCode.STEP,
                detail=output.tail,
            )

    def _buildah(self, argv: Sequence[str], *, cwd: Path | None = None, check: bool = True) -> proc.Completed:
        return proc.run(argv, env=self._env, cwd=cwd, check=check)


def _opened(layer: Path, media_type: str) -> IO[bytes]:
    """The layer's tar. For an OCI layout buildah compresses layers whatever one asks for."""
    return cast(IO[bytes], gzip.open(layer)) if media_type == _GZIP else layer.open("rb")


def _dev(work: Path) -> Path:
    path = work / "dev"
    path.mkdir(exist_ok=True)
    return path


def _lock(work: Path) -> Path:
    """The file that is locked as long as the owner of ``work`` lives."""
    return work.with_suffix(".lock")


def _nameable(mounts: Sequence[Mount], work: Path) -> list[Mount]:
    """The same mounts; a source with a colon, which separates the parts of a volume, goes by a symbolic link."""
    result = []
    for mount in mounts:
        if ":" in str(mount.source):
            link = work / f"mount-{uuid.uuid4().hex}"
            link.symlink_to(mount.source)
            mount = Mount(link, mount.target, mount.read_only)
        result.append(mount)
    return result


def _write_layout(folder: Path, manifest: oci.Descriptor) -> None:
    """An OCI layout with one image, named ``image``, and no blobs yet."""
    folder.mkdir()
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    named = manifest.annotated({oci.REF_NAME: "image"})
    (folder / "index.json").write_bytes(oci.Index((named,)).encode())
