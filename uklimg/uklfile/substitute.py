"""``$x`` and its relatives: word expansion as BuildKit's Dockerfile frontend does it (frontend/dockerfile/shell).

Pure and total: any text either expands or raises SubstitutionError. Limits keep a hostile file from taking the
machine's memory or our stack: the result's length and the depth of nested ``${x:-${y}}``. Patterns are matched by
position sets, in time proportional to pattern times value, and times value once more for ``${x/a*/…}``, whose value
is limited for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_LENGTH = 1 << 20
MAX_DEPTH = 32
MAX_SEARCHED = 4096  # characters of a value in which a pattern with * is searched; that takes quadratic time

# Go's unicode.IsSpace, which is not Python's str.isspace (that takes U+001C…U+001F too).
SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_SPECIAL = "@*#?-$!0"


class SubstitutionError(ValueError):
    """The text cannot be expanded; the message says why, without a place, and ``hint`` what would be right."""

    def __init__(self, message: str, hint: str = "a $ itself is written \\$") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Style:
    """How to read quotes and escapes. The defaults are those of a directive's argument.

    ``raw_quotes`` and ``raw_escapes`` keep them in the result, ``literal_quotes`` gives quotes no meaning (a
    heredoc's body), ``keep_unset`` leaves ``$x`` as it stands when x is not set.
    """

    escape: str = "\\"
    raw_quotes: bool = False
    raw_escapes: bool = False
    literal_quotes: bool = False
    keep_unset: bool = False


@dataclass(frozen=True)
class Expansion:
    """``text`` is the result as one word, ``words`` the same split at unquoted white space.

    ``unset`` names the variables that were read plainly (not with a default) but not set.
    """

    text: str
    words: tuple[str, ...]
    unset: tuple[str, ...]


def expand(text: str, env: Mapping[str, str], style: Style | None = None) -> Expansion:
    """Expand ``text`` with ``env``; raises SubstitutionError."""
    expander = _Expander(text, env, style or Style())
    result, words = expander.until("", (style or Style()).raw_escapes)
    return Expansion(result, words, tuple(dict.fromkeys(expander.unset)))


@dataclass
class _Words:
    """Splits at white space that came unquoted; what was quoted or escaped is added raw."""

    words: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        for char in text:
            if char not in SPACES:
                self.current.append(char)
            elif self.current:
                self.flush()

    def add_raw(self, text: str) -> None:
        if text:
            self.current.append(text)

    def flush(self) -> None:
        if self.current:
            self.words.append("".join(self.current))
            self.current.clear()


class _Expander:
    def __init__(self, text: str, env: Mapping[str, str], style: Style) -> None:
        self.text = text
        self.position = 0
        self.env = env
        self.style = style
        self.depth = 0
        self.unset: list[str] = []

    def peek(self) -> str:
        """The next character, "" at the end."""
        return self.text[self.position : self.position + 1]

    def take(self) -> str:
        char = self.peek()
        self.position += 1
        return char

    def until(self, stop: str, raw_escapes: bool) -> tuple[str, tuple[str, ...]]:
        """Expand up to ``stop`` (taken, not kept) or, when it is "", to the end."""
        result: list[str] = []
        length = 0
        words = _Words()
        while char := self.peek():
            if char == stop:
                self.take()
                words.flush()
                return "".join(result), tuple(words.words)
            if char == "$":
                piece = self.dollar()
                words.add(piece)
            elif char in "'\"" and not self.style.literal_quotes:
                piece = self.single_quoted() if char == "'" else self.double_quoted(raw_escapes)
                words.add_raw(piece)
            elif self.text.startswith("<<", self.position):
                piece = self.here_document()
                words.add_raw(piece)
            elif self.take() == self.style.escape:
                escaped = self.take()
                piece = (char if raw_escapes else "") + escaped
                words.add_raw(piece)
            else:
                piece = char
                words.add(piece)
            length += len(piece)
            _check_length(length)
            result.append(piece)
        if stop:
            raise SubstitutionError(f"missing {stop!r}")
        words.flush()
        return "".join(result), tuple(words.words)

    def here_document(self) -> str:
        """``<<`` and the white space behind it, which does not end the word: ``<< EOF`` is one."""
        start = self.position
        self.position += 2
        while (char := self.peek()) and char in SPACES:
            self.take()
        return self.text[start : self.position]

    def single_quoted(self) -> str:
        start = self.position + 1
        end = self.text.find("'", start)
        if end < 0:
            raise SubstitutionError("a single quote is not closed", "a quote itself is written \\'")
        self.position = end + 1
        inner = self.text[start:end]
        return f"'{inner}'" if self.style.raw_quotes else inner

    def double_quoted(self, raw_escapes: bool) -> str:
        quote = self.take() if self.style.raw_quotes else ""
        if not quote:
            self.take()
        result = [quote]
        length = 0
        while char := self.peek():
            if char == '"':
                self.take()
                return "".join((*result, quote))
            if char == "$":
                piece = self.dollar()
            elif self.take() == self.style.escape:
                piece = self.escaped_in_quotes(char, raw_escapes)
            else:
                piece = char
            length += len(piece)
            _check_length(length)
            result.append(piece)
        raise SubstitutionError("a double quote is not closed", 'a quote itself is written \\"')

    def escaped_in_quotes(self, escape: str, raw_escapes: bool) -> str:
        """Only ``"``, ``$`` and the escape itself can be escaped there; before others the escape stays."""
        following = self.peek()
        if not following:
            return escape if raw_escapes else ""
        prefix = escape if raw_escapes else ""
        if following in ('"', "$", escape):
            return prefix + self.take()
        return prefix + escape

    def name(self) -> str:
        """A variable's name, a number, one special parameter, or ""."""
        start = self.position
        first = self.peek()
        if first.isdecimal():
            while self.peek().isdecimal():
                self.take()
        elif first and first in _SPECIAL:
            self.take()
        else:
            while (char := self.peek()) and (char.isalpha() or char.isdecimal() or char == "_"):
                self.take()
        return self.text[start : self.position]

    def dollar(self) -> str:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise SubstitutionError(f"substitutions are nested deeper than {MAX_DEPTH}")
        try:
            self.take()
            return self.braced() if self.peek() == "{" else self.plain()
        finally:
            self.depth -= 1

    def plain(self) -> str:
        name = self.name()
        if not name:
            return "$"
        if name not in self.env:
            self.unset.append(name)
            return f"${name}" if self.style.keep_unset else ""
        return self.env[name]

    def braced(self) -> str:
        self.take()
        following = self.peek()
        if not following:
            raise SubstitutionError("missing '}'")
        if following in "{}:":
            raise SubstitutionError("bad substitution")
        name = self.name()
        operator = self.take()
        if operator == "}":
            if name not in self.env:
                self.unset.append(name)
                return f"${{{name}}}" if self.style.keep_unset else ""
            return self.env[name]
        if operator == "/":
            return self.replaced(name)
        empty_is_unset = operator == ":"
        modifier = self.take() if empty_is_unset else operator
        if not modifier:
            raise SubstitutionError("missing '}'")
        if modifier not in "+-?#%":
            raise SubstitutionError(
                f"unknown modifier {':' * empty_is_unset + modifier!r} in a substitution", "- + ? # % or /"
            )
        word, _ = self.until("}", modifier in "#%")
        if self.style.keep_unset and name not in self.env:
            return f"${{{name}{':' * empty_is_unset}{modifier}{word}}}"
        if modifier in "#%":
            return self.trimmed(name, modifier, word)
        return self.defaulted(name, modifier, word, empty_is_unset)

    def defaulted(self, name: str, modifier: str, word: str, empty_is_unset: bool) -> str:
        value = self.env.get(name)
        missing = value is None or (empty_is_unset and not value)
        if modifier == "-":
            return word if value is None or missing else value
        if modifier == "+":
            return "" if missing else word
        if value is None or missing:
            why = word or ("must be set" if value is None else "must not be empty")
            raise SubstitutionError(f"{name}: {why}", f"ARG {name}=value, or --build-arg {name}=value")
        return value

    def trimmed(self, name: str, modifier: str, word: str) -> str:
        longest = word.startswith(modifier)
        tokens = _pattern(word[1:] if longest else word)
        if name not in self.env:
            self.unset.append(name)
        value = self.env.get(name, "")
        ends = _ends(tokens[::-1], value[::-1], 0) if modifier == "%" else _ends(tokens, value, 0)
        if not ends:
            return value
        cut = max(ends) if longest else min(ends)
        return value[: len(value) - cut] if modifier == "%" else value[cut:]

    def replaced(self, name: str) -> str:
        everywhere = self.peek() == "/"
        if everywhere:
            self.take()
        pattern, _ = self.until("/", True)
        replacement, _ = self.until("}", True)
        if name not in self.env:
            self.unset.append(name)
            if self.style.keep_unset:
                return f"${{{name}/{'/' * everywhere}{pattern}/{replacement}}}"
        return _replace(_pattern(pattern), self.env.get(name, ""), replacement, everywhere)


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise SubstitutionError(f"the result is longer than {MAX_LENGTH} characters")


@dataclass(frozen=True)
class _Any:
    """``?`` (one character) or ``*`` (any number of them); neither matches a newline."""

    many: bool


def _pattern(text: str) -> Sequence[str | _Any]:
    """A shell pattern without brackets, as characters and wildcards."""
    tokens: list[str | _Any] = []
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char in "*?":
            tokens.append(_Any(char == "*"))
        elif char == "\\":
            following = text[position : position + 1]
            if not following or following not in "*?\\}/":
                raise SubstitutionError(
                    f"invalid escape '\\{following}' in the pattern {text!r}", r"\* \? \\ \} or \/"
                )
            tokens.append(following)
            position += 1
        else:
            tokens.append(char)
    return tokens


def _ends(tokens: Sequence[str | _Any], value: str, start: int) -> set[int]:
    """Every place at which a match of all ``tokens`` that begins at ``start`` can end."""
    places = {start}
    for token in tokens:
        if isinstance(token, str):
            places = {p + 1 for p in places if value[p : p + 1] == token}
        elif token.many:
            reached: set[int] = set()
            for place in sorted(places):
                while place not in reached:
                    reached.add(place)
                    if value[place : place + 1] in ("", "\n"):
                        break
                    place += 1
            places = reached
        else:
            places = {p + 1 for p in places if value[p : p + 1] not in ("", "\n")}
        if not places:
            break
    return places


def _replace(tokens: Sequence[str | _Any], value: str, replacement: str, everywhere: bool) -> str:
    """Replace the first or every longest match; an empty match right after a match does not count."""
    if len(value) > MAX_SEARCHED and any(isinstance(token, _Any) and token.many for token in tokens):
        raise SubstitutionError(f"a pattern with * is not searched in more than {MAX_SEARCHED} characters")
    result: list[str] = []
    length = 0
    position = 0
    last_end = -1
    while position <= len(value):
        ends = _ends(tokens, value, position)
        end = max(ends) if ends else -1
        if ends and not (end == position == last_end):
            result.append(replacement)
            last_end = end
            if not everywhere:
                return "".join((*result, value[end:]))
        if end > position:
            position = end
        else:
            result.append(value[position : position + 1])
            position += 1
        length += len(result[-1]) + len(replacement)
        _check_length(length)
    return "".join(result)
