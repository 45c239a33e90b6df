"""What is attached to an image beside its blueprint: one table of kinds, and their manifests; pure.

Each is an OCI artifact whose subject is the image's index. In the store it is an entry of index.json without a name,
and lives as long as its image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uklimg.digest import Digest
from uklimg.errors import CorruptError
from uklimg.oci import EMPTY, MANIFEST, Descriptor, Manifest

SUBJECT = "org.uklimg.subject"
"""Annotation of an index.json entry: the image that the artifact is about."""
IDENTITY = "org.uklimg.identity"
"""Annotation of an index.json entry: of what it was made here, so that it need not be made again."""
TITLE = "org.opencontainers.image.title"
NO_CONFIG = b"{}"


@dataclass(frozen=True)
class Kind:
    """``name`` is the command line's. ``media_type`` is that of the files, ``notes`` annotations of the manifest."""

    name: str
    artifact_type: str
    media_type: str
    about: str
    notes: tuple[tuple[str, str], ...] = ()


LOCK = Kind("lock", "application/vnd.uklimg.lock.v1+toml", "application/vnd.uklimg.lock.v1+toml", "Uklfile.lock")
CONFIG = Kind(
    "config",
    "application/vnd.uklimg.kernel-config.v1",
    "application/vnd.uklimg.kernel-config.v1",
    "the kernel's .config",
)
SBOM = Kind(
    "sbom", "application/vnd.cyclonedx+json", "application/vnd.cyclonedx+json", "bill of materials (CycloneDX)"
)
PROVENANCE = Kind(
    "provenance",
    "application/vnd.in-toto+json",
    "application/vnd.in-toto+json",
    "how it was built (SLSA provenance)",
    (("in-toto.io/predicate-type", "https://slsa.dev/provenance/v1"),),
)
DEBUG = Kind(
    "debug", "application/vnd.uklimg.debug.v1", "application/vnd.uklimg.debug.v1.elf", "symbols and line numbers"
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (LOCK, CONFIG, SBOM, PROVENANCE, DEBUG)}


def manifest(kind: Kind, files: Mapping[str, Descriptor], subject: Descriptor) -> Manifest:
    """``files`` by name, as blobs, in the order in which they are listed."""
    layers = tuple(Descriptor(kind.media_type, blob.digest, blob.size, {TITLE: name}) for name, blob in files.items())
    return Manifest(
        Descriptor.of(EMPTY, NO_CONFIG),
        layers,
        dict(kind.notes),
        artifact_type=kind.artifact_type,
        subject=subject.bare(),
    )


def entry(artifact: Descriptor, artifact_type: str, subject: Digest, identity: str = "") -> Descriptor:
    """The nameless entry for index.json."""
    notes = {SUBJECT: str(subject), **({IDENTITY: identity} if identity else {})}
    return Descriptor(MANIFEST, artifact.digest, artifact.size, notes, artifact_type=artifact_type)


def files_of(found: Manifest, kind: Kind, subject: Digest) -> Mapping[str, Descriptor]:
    """The artifact's files by name; CorruptError when it is of another kind or about something else."""
    if found.artifact_type != kind.artifact_type or found.subject is None or found.subject.digest != subject:
        raise CorruptError(f"what is attached to the image as its {kind.name} is something else")
    files: dict[str, Descriptor] = {}
    for number, layer in enumerate(found.layers):
        name = layer.annotations.get(TITLE, "")
        if not name or "/" in name or name in (".", "..") or not name.isprintable() or name in files:
            # What another tool attached need not have names.
            name = f"{kind.name}-{number}"
        files[name] = layer
    if not files:
        raise CorruptError(f"the image's {kind.name} is empty")
    return files
