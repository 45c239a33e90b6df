"""What we ask of Docker and Podman to make a step's container; pure.

Both are asked through their own interface: in Docker's, Podman cannot be told to leave /etc/hosts and
/etc/resolv.conf alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from uklimg.digest import JSON
from uklimg.engine.base import HOSTNAME, LIMITS, LOG, Job, Mount, step_env

LABEL = "org.uklimg.store"
# What Docker (and of these Podman the third) puts into every root file system that lacks it, relative to the root.
# ``prepare_cmd`` takes it out again.
INTRUDERS = (".dockerenv", "etc/hosts", "etc/mtab", "etc/resolv.conf")
# Of these, what a container with a network keeps, because it is mounted.
_MOUNTED = ("etc/hosts", "etc/resolv.conf")
# Of what buildah and Podman of Debian 12, and Docker, leave to root in a container.
CAPABILITIES = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)

# The container's first process. Its input is a connection to us: a line on it starts the step's command, and when it
# ends before the command does, we have died, and every process of the container goes with us. The command itself runs
# in the foreground (a shell lets what it puts into the background ignore SIGINT), its input being /dev/null.
DEAD = 137
_GUARD = f"""
exec 3<&0 </dev/null
read -r _ <&3 || exit {DEAD}
(read -r _ <&3; kill -KILL -1) &
"$@" >>{LOG} 2>&1 3<&-
exit $?
"""
GO = b"go\n"


@dataclass(frozen=True)
class Wanted:
    """A container: ``mounts`` has all mounts, the log's too; ``processors`` as in "0,2", "" for all of them."""

    job: Job
    image: str
    mounts: Sequence[Mount]
    store: str
    processors: str = ""

    @property
    def command(self) -> list[str]:
        return ["/bin/sh", "-c", _GUARD, "sh", *self.job.argv]

    @property
    def user(self) -> str:
        return "0:0" if self.job.user == "root" else self.job.user

    @property
    def env(self) -> Mapping[str, str]:
        return dict(sorted(step_env(self.job.env).items()))


def intruders(network: bool) -> tuple[str, ...]:
    """What the engine may have put into the root file system and can be removed."""
    return tuple(path for path in INTRUDERS if not (network and path in _MOUNTED))


def docker_body(wanted: Wanted) -> dict[str, JSON]:
    """For POST /containers/create of the Docker Engine API, 1.40 and later.

    Without a network there is nothing but lo. (NetworkMode "none" would bring /etc/hosts and /etc/resolv.conf as
    mounts, which nobody inside can remove.)
    """
    job = wanted.job
    host: dict[str, JSON] = {
        "Mounts": [
            {"Type": "bind", "Source": str(mount.source), "Target": mount.target, "ReadOnly": mount.read_only}
            for mount in wanted.mounts
        ],
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITIES),
        "Ulimits": [{"Name": name, "Soft": soft, "Hard": hard} for name, (soft, hard) in LIMITS.items()],
        "Init": False,
        "LogConfig": {"Type": "none"},
        "SecurityOpt": ["label=disable"],
        "CpusetCpus": wanted.processors,
    }
    if job.network:
        host["NetworkMode"] = "host"
    return {
        "Image": wanted.image,
        "Cmd": list(wanted.command),
        "Entrypoint": [],
        "Env": [f"{name}={value}" for name, value in wanted.env.items()],
        "Hostname": HOSTNAME,
        "User": wanted.user,
        "WorkingDir": job.workdir,
        "Labels": {LABEL: wanted.store},
        "NetworkDisabled": not job.network,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def podman_body(wanted: Wanted, name: str) -> dict[str, JSON]:
    """For POST /libpod/containers/create of Podman 4 and 5 (podman, pkg/specgen)."""
    job = wanted.job
    body: dict[str, JSON] = {
        "name": name,
        "image": wanted.image,
        "command": list(wanted.command),
        "entrypoint": [],
        "env": dict(wanted.env),
        "env_host": False,
        "httpproxy": False,
        "unsetenv": [variable for variable in ("container", "TERM") if variable not in wanted.env],
        "hostname": HOSTNAME,
        "user": wanted.user,
        "work_dir": job.workdir,
        "create_working_dir": True,
        "labels": {LABEL: wanted.store},
        "stdin": True,
        "netns": {"nsmode": "host" if job.network else "none"},
        "use_image_hosts": True,
        "use_image_resolve_conf": not job.network,
        "manage_password": False,
        "umask": "0022",
        "selinux_opts": ["disable"],
        "log_configuration": {"driver": "none"},
        "r_limits": [{"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in LIMITS.items()],
        "mounts": [
            {
                "type": "bind",
                "source": str(mount.source),
                "destination": mount.target,
                "options": ["bind", "private", "ro" if mount.read_only else "rw"],
            }
            for mount in wanted.mounts
        ],
    }
    if job.user == "root":  # another user would get what is added as root has it
        body["cap_drop"] = ["ALL"]
        body["cap_add"] = [f"CAP_{capability}" for capability in CAPABILITIES]
    if wanted.processors:
        body["resource_limits"] = {"cpu": {"cpus": wanted.processors}}
    return body


def prepare_cmd(remove: Sequence[str]) -> list[str]:
    """Run as root in the container before the step: ``remove`` (relative paths) goes, and what engines do in ways of
    their own is done in one (the root's mode, the end of the line with the host's name)."""
    script = f'chmod 555 /; echo {HOSTNAME} >/etc/hostname; test $# -eq 0 || rm -f "$@"'
    return ["/bin/sh", "-c", script, "sh", *(f"/{path}" for path in remove)]


def processor_list(allowed: Collection[int], there: int) -> str:
    """The processors that a step may use; "" when these are all that there are."""
    return "" if len(allowed) >= there else ",".join(str(number) for number in sorted(allowed))
