"""Build an image again from its blueprint, in a store of its own, and say where the results part.

Nothing that an earlier build made is used but what the caller asks for; fetched sources are, since each is known by
its digest.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from uklimg import __version__, blueprints, compare, oci
from uklimg.blueprint import StepRecord, first_difference, first_planned_otherwise
from uklimg.blueprints import Carried, known_results, step_records
from uklimg.compare import Difference
from uklimg.data import Data
from uklimg.digest import Digest
from uklimg.errors import UserError, UserErrors
from uklimg.events import Note, Sink
from uklimg.execute import Executor
from uklimg.graph import Graph
from uklimg.plan import Options, Plan
from uklimg.project import open_project, plan_project, resolve_project
from uklimg.store import Store


@dataclass(frozen=True)
class Rebuilt:
    """``image`` is what came out; ``steps`` what each step left this time; ``reused`` those that were not made.

    ``diverged`` is the first step that left other bytes than the blueprint says, ``planned_otherwise`` the first one
    that this uklimg plans differently from the one that built the image.
    """

    image: oci.Descriptor
    steps: tuple[StepRecord, ...]
    reused: tuple[str, ...]
    diverged: StepRecord | None
    planned_otherwise: StepRecord | None


def plan_again(
    store: Store,
    carried: Carried,
    folder: Path,
    data: Data,
    *,
    context: Path | None = None,
    secrets: Collection[str] = (),
) -> Plan:
    """The plan of the image's build, from files that are unpacked to the empty ``folder``; ``context`` in place of
    the carried files of the build context. ``secrets`` are the ids of those that are given. UserErrors when this
    uklimg cannot make it."""
    blueprint = carried.blueprint
    uklfile, own = blueprints.unpack(store, carried, folder)
    if context is None and not blueprint.has_context:
        raise UserError("the image was built with --blueprint=min", hint="--context DIR names its build context")
    if context is not None:
        uklfile.with_name(f"{uklfile.name}.uklignore").unlink(missing_ok=True)
    try:
        project = open_project(uklfile, context or own, blueprint.build_args, data, uklfile.name)
        resolved = resolve_project(project, data, None)
        options = Options(
            kernel_configs=blueprint.kernel_configs,
            secrets=frozenset(secrets),
            ignore_caches=blueprint.ignore_caches,
            twin=blueprint.twin,
        )
        return plan_project(project, resolved, options)
    except UserErrors as errors:
        for error in errors.errors:
            error.hint = f"uklimg {blueprint.uklimg} built the image, and this is {__version__}"
        raise


def rebuild(
    store: Store,
    private: Store,
    carried: Carried,
    made: Plan,
    executor: Executor,
    *,
    reuse: Sequence[str] = (),
    sink: Sink,
) -> Rebuilt:
    """Make ``made`` in ``private`` with its ``executor``. ``reuse`` are patterns of step ids: those that ``store``
    has are taken from there. The caller holds sessions of both."""
    graph = made.graph
    reused = tuple(_reused(store, private, graph, reuse))
    before = carried.blueprint.steps
    otherwise = first_planned_otherwise(before, step_records(graph, {}))
    if otherwise is not None:
        text = f"uklimg {carried.blueprint.uklimg}, which built the image, planned {otherwise.id} differently"
        sink(Note(text, warning=True))
    built = executor.run(graph, made.places)
    after = step_records(graph, known_results(private, graph))
    return Rebuilt(built.result.root, after, reused, first_difference(before, after), otherwise)


def _reused(store: Store, private: Store, graph: Graph, patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not fnmatch.filter(graph.keys, pattern):
            raise UserError(f"the image has no step {pattern!r}", hint="there is " + ", ".join(graph.keys))
    wanted = [step.id for step in graph.steps if any(fnmatch.fnmatchcase(step.id, pattern) for pattern in patterns)]
    return [name for name in wanted if private.borrow(store, graph.keys[name]) is not None]


@dataclass(frozen=True)
class Pair:
    """Two layers that should be the same: ``name`` is a step's id or a file's role in the image."""

    name: str
    before: Path
    after: Path

    def differences(self) -> tuple[Difference, ...]:
        return compare.compare_layers(self.before, self.after)


def pairs(store: Store, private: Store, carried: Carried, image: oci.Descriptor, rebuilt: Rebuilt) -> list[Pair]:
    """What to look at: the first step that diverged where ``store`` still has its result, else the image's files."""
    step = rebuilt.diverged
    was = {known.id: known.result for known in carried.blueprint.steps}
    if step is not None and step.result is not None and step.id != rebuilt.steps[-1].id:
        old = was[step.id]
        if old is not None and store.has(old):
            return [Pair(step.id, store.verified_path(old), private.verified_path(step.result))]
    return image_pairs(store, image, private, rebuilt.image)


def image_pairs(store: Store, image: oci.Descriptor, other_store: Store, other: oci.Descriptor) -> list[Pair]:
    """The files of two images that differ."""
    first, second = _layers(store, image), _layers(other_store, other)
    return [
        Pair(role, store.verified_path(first[role]), other_store.verified_path(second[role]))
        for role in oci.PATHS
        if role in first and role in second and first[role] != second[role]
    ]


def _layers(store: Store, root: oci.Descriptor) -> dict[str, Digest]:
    image = oci.read_image(lambda blob: store.read_blob(blob.digest), root)
    layers = [blob for manifest in image.manifests for blob in manifest.layers]
    return {blob.annotations[oci.ROLE]: blob.digest for blob in layers if oci.ROLE in blob.annotations}
