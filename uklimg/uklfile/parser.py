"""Logical lines → syntax tree. Every line is looked at, so that all errors come at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypedDict

from uklimg.errors import Location, UserError, UserErrors
from uklimg.uklfile import ast, checks
from uklimg.uklfile.directives import HEREDOC_KEYWORDS, NOT_HERE, RULES, FlagKind, Rule, Shape
from uklimg.uklfile.lexer import Lexed, LogicalLine, ParserDirective, lex
from uklimg.uklfile.words import (
    NotStringsError,
    Token,
    parse_json,
    rest_of,
    split_flags,
    split_keyword,
    split_white,
    split_words,
)

SYNTAX = "uklfile/1"


# After an error in one of these, checking what others mean would complain about things that are only its doing.
_DECISIVE = frozenset({"FROM", "ARG", "ENV"})


@dataclass(frozen=True)
class Parsed:
    """``tree`` has the sound lines, and is None where those say nothing certain about the rest; ``faulty`` are the
    keywords (or what they may have meant) of the others."""

    tree: ast.Uklfile | None
    errors: tuple[UserError, ...]
    faulty: frozenset[str]


def parse(text: str, filename: str) -> ast.Uklfile:
    """The tree of a Uklfile's ``text``; ``filename`` is what errors call it. Raises UserErrors and nothing else."""
    found = read(text, filename)
    if found.errors or found.tree is None:
        raise UserErrors(found.errors)
    return found.tree


def read(text: str, filename: str) -> Parsed:
    """As ``parse``, with the errors beside what is sound. Raises nothing."""
    parser = _Parser(lex(text, filename, HEREDOC_KEYWORDS), filename)
    tree = parser.run()
    faulty = frozenset(parser.faulty)
    certain = not (parser.lexed.errors or faulty & _DECISIVE) and tree.stages
    return Parsed(tree if certain else None, tuple(parser.errors), faulty)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean "x"?`` for the nearest of ``known``, or ""."""
    words = sorted(known)
    # difflib is quadratic; nobody mistypes a kilobyte.
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6) if len(word) <= 200 and len(words) <= 2000 else []
    return f"did you mean {near[0]}?" if near else ""


class _Common(TypedDict):
    keyword: str
    location: Location
    source: str
    flags: tuple[ast.Flag, ...]
    heredocs: tuple[ast.Heredoc, ...]


@dataclass
class _Line:
    """One logical line on its way to a node."""

    line: LogicalLine
    rule: Rule
    common: _Common
    start: int  # where the arguments begin
    escape: str

    @property
    def keyword(self) -> str:
        return self.common["keyword"]

    def word(self, token: Token) -> ast.Word:
        return ast.Word(token.text, self.line.at(token.offset))

    def error(self, message: str, *, hint: str = "", at: int | None = None) -> UserError:
        location = self.common["location"] if at is None else self.line.at(at)
        return UserError(message, hint=hint or self.rule.usage, location=location)


@dataclass
class _Parser:
    lexed: Lexed
    filename: str
    faulty: set[str] = field(default_factory=set)
    options: checks.CheckOptions = field(default_factory=checks.CheckOptions)
    errors: list[UserError] = field(default_factory=list)
    arguments: list[ast.Pairs] = field(default_factory=list)
    stages: list[tuple[ast.From, list[ast.AnyDirective]]] = field(default_factory=list)

    def run(self) -> ast.Uklfile:
        self.errors.extend(self.lexed.errors)
        for directive in self.lexed.directives:
            self.check_directive(directive)
        seen_from = False
        for line in self.lexed.lines:
            seen_from = self.line(line, seen_from) or seen_from
        if not self.lexed.lines and not self.errors:
            message = "there are no directives in this file"
            self.errors.append(UserError(message, hint="it starts with FROM", location=Location(self.filename, 1, 1)))
        elif not seen_from and not self.errors:
            message = "there is no FROM in this file"
            self.errors.append(
                UserError(message, hint="RUN and the like need one", location=Location(self.filename, 1, 1))
            )
        stages = tuple(ast.Stage(origin, tuple(directives)) for origin, directives in self.stages)
        options = self.options
        tree = ast.Uklfile(self.filename, self.lexed.escape, tuple(self.arguments), stages)
        found = [(checks.CONTINUATION, *warning) for warning in self.lexed.warnings]
        found.extend(checks.remarks(tree))
        warnings = tuple(sorted((place, text) for rule, place, text in found if options.wants(rule)))
        return replace(tree, warnings=warnings, skip=options.skip, strict=options.error)

    def check_directive(self, directive: ParserDirective) -> None:
        if directive.name == "syntax" and directive.value.split()[0] != SYNTAX:
            message = f"unknown syntax {directive.value!r}"
            self.errors.append(UserError(message, hint=f"this uklimg reads {SYNTAX}", location=directive.location))
        if directive.name == "check":
            try:
                self.options = checks.parse_options(directive.value)
            except ValueError as error:
                hint = "# check=skip=RULE,RULE;error=true"
                self.errors.append(UserError(str(error), hint=hint, location=directive.location))

    def line(self, line: LogicalLine, seen_from: bool) -> bool:
        """Parse one line into where it belongs. True when it is a FROM, a faulty one included."""
        keyword, start = split_keyword(line.text)
        name = keyword.text.upper()
        location = line.at(keyword.offset)
        rule = RULES.get(name)
        if rule is None:
            near = did_you_mean(name, RULES)
            hint = NOT_HERE.get(name) or near or "docs/uklfile.md has them all"
            self.faulty.update(word for word in RULES if near == f"did you mean {word}?")
            self.errors.append(UserError(f"unknown directive {_short(keyword.text)}", hint=hint, location=location))
            return False
        tokens, start = split_flags(line.text, start)
        common = _Common(keyword=name, location=location, source=line.text.strip(), flags=(), heredocs=line.heredocs)
        here = _Line(line, rule, common, start, self.lexed.escape)
        common["flags"] = self.flags(here, tokens)
        try:
            node = _parse_arguments(here)
        except UserError as error:
            self.errors.append(error)
            self.faulty.add(name)
            return name == "FROM"
        if isinstance(node, ast.From):
            self.stages.append((node, []))
        elif self.stages:
            self.stages[-1][1].append(node)
        elif name == "ARG" and isinstance(node, ast.Pairs):
            self.arguments.append(node)
        elif not seen_from:
            self.errors.append(
                UserError(f"{name} before the first FROM", hint="only ARG may stand there", location=location)
            )
        return name == "FROM"

    def flags(self, here: _Line, tokens: Iterable[Token]) -> tuple[ast.Flag, ...]:
        flags: list[ast.Flag] = []
        for token in tokens:
            name, equals, value = token.text[2:].partition("=")
            kind = here.rule.flags.get(name)
            problem = ""
            hint = ""
            if kind is None:
                problem = f"{here.keyword} has no flag {_short(f'--{name}')}"
                known = [f"--{flag}" for flag in here.rule.flags]
                hint = did_you_mean(f"--{name}", known) or f"it has {', '.join(known) or 'none'}"
            elif kind is not FlagKind.BOOL and not equals:
                problem, hint = f"--{name} needs a value", f"--{name}=…"
            elif kind is not FlagKind.VALUES and any(flag.name == name for flag in flags):
                problem = f"--{name} is given twice"
            elif kind is FlagKind.BOOL and equals and value.lower() not in ("true", "false"):
                problem, hint = f"--{name} is true or false, not {_short(value)}", f"--{name}"
            if problem:
                self.faulty.add(here.keyword)
                self.errors.append(here.error(problem, hint=hint, at=token.offset))
            else:
                flags.append(ast.Flag(name, value if equals else None, here.line.at(token.offset)))
        return tuple(flags)


def _short(text: str) -> str:
    """``text`` in quotes, cut where it is longer than anyone wants in an error line."""
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


def _missing(here: _Line) -> UserError:
    return here.error(f"{here.keyword} needs {'an argument' if here.rule.least < 2 else 'two arguments'}")


def _no_comment(here: _Line, words: Iterable[ast.Word]) -> None:
    """A lone # among words that cannot be one is a comment in the wrong place; say so."""
    for word in words:
        if word.text == "#":
            hint = "in a Uklfile as in a Dockerfile a comment has a line of its own"
            raise UserError(f"{here.keyword} followed by a comment", hint=hint, location=word.location)


def _parse_arguments(here: _Line) -> ast.From | ast.AnyDirective:
    """The node of one line; raises UserError."""
    match here.rule.shape:
        case Shape.FROM:
            return _from(here)
        case Shape.WHITE:
            words = _white_or_json(here)
            _no_comment(here, words)
            return ast.Words(words=words, **here.common)
        case Shape.WORDS:
            tokens = split_words(here.line.text, here.start, here.escape)
            if not tokens:
                raise _missing(here)
            words = tuple(map(here.word, tokens))
            _no_comment(here, words)
            return ast.Words(words=words, **here.common)
        case Shape.PAIRS | Shape.NAMES:
            return _pairs(here)
        case Shape.TEXT:
            rest = rest_of(here.line.text, here.start)
            if not rest.text and here.rule.least:
                raise _missing(here)
            return ast.Text(text=here.word(rest), **here.common)
        case Shape.COMMAND:
            return ast.Command(command=_command(here, here.start), **here.common)
        case Shape.NAMED_COMMAND:
            return _named_command(here)
        case Shape.TRANSFER:
            *sources, dest = _white_or_json(here)
            return ast.Transfer(sources=tuple(sources), dest=dest, **here.common)
        case Shape.SOURCES:
            return ast.Transfer(sources=_white_or_json(here), dest=None, **here.common)


def _from(here: _Line) -> ast.From:
    words = [here.word(token) for token in split_white(here.line.text, here.start)]
    if not words:
        raise _missing(here)
    if len(words) == 1:
        return ast.From(base=words[0], name=None, **here.common)
    if len(words) != 3 or words[1].text.upper() != "AS":
        _no_comment(here, words)
        raise here.error("FROM takes a base and, after AS, a name")
    return ast.From(base=words[0], name=words[2], **here.common)


def _json(here: _Line, rest: Token) -> tuple[str, ...] | None:
    try:
        items = parse_json(rest.text)
    except NotStringsError as error:
        raise here.error(str(error), at=rest.offset) from error
    if items is not None and any("\0" in item for item in items):
        raise here.error("a NUL character", at=rest.offset)
    return items


def _white_or_json(here: _Line) -> tuple[ast.Word, ...]:
    rest = rest_of(here.line.text, here.start)
    items = _json(here, rest)
    if items is None:
        words = tuple(here.word(token) for token in split_white(here.line.text, here.start))
    else:
        words = tuple(ast.Word(item, here.line.at(rest.offset)) for item in items)
    if len(words) < here.rule.least:
        raise _missing(here)
    return words


def _pairs(here: _Line) -> ast.Pairs:
    tokens = split_words(here.line.text, here.start, here.escape)
    if not tokens and here.rule.least:
        raise _missing(here)
    if tokens and here.rule.shape is Shape.PAIRS and "=" not in tokens[0].text:
        return ast.Pairs(pairs=(_old_pair(here),), **here.common)
    _no_comment(here, map(here.word, tokens))
    pairs: list[ast.Pair] = []
    for token in tokens:
        name, equals, value = token.text.partition("=")
        if here.rule.shape is Shape.PAIRS and not equals:
            raise here.error(f"no = in {_short(token.text)}", at=token.offset)
        if not name:
            raise here.error(f"no name before = in {_short(token.text)}", at=token.offset)
        word = here.word(Token(value, token.offset + len(name) + 1)) if equals else None
        pairs.append(ast.Pair(here.word(Token(name, token.offset)), word))
    return ast.Pairs(pairs=tuple(pairs), **here.common)


def _old_pair(here: _Line) -> ast.Pair:
    """``ENV name value``: the value is the rest of the line."""
    rest = rest_of(here.line.text, here.start)
    name, offset = split_keyword(rest.text)
    if offset >= len(rest.text):
        raise here.error(f"{here.keyword} {_short(name.text)} has no value")
    value = rest_of(rest.text, offset)
    return ast.Pair(
        here.word(Token(name.text, rest.offset + name.offset)),
        here.word(Token(value.text, rest.offset + value.offset)),
    )


def _command(here: _Line, start: int) -> ast.CommandLine:
    rest = rest_of(here.line.text, start)
    if not rest.text:
        raise _missing(here)
    return ast.CommandLine(rest.text, _json(here, rest), here.line.at(rest.offset))


def _named_command(here: _Line) -> ast.NamedCommand:
    rest = rest_of(here.line.text, here.start)
    if not rest.text:
        raise _missing(here)
    name, after = split_keyword(rest.text)
    word = here.word(Token(name.text, rest.offset + name.offset))
    if after >= len(rest.text):
        if here.rule.least > 1:
            raise _missing(here)
        return ast.NamedCommand(name=word, command=None, **here.common)
    return ast.NamedCommand(name=word, command=_command(here, rest.offset + after), **here.common)
