"""The syntax tree of a Uklfile: what is written where. Nothing is substituted, looked up or checked yet.

Every node keeps its place (line and column of its first character in the file).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from uklimg.errors import Location


@dataclass(frozen=True)
class Word:
    """One argument as written, quotes and ``$`` included."""

    text: str
    location: Location


@dataclass(frozen=True)
class Flag:
    """``--name=value``, or ``--name`` (then ``value`` is None); quotes are already removed."""

    name: str
    value: str | None
    location: Location


@dataclass(frozen=True)
class Heredoc:
    """``content`` is the body as written, newlines included; ``chomp`` (``<<-``) asks to drop leading tabs,
    ``expand`` (no quotes around the name) to substitute variables."""

    name: str
    expand: bool
    chomp: bool
    content: str
    location: Location


@dataclass(frozen=True)
class Pair:
    """``name=value``; ``value`` is None where only a name is given (``ARG x``)."""

    name: Word
    value: Word | None


@dataclass(frozen=True)
class CommandLine:
    """A command in JSON form (``argv``) or in shell form (``argv`` is None, ``text`` as written)."""

    text: str
    argv: tuple[str, ...] | None
    location: Location


@dataclass(frozen=True, kw_only=True)
class Directive:
    """What all directives have. ``keyword`` is in upper case, ``source`` the whole text with continuations joined."""

    keyword: str
    location: Location
    source: str
    flags: tuple[Flag, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()

    def flag(self, name: str) -> Flag | None:
        """The (last) flag of that name."""
        return next((flag for flag in reversed(self.flags) if flag.name == name), None)


@dataclass(frozen=True, kw_only=True)
class From(Directive):
    """``FROM base [AS name]``."""

    base: Word
    name: Word | None


@dataclass(frozen=True, kw_only=True)
class Words(Directive):
    """A list of words: EXPOSE, VOLUME, PACKAGES, DEPENDS, UKL, CMDLINE."""

    words: tuple[Word, ...]


@dataclass(frozen=True, kw_only=True)
class Pairs(Directive):
    """A list of pairs: ARG, ENV, LABEL, KCONFIG."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Text(Directive):
    """One argument, to the line's end: WORKDIR, USER, MEMORY, CPUS, STOPSIGNAL, USERLAND, KERNEL, GLIBC."""

    text: Word


@dataclass(frozen=True, kw_only=True)
class Command(Directive):
    """A command: RUN, CMD, ENTRYPOINT, SHELL."""

    command: CommandLine


@dataclass(frozen=True, kw_only=True)
class NamedCommand(Directive):
    """A word and a command: TEST name …, HEALTHCHECK CMD …, HEALTHCHECK NONE (no command)."""

    name: Word
    command: CommandLine | None


@dataclass(frozen=True, kw_only=True)
class Transfer(Directive):
    """Sources and a destination: COPY, ADD, SOURCE; LINK has a source only (``dest`` None)."""

    sources: tuple[Word, ...]
    dest: Word | None


AnyDirective: TypeAlias = Words | Pairs | Text | Command | NamedCommand | Transfer


@dataclass(frozen=True)
class Stage:
    """A FROM and what follows it."""

    origin: From
    directives: tuple[AnyDirective, ...]


@dataclass(frozen=True)
class Uklfile:
    """A whole file. ``arguments`` are the ARGs before the first FROM; ``warnings`` are places with a remark.

    ``skip`` and ``strict`` are what ``# check=`` says: the remarks not to make, and whether all are errors.
    """

    filename: str
    escape: str
    arguments: tuple[Pairs, ...]
    stages: tuple[Stage, ...]
    warnings: tuple[tuple[Location, str], ...] = ()
    skip: frozenset[str] = frozenset()
    strict: bool = False
