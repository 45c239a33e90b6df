"""The rules of ``.uklignore``, which are those of ``.dockerignore`` (moby/patternmatcher); pure matching."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from uklimg.errors import Location, UserError, UserErrors
from uklimg.uklfile.substitute import SPACES


class PatternError(ValueError):
    """The pattern is malformed, by the rules of Go's path.Match."""


class _Kind(Enum):
    EXACT = "exact"
    PREFIX = "prefix"  # foo/**
    SUFFIX = "suffix"  # **/foo, **.o
    REGEX = "regex"


@dataclass(frozen=True)
class Pattern:
    """One compiled pattern; ``include`` is a ``!`` line, which takes paths back in."""

    text: str
    include: bool
    kind: _Kind
    regex: re.Pattern[str]

    def matches(self, path: str) -> bool:
        """Whether the pattern matches exactly ``path`` (relative, "/" between components)."""
        if self.kind is _Kind.EXACT:
            return path == self.text
        if self.kind is _Kind.PREFIX:
            return path.startswith(self.text[:-2])
        if self.kind is _Kind.SUFFIX:
            suffix = self.text[2:]
            return path.endswith(suffix) or (suffix.startswith("/") and path == suffix[1:])
        return self.regex.match(path) is not None


@dataclass(frozen=True)
class Rules:
    """Patterns in the order of the file; the last one that matches decides."""

    patterns: tuple[Pattern, ...] = ()

    @property
    def takes_back(self) -> bool:
        """Whether something below an ignored folder may yet be included, so that it must be looked into."""
        return any(pattern.include for pattern in self.patterns)

    def ignored(self, path: str) -> bool:
        """Whether ``path``, or a folder above it, is ignored and not taken back later."""
        parts = path.split("/")
        above = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
        ignored = False
        for pattern in self.patterns:
            if pattern.include == ignored and any(map(pattern.matches, above)):
                ignored = not pattern.include
        return ignored


def parse_rules(text: str, filename: str) -> Rules:
    """The rules of an ignore file's ``text``. Raises UserErrors that name the malformed lines."""
    patterns: list[Pattern] = []
    errors: list[UserError] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.startswith("#"):
            continue
        try:
            patterns.extend(compile_patterns([line]))
        except PatternError as error:
            column = len(line) - len(line.lstrip(SPACES)) + 1
            errors.append(UserError(str(error), location=Location(filename, number, column)))
    if errors:
        raise UserErrors(errors)
    return Rules(tuple(patterns))


def compile_patterns(lines: Iterable[str]) -> tuple[Pattern, ...]:
    """Compiled patterns of lines without comments; blank ones are skipped. Raises PatternError."""
    patterns: list[Pattern] = []
    for line in lines:
        text = line.strip(SPACES)
        include = text.startswith("!")
        text = text[1:].strip(SPACES) if include else text
        if not text:
            if include:
                raise PatternError("a ! without a pattern")
            continue
        cleaned = re.sub("^/+", "/", posixpath.normpath(text))
        cleaned = cleaned[1:] if len(cleaned) > 1 and cleaned[0] == "/" else cleaned
        patterns.append(_compile(cleaned, include))
    return tuple(patterns)


def _compile(text: str, include: bool) -> Pattern:
    """patternmatcher's compile(): simple patterns are told from those that need a regular expression."""
    kind = _Kind.EXACT
    regex: list[str] = []
    position = 0
    while position < len(text):
        start = position
        char = text[position]
        position += 1
        if char == "*" and text[position : position + 1] == "*":
            position += 1
            if text[position : position + 1] == "/":  # **/ is **
                position += 1
            if position < len(text):
                regex.append("(.*/)?")
                kind = _Kind.REGEX
            elif kind is _Kind.EXACT:
                kind = _Kind.PREFIX
            else:
                regex.append(".*")
                kind = _Kind.REGEX
            if start == 0:
                kind = _Kind.SUFFIX
            continue
        piece, position = _translate(text, start)
        regex.append(piece)
        if char in "*?[\\]":
            kind = _Kind.REGEX
    return Pattern(text, include, kind, re.compile("".join(regex) + r"\Z", re.DOTALL))


def compile_component(text: str) -> re.Pattern[str]:
    """Go's path.Match for one component of a path. Raises PatternError."""
    regex: list[str] = []
    position = 0
    while position < len(text):
        piece, position = _translate(text, position)
        if piece != "[^/]*" or regex[-1:] != ["[^/]*"]:  # ** is * here
            regex.append(piece)
    return re.compile("".join(regex) + r"\Z", re.DOTALL)


def has_wildcard(text: str) -> bool:
    return any(char in "*?[\\" for char in text)


def _translate(text: str, position: int) -> tuple[str, int]:
    """The regular expression of one element at ``position``, and where the next one begins."""
    char = text[position]
    if char == "*":
        return "[^/]*", position + 1
    if char == "?":
        return "[^/]", position + 1
    if char == "[":
        return _class(text, position + 1)
    if char == "\\":
        return re.escape(_escaped(text, position + 1)), position + 2
    return re.escape(char), position + 1


def _escaped(text: str, position: int) -> str:
    if position >= len(text):
        raise PatternError(f"the pattern {text!r} ends in a backslash")
    return text[position]


def _class(text: str, position: int) -> tuple[str, int]:
    """``[a-z]`` or ``[^a-z]`` from behind its bracket."""
    negated = text.startswith("^", position)
    position += negated
    ranges: list[str] = []
    while True:
        if text.startswith("]", position) and ranges:
            body = "".join(ranges)
            if not body:
                return ("(?s:.)" if negated else "(?!)"), position + 1
            return (f"[^{body}]" if negated else f"[{body}]"), position + 1
        low, position = _class_char(text, position)
        high = low
        if text.startswith("-", position):
            high, position = _class_char(text, position + 1)
        if low <= high:  # Go takes [z-a] and lets it match nothing
            ranges.append(f"{_in_class(low)}-{_in_class(high)}")
        else:
            ranges.append("")


def _class_char(text: str, position: int) -> tuple[str, int]:
    char = text[position : position + 1]
    if not char or char in "-]":
        raise PatternError(f"the brackets in the pattern {text!r} are not right")
    if char == "\\":
        return _escaped(text, position + 1), position + 2
    return char, position + 1


def _in_class(char: str) -> str:
    return f"\\{char}" if char in "\\]^-[&~|" else char
