"""The command lines of the buildah engine; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uklimg.engine.base import HOSTNAME, LIMITS, LOG, Job, Mount, step_env

OCI = "oci"
CHROOT = "chroot"
RUNTIME = "runc"
PROBE_STATUS = 7
_ULIMITS = tuple(f"{name}={soft}:{hard}" for name, (soft, hard) in LIMITS.items())

_TO_LOG = ("/bin/sh", "-c", f'exec "$@" </dev/null >>{LOG} 2>&1', "sh")

# In the step's own namespaces, before buildah starts there: chroot isolation hands the host's /dev and /sys through,
# so they are replaced by what a container has, and nobody else would start the loopback interface.
_PRIVATE_DEV = """
new=$1; shift
mount -t tmpfs -o mode=755,nosuid tmpfs "$new"
for node in null zero full random urandom tty; do
    : > "$new/$node"
    mount --bind "/dev/$node" "$new/$node"
done
mkdir "$new/pts" "$new/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$new/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$new/shm"
ln -s pts/ptmx "$new/ptmx"
ln -s /proc/self/fd "$new/fd"
ln -s /proc/self/fd/0 "$new/stdin"
ln -s /proc/self/fd/1 "$new/stdout"
ln -s /proc/self/fd/2 "$new/stderr"
mount --move "$new" /dev
mount -t tmpfs -o ro tmpfs /sys
ip link set lo up 2>/dev/null || :
exec "$@"
"""


# Around a step of an ordinary user. Who enters a user namespace loses the promise to die with his parent, so somebody
# waits until we let go of the lock that shows that we live; killing ``unshare`` ends all in its namespaces.
_DIE_WITH_US = """
{ flock "$1" true && kill -KILL $$; } &
shift
exec "$@"
"""


@dataclass(frozen=True)
class Storage:
    """Where buildah keeps its things. ``rootless`` when we are an ordinary user."""

    root: Path
    driver: str
    rootless: bool = False

    @property
    def folder(self) -> Path:
        return self.root / self.driver


@dataclass(frozen=True)
class Isolation:
    """How a command is shut in. ``runtime`` is the OCI runtime's path, empty for chroot isolation."""

    name: str
    runtime: str = ""


def buildah_cmd(storage: Storage, *args: str) -> list[str]:
    """buildah with our storage; an ordinary user enters his user namespace first."""
    command = [
        "buildah",
        *("--root", str(storage.folder / "root")),
        *("--runroot", str(storage.folder / "run")),
        *("--storage-driver", storage.driver),
    ]
    enter = [*command, "unshare", "--"] if storage.rootless else []
    return [*enter, *command, *args]


def from_cmd(storage: Storage, container: str, image: str, *, network: bool) -> list[str]:
    """Make the container ``container`` of an image in the storage."""
    limits = [word for limit in _ULIMITS for word in ("--ulimit", limit)]
    dns = [] if network else ["--dns", "none"]
    return buildah_cmd(
        storage, "from", "--quiet", "--pull=never", "--http-proxy=false", *limits, *dns, "--name", container, image
    )


def run_cmd(
    storage: Storage, container: str, isolation: Isolation, job: Job, mounts: Sequence[Mount], dev: Path, alive: Path
) -> list[str]:
    """Run the job's command in ``container``, its output going to the job's log file.

    ``mounts`` has all mounts that are needed, the log's too. ``dev`` is an empty folder, for chroot isolation;
    ``alive`` a file that we hold locked while we live.
    """
    namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", "--uts"]
    if not job.network:
        namespaces.append("--net")
    args = ["run", "--isolation", isolation.name, "--hostname", HOSTNAME, "--no-hosts"]
    prepare: list[str] = []
    if isolation.runtime:
        args += ["--runtime", isolation.runtime, "--network", "host" if job.network else "none"]
    else:
        prepare = ["sh", "-ec", _PRIVATE_DEV, "sh", str(dev)]
    args += ["--user", "0:0" if job.user == "root" else job.user, "--workingdir", job.workdir]
    for mount in mounts:
        args += ["--volume", f"{mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'}"]
    for name, value in sorted(step_env(job.env).items()):
        args += ["--env", f"{name}={value}"]
    inner = buildah_cmd(Storage(storage.root, storage.driver), *args, container, "--", *_TO_LOG, *job.argv)
    command = ["unshare", *namespaces, "--", *prepare, *inner]
    if storage.rootless:
        return [*buildah_cmd(storage, "unshare", "--"), "sh", "-c", _DIE_WITH_US, "sh", str(alive), *command]
    return command


def probe_job(job: Job, log: Path) -> Job:
    """A job that shows whether an isolation works at all; it ends with ``PROBE_STATUS``."""
    return Job(job.name, job.rootfs, ("/bin/sh", "-c", f"exit {PROBE_STATUS}"), job.output, log)
