"""The words of the language: each directive's shape, flags and usage line, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Shape(Enum):
    """How a directive's arguments are cut; the names say which Dockerfile directive is cut the same way."""

    FROM = "from"
    WHITE = "white"  # words between white space, or JSON (EXPOSE, VOLUME)
    WORDS = "words"  # words with quotes (ARG)
    PAIRS = "pairs"  # name=value, or the old `name value` (ENV, LABEL)
    NAMES = "names"  # name or name=value (ARG)
    TEXT = "text"  # all of the line (WORKDIR)
    COMMAND = "command"  # JSON, or all of the line for a shell (RUN)
    NAMED_COMMAND = "named command"  # a word before the command (HEALTHCHECK)
    TRANSFER = "transfer"  # sources and a destination (COPY)
    SOURCES = "sources"  # sources without a destination (LINK)


class FlagKind(Enum):
    BOOL = "bool"  # --name, --name=true, --name=false
    VALUE = "value"
    VALUES = "values"  # may be repeated


class Place(Enum):
    """Where a directive may stand."""

    BUILD = "a build stage"
    IMAGE = "the image stage"
    BOTH = "every stage"


@dataclass(frozen=True)
class Rule:
    """One row of the table. ``least`` is how many arguments there must be at least."""

    shape: Shape
    place: Place
    usage: str
    flags: Mapping[str, FlagKind] = field(default_factory=dict)
    heredocs: bool = False
    least: int = 1


_VALUE, _VALUES, _BOOL = FlagKind.VALUE, FlagKind.VALUES, FlagKind.BOOL
_COPY = {"from": _VALUE, "chown": _VALUE, "chmod": _VALUE, "link": _BOOL, "parents": _BOOL, "exclude": _VALUES}
_ADD = {"chown": _VALUE, "chmod": _VALUE, "link": _BOOL, "exclude": _VALUES, "checksum": _VALUE}
_HEALTH = dict.fromkeys(("interval", "timeout", "start-period", "start-interval", "retries"), _VALUE)
_TEST = dict.fromkeys(("from", "when", "timeout"), _VALUE)
_SERIES = {"source": _VALUE, "patches": _VALUE}

RULES: Mapping[str, Rule] = {
    "FROM": Rule(Shape.FROM, Place.BOTH, "FROM base [AS name]", {"platform": _VALUE}),
    "ARG": Rule(Shape.NAMES, Place.BOTH, "ARG name[=default]…"),
    "ENV": Rule(Shape.PAIRS, Place.BOTH, "ENV name=value…"),
    "LABEL": Rule(Shape.PAIRS, Place.BOTH, "LABEL name=value…"),
    "WORKDIR": Rule(Shape.TEXT, Place.BOTH, "WORKDIR path"),
    "COPY": Rule(
        Shape.TRANSFER, Place.BOTH, "COPY [--from=stage] source… destination", _COPY, heredocs=True, least=2
    ),
    "ADD": Rule(Shape.TRANSFER, Place.BOTH, "ADD source… destination", _ADD, heredocs=True, least=2),
    "SHELL": Rule(Shape.COMMAND, Place.BUILD, 'SHELL ["/bin/bash", "-c"]'),
    "RUN": Rule(
        Shape.COMMAND,
        Place.BUILD,
        "RUN command",
        {"mount": _VALUES, "network": _VALUE, "security": _VALUE},
        heredocs=True,
    ),
    "USER": Rule(Shape.TEXT, Place.BUILD, "USER name"),
    "SOURCE": Rule(
        Shape.TRANSFER,
        Place.BUILD,
        "SOURCE [--checksum=] [--strip=] [--patch=dir] what destination",
        {"checksum": _VALUE, "strip": _VALUE, "patch": _VALUE},
        least=2,
    ),
    "PACKAGES": Rule(Shape.WORDS, Place.BUILD, "PACKAGES name[=version]…"),
    "DEPENDS": Rule(Shape.WORDS, Place.BUILD, "DEPENDS name[=version]…"),
    "KERNEL": Rule(Shape.TEXT, Place.IMAGE, "KERNEL [--source=] [--patches=dir] [version]", _SERIES, least=0),
    "GLIBC": Rule(Shape.TEXT, Place.IMAGE, "GLIBC [--source=] [--patches=dir] [version]", _SERIES, least=0),
    "KCONFIG": Rule(
        Shape.NAMES, Place.IMAGE, "KCONFIG NAME=value… or KCONFIG --file=fragment", {"file": _VALUES}, least=0
    ),
    "UKL": Rule(Shape.WORDS, Place.IMAGE, "UKL option…"),
    "LINK": Rule(Shape.SOURCES, Place.IMAGE, "LINK [--from=stage] [--name=] path", {"from": _VALUE, "name": _VALUE}),
    "USERLAND": Rule(Shape.TEXT, Place.IMAGE, "USERLAND busybox or USERLAND none"),
    "CMD": Rule(Shape.COMMAND, Place.IMAGE, 'CMD ["program", "argument"]'),
    "ENTRYPOINT": Rule(Shape.COMMAND, Place.IMAGE, 'ENTRYPOINT ["program", "argument"]'),
    "CMDLINE": Rule(Shape.WORDS, Place.IMAGE, "CMDLINE kernel-parameter…"),
    "EXPOSE": Rule(Shape.WHITE, Place.IMAGE, "EXPOSE port[/tcp|/udp]…"),
    "VOLUME": Rule(Shape.WHITE, Place.IMAGE, "VOLUME /path…"),
    "MEMORY": Rule(Shape.TEXT, Place.IMAGE, "MEMORY 256M"),
    "CPUS": Rule(Shape.TEXT, Place.IMAGE, "CPUS number"),
    "STOPSIGNAL": Rule(Shape.TEXT, Place.IMAGE, "STOPSIGNAL SIGTERM"),
    "HEALTHCHECK": Rule(
        Shape.NAMED_COMMAND, Place.IMAGE, "HEALTHCHECK [--interval=30s] CMD command, or NONE", _HEALTH
    ),
    "TEST": Rule(Shape.NAMED_COMMAND, Place.IMAGE, "TEST name command", _TEST, heredocs=True, least=2),
}

HEREDOC_KEYWORDS = frozenset(name for name, rule in RULES.items() if rule.heredocs)

# Dockerfile's words that this language leaves out, and what to do instead.
NOT_HERE: Mapping[str, str] = {
    "ONBUILD": "a Uklfile has no triggers; write the directives where they are needed",
    "MAINTAINER": "use LABEL org.opencontainers.image.authors=…",
}
