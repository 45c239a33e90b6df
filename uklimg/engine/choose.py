"""Which container engine runs the steps. It is in no key: all of them make the same bytes.

In this order: ``--engine`` or UKLIMG_ENGINE (``settings`` says which), ``[engine] name`` of the user's uklimg.toml;
without any of them buildah when it is installed, else Docker or Podman when a socket of theirs is there.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from threading import Event
from typing import NoReturn

from uklimg import proc
from uklimg.digest import Digest
from uklimg.engine.base import Engine, Job, JobResult, Line
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


class LateEngine:
    """The engine that ``choose`` gives, asked for when a step first runs: most builds run none."""

    def __init__(self, choose: Callable[[], Engine]) -> None:
        self._choose = choose
        self._lock = threading.Lock()
        self._found: Engine | None = None

    @property
    def name(self) -> str:
        return self._engine().name

    def run(self, job: Job, on_line: Line, cancel: Event | None = None) -> JobResult:
        return self._engine().run(job, on_line, cancel)

    def prune(self, keep: Collection[Digest]) -> None:
        self._engine().prune(keep)

    def _engine(self) -> Engine:
        with self._lock:
            if self._found is None:
                self._found = self._choose()
            return self._found


def choose_engine(name: str, root: Path, environ: Mapping[str, str]) -> Engine:
    """The engine ``name`` (one of ``settings.ENGINES``), or with "" the one that is there.

    ``root`` is the engines' folder in the store.
    """
    if name == BUILDAH or (not name and shutil.which(BUILDAH, path=proc.host_env(environ)["PATH"])):
        return _buildah(root, environ)

    from uklimg.engine.docker import find_socket

    return _docker(root, environ) if name == DOCKER or find_socket(environ) else NoEngine()


def used_engines(root: Path, environ: Mapping[str, str]) -> tuple[Engine, ...]:
    """Those that have run a step of the store."""
    found: list[Engine] = []
    if (root / "live").is_dir():
        found.append(_buildah(root, environ))
    if (root / _DOCKER_FOLDER).is_dir():
        found.append(_docker(root, environ))
    return tuple(found)


def _buildah(root: Path, environ: Mapping[str, str]) -> Engine:
    from uklimg.engine.buildah import BuildahEngine

    return BuildahEngine(root, environ)


def _docker(root: Path, environ: Mapping[str, str]) -> Engine:
    from uklimg.engine.docker import DockerEngine

    return DockerEngine(root / _DOCKER_FOLDER, environ)
