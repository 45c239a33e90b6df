"""What a container engine does for a build: run one command in a file system and hand back what it made.

The contract that every engine keeps, so that two of them make the same bytes: the command sees the root file system
and its mounts and nothing else of the host; no network unless asked for; host name ``uklimg``; exactly the
environment of ``step_env``; umask 022; standard input is /dev/null; when it ends, every process of it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Protocol, TypeAlias

from uklimg.digest import Digest
from uklimg.graph import Kind
from uklimg.oci import EPOCH

HOSTNAME = "uklimg"
OUT = "/out"
# Where a step finds its log. Its command writes there itself: buildah 1.28 passes the two outputs on in no certain
# order, and now and then loses what a command says right before it ends.
LOG = "/run/uklimg.log"
# Limits of a step's processes, soft and hard: the same on every host, the hard ones below what any host grants.
# buildah 1.39 asks for a million of what is not named, which root in a container may be denied.
LIMITS = {"nofile": (1024, 4096), "nproc": (4096, 4096)}

FIXED_ENV: Mapping[str, str] = {
    "HOME": "/root",
    "HOSTNAME": HOSTNAME,
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    # Compiled modules hold their source's date, which is the step's clock.
    "PYTHONDONTWRITEBYTECODE": "1",
    "SOURCE_DATE_EPOCH": str(EPOCH),
    "TZ": "UTC",
}

# What engines make in a root file system on their own account, relative to its root; such of it as is empty is not
# part of a ROOTFS result.
ENGINE_PATHS = (
    "dev",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc",
    "run",
    "run/.containerenv",
    "sys",
    ".dockerenv",
)

Line: TypeAlias = Callable[[str], None]


def step_env(env: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a step's command: what all steps get, then the step's own."""
    return {**FIXED_ENV, **env}


@dataclass(frozen=True)
class Mount:
    """The host's file or folder ``source`` (absolute) at ``target`` (absolute) in the container."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Rootfs:
    """An image: the manifest with digest ``manifest`` in the OCI layout ``layout``, its layers uncompressed."""

    layout: Path
    manifest: Digest


@dataclass(frozen=True)
class Job:
    """One command to run. ``name`` is for messages. ``env`` is added to the environment that all steps have.

    ``output`` is an empty folder: a TREE job finds it writable at /out; for a ROOTFS job the engine writes the
    container's changes there. ``log`` gets every line that the command prints. ``network``: the host's own, so that
    what listens on its loopback interface is reached.
    """

    name: str
    rootfs: Rootfs
    argv: tuple[str, ...]
    output: Path
    log: Path
    kind: Kind = Kind.TREE
    mounts: tuple[Mount, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    network: bool = False
    user: str = "root"


@dataclass(frozen=True)
class JobResult:
    """For a ROOTFS job, ``layer`` is a tar of the changes as an OCI layer has them, and ``drop`` the paths in it
    that the engine made itself (``trees.canonical_layer`` explains them). None and empty for a TREE job."""

    layer: Path | None = None
    drop: tuple[str, ...] = ()


class Engine(Protocol):
    """Runs jobs; several threads may call ``run`` at once."""

    @property
    def name(self) -> str: ...

    def run(self, job: Job, on_line: Line, cancel: Event | None = None) -> JobResult:
        """Run the job. ToolError STEP when its command fails, with the end of its output as ``detail``; ToolError
        HOST when the engine itself does not work here. Setting ``cancel`` from another thread, or KeyboardInterrupt
        in this one, ends the command; both leave as KeyboardInterrupt."""
        ...

    def prune(self, keep: Collection[Digest]) -> None:
        """Forget all images but those whose manifests are in ``keep``."""
        ...
