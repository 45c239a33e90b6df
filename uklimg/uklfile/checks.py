"""Remarks on a sound Uklfile, under the names that BuildKit's build checks have; they stop nothing.

``# check=skip=RULE,RULE`` (or ``skip=all``) silences them, ``# check=error=true`` makes errors of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from uklimg.errors import Location
from uklimg.uklfile import ast

UNDEFINED = "UndefinedVar"
CONTINUATION = "NoEmptyContinuation"

_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|passwd|pword|secret|token)(?:_|$)", re.IGNORECASE
)
_HARMLESS = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class CheckOptions:
    """What ``# check=`` says."""

    skip: frozenset[str] = frozenset()
    error: bool = False

    def wants(self, rule: str) -> bool:
        return rule not in self.skip and "all" not in self.skip


def parse_options(text: str) -> CheckOptions:
    """``skip=A,B;error=true``. Raises ValueError that says what is wrong."""
    skip: set[str] = set()
    error = False
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name == "skip" and equals:
            skip.update(rule.strip() for rule in value.split(","))
        elif name == "error" and value.lower() in ("true", "false"):
            error = value.lower() == "true"
        else:
            raise ValueError(f"unknown check option {part[:60]!r}")
    return CheckOptions(frozenset(skip), error)


def remarks(tree: ast.Uklfile) -> Iterator[tuple[str, Location, str]]:
    """(rule, place, text) of everything worth a remark in the tree as it is written."""
    yield from _casing(tree)
    for arguments in tree.arguments:
        yield from _secrets(arguments)
    for stage in tree.stages:
        yield from _stage_name(stage.origin)
        absolute = False
        for directive in stage.directives:
            if isinstance(directive, ast.Pairs) and directive.keyword in ("ARG", "ENV"):
                yield from _secrets(directive)
            if isinstance(directive, ast.Pairs) and directive.keyword in ("ENV", "LABEL"):
                yield from _old_form(directive)
            if isinstance(directive, ast.Text) and directive.keyword == "WORKDIR":
                if not absolute and not directive.text.text.lstrip("\"'").startswith(("/", "$")):
                    text = "a relative WORKDIR with none before it depends on the base"
                    yield "WorkdirRelativePath", directive.location, text
                absolute = True
            if isinstance(directive, ast.Words) and directive.keyword == "EXPOSE":
                yield from (
                    ("ExposeProtoCasing", word.location, f"the protocol in {word.text!r} is written in lower case")
                    for word in directive.words
                    if re.search("/.*[A-Z]", word.text)
                )


def _written(directive: ast.Directive) -> str:
    """The keyword as it stands in the file."""
    return directive.source[: len(directive.keyword)]


def _casing(tree: ast.Uklfile) -> Iterator[tuple[str, Location, str]]:
    """All keywords in one case, that of the most (BuildKit's ConsistentInstructionCasing)."""
    everything: list[ast.Directive] = [*tree.arguments]
    for stage in tree.stages:
        everything += [stage.origin, *stage.directives]
    lower = sum(_written(directive).islower() for directive in everything)
    upper = sum(_written(directive).isupper() for directive in everything)
    for directive in everything:
        word = _written(directive)
        wanted = word.lower() if lower > upper else word.upper()
        if word != wanted:
            text = f"{word} is written {wanted} like the other directives of the file"
            yield "ConsistentInstructionCasing", directive.location, text


def _stage_name(origin: ast.From) -> Iterator[tuple[str, Location, str]]:
    if origin.name is None:
        return
    name = origin.name.text
    word = _written(origin)
    middle = origin.source.split()[-2]
    if (word.isupper() and not middle.isupper()) or (word.islower() and not middle.islower()):
        yield "FromAsCasing", origin.name.location, f"{word} and {middle} are written in different cases"
    if name != name.lower():
        yield "StageNameCasing", origin.name.location, f"the stage {name!r} is called {name.lower()!r}"
    if name.lower() in ("scratch", "context"):
        text = f"{name!r} means something else in a Dockerfile; another name misleads nobody"
        yield "ReservedStageName", origin.name.location, text


def _secrets(directive: ast.Pairs) -> Iterator[tuple[str, Location, str]]:
    for pair in directive.pairs:
        name = pair.name.text
        if _SECRET.search(name) and not _HARMLESS.search(name):
            text = f"{directive.keyword} {name} stays in keys and images; RUN --mount=type=secret does not"
            yield "SecretsUsedInArgOrEnv", pair.name.location, text


def _old_form(directive: ast.Pairs) -> Iterator[tuple[str, Location, str]]:
    pair = directive.pairs[0]
    name = f"{directive.keyword} {pair.name.text}"
    rest = directive.source[len(directive.keyword) :].lstrip()
    if not rest.removeprefix(pair.name.text).startswith("="):
        yield "LegacyKeyValueFormat", directive.location, f"the old form of {name}; write {name}=…"
