"""The recipe of a kernel kit: the kernel, built once, into which applications are linked. Pure.

The work is done by ``uklimg/link/kit.py`` inside the build container.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uklimg.definitions import SourceFolder
from uklimg.errors import UserError
from uklimg.graph import Blob, Container, ContextTree, Inline, InlineFile, Input, Kind, RunMount, Step
from uklimg.recipes.scripts import HOME, python, scripts

STEP_ID = "kernel-kit"
RECIPE_VERSION = 1
BASE_CONFIG = "base"
BUILD = "/tmp/ukl-kernel"  # kit.py's
TWIN_TREE = ".linux"  # fragments have no dot in their names


@dataclass(frozen=True)
class KernelConfig:
    """What is asked for on top of the series' ``base`` fragment, in this order.

    ``extras`` are further fragments of the series by name (``debug``); ``files`` fragments of the build context, by
    paths of ``tree``; ``options`` NAME → value as in a .config, without CONFIG_; ``ukl`` UKL options.
    """

    extras: tuple[str, ...] = ()
    ukl: tuple[str, ...] = ()
    tree: ContextTree | None = None
    files: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class KernelOverride:
    """What KERNEL takes from the build context. ``source``: a tree and the tarball's path in it, in place of the
    folder's file; ``patches``: a tree and the path of a folder of patches on top of the series' own. ``version`` ""
    is the folder's."""

    version: str = ""
    source: tuple[ContextTree, str] | None = None
    patches: tuple[ContextTree, str] | None = None


def kernel_step(
    base: str,
    folder: SourceFolder,
    config: KernelConfig,
    link: Mapping[str, bytes],
    override: KernelOverride | None = None,
    *,
    twin: bool = False,
) -> Step:
    """A TREE step: the kit of the kernel ``folder``, built in the rootfs of step ``base``.

    ``link`` has the contents of uklimg/link. ``twin``: the same kernel with UKL off, a TREE with ``vmlinux`` and
    ``bzImage`` ready to boot. UserError when the series has no fragment of a wanted name.
    """
    definition = folder.definition
    override = override or KernelOverride()
    fragments = config_fragments(folder, config)
    script: tuple[str, ...] = ("kit.py",)
    more: tuple[str, ...] = ()
    if override.patches is not None:
        script, more = ("override.py", "kit.py"), ("--more", f"/in/more/{override.patches[1]}")
    if twin:
        script = ("twin.py", "kit.py", "override.py")
    inputs: dict[str, Input] = {
        f"{HOME}/link": scripts(link, *script),
        "/in/patches": Inline(tuple(InlineFile(patch.name, patch.content) for patch in folder.patches.patches)),
        "/in/config": Inline(fragments),
    }
    if override.patches is not None:
        inputs["/in/more"] = override.patches[0]
    if override.source is not None:
        tree, path = override.source
        source, inputs["/in/source"] = f"/in/source/{path}", tree
    else:
        source = f"/in/{definition.file.name}"
        inputs[source] = Blob(definition.file.name, definition.file.digest, definition.file.size, definition.urls)
    paths = [f"/in/config/{fragment.path}" for fragment in fragments]
    if config.tree is not None:
        inputs["/in/files"] = config.tree
        # The user's own options come last, and a fragment of theirs after ours.
        at = len(paths) - bool(config.options)
        paths[at:at] = [f"/in/files/{file}" for file in config.files]
    argv = python(
        f"link/{script[0]}",
        *more,
        *("--source", source),
        *("--patches", "/in/patches"),
        *("--config", *paths),
        *("--tree", "+".join((BASE_CONFIG, *config.extras)) + (TWIN_TREE if twin else "")),
        *("--out", "/out"),
    )
    # One build at a time: each uses all processors, and the source is a gigabyte and a half.
    # No RUN can name it, since no Uklfile has a NUL.
    trees = RunMount("cache", BUILD, id=f"\0{folder.folder}", sharing="locked", ours=True)
    return Step(
        id=STEP_ID,
        title=f"kernel {override.version or definition.version}{' without UKL' if twin else ''}"
        + "".join(f" +{name}" for name in config.extras),
        recipe="kernel-kit",
        recipe_version=RECIPE_VERSION,
        action=Container(rootfs=base, argv=argv, mounts=(trees,)),
        inputs=inputs,
        kind=Kind.TREE,
    )


def config_fragments(folder: SourceFolder, config: KernelConfig) -> tuple[InlineFile, ...]:
    """Our fragments in the order of their names, which is that of their strength."""
    fragments: list[InlineFile] = []
    for name in (BASE_CONFIG, *config.extras):
        if name not in folder.configs:
            there = ", ".join(sorted(folder.configs)) or "none"
            raise UserError(f"{folder.folder} has no configuration {name!r}", hint=f"there is {there}")
        fragments.append(InlineFile(f"{len(fragments) + 1}0-{name}.config", folder.configs[name]))
    if config.ukl:
        fragments.append(_fragment("80-ukl", [(f"UKL_{name}", "y") for name in config.ukl]))
    if config.options:
        fragments.append(_fragment("90-kconfig", config.options))
    return tuple(fragments)


def _fragment(name: str, options: Sequence[tuple[str, str]]) -> InlineFile:
    lines = [f"# CONFIG_{key} is not set" if value == "n" else f"CONFIG_{key}={value}" for key, value in options]
    return InlineFile(f"{name}.config", ("\n".join(lines) + "\n").encode())
