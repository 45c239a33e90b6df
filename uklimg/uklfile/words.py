"""Cutting one logical line into keyword, flags, words and JSON, as BuildKit's Dockerfile parser does.

All functions work on a line's text and give offsets into it; ``lexer.LogicalLine.at`` turns those into places.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from uklimg.uklfile.substitute import SPACES

# The white space that separates a keyword from its arguments (Go's `[\t\v\f\r ]+`).
_GAP = re.compile(r"[\t\v\f\r ]+")


@dataclass(frozen=True)
class Token:
    """A piece of a line; ``offset`` is where it begins there."""

    text: str
    offset: int


class NotStringsError(ValueError):
    """The text is a JSON array, but not one of strings only."""


def rest_of(text: str, start: int) -> Token:
    """The text from ``start`` without white space around it."""
    stripped = text[start:].lstrip(SPACES)
    return Token(stripped.rstrip(SPACES), len(text) - len(stripped))


def split_keyword(text: str) -> tuple[Token, int]:
    """The first word, and the offset at which its arguments begin."""
    line = rest_of(text, 0)
    gap = _GAP.search(line.text)
    if gap is None:
        return line, line.offset + len(line.text)
    return Token(line.text[: gap.start()], line.offset), line.offset + gap.end()


def split_flags(text: str, start: int) -> tuple[tuple[Token, ...], int]:
    """Words that begin with ``--`` up to the first that does not, or up to a lone ``--``; quotes are removed.

    The escape there is always a backslash, whatever the escape directive says.
    """
    flags: list[Token] = []
    position = start
    while True:
        while position < len(text) and text[position] in SPACES:
            position += 1
        if not text.startswith("--", position):
            return tuple(flags), position
        begin = position
        word: list[str] = []
        quote = ""
        while position < len(text) and (quote or text[position] not in SPACES):
            char = text[position]
            position += 1
            if char == "\\":
                word.append(text[position : position + 1])
                position += 1
            elif quote:
                if char == quote:
                    quote = ""
                else:
                    word.append(char)
            elif char in "'\"":
                quote = char
            else:
                word.append(char)
        if (flag := "".join(word)) == "--":
            return tuple(flags), min(position, len(text))
        flags.append(Token(flag, begin))


def split_white(text: str, start: int) -> tuple[Token, ...]:
    """Words between white space; quotes mean nothing."""
    rest = rest_of(text, start)
    tokens: list[Token] = []
    position = 0
    for gap in _GAP.finditer(rest.text):
        tokens.append(Token(rest.text[position : gap.start()], rest.offset + position))
        position = gap.end()
    if rest.text:
        tokens.append(Token(rest.text[position:], rest.offset + position))
    return tuple(tokens)


def split_words(text: str, start: int, escape: str) -> tuple[Token, ...]:
    """Words between unquoted white space, with their quotes and escapes still in them."""
    tokens: list[Token] = []
    rest = rest_of(text, start)
    position = 0
    source = rest.text
    while position < len(source):
        if source[position] in SPACES:
            position += 1
            continue
        begin = position
        word: list[str] = []
        quote = ""
        while position < len(source) and (quote or source[position] not in SPACES):
            char = source[position]
            position += 1
            if char == escape and quote != "'":
                if position < len(source):  # an escape at the very end is dropped
                    word.append(char + source[position])
                    position += 1
                continue
            if quote:
                quote = "" if char == quote else quote
            elif char in "'\"":
                quote = char
            word.append(char)
        if word:
            tokens.append(Token("".join(word), rest.offset + begin))
    return tuple(tokens)


def parse_json(text: str) -> tuple[str, ...] | None:
    """The strings of a JSON array; None when the text is not JSON. Raises NotStringsError for other arrays."""
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise NotStringsError("a JSON array of arguments holds strings only")
    # A lone surrogate (`"\ud800"`) has no UTF-8 form; Go reads it as U+FFFD.
    return tuple(re.sub("[\ud800-\udfff]", "\ufffd", item) for item in value)
