"""What a directive sees: variables with Docker's scoping, the errors so far, the warnings so far."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from uklimg.errors import Location, UserError
from uklimg.spec.model import DEFAULT_PATH, DEFAULT_SHELL, Environment
from uklimg.spec.values import BadValueError, quoted
from uklimg.uklfile import ast
from uklimg.uklfile.checks import UNDEFINED
from uklimg.uklfile.parser import did_you_mean
from uklimg.uklfile.substitute import Style, SubstitutionError, expand

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

# BuildKit's automatic platform arguments; we build for one platform.
_PLATFORM = {
    f"{side}{name}": value
    for side in ("BUILD", "TARGET")
    for name, value in (("PLATFORM", "linux/amd64"), ("OS", "linux"), ("ARCH", "amd64"), ("VARIANT", ""))
}

# Arguments that need no ARG, and that RUN's network sees without their being in any key (Dockerfile reference,
# "Predefined ARGs").
_PROXIES = tuple(
    name
    for lower in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (lower, lower.upper())
)


@dataclass
class Problems:
    """Collects errors so that one run shows all of them."""

    errors: list[UserError] = field(default_factory=list)
    warnings: dict[tuple[Location, str], None] = field(default_factory=dict)  # a set that keeps its order
    skip: frozenset[str] = frozenset()  # rules of uklfile.checks that nobody wants to hear about

    def add(self, message: str, location: Location, hint: str = "") -> None:
        self.errors.append(UserError(message, hint=hint, location=location))

    def warn(self, location: Location, text: str, rule: str = "") -> None:
        if self.skip.isdisjoint((rule, "all")):
            self.warnings[location, text] = None

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps a UserError raised inside and goes on after the block."""
        try:
            yield
        except UserError as error:
            self.errors.append(error)


def checked(function: Callable[[str], T], text: str, location: Location, prefix: str = "") -> T:
    """``function(text)`` with its BadValueError turned into a UserError at ``location``."""
    try:
        return function(text)
    except BadValueError as error:
        raise UserError(f"{prefix}{error}", hint=error.hint, location=location) from error


def environment(values: Mapping[str, str]) -> Environment:
    return tuple(sorted(values.items()))


@dataclass
class Arguments:
    """The ARGs before the first FROM and the values given with --build-arg."""

    given: Mapping[str, str]
    escape: str
    problems: Problems
    defaults: dict[str, str] = field(default_factory=lambda: dict(_PLATFORM))
    declared: set[str] = field(default_factory=set)

    def declare_globals(self, directives: Iterable[ast.Pairs]) -> None:
        for directive in directives:
            for pair in directive.pairs:
                with self.problems.collected():
                    name = argument_name(pair)
                    self.declared.add(name)
                    if name in self.given:
                        self.defaults[name] = self.given[name]
                    elif pair.value is not None:
                        self.defaults[name] = self.text(pair.value)

    def text(self, word: ast.Word) -> str:
        """Expand in the scope of FROM: only the ARGs before the first one are seen."""
        return _expand(word, self.defaults, Style(escape=self.escape), self.problems).text

    def unused(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.given) - self.declared - set(_PROXIES)))

    def proxies(self) -> Environment:
        """The proxies given with --build-arg."""
        return environment({name: self.given[name] for name in _PROXIES if name in self.given})


@dataclass
class Scope:
    """One stage's variables, working directory, user and shell, at one point of the file.

    ``values`` is what expansion and RUN see (ENV and ARG, the later one wins), ``env`` what ENV set.
    """

    arguments: Arguments
    problems: Problems
    values: dict[str, str] = field(default_factory=lambda: {"PATH": DEFAULT_PATH})
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    shell: tuple[str, ...] = DEFAULT_SHELL

    def child(self) -> Scope:
        """The scope of a stage that is FROM this one: it inherits everything, ARGs included."""
        return Scope(
            self.arguments,
            self.problems,
            dict(self.values),
            dict(self.env),
            dict(self.labels),
            self.workdir,
            self.user,
            self.shell,
        )

    @property
    def style(self) -> Style:
        return Style(escape=self.arguments.escape)

    def text(self, word: ast.Word) -> str:
        return _expand(word, self.values, self.style, self.problems).text

    def words(self, word: ast.Word) -> tuple[ast.Word, ...]:
        """Expand, then split at unquoted white space: ``PACKAGES $LIST`` may name several."""
        found = _expand(word, self.values, self.style, self.problems).words
        return tuple(ast.Word(text, word.location) for text in found)

    def flag(self, directive: ast.Directive, name: str) -> ast.Word | None:
        """The value of a flag, expanded, with the flag's place."""
        flag = directive.flag(name)
        if flag is None or flag.value is None:
            return None
        return ast.Word(self.text(ast.Word(flag.value, flag.location)), flag.location)

    def heredoc(self, heredoc: ast.Heredoc) -> bytes:
        """A heredoc's file content. Quotes mean nothing in it, and the escape is always a backslash."""
        content = heredoc.content
        if heredoc.expand:
            word = ast.Word(content, heredoc.location)
            content = _expand(word, self.values, Style(literal_quotes=True), self.problems).text
        return chomped(heredoc, content).encode()

    def declare(self, directive: ast.Pairs) -> None:
        """ARG."""
        for pair in directive.pairs:
            with self.problems.collected():
                name = argument_name(pair)
                self.arguments.declared.add(name)
                if name in self.arguments.given:
                    self.values[name] = self.arguments.given[name]
                elif pair.value is not None:
                    self.values[name] = self.text(pair.value)
                elif name in self.arguments.defaults:
                    self.values[name] = self.arguments.defaults[name]

    def set_env(self, directive: ast.Pairs) -> None:
        """ENV: all values see the variables from before the directive."""
        new = self.pairs(directive)
        self.values.update(new)
        self.env.update(new)

    def set_labels(self, directive: ast.Pairs) -> None:
        self.labels.update(self.pairs(directive))

    def pairs(self, directive: ast.Pairs) -> dict[str, str]:
        found: dict[str, str] = {}
        for pair in directive.pairs:
            with self.problems.collected():
                name = self.text(pair.name)
                if not name.strip() or "=" in name:
                    message = f"{directive.keyword} cannot set {quoted(name)}"
                    raise UserError(message, hint="name=value", location=pair.name.location)
                found[name] = self.text(pair.value) if pair.value else ""
        return found


def argument_name(pair: ast.Pair) -> str:
    name = pair.name.text
    if not _NAME.fullmatch(name):
        hint = "letters, digits and _, as in ARG VERSION=1"
        raise UserError(f"{quoted(name)} is not a name for ARG", hint=hint, location=pair.name.location)
    return name


def chomped(heredoc: ast.Heredoc, content: str) -> str:
    return re.sub(r"(?m)^\t+", "", content) if heredoc.chomp else content


def _expand(word: ast.Word, env: Mapping[str, str], style: Style, problems: Problems) -> _Expanded:
    try:
        expansion = expand(word.text, env, style)
    except SubstitutionError as error:
        raise UserError(str(error), hint=error.hint, location=word.location) from error
    for name in expansion.unset:
        hint = did_you_mean(name, env)
        problems.warn(word.location, f"${name} is not set" + (f" ({hint})" if hint else ""), UNDEFINED)
    return _Expanded(expansion.text, expansion.words)


@dataclass(frozen=True)
class _Expanded:
    text: str
    words: tuple[str, ...]
