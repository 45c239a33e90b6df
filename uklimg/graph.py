"""The build as a graph of frozen steps, each with a key made of everything that can change its result.

A step reads inputs (read-only) and writes one output. Its key is H(recipe name and version, action, inputs'
digests or keys); jobs, verbosity, progress and the engine stay outside. Pure: nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

from uklimg.digest import JSON, Digest
from uklimg.errors import InternalError

ARCHITECTURE = "x86_64"
KEY_VERSION = 1


@dataclass(frozen=True)
class Blob:
    """A file known by digest; ``fetch`` brings it when the store lacks it.

    ``urls`` is how to get it (never part of the key): ``https://…``, or ``debian:<path below the mirror's
    root>`` which the configured mirror completes. ``size`` in bytes, 0 when unknown.
    """

    name: str
    digest: Digest
    size: int = 0
    urls: tuple[str, ...] = ()

    def key(self) -> JSON:
        return {"blob": str(self.digest), "name": self.name}


@dataclass(frozen=True)
class InlineFile:
    """A small file that we bring ourselves. ``path`` is relative; ``mode`` is the permission bits."""

    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644


@dataclass(frozen=True)
class Inline:
    """A folder of small files of ours: patches, scripts, configuration fragments."""

    files: tuple[InlineFile, ...]

    def key(self) -> JSON:
        return {
            "inline": [
                {"path": f.path, "mode": f.mode, "digest": str(Digest.of(f.content))}
                for f in sorted(self.files, key=lambda f: f.path)
            ]
        }


@dataclass(frozen=True)
class ContextTree:
    """Files of the build context, found and digested before planning (see ``uklimg.context``).

    ``root`` (absolute path on this machine) stays outside the key. ``paths`` are relative to it, sorted. ``via``
    (outside the key, too) are links of the context that lead to some of them and need not be among them.
    """

    digest: Digest
    root: str
    paths: tuple[str, ...]
    via: tuple[str, ...] = ()

    def key(self) -> JSON:
        return {"context": str(self.digest)}


@dataclass(frozen=True)
class Output:
    """The output of another step; ``path`` picks a file or folder inside it ("" = the whole tree)."""

    step: str
    path: str = ""


Input: TypeAlias = Blob | Inline | ContextTree | Output


@dataclass(frozen=True)
class RunMount:
    """Something at ``target`` of a container while its command runs; no change to it is kept in the result.

    ``kind``: "bind" (the step's input ``input``, at its path ``path``), "tmpfs" (an empty folder), "cache" (a folder
    of this machine, by ``id``, that outlives the step) or "secret" (a file of the user's, by ``id``; ``target`` is ""
    where only the environment's ``variable`` gets it). What a cache or a secret holds is not part of the key.
    A cache of ``ours`` makes a step quicker and changes no byte of its result; --no-cache shows an empty folder in
    its place, and no RUN can name it.
    """

    kind: str
    target: str
    input: str = ""
    path: str = ""
    read_only: bool = False
    id: str = ""
    sharing: str = ""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    required: bool = False
    variable: str = ""
    ours: bool = False

    def key(self) -> JSON:
        return {
            "kind": self.kind,
            "target": self.target,
            "input": self.input,
            "path": self.path,
            "read_only": self.read_only,
            "mode": self.mode,
            "owner": [self.uid, self.gid],
            "variable": self.variable,
        }


class Kind(Enum):
    """What a step leaves behind."""

    TREE = "tree"  # a folder, written to /out
    ROOTFS = "rootfs"  # the container's own file system after the command: base image or build stage


@dataclass(frozen=True)
class Container:
    """Run ``argv`` in a container made of ``rootfs`` (a step of kind ROOTFS).

    Inputs are mounted read-only at their targets, those whose target is no absolute path only where ``mounts`` wants
    them; a TREE step writes below ``/out`` (an empty folder). There is no network unless ``network``. Clock-dependent
    tools see SOURCE_DATE_EPOCH; ``env`` is complete: nothing of the caller's environment is added except what the
    engine fixes for all steps. ``proxies`` are variables, too, outside the key: where the network is found.
    """

    rootfs: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    network: bool = False
    user: str = "root"
    mounts: tuple[RunMount, ...] = ()
    proxies: Mapping[str, str] = field(default_factory=dict)

    def key(self, keys: Mapping[str, Digest]) -> JSON:
        fields: dict[str, JSON] = {
            "rootfs": str(keys[self.rootfs]),
            "argv": list(self.argv),
            "env": dict(self.env),
            "workdir": self.workdir,
            "network": self.network,
            "user": self.user,
        }
        if self.mounts:
            fields["mounts"] = [mount.key() for mount in self.mounts]
        return {"container": fields}


@dataclass(frozen=True)
class Host:
    """Run a function of ours (registered in ``uklimg.execute`` under ``function``) with ``params``.

    It gets each input as a path and writes below an output folder. Used for what needs no tool: cpio archives,
    OCI images, unpacking the base image.
    """

    function: str
    params: JSON = None

    def key(self, keys: Mapping[str, Digest]) -> JSON:
        return {"host": {"function": self.function, "params": self.params}}


Action: TypeAlias = Container | Host


@dataclass(frozen=True)
class Step:
    """One node. ``id`` is unique in the graph and readable (``kernel-kit``, ``build:3``); ``title`` is what a
    progress line shows. ``inputs`` maps a mount target (absolute path in a container, plain name for a host
    function) to an input. ``recipe_version`` rises when the meaning of the recipe changes.
    """

    id: str
    title: str
    recipe: str
    recipe_version: int
    action: Action
    inputs: Mapping[str, Input] = field(default_factory=dict)
    kind: Kind = Kind.TREE

    def needs(self) -> tuple[str, ...]:
        """Ids of the steps this one reads, sorted."""
        found = {i.step for i in self.inputs.values() if isinstance(i, Output)}
        if isinstance(self.action, Container):
            found.add(self.action.rootfs)
        return tuple(sorted(found))

    def key_fields(self, keys: Mapping[str, Digest]) -> Mapping[str, JSON]:
        """What the key hashes, by name; ``explain`` compares these."""
        fields: dict[str, JSON] = {
            "version": KEY_VERSION,
            "architecture": ARCHITECTURE,
            "recipe": self.recipe,
            "recipe_version": self.recipe_version,
            "kind": self.kind.value,
            "action": self.action.key(keys),
        }
        for target, source in self.inputs.items():
            if isinstance(source, Output):
                fields[f"input {target}"] = {"step": str(keys[source.step]), "path": source.path}
            else:
                fields[f"input {target}"] = source.key()
        return fields


@dataclass(frozen=True)
class Graph:
    """Steps by id, in an order in which every step follows what it needs; ``target`` is the wanted one."""

    steps: tuple[Step, ...]
    target: str

    @classmethod
    def of(cls, steps: Iterable[Step], target: str) -> Graph:
        """Order the steps that ``target`` needs; others are dropped. Raises InternalError on a cycle or a gap."""
        by_id = {step.id: step for step in steps}
        wanted: set[str] = set()
        todo = [target]
        while todo:
            current = todo.pop()
            if current in wanted:
                continue
            if current not in by_id:
                raise InternalError(f"no step {current!r} in the graph")
            wanted.add(current)
            todo.extend(by_id[current].needs())
        order = TopologicalSorter({name: by_id[name].needs() for name in sorted(wanted)})
        try:
            return cls(tuple(by_id[name] for name in order.static_order()), target)
        except CycleError as error:
            raise InternalError(f"the build graph has a cycle: {error.args[1]}") from error

    @cached_property
    def keys(self) -> Mapping[str, Digest]:
        """Every step's key, by id."""
        keys: dict[str, Digest] = {}
        for step in self.steps:
            keys[step.id] = Digest.of_json(step.key_fields(keys))
        return keys

    def blobs(self) -> frozenset[Digest]:
        """The files that its steps start from."""
        items = (item for step in self.steps for item in step.inputs.values())
        return frozenset(item.digest for item in items if isinstance(item, Blob))

    def step(self, step_id: str) -> Step:
        return next(step for step in self.steps if step.id == step_id)
