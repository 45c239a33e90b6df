"""The recipe of the initramfs. Pure; the work is ``uklimg.initramfsbuild.initramfs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uklimg.digest import JSON
from uklimg.errors import InternalError
from uklimg.graph import ContextTree, Host, Inline, InlineFile, Input, Output, Step
from uklimg.guest.protocol import GuestConfig, encode, stub
from uklimg.recipes import parameters
from uklimg.recipes.init import OUTPUT as INIT_OUTPUT
from uklimg.spec.model import Copy

RECIPE_VERSION = 2
STEP_ID = "initramfs"
FUNCTION = "initramfs"
OUTPUT = "initramfs.cpio"


@dataclass(frozen=True)
class CopyInput:
    """A COPY or ADD of the image stage, and the tree that its sources are relative to (None: heredocs only)."""

    copy: Copy
    tree: Input | None


def initramfs_step(
    *,
    init: str,
    programs: Mapping[str, Input | None],
    config: GuestConfig,
    copies: Sequence[CopyInput] = (),
    trees: Sequence[Input] = (),
    folders: Sequence[str] = (),
) -> Step:
    """The step ``initramfs``: a TREE with ``/initramfs.cpio``.

    ``init``: id of the step that ``recipes.init`` made. ``programs``: what ``/ukl/<name>`` is; None for the stub that
    starts the application in the kernel, a file for an ordinary program. ``config``: written to /etc/uklimg/run.conf
    for runners without the control port. ``trees`` are laid over the minimal root first (USERLAND), then ``copies``
    in order, then ``folders`` (absolute; volumes and the working directory) are made.
    """
    inputs: dict[str, Input] = {
        "init": Output(init, INIT_OUTPUT),
        "config": Inline((InlineFile("run.conf", encode(config)),)),
    }
    for name, source in programs.items():
        stub(name)  # refuses an unfit name
        if source is not None:
            inputs[f"program:{name}"] = source
    for number, tree in enumerate(trees):
        inputs[f"tree:{number}"] = tree
    described: list[JSON] = []
    for number, item in enumerate(copies):
        if item.tree is not None:
            inputs[f"copy:{number}"] = item.tree
        files = item.copy.files
        if files:
            inputs[f"files:{number}"] = Inline(tuple(InlineFile(f.name, f.content, f.mode) for f in files))
        described.append(_copy(item))
    params: JSON = {
        "programs": sorted(programs),
        "trees": len(trees),
        "copies": described,
        "folders": list(folders),
    }
    return Step(
        id=STEP_ID,
        title="pack the initramfs",
        recipe="initramfs",
        recipe_version=RECIPE_VERSION,
        action=Host(FUNCTION, params),
        inputs=inputs,
    )


@dataclass(frozen=True)
class CopyParams:
    """What the host function is told of one COPY. ``paths``: of a context, what is in it; None: all of the tree."""

    sources: tuple[str, ...]
    files: tuple[str, ...]
    dest: str
    unpack: bool
    chown: str
    chmod: int | None
    parents: bool
    exclude: tuple[str, ...]
    paths: tuple[str, ...] | None


@dataclass(frozen=True)
class InitramfsParams:
    programs: tuple[str, ...]
    trees: int
    copies: tuple[CopyParams, ...]
    folders: tuple[str, ...]


def _copy(item: CopyInput) -> JSON:
    copy = item.copy
    return {
        "sources": list(copy.sources),
        "files": [file.name for file in copy.files],
        "dest": copy.dest,
        "unpack": copy.unpack,
        "chown": copy.chown,
        "chmod": copy.chmod,
        "parents": copy.parents,
        "exclude": list(copy.exclude),
        "paths": list(item.tree.paths) if isinstance(item.tree, ContextTree) else None,
    }


def params_of(value: JSON) -> InitramfsParams:
    """The step's parameters as the host function reads them; InternalError for anything that we did not write."""
    try:
        if not isinstance(value, Mapping):
            raise TypeError("no object")
        copies = value["copies"]
        if not isinstance(copies, Sequence) or isinstance(copies, str):
            raise TypeError("no copies")
        return InitramfsParams(
            programs=parameters.texts(value["programs"]),
            trees=parameters.number(value["trees"]),
            copies=tuple(_copy_params(item) for item in copies),
            folders=parameters.texts(value["folders"]),
        )
    except (KeyError, TypeError) as error:
        raise InternalError(f"bad parameters of the initramfs step: {error}") from error


def _copy_params(value: JSON) -> CopyParams:
    if not isinstance(value, Mapping):
        raise TypeError("no object")
    chmod, paths = value["chmod"], value["paths"]
    return CopyParams(
        sources=parameters.texts(value["sources"]),
        files=parameters.texts(value["files"]),
        dest=parameters.text(value["dest"]),
        unpack=value["unpack"] is True,
        chown=parameters.text(value["chown"]),
        chmod=None if chmod is None else parameters.number(chmod),
        parents=value["parents"] is True,
        exclude=parameters.texts(value["exclude"]),
        paths=None if paths is None else parameters.texts(paths),
    )
