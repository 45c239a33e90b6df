"""Which repositories of a registry had what when we last pushed or pulled: from there a registry can mount a blob
into another one, and nothing is sent.

A guess that costs one request when it is wrong. It is taken from the store's names, and from a list of what was
pushed under a name that the store does not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from uklimg import locks
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ToolError, UserError
from uklimg.oci import INDEX, INDEXES, MANIFEST, MANIFESTS, Descriptor
from uklimg.ref import Reference
from uklimg.store.layout import Layout, reported

_FILE = "registries.json"
_MOST = 100  # of entries that are remembered
_MAX_FILE = 1 << 20


def remember(store: Layout, ref: Reference, root: Descriptor) -> None:
    """That the repository of ``ref`` has ``root`` and all below it."""
    entry = {"name": ref.name, "type": root.media_type, "digest": str(root.digest), "size": root.size}
    with locks.locked(store.locks / "registries.lock"):
        entries = [known for known in _entries(store) if known != entry][-_MOST + 1 :]
        # Without fsync, which would wait for what the registry has just written to the same disk: it is but a hint.
        temporary = store.tmp / _FILE
        with reported("write to the store"):
            temporary.write_text(json.dumps([*entries, entry], indent=1), encoding="utf-8")
            temporary.rename(store.root / _FILE)


@dataclass
class Elsewhere:
    """Other repositories of the registry of ``ref``, asked for blobs; looks into the store when first asked."""

    store: Layout
    ref: Reference
    _found: Mapping[Digest, tuple[str, ...]] | None = field(default=None, init=False)

    def of(self, digest: Digest) -> tuple[str, ...]:
        """Repositories that probably have the blob, at most two, the latest first."""
        if self._found is None:
            found: dict[Digest, list[str]] = {}
            for repository, root in _roots(self.store, self.ref):
                for blob in _below(self.store, root):
                    if repository not in found.setdefault(blob, []):
                        found[blob].append(repository)
            self._found = {blob: tuple(reversed(names))[:2] for blob, names in found.items()}
        return self._found.get(digest, ())


def _roots(store: Layout, ref: Reference) -> Iterator[tuple[str, Descriptor]]:
    for name, root in store.tags().items():
        yield from _elsewhere(name, root, ref)
    for entry in _entries(store):
        try:
            kind = INDEX if entry["type"] in INDEXES else MANIFEST
            root = Descriptor(kind, Digest.parse(str(entry["digest"])), int(str(entry["size"])))
        except (KeyError, ValueError):
            continue
        yield from _elsewhere(str(entry.get("name", "")), root, ref)


def _elsewhere(name: str, root: Descriptor, ref: Reference) -> Iterator[tuple[str, Descriptor]]:
    try:
        named = Reference.parse(name)
    except UserError:
        return
    if named.host == ref.host and named.repository != ref.repository:
        yield named.repository, root


def _below(store: Layout, root: Descriptor) -> Iterator[Digest]:
    """Blobs that are no manifests; none when the store has forgotten the image."""
    try:
        for blob in store.closure(root):
            if blob.media_type not in INDEXES | MANIFESTS:
                yield blob.digest
    except (CorruptError, ToolError):
        return


def _entries(store: Layout) -> list[dict[str, object]]:
    """What ``remember`` has written; nothing when it is damaged or missing."""
    try:
        with (store.root / _FILE).open("rb") as file:
            entries = json.loads(file.read(_MAX_FILE))
    except (OSError, ValueError, RecursionError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
