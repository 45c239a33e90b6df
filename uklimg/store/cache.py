"""Which step made what: one small JSON file a key, ``cache/<key hex>.json``.

A record is written after the blobs that it names, so a record that can be read promises blobs that were complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uklimg import oci
from uklimg.digest import JSON, Digest, canonical_json
from uklimg.errors import CorruptError
from uklimg.graph import Kind
from uklimg.store.layout import Layout, reported

VERSION = 1
_PLATFORM = oci.Platform("linux", "amd64")
_KEY = "org.uklimg.key"


@dataclass(frozen=True)
class StepResult:
    """What a step left. ``root`` is the OCI manifest (TREE, ROOTFS) or, for a built image, its index; ``layers`` the
    manifest's layers, uncompressed tars, for a TREE exactly one, for an image none."""

    key: Digest
    kind: Kind
    root: oci.Descriptor
    layers: tuple[oci.Descriptor, ...] = ()

    @property
    def layer(self) -> oci.Descriptor:
        """The topmost layer: a TREE's only one."""
        return self.layers[-1]


@dataclass(frozen=True)
class Record:
    """A result with what ``explain``, ``plan`` and ``prune`` want to know. ``fields`` is what the key hashes, by
    name; ``last_used`` in seconds since 1970; ``seconds`` how long the step took without its downloads, None when
    that was not noted."""

    result: StepResult
    step: str
    fields: Mapping[str, JSON] = field(hash=False)
    last_used: float = 0
    seconds: float | None = None

    @property
    def key(self) -> Digest:
        return self.result.key

    def sources(self) -> tuple[Digest, ...]:
        """The blobs that the step read as inputs, and the lists of files of the build context that it read."""
        found: list[Digest] = []
        for value in self.fields.values():
            for name in ("blob", "context"):
                if isinstance(value, Mapping) and isinstance(value.get(name), str):
                    found.append(Digest.parse(str(value[name])))
        return tuple(found)


def manifest_of(key: Digest, layers: Sequence[oci.Descriptor]) -> tuple[bytes, bytes]:
    """The config and the manifest of the TREE or ROOTFS ``key`` with ``layers``, which settle them to the byte."""
    # The layers are not compressed, so their digests are their diff IDs.
    config = oci.ImageConfig(_PLATFORM, tuple(layer.digest for layer in layers)).encode()
    manifest = oci.Manifest(oci.Descriptor.of(oci.CONFIG, config), tuple(layers), {_KEY: str(key)})
    return config, manifest.encode()


class Cache:
    """The records below ``layout.root / "cache"``."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._folder = layout.root / "cache"
        with reported("make the store"):
            self._folder.mkdir(exist_ok=True)

    def _path(self, key: Digest) -> Path:
        return self._folder / f"{key.hex}.json"

    def read(self, key: Digest) -> Record | None:
        """The record of ``key``; None when there is none or it cannot be read."""
        path = self._path(key)
        try:
            record = decode_record(path.read_bytes(), path.stat().st_mtime)
        except (FileNotFoundError, CorruptError, ValueError, KeyError, TypeError):
            return None
        return record if record.key == key else None

    def write(self, record: Record) -> None:
        self._layout.replace(self._path(record.key), encode_record(record))

    def touch(self, key: Digest) -> None:
        """Note that ``key`` was used now."""
        try:
            os.utime(self._path(key))
        except OSError:
            return  # a store that we may only read serves as well

    def remove(self, key: Digest) -> None:
        self._path(key).unlink(missing_ok=True)

    def all(self) -> Iterator[Record]:
        """Every readable record, by key."""
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = self.read(Digest(path.stem))
            except ValueError:
                continue
            if record is not None:
                yield record


def encode_record(record: Record) -> bytes:
    """As a file: all but when it was used."""
    result = record.result
    # Older records have no time, and older versions of us read past it.
    took = {} if record.seconds is None else {"milliseconds": round(record.seconds * 1000)}
    return canonical_json(
        {
            **took,
            "version": VERSION,
            "key": str(result.key),
            "kind": result.kind.value,
            "step": record.step,
            "root": result.root.fields(),
            "layers": [layer.fields() for layer in result.layers],
            "fields": dict(record.fields),
        }
    )


def decode_record(data: bytes, last_used: float = 0) -> Record:
    """Raises CorruptError, ValueError, KeyError or TypeError for anything that ``encode_record`` did not write."""
    top = oci.parse_json(data, "cache record", 64 << 20)
    if top["version"] != VERSION:
        raise ValueError("a record of another version")
    # The root and the layers have the form of an index's entries, which ``oci`` reads with all its checks.
    listed = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [top["root"], *_list(top["layers"])]}
    root, *layers = oci.parse_index(canonical_json(_json(listed)), "cache record").manifests
    result = StepResult(Digest.parse(str(top["key"])), Kind(top["kind"]), root, tuple(layers))
    fields = _json(top["fields"])
    if not isinstance(fields, Mapping):
        raise TypeError("fields")
    return Record(result, str(top["step"]), fields, last_used, _seconds(top.get("milliseconds")))


def _seconds(milliseconds: object) -> float | None:
    return milliseconds / 1000 if type(milliseconds) is int and milliseconds >= 0 else None


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _json(value: object) -> JSON:
    """``value``, which a JSON parser made, as its type."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json(item) for name, item in value.items()}
    raise TypeError(f"no {type(value).__name__} in a record")
