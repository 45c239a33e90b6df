"""A result as it travels: to bytes, and from bytes that somebody else wrote. Pure.

What a reader may rely on: the record's fields hash to the key that was asked for, so the entry is about that step;
the result has the shape that this step's results have; and of a TREE or ROOTFS the root is what the layers make it.
That the *contents* are what the step makes cannot be checked without making it: who may write a cache is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from uklimg import oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError
from uklimg.graph import Kind
from uklimg.recipes import image as image_recipe
from uklimg.store import Record, decode_record, encode_record, manifest_of

ARTIFACT = "application/vnd.uklimg.cache.v1"
RECORD = "application/vnd.uklimg.cache.record.v1+json"
# One type for all, so that no tool on the way takes a layer for something that it may compress, or a manifest for one
# that it must have as such.
BLOB = "application/vnd.uklimg.cache.blob.v1"
STEP = "org.uklimg.step"
MAX_RECORD = 16 << 20


@dataclass(frozen=True)
class Entry:
    """``blobs`` are all of the result, its manifests and configs among them, each digest once."""

    record: Record
    blobs: tuple[oci.Descriptor, ...]

    @property
    def record_bytes(self) -> bytes:
        return encode_record(self.record)

    def manifest(self) -> bytes:
        """What the key names."""
        config = oci.Descriptor.of(RECORD, self.record_bytes)
        return oci.Manifest(config, self.blobs, {STEP: self.record.step}, ARTIFACT).encode()


def entry_of(record: Record, closure: Iterable[oci.Descriptor]) -> Entry:
    """``closure`` is everything that the result's root refers to, itself included."""
    return Entry(record, tuple(oci.Descriptor(BLOB, blob.digest, blob.size) for blob in closure))


def read_manifest(data: bytes, what: str) -> oci.Manifest:
    """CorruptError when it is not one that ``Entry.manifest`` writes."""
    manifest = oci.parse_manifest(data, what)
    if manifest.config.media_type != RECORD:
        raise CorruptError(f"{what} is no entry of a cache: its config is {manifest.config.media_type[:100]}")
    if manifest.config.size > MAX_RECORD:
        raise CorruptError(f"{what} has a record of {manifest.config.size} bytes")
    for blob in manifest.layers:
        if blob.media_type != BLOB:
            raise CorruptError(f"{what} holds a {blob.media_type[:100]}")
    return manifest


def read_entry(key: Digest, manifest: oci.Manifest, record_bytes: bytes, what: str) -> Entry:
    """The entry of ``key``; CorruptError when it is another's or not whole."""
    if Digest.of(record_bytes) != manifest.config.digest:
        raise CorruptError(f"{what}: the record's bytes have another digest")
    try:
        record = decode_record(record_bytes)
        hashed = Digest.of_json(record.fields)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"{what}: its record cannot be read: {str(error)[:100]}") from None
    if record.key != key or hashed != key:
        raise CorruptError(f"{what} is about another step")
    _check_shape(record, what)
    sizes = {blob.digest: blob.size for blob in manifest.layers}
    if len(sizes) != len(manifest.layers):
        raise CorruptError(f"{what} names a blob twice")
    for blob in (record.result.root, *record.result.layers):
        if sizes.get(blob.digest) != blob.size:
            raise CorruptError(f"{what} lacks {blob.digest}, which its record names")
    return Entry(record, manifest.layers)


def is_image(record: Record) -> bool:
    """Whether the step makes a whole image, whose root is an index."""
    action = record.fields.get("action")
    host = action.get("host") if isinstance(action, Mapping) else None
    return isinstance(host, Mapping) and host.get("function") == image_recipe.FUNCTION


def _check_shape(record: Record, what: str) -> None:
    result = record.result
    if result.kind.value != record.fields.get("kind"):
        raise CorruptError(f"{what} holds a {result.kind.value}, which its step does not make")
    if is_image(record):
        if result.layers or result.root.media_type != oci.INDEX:
            raise CorruptError(f"{what} holds no image")
        return
    if not result.layers or (result.kind is Kind.TREE and len(result.layers) != 1):
        raise CorruptError(f"{what} holds {len(result.layers)} layers")
    if any(layer != oci.Descriptor(oci.LAYER, layer.digest, layer.size) for layer in result.layers):
        raise CorruptError(f"{what} holds layers of another type")
    _, manifest = manifest_of(result.key, result.layers)
    if result.root != oci.Descriptor.of(oci.MANIFEST, manifest):
        raise CorruptError(f"{what}: the result is not what its layers make")
