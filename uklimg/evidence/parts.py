"""What an image is made of, part by part: out of its lock, its blueprint and the recipes of this uklimg; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from uklimg.blueprint import CONTEXT, UKLFILE, Blueprint
from uklimg.lock import (
    ComponentKind,
    Lock,
    LockedBase,
    LockedComponent,
    LockedFile,
    LockedImage,
    LockedPackage,
    LockedPackages,
    LockedSource,
    SourceKind,
)
from uklimg.oci import Descriptor, RunConfig
from uklimg.patchset import PatchSet

LIBC_PACKAGE = "libc6-dev"
LICENCES_LABEL = "org.opencontainers.image.licenses"
INIT_LICENCE = "Apache-2.0"


class Scope(Enum):
    """CycloneDX's words: in the image; perhaps in it (a program may have been linked with it); only used to build."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    EXCLUDED = "excluded"


@dataclass(frozen=True)
class Part:
    """``licences`` are SPDX expressions or other names, none where nobody knows; ``needs`` refs of other parts."""

    ref: str
    what: str
    name: str
    version: str
    licences: tuple[str, ...] = ()
    files: tuple[LockedFile, ...] = ()
    scope: Scope = Scope.REQUIRED
    purl: tuple[str, str, str, Mapping[str, str]] | None = None  # type, namespace, version, qualifiers
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What this uklimg has of a component: upstream's name, its licence, and our patches."""

    name: str
    license: str
    patches: PatchSet


Recipes = Callable[[LockedComponent], Recipe | None]
Licences = Callable[[LockedPackage | LockedSource], tuple[str, ...]]


def parts_of(
    run: RunConfig,
    blueprint: Blueprint,
    files: Mapping[str, Descriptor],
    lock: Lock,
    recipes: Recipes,
    licences: Licences,
) -> tuple[Part, ...]:
    """All of them, sorted by ref. ``files`` are the blueprint's; ``recipes`` says None for a component that this
    uklimg does not have as it was."""
    found: dict[str, Part] = {}
    has_libc = any(isinstance(entry, LockedComponent) and entry.kind is ComponentKind.LIBC for entry in lock.entries)
    for part in _all(run, blueprint, files, lock, recipes, licences, has_libc):
        # A package may come by several entries.
        found.setdefault(part.ref, part)
    return tuple(found[ref] for ref in sorted(found))


def _all(
    run: RunConfig,
    blueprint: Blueprint,
    files: Mapping[str, Descriptor],
    lock: Lock,
    recipes: Recipes,
    licences: Licences,
    has_libc: bool,
) -> Iterator[Part]:
    for entry in lock.entries:
        if isinstance(entry, LockedComponent):
            yield from _component(entry, run, recipes(entry))
        elif isinstance(entry, LockedSource):
            yield _source(entry, licences(entry))
        elif isinstance(entry, LockedImage):
            ref = f"image:{entry.reference}"
            yield Part(ref, "image", entry.reference, str(entry.manifest), files=entry.files, scope=Scope.OPTIONAL)
        else:
            for package in entry.packages:
                yield _package(package, _scope(package, entry, has_libc), licences(package))
    yield Part("init", "init", "uklimg-init", blueprint.uklimg, (INIT_LICENCE,))
    own = tuple(text for text in (run.labels.get(LICENCES_LABEL, ""),) if text)
    for name in (UKLFILE, CONTEXT):
        if name in files:
            blob = files[name]
            yield Part(
                f"file:{name}",
                "context",
                name,
                str(blob.digest),
                own,
                (LockedFile(name, blob.digest, blob.size, ""),),
                Scope.REQUIRED if name == CONTEXT else Scope.EXCLUDED,
            )


def _component(entry: LockedComponent, run: RunConfig, recipe: Recipe | None) -> Iterator[Part]:
    name = recipe.name if recipe else entry.name
    version = entry.version
    files: tuple[LockedFile, ...] = (entry.file,)
    if entry.kind is ComponentKind.KERNEL and not recipe:
        name = "linux"
    if entry.kind is ComponentKind.KERNEL and run.kernel_version not in ("", version):
        # KERNEL took another source out of the build context.
        version, files = run.kernel_version, ()
    licences = (recipe.license,) if recipe and recipe.license else ()
    patches = recipe.patches.patches if recipe else ()
    ref = f"{entry.kind.value}:{entry.name}"
    yield Part(
        ref,
        entry.kind.value,
        name,
        version,
        licences,
        files,
        purl=("generic", "", version, {}),
        needs=tuple(f"patch:{ref}/{patch.name}" for patch in patches),
    )
    for patch in patches:
        file = LockedFile(patch.name, patch.digest, len(patch.content), "")
        yield Part(f"patch:{ref}/{patch.name}", "patch", patch.name, version, licences, (file,))


def _source(entry: LockedSource, licences: tuple[str, ...]) -> Part:
    ref = f"source:{entry.reference}"
    if entry.kind is SourceKind.DEBIAN:
        name = entry.reference.removeprefix("debian:").partition("=")[0]
        purl = ("deb", "debian", entry.version, {"arch": "source"})
        return Part(ref, "source", name, entry.version, licences, entry.files, purl=purl)
    name = entry.reference.partition("#")[0].rstrip("/").rpartition("/")[2] or entry.reference
    version = entry.version or str(entry.files[0].digest)
    return Part(ref, "source", name, version, licences, entry.files)


def _package(package: LockedPackage, scope: Scope, licences: tuple[str, ...]) -> Part:
    purl = ("deb", "debian", package.version, {"arch": package.architecture})
    ref = f"package:{package.name}@{package.version}"
    return Part(ref, "package", package.name, package.version, licences, (package.file,), scope, purl)


def _scope(package: LockedPackage, entry: LockedBase | LockedPackages, has_libc: bool) -> Scope:
    """Which archives a program was linked with nobody wrote down; that a libc is in it is certain."""
    if package.name == LIBC_PACKAGE:
        return Scope.OPTIONAL if has_libc else Scope.REQUIRED
    if package.name.endswith("-dev") or isinstance(entry, LockedPackages):
        return Scope.OPTIONAL
    return Scope.EXCLUDED
