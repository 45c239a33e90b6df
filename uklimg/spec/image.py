"""The last stage: what is linked, what the initramfs holds, and what a runner must know."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from uklimg.errors import Location, UserError
from uklimg.spec import values
from uklimg.spec.model import (
    DEBIAN_LIBC,
    DEFAULT_MEMORY,
    DEFAULT_SHELL,
    UKL_LIBC,
    USERLANDS,
    BuildStage,
    Command,
    ContextSource,
    Copy,
    Healthcheck,
    ImageStage,
    ImageTest,
    KconfigOption,
    Link,
    Override,
    Port,
    SeriesInfo,
    StageRef,
    UrlSource,
)
from uklimg.spec.scope import Scope, checked, environment
from uklimg.spec.stages import shell_command, workdir
from uklimg.spec.transfer import Names, copy, source_ref
from uklimg.spec.values import BadValueError, quoted
from uklimg.uklfile import ast
from uklimg.uklfile.directives import RULES, Place
from uklimg.uklfile.parser import did_you_mean

# Options that cannot be together, and why (the paper's section on the spectrum).
_CONFLICTS = (
    ("PF_DF", "PF_SS", "they are two ways to handle the same page fault"),
    ("NSS", "NSS_PS", "NSS_PS is NSS with pinned stacks; name one of them"),
)
# Options that are nothing without one of others, and why.
_NEEDS = (
    (
        "PF_DF",
        ("NSS", "NSS_PS"),
        "a double fault comes of the program's stack only when the kernel runs on it; add NSS",
    ),
    ("SHORTCUT", ("BYP",), "only system calls that bypass are shortened; add BYP"),
)
_NOT_HERE = {
    "RUN": "the image stage is not a container; do it in a build stage and COPY --from= the result",
    "SOURCE": "unpack it in a build stage and COPY --from= what you need",
    "PACKAGES": "install them in a build stage and COPY --from= what you need",
    "DEPENDS": "libraries belong to the build stage whose program is linked",
    "USER": "the program is part of the kernel and runs as root",
    "SHELL": "there is no shell; CMD and ENTRYPOINT take the JSON form",
}
_LINKED = "a program is linked from a build stage, where the compiler wrapper kept its objects"
_TESTED = "tests run in containers of build stages"
_RUNNING, _ENDED = "running", "ended"  # what the program is like when a test runs
_RESERVED = ("/", "/proc", "/sys", "/dev", "/ukl")
# Files of the initramfs that make it start: PID 1, what it reads, its console, and below /ukl the programs' names.
_OURS = ("/init", "/etc/uklimg/run.conf", "/dev/console", "/ukl")
# Where PID 1 mounts something (uklimg/guest/init.c): the initramfs' files below cannot be seen.
_MOUNTED = ("/proc", "/sys", "/dev", "/tmp", "/run")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)


def _covered(path: str) -> str:
    """The mount that hides ``path``, "" when none does."""
    return next((mount for mount in _MOUNTED if path == mount or path.startswith(f"{mount}/")), "")


def image_stage(
    node: ast.Stage,
    series: SeriesInfo,
    stages: tuple[BuildStage, ...],
    scope: Scope,
    names: Names,
    faulty: Collection[str] = (),
) -> ImageStage | None:
    """The image; None when an error (in ``scope.problems``) keeps it from being one.

    ``faulty`` are the keywords of lines that could not be read: a LINK among them is not missing.
    """
    reader = _Reader(scope, names, series, stages)
    if "LINK" in faulty:
        reader.seen["LINK"] = node.origin.location
    for directive in node.directives:
        with scope.problems.collected():
            if RULES[directive.keyword].place is Place.BUILD:
                hint = _NOT_HERE[directive.keyword]
                raise UserError(f"{directive.keyword} in the image stage", hint=hint, location=directive.location)
            reader.read(directive)
    with scope.problems.collected():
        return reader.finish(node.origin.location)
    return None


@dataclass
class _Reader:
    scope: Scope
    names: Names
    series: SeriesInfo
    stages: tuple[BuildStage, ...]
    seen: dict[str, Location] = field(default_factory=dict)
    link: Link | None = None
    kernel: Override | None = None
    glibc: Override | None = None
    kconfig: dict[str, KconfigOption] = field(default_factory=dict)
    kconfig_files: list[str] = field(default_factory=list)
    ukl_options: dict[str, Location] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    userland: str = "none"
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    cmdline: list[str] = field(default_factory=list)
    ports: set[Port] = field(default_factory=set)
    volumes: set[str] = field(default_factory=set)
    memory: int = DEFAULT_MEMORY
    cpus: int = 1
    stop_signal: str = "SIGTERM"
    healthcheck: Healthcheck | None = None
    tests: dict[str, ImageTest] = field(default_factory=dict)

    def read(self, directive: ast.AnyDirective) -> None:
        """Raises UserError for the first thing that is wrong with one directive."""
        match directive:
            case ast.Pairs(keyword="ARG"):
                self.scope.declare(directive)
            case ast.Pairs(keyword="ENV"):
                self.scope.set_env(directive)
            case ast.Pairs(keyword="LABEL"):
                self.scope.set_labels(directive)
            case ast.Pairs():
                self.read_kconfig(directive)
            case ast.Transfer(keyword="LINK"):
                self.once(directive, "one program becomes part of the kernel")
                self.link = self.read_link(directive)
            case ast.Transfer():
                self.copies.append(self.read_copy(directive))
            case ast.Words():
                self.read_words(directive)
            case ast.Command():
                self.read_command(directive)
            case ast.NamedCommand(keyword="TEST"):
                self.read_test(directive)
            case ast.NamedCommand():
                self.again(directive)
                self.healthcheck = self.read_healthcheck(directive)
            case ast.Text():
                self.read_text(directive)

    def finish(self, location: Location) -> ImageStage | None:
        """The image; None when a faulty LINK, reported already, leaves it without a program."""
        self.check_ukl()
        if self.link is None:
            if "LINK" in self.seen:
                return None
            hint = "LINK --from=stage /path/of/the/program"
            raise UserError("the image stage links no program", hint=hint, location=location)
        return ImageStage(
            location=location,
            series=self.series.name,
            link=self.link,
            kernel=self.kernel,
            glibc=self.glibc,
            kconfig=tuple(self.kconfig.values()),
            kconfig_files=tuple(self.kconfig_files),
            ukl_options=tuple(option for option in self.series.ukl_options if option in self.ukl_options),
            copies=tuple(self.copies),
            userland=self.userland,
            env=environment(self.scope.env),
            entrypoint=self.entrypoint,
            cmd=self.cmd,
            workdir=self.scope.workdir,
            cmdline=tuple(self.cmdline),
            ports=tuple(sorted(self.ports)),
            volumes=tuple(sorted(self.volumes)),
            memory=self.memory,
            cpus=self.cpus,
            stop_signal=self.stop_signal,
            healthcheck=self.healthcheck,
            labels=environment(self.scope.labels),
            tests=tuple(self.tests.values()),
        )

    def once(self, directive: ast.Directive, why: str) -> None:
        earlier = self.seen.setdefault(directive.keyword, directive.location)
        if earlier is not directive.location:
            message = f"a second {directive.keyword}, after line {earlier.line}"
            raise UserError(message, hint=why, location=directive.location)

    def again(self, directive: ast.Directive) -> None:
        """As in a Dockerfile the last one counts; an earlier one deserves a remark."""
        if earlier := self.seen.get(directive.keyword):
            self.scope.problems.warn(
                earlier,
                f"{directive.keyword} is replaced on line {directive.location.line}",
                "MultipleInstructionsDisallowed",
            )
        self.seen[directive.keyword] = directive.location

    def read_text(self, directive: ast.Text) -> None:
        keyword = directive.keyword
        if keyword == "WORKDIR":
            workdir(directive, self.scope)
            path = self.scope.workdir
            if (covered := _covered(path)) and path != covered:
                raise UserError(
                    f"WORKDIR {quoted(path)}: {covered} is mounted over when the image starts",
                    hint="choose another folder",
                    location=directive.text.location,
                )
            return
        if keyword in ("KERNEL", "GLIBC"):
            self.once(directive, "say all of it in one")
            override = self.read_override(directive)
            self.kernel, self.glibc = (override, self.glibc) if keyword == "KERNEL" else (self.kernel, override)
            return
        self.again(directive)
        text, location = self.scope.text(directive.text), directive.text.location
        if keyword == "MEMORY":
            self.memory = checked(values.memory, text, location)
        elif keyword == "CPUS":
            self.cpus = checked(values.cpus, text, location)
        elif keyword == "STOPSIGNAL":
            self.stop_signal = checked(values.signal, text, location)
        else:
            self.userland = checked(_userland, text, location)

    def read_words(self, directive: ast.Words) -> None:
        """Lists: each word on its own, so that every wrong one is reported."""
        add: Callable[[ast.Word], None] = {
            "UKL": self.add_option,
            "CMDLINE": lambda word: self.cmdline.append(word.text),
            "EXPOSE": lambda word: self.ports.update(checked(values.ports, word.text, word.location)),
            "VOLUME": self.add_volume,
        }[directive.keyword]
        for word in directive.words:
            with self.scope.problems.collected():
                if directive.keyword == "VOLUME":
                    add(ast.Word(self.scope.text(word), word.location))
                    continue
                for item in self.scope.words(word):
                    add(item)

    def add_option(self, word: ast.Word) -> None:
        name = word.text.upper()
        if self.series.name and name not in self.series.ukl_options:
            have = ", ".join(self.series.ukl_options) or "none"
            hint = f"it has {have}"
            if near := did_you_mean(name, self.series.ukl_options):
                hint = f"{near} {hint}"
            message = f"kernel series {self.series.name} has no UKL option {quoted(word.text)}"
            raise UserError(message, hint=hint, location=word.location)
        self.ukl_options.setdefault(name, word.location)

    def check_ukl(self) -> None:
        for first, second, why in _CONFLICTS:
            if first in self.ukl_options and second in self.ukl_options:
                location = max(self.ukl_options[first], self.ukl_options[second])
                self.scope.problems.add(f"UKL {first} and {second} exclude each other", location, why)
        for name, others, why in _NEEDS:
            if name in self.ukl_options and not set(others) & set(self.ukl_options):
                self.scope.problems.add(f"UKL {name} needs {others[0]}", self.ukl_options[name], why)

    def add_volume(self, word: ast.Word) -> None:
        path = values.absolute(word.text)
        if not word.text.startswith("/") or path in _RESERVED or path.startswith("/ukl/"):
            raise UserError(f"{quoted(word.text)} cannot be a volume", hint="as in /data", location=word.location)
        self.volumes.add(path)

    def read_kconfig(self, directive: ast.Pairs) -> None:
        for flag in directive.flags:
            path = self.scope.text(ast.Word(flag.value or "", flag.location))
            self.kconfig_files.append(checked(values.in_context, path, flag.location))
        if not directive.pairs and not directive.flags:
            raise UserError("KCONFIG needs an option", hint=RULES["KCONFIG"].usage, location=directive.location)
        for pair in directive.pairs:
            with self.scope.problems.collected():
                self.add_kconfig(pair)

    def add_kconfig(self, pair: ast.Pair) -> None:
        name, location = self.scope.text(pair.name).removeprefix("CONFIG_"), pair.name.location
        if not re.fullmatch(r"[A-Za-z0-9_]{1,100}", name, re.ASCII):
            raise UserError(f"{quoted(name)} is not a kernel option", hint="as in EXT4_FS=y", location=location)
        if pair.value is None or not pair.value.text:
            raise UserError(f"KCONFIG {name} has no value", hint=f"{name}=y", location=location)
        string = pair.value.text[0] in "'\""
        text = self.scope.text(pair.value)
        value = checked(lambda text: values.kconfig_value(text, string), text, pair.value.location)
        earlier = self.kconfig.setdefault(name, KconfigOption(location, name, value))
        if earlier.value != value:
            message = f"KCONFIG {name} is {earlier.value} on line {earlier.location.line} and {value} here"
            raise UserError(message, hint="leave one of them out", location=location)

    def read_override(self, directive: ast.Text) -> Override:
        text, location = self.scope.text(directive.text), directive.text.location
        source, patches = self.scope.flag(directive, "source"), self.scope.flag(directive, "patches")
        if not text and not directive.flags:
            usage = RULES[directive.keyword].usage
            raise UserError(f"{directive.keyword} says nothing", hint=usage, location=directive.location)
        example = "2.41" if directive.keyword == "GLIBC" else f"{self.series.name}.1"
        words = (DEBIAN_LIBC, UKL_LIBC) if directive.keyword == "GLIBC" else ()
        if text and text not in words and not re.fullmatch(r"[0-9]+(\.[0-9]+){1,2}", text, re.ASCII):
            raise UserError(f"{quoted(text)} is not a version", hint=f"as in {example}", location=location)
        if text and directive.keyword == "KERNEL" and not f"{text}.".startswith(f"{self.series.name}."):
            message = f"kernel {text} is not of the series {self.series.name}"
            raise UserError(message, hint="the series is the one that FROM names", location=location)
        return Override(
            directive.location,
            text,
            _tarball(source.text, source.location) if source else "",
            checked(values.in_context, patches.text, patches.location) if patches else "",
        )

    def read_copy(self, directive: ast.Transfer) -> Copy:
        """What sources bring is only known when they are there; ``initramfsbuild`` looks at that."""
        found = copy(directive, self.scope, self.names)
        inside = [f"{found.dest}{file.name}" for file in found.files] if found.dest.endswith("/") else []
        for path in (found.dest.rstrip("/"), *inside):
            if path in _OURS or path.startswith("/ukl/"):
                assert directive.dest is not None, "the parser gives COPY a destination"
                raise UserError(
                    f"{directive.keyword} to {quoted(path)}, which uklimg makes itself",
                    hint="choose another destination; LINK names the program",
                    location=directive.dest.location,
                )
            if covered := _covered(path):
                assert directive.dest is not None, "the parser gives COPY a destination"
                raise UserError(
                    f"{directive.keyword} to {quoted(path)}: {covered} is mounted over when the image starts",
                    hint="choose another destination",
                    location=directive.dest.location,
                )
        return found

    def read_link(self, directive: ast.Transfer) -> Link:
        if len(directive.sources) != 1:
            raise UserError("LINK takes one path", hint=RULES["LINK"].usage, location=directive.sources[1].location)
        word = directive.sources[0]
        text = self.scope.text(word)
        path = values.absolute(text)
        if not text or path == "/" or text.endswith("/"):
            raise UserError(
                f"{quoted(text)} is not a program's path", hint="as in /src/server", location=word.location
            )
        name = self.scope.flag(directive, "name")
        program = name.text if name else path.rsplit("/", 1)[1]
        if not _NAME.fullmatch(program):
            place = name.location if name else word.location
            hint = "letters, digits and ._+-; LINK --name= gives another"
            raise UserError(f"{quoted(program)} cannot name a program", hint=hint, location=place)
        return Link(directive.location, self.stage_of(directive, _LINKED), path, program)

    def stage_of(self, directive: ast.AnyDirective, why: str) -> str:
        """The stage named by --from, without it the only build stage there is; ``why`` it has to be one."""
        flag = directive.flag("from")
        if flag is None:
            if len(self.stages) != 1:
                known = ", ".join(stage.name for stage in self.stages) or "none"
                hint = f"build stages: {known}"
                raise UserError(f"{directive.keyword} needs --from=", hint=hint, location=directive.location)
            return self.stages[0].name
        name = self.scope.text(ast.Word(flag.value or "", flag.location))
        origin = self.names.origin(name, flag.location)
        if not isinstance(origin, StageRef):
            raise UserError(f"{quoted(name)} is not a build stage", hint=why, location=flag.location)
        return origin.name

    def read_command(self, directive: ast.Command) -> None:
        self.again(directive)
        argv = directive.command.argv
        if argv is None:
            text = directive.command.text
            hint = "this is not valid JSON" if text.startswith("[") else f"there is no shell: {_as_json(directive)}"
            message = f"{directive.keyword} takes a JSON array"
            raise UserError(message, hint=hint, location=directive.command.location)
        if directive.keyword == "CMD":
            self.cmd = argv
        else:
            self.entrypoint = argv
        if argv and not argv[0] and (directive.keyword == "ENTRYPOINT" or not self.entrypoint):
            raise UserError(
                "the program's name is empty",
                hint=RULES[directive.keyword].usage,
                location=directive.command.location,
            )

    def read_test(self, directive: ast.NamedCommand) -> None:
        name = self.scope.text(directive.name)
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{quoted(name)} cannot name a test",
                hint="letters, digits and ._+-",
                location=directive.name.location,
            )
        if name in self.tests:
            raise UserError(f"a second test {quoted(name)}", hint="another name", location=directive.name.location)
        command = directive.command
        assert command is not None, "the parser gives TEST a command"
        argv, files = shell_command(command, directive.heredocs, DEFAULT_SHELL)
        when, timeout = self.scope.flag(directive, "when"), self.scope.flag(directive, "timeout")
        if when and when.text not in (_RUNNING, _ENDED):
            raise UserError(
                f"unknown --when={quoted(when.text)}", hint=f"{_RUNNING} or {_ENDED}", location=when.location
            )
        nanoseconds = checked(values.duration, timeout.text, timeout.location, "--timeout: ") if timeout else 0
        self.tests[name] = ImageTest(
            location=directive.location,
            name=name,
            argv=argv,
            text=command.text,
            stage=self.stage_of(directive, _TESTED) if directive.flag("from") else "",
            ended=when.text == _ENDED if when else None,
            files=files,
            timeout=-(-nanoseconds // 10**9),
        )

    def read_healthcheck(self, directive: ast.NamedCommand) -> Healthcheck:
        kind = directive.name.text.upper()
        if kind == "NONE":
            if directive.command or directive.flags:
                raise UserError(
                    "HEALTHCHECK NONE takes nothing else", hint="HEALTHCHECK NONE", location=directive.location
                )
            return Healthcheck(directive.location, None)
        if kind != "CMD":
            raise UserError(
                f"unknown kind of health check {quoted(directive.name.text)}",
                hint="CMD or NONE",
                location=directive.name.location,
            )

        def flag(name: str, function: Callable[[str], int]) -> int:
            word = self.scope.flag(directive, name)
            return checked(function, word.text, word.location, f"--{name}: ") if word else 0

        return Healthcheck(
            directive.location,
            _command(directive),
            flag("interval", values.duration),
            flag("timeout", values.duration),
            flag("start-period", values.duration),
            flag("start-interval", values.duration),
            flag("retries", lambda text: values.number(text, "a number of times")),
        )


def _tarball(text: str, location: Location) -> str:
    """A URL, or a path of the context, as ``Override`` has it."""
    what = source_ref(text, location)
    if isinstance(what, UrlSource):
        return what.url
    if isinstance(what, ContextSource):
        return what.path
    raise UserError(f"{quoted(text)} is not a tarball", hint="https://… or a path of the context", location=location)


def _command(directive: ast.NamedCommand) -> Command:
    command = directive.command
    if command is None or command.argv == ():
        usage = RULES[directive.keyword].usage
        raise UserError(f"{directive.keyword} without a command", hint=usage, location=directive.location)
    return Command((command.text,), shell=True) if command.argv is None else Command(command.argv)


def _as_json(directive: ast.Command) -> str:
    words = ", ".join(f'"{word}"' for word in directive.command.text.split()[:6] if '"' not in word)
    return f"{directive.keyword} [{words}]"


def _userland(text: str) -> str:
    if text not in USERLANDS:
        near = did_you_mean(text.lower(), USERLANDS)
        raise BadValueError(f"unknown userland {quoted(text)}", near or f"there is {', '.join(USERLANDS)}")
    return text
