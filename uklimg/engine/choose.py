"""Which container engine runs the steps. It is in no key: all of them make the same bytes.

In this order: ``--engine`` or UKLIMG_ENGINE (``settings`` says which), ``[engine] name`` of the user's uklimg.toml;
without any of them buildah when it is installed, else Docker or Podman when a socket of theirs is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import Event
from typing import NoReturn

from uklimg import proc
from uklimg.digest import Digest
from uklimg.engine.base import Engine, Job, JobResult, Line
from uklimg.engine.buildah import BuildahEngine
from uklimg.engine.docker import DockerEngine, find_socket
from uklimg.errors import ToolError

BUILDAH = "buildah"
DOCKER = "docker"
_DOCKER_FOLDER = "docker"


class NoEngine:
    """In place of an engine where there is none: builds that run nothing work."""

    name = "none"

    def run(self, job: Job, on_line: Line, cancel: Event | None = None) -> JobResult:
        self._missing()

    def prune(self, keep: Collection[Digest]) -> None:
        """Nothing."""

    def _missing(self) -> NoReturn:
        raise ToolError(
            "no container engine is installed",
            hint="apt-get install buildah runc; or docker.io, or podman and start its podman.socket",
        )


def choose_engine(name: str, root: Path, environ: Mapping[str, str]) -> Engine:
    """The engine ``name`` (one of ``settings.ENGINES``), or with "" the one that is there.

    ``root`` is the engines' folder in the store.
    """
    if name == BUILDAH or (not name and shutil.which(BUILDAH, path=proc.host_env(environ)["PATH"])):
        return BuildahEngine(root, environ)
    if name == DOCKER or find_socket(environ):
        return DockerEngine(root / _DOCKER_FOLDER, environ)
    return NoEngine()


def used_engines(root: Path, environ: Mapping[str, str]) -> tuple[Engine, ...]:
    """Those that have run a step of the store."""
    found: list[Engine] = []
    if (root / "live").is_dir():
        found.append(BuildahEngine(root, environ))
    if (root / _DOCKER_FOLDER).is_dir():
        found.append(DockerEngine(root / _DOCKER_FOLDER, environ))
    return tuple(found)
