"""What an image carries so that it can be built again: a small OCI artifact whose subject is the image; pure.

Its configuration (JSON) says who built the image, with which arguments, and which step left which bytes; its layers
are the files of FILES. Nothing of it comes from the time, the machine, the user or the environment, and the image
itself does not know of it: its digest is the same with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from uklimg.digest import JSON, Digest, canonical_json
from uklimg.errors import CorruptError
from uklimg.oci import MANIFEST, Descriptor, Manifest, parse_json

T = TypeVar("T")

ARTIFACT = "application/vnd.uklimg.blueprint.v1"
CONFIG = "application/vnd.uklimg.blueprint.config.v1+json"
SUBJECT = "org.uklimg.blueprint.subject"
"""Annotation of an index.json entry: the image that the blueprint is about."""
IDENTITY = "org.uklimg.blueprint.identity"
"""Annotation of an index.json entry: of what it was made, so that it need not be made again."""
TITLE = "org.opencontainers.image.title"

VERSION = 1
# Of the plain-Linux twin's: a uklimg that does not know of twins refuses it.
TWIN_VERSION = 2
MAX_CONFIG = 8 << 20
MAX_STEPS = 10_000

UKLFILE = "Uklfile"
LOCK = "Uklfile.lock"
IGNORE = ".uklignore"
CONTEXT = "context.tar"
KERNEL_CONFIG = "kernel.config"
FILES: Mapping[str, str] = {
    UKLFILE: "application/vnd.uklimg.uklfile.v1",
    LOCK: "application/vnd.uklimg.lock.v1+toml",
    IGNORE: "application/vnd.uklimg.ignore.v1",
    CONTEXT: "application/vnd.uklimg.context.v1.tar",
    KERNEL_CONFIG: "application/vnd.uklimg.kernel-config.v1",
}
"""Media types of a blueprint's files, by name."""


@dataclass(frozen=True)
class StepRecord:
    """A step of the build. ``result`` is the digest of what it left (its layer, of the last step the image), None
    where the store did not know it; ``needs`` are ids of earlier steps."""

    id: str
    title: str
    recipe: str
    recipe_version: int
    key: Digest
    result: Digest | None
    needs: tuple[str, ...] = ()

    def fields(self) -> JSON:
        return {
            "id": self.id,
            "title": self.title,
            "recipe": self.recipe,
            "recipeVersion": self.recipe_version,
            "key": str(self.key),
            "result": str(self.result) if self.result else None,
            "needs": list(self.needs),
        }


@dataclass(frozen=True)
class Blueprint:
    """``uklimg`` is the version that built the image; ``steps`` in the order in which they can be made, the last one
    being the image. ``build_args`` and ``kernel_configs`` as given to `build`. Without ``has_context`` the files of
    the build context were left out; with ``ignore_caches`` RUN's cache mounts were empty folders. ``twin``: the image
    is the plain-Linux twin."""

    uklimg: str
    steps: tuple[StepRecord, ...]
    build_args: Mapping[str, str] = field(default_factory=dict, hash=False)
    kernel_configs: tuple[str, ...] = ()
    has_context: bool = True
    ignore_caches: bool = False
    twin: bool = False

    def encode(self) -> bytes:
        return canonical_json(
            {
                "version": TWIN_VERSION if self.twin else VERSION,
                "uklimg": self.uklimg,
                "buildArgs": dict(self.build_args),
                "kernelConfigs": list(self.kernel_configs),
                "context": self.has_context,
                "cachesIgnored": self.ignore_caches,
                "steps": [step.fields() for step in self.steps],
            }
        )


def parse_blueprint(data: bytes) -> Blueprint:
    """The inverse of ``encode``; CorruptError for what it cannot have written."""
    top = parse_json(data, "the blueprint", MAX_CONFIG)
    if top.get("version") not in (VERSION, TWIN_VERSION):
        known = f"{VERSION} and {TWIN_VERSION}"
        raise CorruptError(
            f"the image's blueprint has version {str(top.get('version'))[:20]}, this uklimg reads {known}"
        )
    try:
        steps = _list(top["steps"], _step)
        if len({step.id for step in steps}) != len(steps) or not 0 < len(steps) <= MAX_STEPS:
            raise ValueError("steps")
        args = top["buildArgs"]
        if not isinstance(args, Mapping):
            raise TypeError("buildArgs")
        return Blueprint(
            uklimg=_text(top["uklimg"]),
            steps=steps,
            build_args={_text(name): _text(value) for name, value in args.items()},
            kernel_configs=_list(top["kernelConfigs"], _text),
            has_context=bool(top["context"]),
            ignore_caches=bool(top["cachesIgnored"]),
            twin=top["version"] == TWIN_VERSION,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"the image's blueprint is damaged: {str(error)[:100]}") from None


def _step(value: object) -> StepRecord:
    if not isinstance(value, Mapping):
        raise TypeError("a step is no object")
    version = value["recipeVersion"]
    if not isinstance(version, int):
        raise TypeError("recipeVersion")
    result = value["result"]
    return StepRecord(
        id=_text(value["id"]),
        title=_text(value["title"]),
        recipe=_text(value["recipe"]),
        recipe_version=version,
        key=Digest.parse(_text(value["key"])),
        result=None if result is None else Digest.parse(_text(result)),
        needs=_list(value["needs"], _text),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise TypeError("no text")
    return value


def _list(value: object, convert: Callable[[object], T]) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return tuple(convert(item) for item in value)


def manifest(config: Descriptor, files: Mapping[str, Descriptor], subject: Descriptor) -> Manifest:
    """The artifact's manifest. ``files`` by name, as blobs; ``subject`` is the image's index."""
    layers = tuple(
        Descriptor(media_type, files[name].digest, files[name].size, {TITLE: name})
        for name, media_type in FILES.items()
        if name in files
    )
    return Manifest(
        Descriptor(CONFIG, config.digest, config.size), layers, artifact_type=ARTIFACT, subject=subject.bare()
    )


def entry(artifact: Descriptor, subject: Digest, identity: str = "") -> Descriptor:
    """The nameless entry for index.json."""
    notes = {SUBJECT: str(subject), **({IDENTITY: identity} if identity else {})}
    return Descriptor(MANIFEST, artifact.digest, artifact.size, notes, artifact_type=ARTIFACT)


def files_of(found: Manifest) -> Mapping[str, Descriptor]:
    """The artifact's files by name; CorruptError when it is no blueprint."""
    if found.artifact_type != ARTIFACT or found.config.media_type != CONFIG or found.subject is None:
        raise CorruptError("what is attached to the image is no blueprint")
    names = {media_type: name for name, media_type in FILES.items()}
    files = {names[blob.media_type]: blob for blob in found.layers if blob.media_type in names}
    if UKLFILE not in files or LOCK not in files:
        raise CorruptError("the image's blueprint lacks the Uklfile or its lock")
    return files


def first_difference(before: Sequence[StepRecord], after: Sequence[StepRecord]) -> StepRecord | None:
    """The first step of ``after`` that left other bytes than the step of its id in ``before``; None when none did.

    A step that ``before`` lacks, or whose result it does not know, is passed over.
    """
    known = {step.id: step.result for step in before if step.result is not None}
    for step in after:
        if step.id in known and step.result is not None and step.result != known[step.id]:
            return step
    return None


def first_planned_otherwise(before: Sequence[StepRecord], after: Sequence[StepRecord]) -> StepRecord | None:
    """The first step of ``after`` that has another key than in ``before``, or that ``before`` lacks."""
    keys = {step.id: step.key for step in before}
    return next((step for step in after if keys.get(step.id) != step.key), None)
