"""A resolved spec becomes a graph of steps. Pure: the build context is looked at through a function that is given.

base image → compiler wrapper → build stages → app ┐
base image → kernel kit ──────────────────────→ app → bzImage ┐
base image → PID 1 → initramfs ───────────────────────────────┴→ image

The plain-Linux twin has the same build stages; its program goes into the initramfs, and its kernel is not linked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from uklimg.definitions import UklHow
from uklimg.errors import Location, UserError, UserErrors
from uklimg.graph import ContextTree, Graph, Input, Output, Step
from uklimg.guest.config import guest_config
from uklimg.oci import TARGET_LINUX, TARGET_UKL, HealthCheck, RunConfig
from uklimg.recipes import base_image, bzimage, glibc, program, registry_image, runmounts, stage, toolchain
from uklimg.recipes import image as image_recipe
from uklimg.recipes import init as init_recipe
from uklimg.recipes.app import app_step
from uklimg.recipes.dependencies import Dependencies
from uklimg.recipes.initramfs import CopyInput, initramfs_step
from uklimg.recipes.kernel import KernelConfig, KernelOverride, kernel_step
from uklimg.recipes.userland import userland_step
from uklimg.resolve import ResolvedComponent, ResolvedSpec, kernel_is_local, libc_tools
from uklimg.spec.model import (
    DEFAULT_PATH,
    BuildStage,
    ContextSource,
    Copy,
    Depends,
    Healthcheck,
    ImageStage,
    Instruction,
    MakeFolder,
    Mount,
    OciImage,
    Origin,
    Packages,
    Run,
    Source,
    StageRef,
)


@dataclass(frozen=True)
class Selected:
    """Files of the build context. ``sources`` leads to them in ``tree``: what was asked for, wildcards expanded and
    links followed. ``renamed``: what was asked for and is a link to a file of another name."""

    tree: ContextTree
    sources: tuple[str, ...]
    renamed: tuple[str, ...] = ()


Select: TypeAlias = Callable[[Sequence[str], Sequence[str], Location], Selected]
"""(sources, exclude patterns, place for errors) → those files of the build context."""


@dataclass(frozen=True)
class Assets:
    """Files of ours that steps use, by name: ``init`` is PID 1's sources, the others are folders of the package."""

    init: Mapping[str, bytes] = field(repr=False)
    toolchain: Mapping[str, bytes] = field(repr=False)
    link: Mapping[str, bytes] = field(repr=False)
    inside: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Options:
    """``target``: the build stage to stop at, "" for the image. ``kernel_configs``: further fragments of the kernel
    series, by name. ``secrets``: the ids of --secret. ``ignore_caches``: RUN's cache mounts are empty folders.
    ``twin``: the image is the plain-Linux twin: the program as an ordinary process, the kernel without UKL."""

    target: str = ""
    kernel_configs: tuple[str, ...] = ()
    secrets: frozenset[str] = frozenset()
    ignore_caches: bool = False
    twin: bool = False


@dataclass(frozen=True)
class Plan:
    """``places``: where in the Uklfile a step comes from, by the step's id. ``run``: what the image will say.
    ``warnings``: what a build should say about the steps that its result needs."""

    graph: Graph
    places: Mapping[str, Location]
    run: RunConfig
    warnings: tuple[tuple[Location, str], ...] = ()


def plan(resolved: ResolvedSpec, select: Select, assets: Assets, options: Options | None = None) -> Plan:
    """The steps of a build. UserErrors with all that cannot be planned, each at its place."""
    return _Planner(resolved, select, assets, options or Options()).run()


def run_config(resolved: ResolvedSpec, *, twin: bool = False) -> RunConfig:
    """What the image, or its plain-Linux twin, says to runners."""
    image = resolved.spec.image
    return RunConfig(
        program=image.link.name,
        entrypoint=image.entrypoint,
        cmd=image.cmd,
        env=dict(image.env),
        workdir=image.workdir,
        exposed_ports=tuple(str(port) for port in image.ports),
        volumes=image.volumes,
        stop_signal=image.stop_signal,
        memory=image.memory,
        cpus=image.cpus,
        cmdline=" ".join(_parameter(word) for word in image.cmdline),
        ukl_options=() if twin else image.ukl_options,
        kernel_version=resolved.kernel_version,
        libc_version=resolved.libc_version,
        target=TARGET_LINUX if twin else TARGET_UKL,
        labels=dict(image.labels),
        healthcheck=_healthcheck(image.healthcheck),
    )


def _healthcheck(found: Healthcheck | None) -> HealthCheck | None:
    """As runners take it: what the Uklfile leaves open has its default."""
    if found is None or found.command is None:
        return None
    default = HealthCheck(found.command.argv, found.command.shell)
    return replace(
        default,
        interval=found.interval or default.interval,
        timeout=found.timeout or default.timeout,
        start_period=found.start_period,
        start_interval=found.start_interval or default.start_interval,
        retries=found.retries or default.retries,
    )


def _parameter(word: str) -> str:
    """A kernel parameter as the command line has it: quotes around white space (lib/cmdline.c, next_arg)."""
    return f'"{word}"' if any(char.isspace() for char in word) else word


class _Planner:
    def __init__(self, resolved: ResolvedSpec, select: Select, assets: Assets, options: Options) -> None:
        self._resolved = resolved
        self._spec = resolved.spec
        self._select = select
        self._assets = assets
        self._options = options
        self._steps: list[Step] = []
        self._places: dict[str, Location] = {}
        self._errors: list[UserError] = []
        self._tops: dict[str, str] = {}  # build stage → its last step
        self._bases: dict[str, str] = {}  # base image → the step that build stages on it start from
        self._wrappers: dict[str, str] = {}  # base image → the compiler wrapper on it
        self._dependencies = Dependencies(resolved, assets.inside)
        self._images: dict[str, str] = {}  # image of a registry → its step
        self._linked = self._link_chain()
        self._picks = 0
        self._runs: dict[str, Run] = {}  # those with mounts, by step

    def run(self) -> Plan:
        for name, base in sorted(self._resolved.bases.items()):
            self._add(base_image.base_image_step(base.definition, base.locked))
            wrapper = toolchain.step(base_image.step_id(name), self._assets.toolchain, f"toolchain:{name}")
            self._wrappers[name] = self._add(wrapper)
            self._bases[name] = self._with_libc(wrapper.id, f"libc:{name}")
        for build in self._spec.stages:
            self._stage(build)
        self._run = run_config(self._resolved, twin=self._options.twin)
        target = self._target() or self._image(self._run)
        if self._errors:
            raise UserErrors(self._errors)
        return Plan(Graph.of(self._steps, target), self._places, self._run, self._warnings(target))

    def _warnings(self, *targets: str) -> tuple[tuple[Location, str], ...]:
        """About the RUNs that ``targets`` need."""
        if self._options.ignore_caches:
            return ()
        needed = {step.id for target in targets for step in Graph.of(self._steps, target).steps}
        return runmounts.warnings([run for step_id, run in self._runs.items() if step_id in needed])

    def _link_chain(self) -> frozenset[str]:
        """The stages whose file system LINK's stage has: programs made there may become part of a kernel."""
        found: set[str] = set()
        name = self._spec.image.link.stage
        while name and name not in found:
            found.add(name)
            base = self._spec.stage(name).base
            name = base.name if isinstance(base, StageRef) else ""
        return frozenset(found)

    def _add(self, step: Step, place: Location | None = None) -> str:
        self._steps.append(step)
        if place is not None:
            self._places[step.id] = place
        return step.id

    def _target(self) -> str:
        wanted = self._options.target
        if not wanted:
            return ""
        if wanted not in self._tops:
            there = ", ".join(self._tops) or "none"
            raise UserError(f"no build stage {wanted!r} to stop at", hint=f"there is {there}")
        return self._tops[wanted]

    # --- build stages

    def _stage(self, build: BuildStage) -> None:
        top = self._bottom(build.base)
        reference = self._resolved.stage_images.get(build.name, "")
        if isinstance(build.base, OciImage) and build.name in self._linked:
            # Elsewhere an image need not have what the wrapper needs.
            wrapper = registry_image.wrapper_step(top, self._assets.toolchain, reference, f"toolchain:{reference}")
            top = self._add(wrapper, self._spec.image.link.location)
            top = self._with_libc(top, f"libc:{reference}")
        for number, instruction in enumerate(build.instructions, 1):
            step_id = f"stage:{build.name}:{number}"
            try:
                base = self._resolved.stage_bases[build.name]
                step = self._instruction(step_id, top, instruction, base, build.name)
            except UserErrors as errors:
                self._errors.extend(errors.errors)
            except UserError as error:
                error.location = error.location or instruction.location
                self._errors.append(error)
            else:
                if reference and isinstance(instruction, Copy | Source):
                    step = registry_image.guarded(step, reference)
                top = self._add(_numbered(step, build, number), instruction.location)
        self._tops[build.name] = top

    def _with_libc(self, wrapper: str, step_id: str) -> str:
        """``wrapper``, or a step that adds the libc that GLIBC chose to it."""
        libc = self._resolved.libc
        if libc is None:
            return wrapper
        return self._add(glibc.libc_step(step_id, wrapper, self._glibc(libc)))

    def _glibc(self, libc: ResolvedComponent) -> str:
        """The step that builds it: on the base image of LINK's stage, whose gcc compiles what it is linked with."""
        base, version = self._resolved.stage_bases[self._spec.image.link.stage], libc.locked.name
        step_id = glibc.step_id(base, version)
        if all(step.id != step_id for step in self._steps):
            below = base_image.step_id(base)
            tools = self._resolved.tools.get((base, libc_tools(version)))
            if tools is not None:
                below = self._add(stage.packages_step(f"glibc-tools:{base}", below, tools))
            self._add(glibc.glibc_step(step_id, below, libc.folder, self._assets.inside))
        return step_id

    def _bottom(self, origin: Origin) -> str:
        if isinstance(origin, StageRef):
            return self._tops[origin.name]
        if isinstance(origin, OciImage):
            reference = origin.reference
            if reference not in self._images:
                step = registry_image.image_step(f"image:{reference}", self._resolved.images[reference])
                self._images[reference] = self._add(step)
            return self._images[reference]
        return self._bases[origin.name]

    def _variables(self, build: str) -> tuple[Mapping[str, str], bool]:
        """What a build stage's commands find in their environment before the Uklfile's own variables, and whether a
        PATH is among them."""
        reference = self._resolved.stage_images.get(build, "")
        if not reference:
            return toolchain.environment(), False
        own = registry_image.environment(self._resolved.images[reference])
        return {**own, **(toolchain.environment() if build in self._linked else {})}, "PATH" in own

    def _instruction(self, step_id: str, below: str, instruction: Instruction, base: str, build: str) -> Step:
        """``base``: the base image at the bottom of the stage ``build``."""
        inside = self._assets.inside
        match instruction:
            case Run():
                mounts, inputs = runmounts.run_mounts(
                    instruction,
                    self._bind,
                    secrets=self._options.secrets,
                    ignore_caches=self._options.ignore_caches,
                )
                if mounts:
                    self._runs[step_id] = instruction
                variables, has_path = self._variables(build)
                if has_path:
                    # What the Uklfile says nothing about is the image's.
                    own = tuple(pair for pair in instruction.env if pair != ("PATH", DEFAULT_PATH))
                    instruction = replace(instruction, env=own)
                return stage.run_step(step_id, below, instruction, variables, mounts, inputs)
            case MakeFolder():
                return stage.folder_step(step_id, below, instruction)
            case Source():
                return self._source(step_id, below, instruction)
            case Copy():
                wanted = self._copy(instruction)
                return stage.copy_step(step_id, below, wanted.copy, wanted.tree, _copy_title(instruction), inside)
            case Packages():
                return stage.packages_step(step_id, below, self._resolved.packages[instruction.location])
            case Depends():
                place, wrapper = instruction.location, self._wrappers[base]
                return self._dependencies.step(
                    step_id, below, instruction, base, wrapper, lambda step: self._add(step, place)
                )

    def _source(self, step_id: str, below: str, source: Source) -> Step:
        tree, path = None, ""
        if isinstance(source.what, ContextSource):
            selected = self._select((source.what.path,), (), source.location)
            tree, (path,) = selected.tree, selected.sources
        patches = None
        if source.patches:
            selected = self._select((source.patches,), (), source.location)
            patches = selected.tree
            source = replace(source, patches=selected.sources[0])
        return stage.source_step(
            step_id,
            below,
            source,
            self._resolved.source(source),
            tree=tree,
            path=path,
            patches=patches,
            inside=self._assets.inside,
        )

    def _copy(self, copy: Copy) -> CopyInput:
        """A COPY with what its sources are relative to."""
        if not copy.sources:
            return CopyInput(copy, None)
        if copy.origin is None:
            selected = self._select(copy.sources, copy.exclude, copy.location)
            keeps_names = copy.parents or copy.dest.endswith("/") or len(selected.sources) + len(copy.files) > 1
            if selected.renamed and keeps_names:
                message = f"{selected.renamed[0]!r} is a symbolic link to a file of another name"
                raise UserError(
                    message, hint="copy it by itself to a destination with its name", location=copy.location
                )
            return CopyInput(replace(copy, sources=selected.sources), selected.tree)
        sources = tuple(source.replace("/./", "/") for source in copy.sources)
        return CopyInput(copy, self._pick(copy.origin, sources, copy.location))

    def _pick(self, origin: Origin, sources: Sequence[str], place: Location) -> Output:
        """What ``sources`` lead to in a stage or base image."""
        below = self._bottom(origin)
        self._picks += 1
        step_id = f"pick:{self._picks}"
        if isinstance(origin, OciImage):
            step = registry_image.pick_step(step_id, below, origin.reference, sources)
        elif origin.name in self._resolved.stage_images and isinstance(origin, StageRef):
            step = registry_image.pick_step(step_id, below, origin.name, sources)
        else:
            step = stage.pick_step(step_id, below, origin.name, sources, self._assets.inside)
        return stage.picked(self._add(step, place))

    def _bind(self, mount: Mount, place: Location) -> tuple[Input, str]:
        """What a bind mount shows, and where it lies in that."""
        source = literal(mount.source)
        if mount.origin is not None:
            return self._pick(mount.origin, (source,), place), mount.source
        selected = self._select((source,), (), place)
        if not selected.sources:
            raise UserError(f"{mount.source!r} is not in the build context", location=place)
        return selected.tree, unescaped(selected.sources[0])

    # --- the image

    def _image(self, run: RunConfig) -> str:
        image, twin = self._spec.image, self._options.twin
        base = base_image.step_id(self._resolved.stage_bases[image.link.stage])
        kit = app = ""
        copies: list[CopyInput] = []
        try:
            kit = self._add(
                kernel_step(
                    base,
                    self._resolved.kernel.folder,
                    self._kernel_config(image),
                    self._assets.link,
                    self._kernel_override(image),
                    twin=twin,
                ),
                # What can be wrong with a kernel is what the Uklfile asks of it.
                image.kconfig[0].location if image.kconfig else image.location,
            )
            app = self._program(image) if twin else self._app(image, kit)
            copies = [self._copy(copy) for copy in image.copies]
        except UserErrors as errors:
            self._errors.extend(errors.errors)
            return ""
        except UserError as error:
            error.location = error.location or image.location
            self._errors.append(error)
            return ""
        kernel = packed = kit  # the twin's is ready to boot: nothing is put into it
        if not twin:
            kernel = app
            packed = self._add(bzimage.bzimage_step(base=base, kit=kit, app=app, link=self._assets.link))
        init = self._add(init_recipe.init_step(base, self._assets.init))
        userland = self._resolved.userland
        trees = [Output(self._add(userland_step(base, userland), image.location))] if userland else []
        folders = tuple(dict.fromkeys([*image.volumes, *([image.workdir] if image.workdir != "/" else [])]))
        initramfs = self._add(
            initramfs_step(
                init=init,
                programs={image.link.name: program.executable(image.link.name) if twin else None},
                config=guest_config(run),
                copies=copies,
                trees=trees,
                folders=folders,
            )
        )
        self._run = replace(run, reproducible=not self._warnings(packed, initramfs))
        return self._add(image_recipe.image_step(app=kernel, bzimage=packed, initramfs=initramfs, run=self._run))

    def _app(self, image: ImageStage, kit: str) -> str:
        link = image.link
        step = app_step(
            name=link.name,
            program=link.path,
            stage=self._tops[link.stage],
            kit=kit,
            link=self._assets.link,
            inside=self._assets.inside,
            libc=self._resolved.libc is not None,
            ukl=tuple(name.lower() for name in self._ukl_options(image, UklHow.IMAGE)),
        )
        return self._add(step, link.location)

    def _program(self, image: ImageStage) -> str:
        link = image.link
        step = program.program_step(
            name=link.name, program=link.path, stage=self._tops[link.stage], inside=self._assets.inside
        )
        return self._add(step, link.location)

    def _kernel_override(self, image: ImageStage) -> KernelOverride | None:
        """What KERNEL takes from the build context; None leaves the step as it is without KERNEL."""
        found = image.kernel
        if found is None or not (found.patches or kernel_is_local(found)):
            return None

        def chosen(path: str) -> tuple[ContextTree, str]:
            selected = self._select((literal(path),), (), found.location)
            return selected.tree, unescaped(selected.sources[0])

        return KernelOverride(
            version=self._resolved.kernel_version,
            source=chosen(found.source) if kernel_is_local(found) else None,
            patches=chosen(found.patches) if found.patches else None,
        )

    def _ukl_options(self, image: ImageStage, how: UklHow) -> tuple[str, ...]:
        known = self._resolved.kernel.folder.definition.ukl
        return tuple(name for name in image.ukl_options if known[name] is how)

    def _kernel_config(self, image: ImageStage) -> KernelConfig:
        asked = image.kconfig_files
        files = self._select(asked, (), image.location) if asked else None
        twin = self._options.twin
        return KernelConfig(
            extras=self._options.kernel_configs,
            ukl=() if twin else self._ukl_options(image, UklHow.KERNEL),
            tree=files.tree if files else None,
            files=files.sources if files else (),
            # The twin's kernel does not depend on what it would leave out.
            options=tuple(
                (option.name, option.value)
                for option in image.kconfig
                if not (twin and option.name.startswith("UKL"))
            ),
        )


def literal(path: str) -> str:
    """``path`` as a pattern that means itself."""
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def unescaped(pattern: str) -> str:
    """The inverse of ``literal``."""
    return re.sub(r"\\(.)", r"\1", pattern)


def _numbered(step: Step, build: BuildStage, number: int) -> Step:
    """With the stage's name and the place in it in front of the title."""
    title = f"[{build.name} {number}/{len(build.instructions)}] {step.title}"
    return Step(step.id, title, step.recipe, step.recipe_version, step.action, step.inputs, step.kind)


def _copy_title(copy: Copy) -> str:
    origin = copy.origin
    if isinstance(origin, OciImage):
        return stage.copy_title(copy, origin.reference)
    return stage.copy_title(copy, origin.name if origin else "")
