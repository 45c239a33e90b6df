"""Syntax tree + build arguments → Spec: everything substituted, checked and frozen, or all errors at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from uklimg.errors import Location, UserError, UserErrors
from uklimg.oci import TARGET_LINUX, TARGET_UKL
from uklimg.spec.image import image_stage
from uklimg.spec.model import (
    DEFAULT_MEMORY,
    DEFAULT_PATH,
    DEFAULT_SHELL,
    HEREDOC_FOLDER,
    BaseImage,
    BuildStage,
    Command,
    ContextSource,
    Copy,
    DebianSource,
    Depends,
    Environment,
    GitSource,
    Healthcheck,
    HeredocFile,
    ImageStage,
    ImageTest,
    Instruction,
    KconfigOption,
    Link,
    MakeFolder,
    Mount,
    OciImage,
    Origin,
    Override,
    Package,
    Packages,
    Port,
    Run,
    SeriesInfo,
    Source,
    SourceRef,
    Spec,
    StageRef,
    UrlSource,
)
from uklimg.spec.scope import Arguments, Problems, Scope
from uklimg.spec.stages import build_stage
from uklimg.spec.transfer import Names
from uklimg.spec.values import quoted
from uklimg.uklfile import ast
from uklimg.uklfile.parser import did_you_mean, read

__all__ = [
    "DEFAULT_MEMORY",
    "DEFAULT_PATH",
    "DEFAULT_SHELL",
    "HEREDOC_FOLDER",
    "BaseImage",
    "BuildStage",
    "Command",
    "ContextSource",
    "Copy",
    "DebianSource",
    "Depends",
    "Environment",
    "GitSource",
    "Healthcheck",
    "HeredocFile",
    "ImageStage",
    "ImageTest",
    "Instruction",
    "KconfigOption",
    "Link",
    "MakeFolder",
    "Mount",
    "OciImage",
    "Origin",
    "Override",
    "Package",
    "Packages",
    "Port",
    "Run",
    "SeriesInfo",
    "Source",
    "SourceRef",
    "Spec",
    "StageRef",
    "UrlSource",
    "build_spec",
    "read_spec",
]

# What --target may name beside stages.
_TARGETS = (TARGET_UKL, TARGET_LINUX)
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*", re.ASCII)


def build_spec(
    tree: ast.Uklfile,
    *,
    build_args: Mapping[str, str],
    base_images: Collection[str],
    series: Mapping[str, SeriesInfo],
) -> Spec:
    """Check and substitute ``tree``. Raises UserErrors with every error, sorted by place.

    ``build_args`` are --build-arg's values, ``base_images`` the folders of base-images/, ``series`` the kernel
    series there are, by name.
    """
    return _build(tree, build_args, base_images, series, ())


def read_spec(
    text: str,
    filename: str,
    *,
    build_args: Mapping[str, str],
    base_images: Collection[str],
    series: Mapping[str, SeriesInfo],
) -> Spec:
    """``parse`` and ``build_spec`` in one: UserErrors with what is wrong for either."""
    parsed = read(text, filename)
    if parsed.tree is None:
        raise UserErrors(parsed.errors)
    return _build(parsed.tree, build_args, base_images, series, parsed.errors, parsed.faulty)


def _build(
    tree: ast.Uklfile,
    build_args: Mapping[str, str],
    base_images: Collection[str],
    series: Mapping[str, SeriesInfo],
    errors: Sequence[UserError],
    faulty: Collection[str] = (),
) -> Spec:
    """``errors`` are those of the lines that ``tree`` lacks, which began with ``faulty``."""
    builder = _Builder(tree, Problems(list(errors), skip=tree.skip), base_images, series, faulty)
    builder.problems.warnings.update(dict.fromkeys(tree.warnings))
    for name, value in sorted(build_args.items()):
        if re.search("[\0\ud800-\udfff]", name + value):
            builder.problems.add(f"the build argument {quoted(name)} is not text", Location(tree.filename))
    builder.arguments = Arguments(build_args, tree.escape, builder.problems)
    builder.arguments.declare_globals(tree.arguments)
    return builder.run()


@dataclass
class _Builder:
    tree: ast.Uklfile
    problems: Problems
    base_images: Collection[str]
    series: Mapping[str, SeriesInfo]
    faulty: Collection[str] = ()
    arguments: Arguments = field(init=False)
    stages: list[BuildStage] = field(default_factory=list)
    scopes: dict[str, Scope] = field(default_factory=dict)  # at the end of each stage, by its name
    known: dict[str, str] = field(default_factory=dict)  # name or number -> name

    def run(self) -> Spec:
        *builds, last = self.tree.stages
        for index, node in enumerate(builds):
            self.build(index, node)
        image = self.image(last)
        for name in self.arguments.unused():
            hint = did_you_mean(name, self.arguments.declared)
            text = f"the build argument {quoted(name)} is not used"
            self.problems.warn(Location(self.tree.filename), text + (f" ({hint})" if hint else ""))
        if self.tree.strict:
            for location, text in filter(lambda warning: warning[0].line, self.problems.warnings):
                self.problems.add(text, location, "an error because of # check=error=true")
        if self.problems.errors or image is None:
            raise UserErrors(self.problems.errors)
        return Spec(self.tree.filename, tuple(self.stages), image, tuple(sorted(self.problems.warnings)))

    def names(self, index: int) -> Names:
        later = [
            stage.name.text.lower()
            for stage in (node.origin for node in self.tree.stages[index:])
            if stage.name is not None
        ]
        return Names(self.base_images, dict(self.known), later)

    def build(self, index: int, node: ast.Stage) -> None:
        names = self.names(index)
        name = str(index)
        # A stage whose FROM is wrong is still read, for the errors in it, and can still be named by others.
        base: Origin = BaseImage("")
        scope = Scope(self.arguments, self.problems)
        with self.problems.collected():
            self.check_platform(node.origin)
            text = self.arguments.text(node.origin.base)
            if text.startswith("ukl:"):
                hint = "the image is the last stage; build stages come before it"
                raise UserError(f"FROM {text} in a build stage", hint=hint, location=node.origin.base.location)
            base = names.origin(text, node.origin.base.location, "base image")
            if isinstance(base, StageRef):
                scope = self.scopes[base.name].child()
        with self.problems.collected():
            name = self.stage_name(node.origin) or name
        self.stages.append(build_stage(node, name, base, scope, names))
        self.scopes[name] = scope
        self.known[str(index)] = name
        self.known[name] = name

    def stage_name(self, origin: ast.From) -> str:
        if origin.name is None:
            return ""
        name = origin.name.text.lower()
        if not _STAGE_NAME.fullmatch(name):
            hint = "a letter, then letters, digits and ._-"
            raise UserError(
                f"{quoted(origin.name.text)} cannot name a stage", hint=hint, location=origin.name.location
            )
        if name in _TARGETS:
            raise UserError(
                f"{quoted(name)} cannot name a stage",
                hint=f"--target={name} is an image of this Uklfile",
                location=origin.name.location,
            )
        if name in self.known:
            raise UserError(f"a second stage {quoted(name)}", hint="another name", location=origin.name.location)
        return name

    def check_platform(self, origin: ast.From) -> None:
        flag = origin.flag("platform")
        if flag is None:
            return
        value = self.arguments.text(ast.Word(flag.value or "", flag.location))
        if value not in ("linux/amd64", "linux/x86_64"):
            raise UserError(f"unknown platform {quoted(value)}", hint="linux/amd64", location=flag.location)

    def image(self, node: ast.Stage) -> ImageStage | None:
        names = self.names(len(self.tree.stages))
        with self.problems.collected():
            self.stage_name(node.origin)
        series = SeriesInfo("", ())  # stays when FROM is wrong: the rest of the stage is still looked at
        with self.problems.collected():
            self.check_platform(node.origin)
            series = self.series_of(node.origin)
        return image_stage(node, series, tuple(self.stages), Scope(self.arguments, self.problems), names, self.faulty)

    def series_of(self, origin: ast.From) -> SeriesInfo:
        text, location = self.arguments.text(origin.base), origin.base.location
        known = ", ".join(f"ukl:{name}" for name in sorted(self.series)) or "none"
        if not text.startswith("ukl:"):
            message = f"the last stage is FROM {quoted(text)}, not a kernel series"
            raise UserError(message, hint=f"it is the image: {known}", location=location)
        name = text.removeprefix("ukl:")
        if name not in self.series:
            near = did_you_mean(text, [f"ukl:{known}" for known in self.series])
            raise UserError(
                f"unknown kernel series {quoted(name)}", hint=near or f"there is {known}", location=location
            )
        return self.series[name]
