"""What verbs get: this machine's environment, and the parts of uklimg wired together for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TextIO

from uklimg import proc
from uklimg.events import Sink
from uklimg.ref import Reference
from uklimg.settings import Settings
from uklimg.store import Store

# Everything else is imported by who needs it: a pull of what is there takes less time than all these imports.
if TYPE_CHECKING:
    from uklimg.data import Data
    from uklimg.execute import Executor, Fetch, Lookup
    from uklimg.graph import Blob
    from uklimg.remote.transport import Transport
    from uklimg.resolver import HostResolver
    from uklimg.vendor import Place


@dataclass(frozen=True)
class Host:
    """``environ``, ``cwd`` and ``uid`` are the caller's; results go to ``stdout``, everything else to ``stderr``."""

    environ: Mapping[str, str] = field(repr=False)
    cwd: Path
    uid: int
    stdout: TextIO
    stderr: TextIO
    settings: Settings
    plain_http: bool | None = None
    """What --plain-http or --no-plain-http says of the registry that the command is about."""

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
        from uklimg.data import Data, find_data

        return Data(find_data())

    def store(self, sink: Sink) -> Store:
        return Store(self.settings.store, sink)

    def mirror(self) -> str:
        from uklimg.mirror import find_mirror

        return find_mirror(self.environ, self.settings.config)

    def executor(
        self,
        store: Store,
        sink: Sink,
        *,
        offline: bool,
        vendor: Sequence[str] = (),
        secrets: Mapping[str, bytes] | None = None,
        lookup: Lookup | None = None,
        at_once: int = 0,
        sources: Store | None = None,
    ) -> Executor:
        """Steps leave their results in ``store``; what they fetch is in ``sources``, unless that is the same.
        ``at_once`` steps may run at the same time; 0: as many as this machine has processors and memory for."""
        from uklimg.engine.choose import LateEngine, choose_engine
        from uklimg.execute import Executor
        from uklimg.hostfunctions import host_functions
        from uklimg.room import memory_available, processors, steps_at_once

        at_once = at_once or steps_at_once(processors(), memory_available())
        name = self.settings.chosen_engine()
        engine = LateEngine(lambda: choose_engine(name, store.root / "engine", self.environ))
        fetch = self.fetch(sources or store, sink, offline=offline, vendor=vendor)
        functions = host_functions(self.env)
        return Executor(store, engine, fetch, functions, sink, secrets=secrets, lookup=lookup, at_once=at_once)

    def fetch(self, store: Store, sink: Sink, *, offline: bool, vendor: Sequence[str] = ()) -> Fetch:
        """Blobs from the store, else from vendored copies (``vendor`` are --vendor's values), else from where they
        are. What asking the network takes is imported only when it is asked."""
        from uklimg.imagelock import OCI, bring_layer
        from uklimg.sources import Sources
        from uklimg.vendor import place_of

        def download(blob: Blob, cancel: Event | None) -> None:
            if blob.urls and blob.urls[0].startswith(OCI):
                return bring_layer(blob, store, self.connect, sink)
            if blob.urls and blob.urls[0].startswith("git+"):
                from uklimg.download import bring_commit

                return bring_commit(blob, store, self.env, sink)
            from uklimg.fetch import DEBIAN, Fetcher, Mirrors

            wants_mirror = any(url.startswith(DEBIAN) for url in blob.urls)
            mirrors = Mirrors((self.mirror(),)) if wants_mirror else Mirrors()
            Fetcher(mirrors, store, sink, cancel=cancel).fetch(blob)
            return None

        named = tuple(place_of(text, self.cwd, self.connect) for text in vendor)
        return Sources(store, lambda: (*named, *self._configured()), download, sink, offline=offline).fetch

    def _configured(self) -> tuple[Place, ...]:
        """The places with vendored files that uklimg.toml names."""
        from uklimg.mirror import configured_vendors
        from uklimg.vendor import place_of

        config = self.settings.config
        return tuple(place_of(text, config.parent, self.connect) for text in configured_vendors(config))

    def connect(self, ref: Reference) -> Transport:
        from uklimg.remote import client

        return client.connect(ref, self.environ, self.uid, plain_http=self.plain_http)

    @contextmanager
    def resolver(self, store: Store, sink: Sink) -> Iterator[HostResolver]:
        """Finds out what a lock lacks, with the host's apt in a folder of its own."""
        from uklimg.debian import Debian
        from uklimg.download import measure, measure_commit
        from uklimg.imagelock import lock_image
        from uklimg.resolver import HostResolver

        with store.scratch() as folder:
            debian = Debian(self.mirror, proc.run, self.env, folder)
            yield HostResolver(
                debian,
                lambda url: measure(url, store, sink),
                lambda url, commit: measure_commit(url, commit, store, self.env, sink),
                lambda reference: lock_image(reference, store, self.connect, sink),
            )
