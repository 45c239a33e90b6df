"""Blueprints in the store: attach one to an image that was built, find it, and unpack it for building again.

In the store it is an entry of index.json without a name; it lives as long as its image. An image has one: the build
that made it last says how.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from uklimg import __version__, contexttar, oci
from uklimg.blueprint import (
    ARTIFACT,
    CONFIG,
    CONTEXT,
    FILES,
    IDENTITY,
    IGNORE,
    KERNEL_CONFIG,
    LOCK,
    SUBJECT,
    UKLFILE,
    Blueprint,
    StepRecord,
    entry,
    files_of,
    manifest,
    parse_blueprint,
)
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.graph import Container, ContextTree, Graph
from uklimg.lock import LOCK_NAME, format_lock
from uklimg.plan import Plan
from uklimg.project import Project, declared_arguments
from uklimg.recipes.kernel import STEP_ID as KERNEL_KIT
from uklimg.resolve import ResolvedSpec
from uklimg.store import StepResult, Store

FULL, MIN, NONE = "full", "min", "none"
MODES = (FULL, MIN, NONE)
"""How much an image carries: everything, everything but files of the build context, nothing."""
MAX_TEXT = 64 << 20


@dataclass(frozen=True)
class Carried:
    """A blueprint with its files, as blobs of the store."""

    blueprint: Blueprint
    files: Mapping[str, oci.Descriptor]
    artifact: oci.Descriptor


def result_digest(result: StepResult) -> Digest:
    """What a step left, whatever its key is."""
    return result.layer.digest if result.layers else result.root.digest


def step_records(graph: Graph, results: Mapping[str, Digest | None]) -> tuple[StepRecord, ...]:
    return tuple(
        StepRecord(
            step.id,
            step.title,
            step.recipe,
            step.recipe_version,
            graph.keys[step.id],
            results.get(step.id),
            step.needs(),
        )
        for step in graph.steps
    )


class Lookup(Protocol):
    """``Store.lookup``, or that of shared caches."""

    def __call__(self, key: Digest, /, *, verify: bool = True) -> StepResult | None: ...


def known_results(store: Store, graph: Graph, lookup: Lookup | None = None) -> dict[str, Digest | None]:
    """By step; None where neither the store has a record nor ``lookup`` a result, which is not brought for this."""
    found: dict[str, Digest | None] = {}
    for step in graph.steps:
        key = graph.keys[step.id]
        record = store.record(key)
        result = record.result if record else lookup(key, verify=False) if lookup else None
        found[step.id] = result_digest(result) if result else None
    return found


def attach(
    store: Store,
    project: Project,
    resolved: ResolvedSpec,
    made: Plan,
    image: oci.Descriptor,
    *,
    kernel_configs: tuple[str, ...] = (),
    ignore_caches: bool = False,
    twin: bool = False,
    mode: str = FULL,
    anew: bool = False,
    lookup: Lookup | None = None,
) -> None:
    """Give ``image``, which ``made`` led to, its blueprint. Nothing is written when it has one of the same build,
    unless ``anew``: a step may have left other bytes this time.

    ``lookup`` finds what steps left that this build did not need, because an image came from a shared cache. The
    caller holds a session.
    """
    if mode == NONE:
        detach(store, image.digest)
        return
    if mode not in MODES:
        raise UserError(f"--blueprint={mode} is none of " + ", ".join(MODES))
    identity = str(
        Digest.of_json(
            {
                "uklimg": __version__,
                "uklfile": project.text,
                "ignore": project.context.ignore_text,
                "args": dict(project.build_args),
                "kernel_configs": list(kernel_configs),
                "mode": mode,
                "key": str(made.graph.keys[made.graph.target]),
            }
        )
    )
    old = entry_of(store, image.digest)
    if old is not None and old.annotations.get(IDENTITY) == identity and not anew:
        return
    files = dict(_files(store, project, resolved, made.graph, mode))
    blueprint = Blueprint(
        uklimg=__version__,
        steps=step_records(made.graph, known_results(store, made.graph, lookup)),
        build_args=_used_arguments(project),
        kernel_configs=kernel_configs,
        has_context=mode == FULL,
        ignore_caches=ignore_caches and _has_mounts(made.graph),
        twin=twin,
    )
    config = store.put_bytes(blueprint.encode(), CONFIG)
    artifact = store.put_bytes(manifest(config, files, image).encode(), oci.MANIFEST)
    put_entry(store, entry(artifact, image.digest, identity))


def _used_arguments(project: Project) -> dict[str, str]:
    """The build arguments that can have mattered. A proxy may have a password in it, and changes no result."""
    declared = declared_arguments(project.text)
    return {
        name: value
        for name, value in sorted(project.build_args.items())
        if name in declared and not name.lower().endswith("_proxy")
    }


def _has_mounts(graph: Graph) -> bool:
    return any(isinstance(step.action, Container) and step.action.mounts for step in graph.steps)


def _files(
    store: Store, project: Project, resolved: ResolvedSpec, graph: Graph, mode: str
) -> Iterable[tuple[str, oci.Descriptor]]:
    texts = {UKLFILE: project.text, LOCK: format_lock(resolved.lock.only(resolved.used))}
    for name, text in texts.items():
        yield name, store.put_bytes(text.encode(), FILES[name])
    trees = context_trees(graph)
    if mode == FULL and trees:
        if project.context.ignore_text:
            yield IGNORE, store.put_bytes(project.context.ignore_text.encode(), FILES[IGNORE])
        with store.scratch() as scratch, store.writer() as writer:
            contexttar.pack(trees, scratch, writer)
            yield CONTEXT, writer.commit(media_type=FILES[CONTEXT])
    # It is not brought from a shared cache for this.
    kit = store.lookup(graph.keys[KERNEL_KIT]) if KERNEL_KIT in graph.keys else None
    if kit is not None:
        config = store.tree(kit) / "config"
        yield KERNEL_CONFIG, store.put_bytes(config.read_bytes(), FILES[KERNEL_CONFIG])


def context_trees(graph: Graph) -> tuple[ContextTree, ...]:
    """What the steps take from the build context."""
    found = [item for step in graph.steps for item in step.inputs.values() if isinstance(item, ContextTree)]
    return tuple(tree for tree in dict.fromkeys(found) if tree.paths)


# index.json


def entry_of(store: Store, image: Digest) -> oci.Descriptor | None:
    """The entry of the image's blueprint."""
    return next((found for found in store.index().manifests if _is_about(found, image)), None)


def put_entry(store: Store, new: oci.Descriptor) -> None:
    """In place of what its image had."""
    subject = Digest.parse(new.annotations[SUBJECT])
    with store.editing() as entries:
        entries[:] = [*(found for found in entries if not _is_about(found, subject)), new]


def detach(store: Store, image: Digest) -> None:
    if entry_of(store, image) is not None:
        with store.editing() as entries:
            entries[:] = [found for found in entries if not _is_about(found, image)]


def _is_about(found: oci.Descriptor, image: Digest) -> bool:
    return found.artifact_type == ARTIFACT and found.annotations.get(SUBJECT) == str(image)


# Reading


def read(store: Store, image: Digest) -> Carried | None:
    """The image's blueprint, or None. CorruptError when it is damaged or about another image."""
    found = entry_of(store, image)
    return None if found is None else read_artifact(store, found, image)


def needed(store: Store, name: str, image: Digest) -> Carried:
    """As ``read``; ToolError NOT_FOUND when the image ``name`` has none."""
    found = read(store, image)
    if found is None:
        hint = "`uklimg build` attaches it unless --blueprint=none, and `pull` and `load` bring it"
        message = f"{name} carries nothing that it could be built from"
        raise ToolError(message, hint=hint, exit_code=ExitCode.NOT_FOUND)
    return found


def read_artifact(store: Store, artifact: oci.Descriptor, image: Digest) -> Carried:
    parsed = oci.parse_manifest(store.read_blob(artifact.digest), "the image's blueprint")
    files = files_of(parsed)
    if parsed.subject is None or parsed.subject.digest != image:
        raise CorruptError("the blueprint is about another image")
    return Carried(parse_blueprint(store.read_blob(parsed.config.digest)), files, artifact.bare())


def text(store: Store, carried: Carried, name: str) -> str:
    """A small file of it; "" when it has none of that name."""
    if name not in carried.files:
        return ""
    if carried.files[name].size > MAX_TEXT:
        raise CorruptError(f"the blueprint's {name} has {carried.files[name].size} bytes")
    try:
        return store.read_blob(carried.files[name].digest).decode()
    except UnicodeDecodeError:
        raise CorruptError(f"the blueprint's {name} is no text") from None


def unpack(store: Store, carried: Carried, folder: Path) -> tuple[Path, Path]:
    """Write everything below the empty ``folder``; the paths of the Uklfile and of the build context."""
    uklfile, context = folder / UKLFILE, folder / "context"
    context.mkdir()
    for name, path in (
        (UKLFILE, uklfile),
        (LOCK, folder / LOCK_NAME),
        (IGNORE, uklfile.with_name(uklfile.name + IGNORE)),
    ):
        if name in carried.files:
            path.write_text(text(store, carried, name), encoding="utf-8")
    if CONTEXT in carried.files:
        with store.open_blob(carried.files[CONTEXT].digest) as stream:
            contexttar.unpack(stream, context)
    return uklfile, context
