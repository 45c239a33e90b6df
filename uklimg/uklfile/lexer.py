"""Text → logical lines with places: comments, parser directives, continuations, heredocs.

The rules are those of BuildKit's Dockerfile parser (frontend/dockerfile/parser).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from uklimg.errors import Location, UserError
from uklimg.uklfile.ast import Heredoc
from uklimg.uklfile.substitute import SPACES, Style, SubstitutionError, expand
from uklimg.uklfile.words import NotStringsError, parse_json, rest_of, split_flags, split_keyword

DIRECTIVES = ("syntax", "escape", "check")
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(\S.*)")
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # no C string, no UTF-8
_HEREDOC = re.compile(r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)")


@dataclass(frozen=True)
class LogicalLine:
    """One directive's text with its continuations joined.

    ``pieces`` says where the text comes from: from ``offset`` on, it is what stands at ``line``:``column``.
    """

    text: str
    file: str
    pieces: tuple[tuple[int, int, int], ...]  # (offset, line, column), ascending
    heredocs: tuple[Heredoc, ...] = ()

    def at(self, offset: int) -> Location:
        index = bisect_right(self.pieces, offset, key=lambda piece: piece[0]) - 1
        start, line, column = self.pieces[max(index, 0)]
        return Location(self.file, line, column + offset - start)


@dataclass(frozen=True)
class ParserDirective:
    """``# name=value`` at the top of the file; ``name`` in lower case."""

    name: str
    value: str
    location: Location


@dataclass(frozen=True)
class Lexed:
    """What the lexer made of a file. ``escape`` is the escape character in force."""

    lines: tuple[LogicalLine, ...]
    directives: tuple[ParserDirective, ...]
    escape: str
    errors: tuple[UserError, ...]
    warnings: tuple[tuple[Location, str], ...]


def lex(text: str, filename: str, heredoc_keywords: Collection[str]) -> Lexed:
    """Cut ``text`` into logical lines. Never raises: what is wrong is in ``errors``.

    ``heredoc_keywords`` are the directives (upper case) that may be followed by heredocs.
    """
    lexer = _Lexer(text.removeprefix("\ufeff"), filename, heredoc_keywords)
    lexer.run()
    return Lexed(
        tuple(lexer.lines), tuple(lexer.directives), lexer.escape, tuple(lexer.errors), tuple(lexer.warnings)
    )


@dataclass
class _Lexer:
    text: str
    filename: str
    heredoc_keywords: Collection[str]
    escape: str = "\\"
    lines: list[LogicalLine] = field(default_factory=list)
    directives: list[ParserDirective] = field(default_factory=list)
    errors: list[UserError] = field(default_factory=list)
    warnings: list[tuple[Location, str]] = field(default_factory=list)
    number: int = 0  # physical lines taken so far; the number of the last one
    directives_done: bool = False

    def __post_init__(self) -> None:
        self.physical = self.text.split("\n")
        if self.physical[-1] == "":
            self.physical.pop()
        self.ends_with_newline = self.text.endswith("\n")

    def place(self, column: int = 0) -> Location:
        return Location(self.filename, self.number, column)

    def more(self) -> bool:
        return self.number < len(self.physical)

    def take(self) -> str:
        """The next physical line without its newline (a carriage return stays)."""
        line = self.physical[self.number]
        self.number += 1
        return line

    def run(self) -> None:
        while self.more():
            raw = self.take().rstrip("\r")
            content = raw.lstrip(SPACES)
            self.parser_directive(content, len(raw) - len(content) + 1)
            if not content or content.startswith("#"):
                continue
            self.logical_line(content, len(raw) - len(content) + 1)

    def parser_directive(self, content: str, column: int) -> None:
        """Directives stand before everything else, blank lines and ordinary comments included."""
        if self.directives_done:
            return
        match = _DIRECTIVE.fullmatch(content.rstrip(SPACES))
        name = match[1].lower() if match else ""
        if match is None or name not in DIRECTIVES:
            self.directives_done = True
            return
        place = self.place(column)
        if any(directive.name == name for directive in self.directives):
            self.errors.append(
                UserError(f"the parser directive {name!r} is given twice", hint="once is enough", location=place)
            )
            return
        self.directives.append(ParserDirective(name, match[2], place))
        if name == "escape":
            if match[2] in ("\\", "`"):
                self.escape = match[2]
            else:
                message = f"invalid escape character {match[2]!r}"
                self.errors.append(UserError(message, hint="it is \\ or `", location=place))

    def continued(self, line: str) -> tuple[str, bool]:
        """The line without a continuation character, and whether it had one.

        An escape at the end, before blanks, continues the line unless another escape stands before it.
        """
        body = line.rstrip(" \t")
        if body.endswith(self.escape) and not body[:-1].endswith(self.escape):
            return body[:-1], True
        return line, False

    def logical_line(self, content: str, column: int) -> None:
        text, goes_on = self.continued(content)
        parts = [text]
        pieces = [(0, self.number, column)]
        length = len(text)
        while goes_on and self.more():
            raw = self.take().rstrip("\r")
            stripped = raw.strip(SPACES)
            if stripped.startswith("#"):
                continue
            if not stripped:
                self.warnings.append((self.place(1), "an empty line inside a continued line"))
                continue
            text, goes_on = self.continued(raw)
            pieces.append((length, self.number, 1))
            parts.append(text)
            length += len(text)
        line = LogicalLine("".join(parts), self.filename, tuple(pieces))
        if not line.text.strip(SPACES):
            return
        if match := _NOT_TEXT.search(line.text):
            self.errors.append(
                UserError("a NUL or a lone surrogate", hint="a Uklfile is text", location=line.at(match.start()))
            )
            return
        self.lines.append(self.with_heredocs(line))

    def with_heredocs(self, line: LogicalLine) -> LogicalLine:
        keyword, start = split_keyword(line.text)
        if "<<" not in line.text or keyword.text.upper() not in self.heredoc_keywords:
            return line
        _, start = split_flags(line.text, start)
        try:
            if parse_json(rest_of(line.text, start).text) is not None:
                return line
        except NotStringsError:
            return line
        heredocs = tuple(self.body(opening) for opening in _openings(line))
        return LogicalLine(line.text, line.file, line.pieces, heredocs)

    def body(self, opening: Heredoc) -> Heredoc:
        content: list[str] = []
        while self.more():
            raw = self.take()
            end = raw.rstrip("\r")
            if (end.lstrip("\t") if opening.chomp else end) == opening.name:
                break
            newline = "\n" if self.more() or self.ends_with_newline else ""
            content.append(raw + newline)
        else:
            message = f"the heredoc <<{opening.name} is not ended"
            hint = f"a line with nothing but {opening.name} ends it"
            if ")" in opening.name:
                hint = "a shift is written without blanks around it, as in $((1<<4))"
            self.errors.append(UserError(message, hint=hint, location=opening.location))
        if any(map(_NOT_TEXT.search, content)):
            self.errors.append(
                UserError(
                    "a NUL or a lone surrogate in the heredoc", hint="a Uklfile is text", location=opening.location
                )
            )
        return replace(opening, content="".join(content))


def parse_heredoc(word: str, location: Location) -> Heredoc | None:
    """``<<NAME``, ``<<-NAME`` or ``<<"NAME"`` (not expanded), without its content; None for any other word."""
    match = _HEREDOC.fullmatch(word)
    if match is None or not match[3]:
        return None
    try:
        # Expanded with and without quotes: a difference in quotes means that some of the name is quoted.
        plain = expand(match[3], {}, Style(keep_unset=True)).words
        quoted = expand(match[3], {}, Style(keep_unset=True, raw_quotes=True)).words
    except SubstitutionError:
        return None
    if len(plain) != 1 or len(quoted) != 1:
        return None
    expands = _quotes(plain[0]) == _quotes(quoted[0])
    return Heredoc(plain[0], expands, match[2] == "-", "", location)


def _quotes(text: str) -> int:
    return text.count("'") + text.count('"')


def _openings(line: LogicalLine) -> list[Heredoc]:
    style = Style(raw_quotes=True, raw_escapes=True, keep_unset=True)
    try:
        words = expand(line.text, {}, style).words
    except SubstitutionError:
        return []  # unbalanced quotes are the shell's to complain about
    found: list[Heredoc] = []
    for word in words:
        location = line.at(max(line.text.find(word), 0))
        if heredoc := parse_heredoc(word, location):
            found.append(heredoc)
    return found
