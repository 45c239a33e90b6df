"""Spec and lock become a ResolvedSpec, in which every input from outside is known by digest.

What the lock has is taken as it is; what it lacks a ``Resolver`` finds out, once. Files of the build context are
not locked: they are digested where the plan is made. Pure: definitions and resolver are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from uklimg.definitions import BaseDefinition, SourceFolder
from uklimg.digest import Digest
from uklimg.errors import InternalError, Location, ToolError, UserError, UserErrors
from uklimg.lock import (
    LOCK_NAME,
    ComponentKind,
    Entry,
    EntryKey,
    Lock,
    LockedBase,
    LockedComponent,
    LockedFile,
    LockedImage,
    LockedPackage,
    LockedPackages,
    LockedSource,
    SourceKind,
    packages_key,
)
from uklimg.spec.model import (
    DEBIAN_LIBC,
    UKL_LIBC,
    USERLANDS,
    BaseImage,
    BuildStage,
    ContextSource,
    Copy,
    DebianSource,
    Depends,
    GitSource,
    OciImage,
    Origin,
    Override,
    Package,
    Packages,
    Run,
    Source,
    SourceRef,
    Spec,
    StageRef,
    UrlSource,
)

T = TypeVar("T")
E = TypeVar("E", LockedBase, LockedPackages, LockedSource, LockedComponent, LockedImage)

DEFAULT_BASE = "debian-trixie"
"""The base image in which kernels and the like are made when the program comes from an image of a registry."""


class Definitions(Protocol):
    """The folders that travel with the package (``uklimg.data.Data``). Unknown names are UserErrors."""

    def base_image(self, name: str, /) -> BaseDefinition: ...

    def kernel(self, series: str, /) -> SourceFolder: ...

    def libc(self, version: str, /) -> SourceFolder:
        """Our glibc of that version, or the newest for UKL_LIBC."""
        ...

    def library(self, name: str, /) -> SourceFolder: ...


class Resolver(Protocol):
    """Finds out what the lock lacks; may use the network (``uklimg.resolver.HostResolver``)."""

    def base(self, definition: BaseDefinition, /) -> tuple[LockedPackage, ...]: ...

    def packages(
        self, definition: BaseDefinition, names: Sequence[str], installed: Sequence[LockedPackage], /
    ) -> tuple[LockedPackage, ...]: ...

    def source(self, definition: BaseDefinition, name: str, version: str, /) -> tuple[str, tuple[LockedFile, ...]]:
        """The source package's version and files."""
        ...

    def archive(self, url: str, checksum: Digest | None, /) -> LockedFile: ...

    def image(self, reference: str, /) -> LockedImage:
        """What the reference means now, for linux/amd64."""
        ...

    def git(self, url: str, commit: str, /) -> tuple[str, LockedFile]:
        """The commit that ``commit`` (a tag or branch, too) means now, and its tar."""
        ...


@dataclass(frozen=True)
class ResolvedBase:
    definition: BaseDefinition
    locked: LockedBase


@dataclass(frozen=True)
class ResolvedComponent:
    folder: SourceFolder
    locked: LockedComponent


@dataclass(frozen=True)
class ResolvedSpec:
    """A spec with all it needs. ``lock`` is the given one with what was missing; ``used`` are the keys in use.

    ``bases`` by folder name, ``stage_bases`` the base image's folder name by build stage, ``sources`` by reference,
    ``packages`` by the place of PACKAGES or DEPENDS, ``libraries`` by name (with those that others need), ``tools``
    what the build of a library needs on a base image, by the base's and the library's name, ``userland`` what
    USERLAND stands for. ``libc`` is None for the base image's own; what its build needs is in ``tools``, too.
    ``images`` of registries by reference, ``stage_images`` the reference that a build stage starts from; such a
    stage's base image is DEFAULT_BASE.
    """

    spec: Spec
    kernel: ResolvedComponent
    bases: Mapping[str, ResolvedBase]
    stage_bases: Mapping[str, str]
    sources: Mapping[str, LockedSource]
    packages: Mapping[Location, LockedPackages]
    libraries: Mapping[str, ResolvedComponent]
    tools: Mapping[tuple[str, str], LockedPackages]
    images: Mapping[str, LockedImage]
    stage_images: Mapping[str, str]
    lock: Lock
    used: frozenset[EntryKey]
    userland: LockedPackages | None = None
    libc: ResolvedComponent | None = None

    @property
    def kernel_version(self) -> str:
        """Of the kernel that is built; the lock's is another one when KERNEL takes the source from the context."""
        override = self.spec.image.kernel
        return (override.version if override else "") or self.kernel.locked.version

    def base_of(self, stage: str) -> ResolvedBase:
        """The base image at the bottom of a build stage."""
        return self.bases[self.stage_bases[stage]]

    def source(self, source: Source) -> LockedSource | None:
        """The files of a SOURCE; None when it is a path of the build context."""
        reference = source_reference(source.what)
        return self.sources[reference] if reference else None

    @property
    def libc_version(self) -> str:
        """Version of the libc that the program is linked with: ours, as in ``2.41-ukl``; or Debian's, of the base
        image of LINK's stage; "" when that is an image of a registry, whose libc nobody knows."""
        if self.libc is not None:
            return f"{self.libc.locked.version}-ukl"
        if self.spec.image.link.stage in self.stage_images:
            return ""
        packages = self.base_of(self.spec.image.link.stage).locked.packages
        return next(package.version for package in packages if package.name == "libc6-dev")


def libc_tools(version: str) -> str:
    """The name under which ``ResolvedSpec.tools`` has what the build of our glibc ``version`` needs."""
    return f"glibc {version}"


def kernel_is_local(override: Override) -> bool:
    """Whether KERNEL's --source= is a path of the build context."""
    return bool(override.source) and not override.source.startswith(("https://", "http://"))


def source_reference(what: SourceRef) -> str:
    """The text under which the lock keeps a source; "" for a path of the build context."""
    if isinstance(what, DebianSource):
        return f"debian:{what.name}={what.version}" if what.version else f"debian:{what.name}"
    if isinstance(what, UrlSource):
        return what.url
    if isinstance(what, GitSource):
        return f"git+{what.url}#{what.commit}"
    return ""


def resolve(spec: Spec, lock: Lock, definitions: Definitions, resolver: Resolver | None) -> ResolvedSpec:
    """Resolve a spec. Without a ``resolver`` (``--locked``, ``--offline``) whatever the lock lacks is an error.

    UserErrors with all that is wrong, each at its place in the Uklfile: entries missing, entries of another
    definition (a base image's list or a patch set has changed since), checksums that contradict the lock, unknown
    packages. What the resolver raises about network or corruption goes through.
    """
    return _Resolution(spec, lock, definitions, resolver).run()


class _Resolution:
    def __init__(self, spec: Spec, lock: Lock, definitions: Definitions, resolver: Resolver | None) -> None:
        self._spec = spec
        self._lock = lock
        self._definitions = definitions
        self._resolver = resolver
        self._errors: list[UserError] = []
        self._used: dict[EntryKey, Entry] = {}
        self._bases: dict[str, ResolvedBase] = {}
        self._stage_bases: dict[str, str] = {}
        self._sources: dict[str, LockedSource] = {}
        self._packages: dict[Location, LockedPackages] = {}
        self._libraries: dict[str, ResolvedComponent] = {}
        self._tools: dict[tuple[str, str], LockedPackages] = {}
        self._images: dict[str, LockedImage] = {}
        self._stage_images: dict[str, str] = {}
        # What PACKAGES asked for and added so far, by build stage.
        self._asked: dict[str, tuple[str, ...]] = {}
        self._installed: dict[str, tuple[LockedPackage, ...]] = {}

    def run(self) -> ResolvedSpec:
        kernel = self._try(self._spec.image.location, self._kernel)
        for stage in self._spec.stages:
            self._try(stage.location, partial(self._stage, stage))
        for copy in self._spec.image.copies:
            self._try(copy.location, partial(self._origin, copy.origin))
        userland = self._try(self._spec.image.location, self._userland)
        libc = self._try(self._spec.image.location, self._libc)
        if self._errors:
            advise_update(self._errors)
            raise UserErrors(self._errors)
        if kernel is None:
            raise InternalError("no kernel and no error")
        return ResolvedSpec(
            spec=self._spec,
            kernel=kernel,
            bases=self._bases,
            stage_bases=self._stage_bases,
            sources=self._sources,
            packages=self._packages,
            libraries=self._libraries,
            tools=self._tools,
            images=self._images,
            stage_images=self._stage_images,
            lock=self._lock.with_missing(self._used.values()),
            used=frozenset(self._used),
            userland=userland,
            libc=libc,
        )

    def _try(self, location: Location, action: Callable[[], T]) -> T | None:
        """Collect the action's user errors. What fails is placed at ``location`` unless it has a place."""
        try:
            return action()
        except UserErrors as errors:
            self._errors.extend(errors.errors)
        except UserError as error:
            self._errors.append(error)
            if error.location is None:
                error.location = location
        except ToolError as error:
            error.location = error.location or location
            raise
        return None

    def _entry(self, wanted: type[E], key: EntryKey, what: str, find: Callable[[Resolver], E]) -> E:
        """The entry of ``key``, from this run, the lock, or ``find``."""
        entry = self._used.get(key) or self._lock.get(key)
        if entry is None:
            if self._resolver is None:
                raise UserError(f"{LOCK_NAME} lacks {what}", hint="uklimg lock")
            entry = find(self._resolver)
        if not isinstance(entry, wanted) or entry.key != key:
            raise InternalError(f"the entry for {key} is of another kind or key")
        self._used[key] = entry
        return entry

    # --- kernel and libraries

    def _kernel(self) -> ResolvedComponent:
        image = self._spec.image
        folder = self._definitions.kernel(image.series)
        override = image.kernel
        if override is None:
            return self._component(ComponentKind.KERNEL, image.series, folder)
        if override.source and not override.version:
            raise UserError(
                "KERNEL --source= without a version",
                hint=f"which kernel it is, as in {folder.definition.version}",
                location=override.location,
            )
        if not override.source and override.version not in ("", folder.definition.version):
            raise UserError(
                f"the series {image.series} is made for {folder.definition.version}",
                hint=f"another version needs its tarball: KERNEL --source=https://… {override.version}",
                location=override.location,
            )
        if override.source and not kernel_is_local(override):
            return self._fetched_kernel(override, folder)
        # Files of the context are not locked; the series' patches and its own source are.
        return self._component(ComponentKind.KERNEL, image.series, folder)

    def _libc(self) -> ResolvedComponent | None:
        """The libc that GLIBC or else the series chooses; None for the base image's, or for an error told before."""
        image, override = self._spec.image, self._spec.image.glibc
        location = override.location if override else image.location
        if override and (override.source or override.patches or not override.version):
            problem = "GLIBC takes no --source= or --patches=: the port is made for one version"
            raise UserError(problem, hint=f"GLIBC {UKL_LIBC}", location=location)
        wanted = override.version if override else self._definitions.kernel(image.series).definition.libc
        if wanted in ("", DEBIAN_LIBC):
            return None
        try:
            folder = self._definitions.libc(wanted)
        except UserError as error:
            error.location = location
            raise
        version = folder.folder.rpartition("/")[2]
        base = self._bases.get(self._stage_bases.get(image.link.stage, ""))
        if base is None:
            return None
        if tools := tuple(sorted(set(folder.definition.packages))):
            entry = self._packages_entry(base, (), tools, base.locked.packages)
            self._tools[base.definition.name, libc_tools(version)] = entry
        return self._component(ComponentKind.LIBC, version, folder)

    def _fetched_kernel(self, override: Override, folder: SourceFolder) -> ResolvedComponent:
        """The series' patches and configuration on another tarball."""
        series, patches = self._spec.image.series, folder.patches.digest

        def find(resolver: Resolver) -> LockedComponent:
            file = resolver.archive(override.source, None)
            return LockedComponent(ComponentKind.KERNEL, series, override.version, file, patches)

        key = (ComponentKind.KERNEL.value, series)
        locked = self._entry(LockedComponent, key, f"kernel {override.version}", find)
        wanted = (override.version, override.source, patches)
        parts = [
            part
            for part, one, other in zip(
                ("version", "source", "patches"),
                (locked.version, locked.file.origin, locked.patches),
                wanted,
                strict=True,
            )
            if one != other
        ]
        if parts:
            raise OutdatedError(f"kernel {series}", " and ".join(parts), series)
        definition = replace(folder.definition, version=locked.version, file=locked.file, urls=(locked.file.origin,))
        return ResolvedComponent(replace(folder, definition=definition), locked)

    def _library(self, item: Package, base: ResolvedBase) -> None:
        folder = self._definitions.library(item.name)
        if item.version not in ("", folder.definition.version):
            raise UserError(
                f"there is no recipe for {item.name} {item.version}",
                hint=f"libs/ has {item.name} {folder.definition.version}",
            )
        self._library_with_needs(item.name, base, ())

    def _library_with_needs(self, name: str, base: ResolvedBase, above: tuple[str, ...]) -> None:
        """``above``: the libraries that need it, from the one asked for on."""
        if name in above:
            raise UserError(f"libraries need each other: {', '.join((*above, name))}", hint="correct their recipes")
        folder = self._definitions.library(name)
        self._libraries[name] = self._component(ComponentKind.LIBRARY, name, folder)
        tools = tuple(sorted(set(folder.library.packages)))
        if tools:
            self._tools[base.definition.name, name] = self._packages_entry(base, (), tools, base.locked.packages)
        for needed in folder.library.needs:
            self._library_with_needs(needed, base, (*above, name))

    def _component(self, kind: ComponentKind, name: str, folder: SourceFolder) -> ResolvedComponent:
        """Our own folders hold all that the lock wants to know, so nothing is asked of the resolver."""
        definition = folder.definition
        wanted = LockedComponent(kind, name, definition.version, definition.file, folder.patches.digest)
        locked = self._entry(LockedComponent, wanted.key, f"{kind.value} {name}", lambda _: wanted)
        if locked != wanted:
            parts = [
                part for part in ("version", "file", "patches") if getattr(locked, part) != getattr(wanted, part)
            ]
            raise OutdatedError(f"{kind.value} {name}", " and ".join(parts), name)
        return ResolvedComponent(folder, locked)

    # --- stages

    def _stage(self, stage: BuildStage) -> None:
        base = self._stage_base(stage)
        for instruction in stage.instructions:
            location = instruction.location
            if isinstance(instruction, Source):
                self._try(location, partial(self._source, instruction, base))
            elif isinstance(instruction, Packages | Depends):
                self._try(location, partial(self._install, stage.name, base, location, instruction.items))
            elif isinstance(instruction, Copy):
                self._try(location, partial(self._origin, instruction.origin))
            elif isinstance(instruction, Run):
                for mount in instruction.mounts:
                    self._try(location, partial(self._origin, mount.origin))

    def _stage_base(self, stage: BuildStage) -> ResolvedBase:
        if isinstance(stage.base, StageRef):
            below = stage.base.name
            if below not in self._stage_bases:
                raise UserError(f"stage {below!r}, which it is built on, cannot be resolved")
            self._stage_bases[stage.name] = self._stage_bases[below]
            self._asked[stage.name] = self._asked.get(below, ())
            self._installed[stage.name] = self._installed[below]
            if below in self._stage_images:
                self._stage_images[stage.name] = self._stage_images[below]
            return self._bases[self._stage_bases[stage.name]]
        base = self._origin(stage.base)
        if isinstance(stage.base, OciImage):
            self._stage_images[stage.name] = stage.base.reference
            base = self._origin(BaseImage(DEFAULT_BASE))
        if base is None:
            raise InternalError("a stage without a base")
        self._stage_bases[stage.name] = base.definition.name
        self._installed[stage.name] = base.locked.packages
        return base

    def _origin(self, origin: Origin | None) -> ResolvedBase | None:
        """Resolve a base image or, giving None, an image of a registry; None for what lies in the Uklfile, too."""
        if isinstance(origin, OciImage):
            reference = origin.reference
            self._images[reference] = self._entry(
                LockedImage, ("image", reference), f"image {reference}", lambda resolver: resolver.image(reference)
            )
            return None
        if not isinstance(origin, BaseImage):
            return None
        if origin.name not in self._bases:
            definition = self._definitions.base_image(origin.name)
            locked = self._entry(
                LockedBase,
                ("base", origin.name),
                f"base image {origin.name}",
                lambda resolver: LockedBase(origin.name, definition.digest, resolver.base(definition)),
            )
            if locked.definition != definition.digest:
                raise OutdatedError(f"base image {origin.name}", "definition", origin.name)
            self._bases[origin.name] = ResolvedBase(definition, locked)
        return self._bases[origin.name]

    def _install(self, stage: str, base: ResolvedBase, location: Location, items: Iterable[Package]) -> None:
        items = tuple(items)
        if stage in self._stage_images:
            raise UserError(
                f"nothing can be added to {self._stage_images[stage]}, whose own packages nobody locked",
                hint="use debian:trixie and COPY --from= the image, or an image that has what is needed",
            )
        for item in items:
            if item.recipe:
                self._try(location, partial(self._library, item, base))
        names = tuple(sorted({_package_text(item) for item in items if not item.recipe}))
        if not names:
            return
        after, installed = self._asked.get(stage, ()), self._installed[stage]
        entry = self._packages_entry(base, after, names, installed)
        self._packages[location] = entry
        self._asked[stage] = (*after, *names)
        self._installed[stage] = (*installed, *entry.packages)

    def _packages_entry(
        self, base: ResolvedBase, after: tuple[str, ...], names: tuple[str, ...], installed: Sequence[LockedPackage]
    ) -> LockedPackages:
        """What ``names`` (sorted) add where ``installed`` is: the base's packages and what ``after`` added."""
        name = base.definition.name
        return self._entry(
            LockedPackages,
            packages_key(name, after, names),
            f"the packages {' '.join(names)}",
            lambda resolver: LockedPackages(name, after, names, resolver.packages(base.definition, names, installed)),
        )

    def _userland(self) -> LockedPackages | None:
        """The packages of USERLAND, beside the base image of LINK's stage; None for none of them, or for an error
        that has been told."""
        image = self._spec.image
        names, base = USERLANDS[image.userland], self._bases.get(self._stage_bases.get(image.link.stage, ""))
        if not names or base is None:
            return None
        return self._packages_entry(base, (), names, base.locked.packages)

    # --- sources

    def _source(self, source: Source, base: ResolvedBase) -> None:
        what, reference = source.what, source_reference(source.what)
        if isinstance(what, ContextSource):
            return

        def find(resolver: Resolver) -> LockedSource:
            if isinstance(what, DebianSource):
                version, files = resolver.source(base.definition, what.name, what.version)
                return LockedSource(reference, SourceKind.DEBIAN, version, files)
            if isinstance(what, GitSource):
                commit, file = resolver.git(what.url, what.commit)
                return LockedSource(reference, SourceKind.GIT, commit, (file,))
            file = resolver.archive(what.url, source.checksum)
            return LockedSource(reference, SourceKind.ARCHIVE, "", (file,))

        locked = self._entry(LockedSource, ("source", reference), f"source {reference}", find)
        if source.checksum and source.checksum not in _checkable(locked):
            raise UserError(
                f"{reference} is {_checkable(locked)[0]}, not the --checksum {source.checksum}",
                hint="correct --checksum, or move the lock forward with `uklimg lock --update`",
            )
        self._sources[reference] = locked


def _package_text(package: Package) -> str:
    return f"{package.name}={package.version}" if package.version else package.name


def _checkable(locked: LockedSource) -> tuple[Digest, ...]:
    """What --checksum may state: an archive's digest, a Debian source's .dsc, which has those of all other files."""
    files = [file for file in locked.files if locked.kind is not SourceKind.DEBIAN or file.name.endswith(".dsc")]
    if not files:
        raise UserError(f"{LOCK_NAME} has no .dsc file for {locked.reference}", hint="uklimg lock --update")
    return tuple(file.digest for file in files)


class OutdatedError(UserError):
    """The lock is about another state of something that uklimg has. ``name`` is what ``lock --update`` takes."""

    def __init__(self, what: str, part: str, name: str) -> None:
        super().__init__(f"the {part} of {what} changed since {LOCK_NAME} was made")
        self.name = name
        advise_update((self,))


def advise_update(errors: Iterable[UserError], given: Iterable[str] = ()) -> None:
    """Hint at one command for all outdated entries, with the names ``given`` before: each moved alone fails for the
    others."""
    outdated = [error for error in errors if isinstance(error, OutdatedError)]
    names = tuple(dict.fromkeys((*given, *(error.name for error in outdated))))
    command = " ".join(("uklimg lock", *(f"--update {name}" for name in names)))
    for error in outdated:
        error.hint = f"{command} moves {'it' if len(names) == 1 else 'them'} forward"
