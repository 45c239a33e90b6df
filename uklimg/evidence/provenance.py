"""How an image was built: an in-toto statement (v1) whose predicate is SLSA's provenance (v1); pure, deterministic.

The materials are the lock's files, the parameters those of the Uklfile and of `build`. It has no time and no name of
a run: the same build says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uklimg.blueprint import CONTEXT, LOCK, UKLFILE, Blueprint
from uklimg.digest import JSON, Digest, canonical_json
from uklimg.lock import Lock
from uklimg.oci import Descriptor, RunConfig

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://uklimg.invalid/Uklfile/v1"
"""What the parameters mean: docs/trust.md."""
BUILDER = "https://uklimg.invalid/builder"
"""Of a builder that nobody gave a name."""


def provenance(
    subjects: Sequence[tuple[str, Digest]],
    run: RunConfig,
    blueprint: Blueprint,
    files: Mapping[str, Descriptor],
    uklfile: str,
    lock: Lock,
    builder: str = "",
) -> bytes:
    """``subjects`` are the image and its manifests by name; ``files`` the blueprint's."""
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": _digest(digest)} for name, digest in subjects],
            "predicateType": PREDICATE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": {
                        "uklfile": uklfile,
                        "buildArgs": dict(blueprint.build_args),
                        "kernelConfigs": list(blueprint.kernel_configs),
                        "target": run.target,
                    },
                    "internalParameters": {
                        "uklimg": blueprint.uklimg,
                        "cachesIgnored": blueprint.ignore_caches,
                        "steps": [step.fields() for step in blueprint.steps],
                    },
                    "resolvedDependencies": [*_carried(files), *_locked(lock)],
                },
                "runDetails": {"builder": {"id": builder or BUILDER, "version": {"uklimg": blueprint.uklimg}}},
            },
        }
    )


def _carried(files: Mapping[str, Descriptor]) -> list[JSON]:
    """What the blueprint has of the project itself."""
    names = (name for name in (UKLFILE, LOCK, CONTEXT) if name in files)
    return [{"name": name, "digest": _digest(files[name].digest)} for name in names]


def _locked(lock: Lock) -> list[JSON]:
    return [
        {"name": file.name, "uri": file.origin, "digest": _digest(file.digest)}
        for file in lock.files()
        if file.origin
    ]


def _digest(digest: Digest) -> JSON:
    return {"sha256": digest.hex}
