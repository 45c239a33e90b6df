"""What verbs get: this machine's environment, and the parts of uklimg wired together for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TextIO

from uklimg import proc
from uklimg.data import Data, find_data
from uklimg.debian import Debian
from uklimg.download import measure
from uklimg.engine.buildah import BuildahEngine
from uklimg.errors import ExitCode, ToolError
from uklimg.events import Sink
from uklimg.execute import Executor, Fetch, Lookup
from uklimg.fetch import DEBIAN, Fetcher, Mirrors
from uklimg.graph import Blob
from uklimg.hostfunctions import host_functions
from uklimg.mirror import find_mirror
from uklimg.resolver import HostResolver
from uklimg.settings import Settings
from uklimg.store import Store


@dataclass(frozen=True)
class Host:
    """``environ``, ``cwd`` and ``uid`` are the caller's; results go to ``stdout``, everything else to ``stderr``."""

    environ: Mapping[str, str] = field(repr=False)
    cwd: Path
    uid: int
    stdout: TextIO
    stderr: TextIO
    settings: Settings

    @property
    def env(self) -> dict[str, str]:
        """The environment for host tools."""
        return proc.host_env(self.environ)

    def print(self, text: str = "") -> None:
        self.stdout.write(f"{text}\n")

    def path(self, text: str) -> Path:
        """A path as the user wrote it."""
        return self.cwd / Path(text).expanduser()

    def data(self) -> Data:
        return Data(find_data())

    def store(self, sink: Sink) -> Store:
        return Store(self.settings.store, sink)

    def mirror(self) -> str:
        return find_mirror(self.environ, self.settings.config)

    def executor(
        self,
        store: Store,
        sink: Sink,
        *,
        offline: bool,
        secrets: Mapping[str, bytes] | None = None,
        lookup: Lookup | None = None,
        at_once: int = 1,
    ) -> Executor:
        engine = BuildahEngine(store.root / "engine", self.environ)
        fetch = self.fetch(store, sink, offline=offline)
        functions = host_functions(self.env)
        return Executor(store, engine, fetch, functions, sink, secrets=secrets, lookup=lookup, at_once=at_once)

    def fetch(self, store: Store, sink: Sink, *, offline: bool) -> Fetch:
        """Blobs from the store, or from where they are; the mirror is looked for only when one must be asked."""

        def get(blob: Blob, /, cancel: Event | None = None) -> Path:
            if offline and not store.has(blob.digest, blob.size):
                raise ToolError(
                    f"{blob.name} is not in the store, and --offline forbids fetching it",
                    hint="build once with a network",
                    exit_code=ExitCode.NETWORK,
                )
            wants_mirror = any(url.startswith(DEBIAN) for url in blob.urls) and not store.has(blob.digest, blob.size)
            mirrors = Mirrors((self.mirror(),)) if wants_mirror else Mirrors()
            return Fetcher(mirrors, store, sink, cancel=cancel).fetch(blob)

        return get

    @contextmanager
    def resolver(self, store: Store, sink: Sink) -> Iterator[HostResolver]:
        """Finds out what a lock lacks, with the host's apt in a folder of its own."""
        with store.scratch() as folder:
            debian = Debian(self.mirror, proc.run, self.env, folder)
            yield HostResolver(debian, lambda url: measure(url, store, sink))
