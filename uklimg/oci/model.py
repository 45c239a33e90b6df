"""The structures of the OCI image specification 1.1 and their bytes.

``encode`` is deterministic: sorted keys, no white space, empty fields left out. What somebody else encoded is never
encoded again: its bytes are kept as they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from uklimg.digest import JSON, Digest, canonical_json

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

INDEXES = frozenset({INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})

REF_NAME = "org.opencontainers.image.ref.name"

EPOCH = 1735689600
"""Every date in an image, in seconds: SOURCE_DATE_EPOCH of all steps."""
EPOCH_TEXT = "2025-01-01T00:00:00Z"


@dataclass(frozen=True)
class Platform:
    """Platform of an index entry (image-index.md); ``os_features`` in the writer's order."""

    os: str
    architecture: str
    os_version: str = ""
    os_features: tuple[str, ...] = ()
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def fields(self) -> dict[str, JSON]:
        return _filled(
            {
                "architecture": self.architecture,
                "os": self.os,
                "os.version": self.os_version,
                "os.features": list(self.os_features),
                "variant": self.variant,
            }
        )


@dataclass(frozen=True)
class Descriptor:
    """A blob known by digest (descriptor.md); ``size`` in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""

    @classmethod
    def of(cls, media_type: str, data: bytes) -> Descriptor:
        return cls(media_type, Digest.of(data), len(data))

    def bare(self) -> Descriptor:
        """Without what an index or manifest says beside digest, size and type."""
        return Descriptor(self.media_type, self.digest, self.size)

    def annotated(self, annotations: Mapping[str, str]) -> Descriptor:
        """With ``annotations`` instead of its own."""
        return replace(self, annotations=annotations)

    def fields(self) -> dict[str, JSON]:
        return {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
            **_filled(
                {
                    "annotations": dict(self.annotations),
                    "platform": self.platform.fields() if self.platform else None,
                    "artifactType": self.artifact_type,
                }
            ),
        }


@dataclass(frozen=True)
class Manifest:
    """An image manifest (manifest.md)."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None
    media_type: str = MANIFEST

    def encode(self) -> bytes:
        return canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "config": self.config.fields(),
                "layers": [layer.fields() for layer in self.layers],
                **_filled(
                    {
                        "annotations": dict(self.annotations),
                        "artifactType": self.artifact_type,
                        "subject": self.subject.fields() if self.subject else None,
                    }
                ),
            }
        )

    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers, each digest once, in that order."""
        return tuple({blob.digest: blob for blob in (self.config, *self.layers)}.values())


@dataclass(frozen=True)
class Index:
    """An image index (image-index.md)."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None
    media_type: str = INDEX

    def encode(self) -> bytes:
        return canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "manifests": [manifest.fields() for manifest in self.manifests],
                **_filled(
                    {
                        "annotations": dict(self.annotations),
                        "artifactType": self.artifact_type,
                        "subject": self.subject.fields() if self.subject else None,
                    }
                ),
            }
        )


@dataclass(frozen=True)
class History:
    """One line of an image's history (config.md); ``empty_layer`` entries have no layer."""

    created_by: str
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True)
class ImageConfig:
    """An image configuration (config.md). ``env`` holds ``NAME=value`` strings; ``exposed_ports`` ``6379/tcp``."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    stop_signal: str = ""
    created: str = EPOCH_TEXT
    history: tuple[History, ...] = ()

    def encode(self) -> bytes:
        config = _filled(
            {
                "User": self.user,
                "ExposedPorts": {port: {} for port in self.exposed_ports},
                "Env": list(self.env),
                "Entrypoint": list(self.entrypoint),
                "Cmd": list(self.cmd),
                "Volumes": {volume: {} for volume in self.volumes},
                "WorkingDir": self.workdir,
                "Labels": dict(self.labels),
                "StopSignal": self.stop_signal,
            }
        )
        return canonical_json(
            {
                **self.platform.fields(),
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest in self.diff_ids]},
                **_filled({"created": self.created, "history": [self._line(line) for line in self.history]}),
            }
        )

    def _line(self, line: History) -> JSON:
        optional: dict[str, JSON] = {"comment": line.comment, "empty_layer": line.empty_layer}
        return {"created": self.created, "created_by": line.created_by, **_filled(optional)}


def _filled(fields: Mapping[str, JSON]) -> dict[str, JSON]:
    """Without the empty ones."""
    return {key: value for key, value in fields.items() if value}
