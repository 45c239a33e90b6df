"""Lexical rules: what Dockerfile's parser does with comments, continuations, heredocs, quotes and variables."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uklimg.uklfile.directives import HEREDOC_KEYWORDS
from uklimg.uklfile.lexer import Lexed, lex, parse_heredoc
from uklimg.uklfile.substitute import Style, SubstitutionError, expand
from uklimg.uklfile.words import (
    NotStringsError,
    parse_json,
    rest_of,
    split_flags,
    split_keyword,
    split_white,
    split_words,
)

pytestmark = pytest.mark.unit

# A loaded machine may be slow at any one example; that says nothing about the code.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def run(text: str) -> Lexed:
    return lex(text, "f", HEREDOC_KEYWORDS)


def texts(text: str) -> list[str]:
    return [line.text for line in run(text).lines]


def test_comments_and_blank_lines_are_no_lines() -> None:
    assert texts("# one\n\n   # two\nRUN x # y\n\t\n") == ["RUN x # y"]


def test_byte_order_mark_and_carriage_returns_go() -> None:
    assert texts("\ufeffRUN a \\\r\n b\r\nRUN c\r\n") == ["RUN a  b", "RUN c"]


def test_continuation_keeps_white_space_and_skips_comments() -> None:
    lexed = run("RUN a \\\n  # comment\n  b\\  \n\tc\nRUN d")
    assert [line.text for line in lexed.lines] == ["RUN a   b\tc", "RUN d"]
    assert lexed.warnings == ()


def test_empty_line_in_a_continuation_is_skipped_with_a_warning() -> None:
    lexed = run("RUN a \\\n\n  b\n")
    assert [line.text for line in lexed.lines] == ["RUN a   b"]
    assert [str(place) for place, _ in lexed.warnings] == ["f:2:1"]


def test_escaped_backslash_at_the_end_does_not_continue() -> None:
    assert texts("RUN a \\\\\nRUN b") == ["RUN a \\\\", "RUN b"]


def test_continuation_at_the_end_of_the_file() -> None:
    assert texts("RUN a \\") == ["RUN a "]
    assert texts("\\\n") == []


def test_places_follow_the_pieces() -> None:
    (line,) = run("\n  COPY one \\\n# c\n   two three\n").lines
    assert str(line.at(0)) == "f:2:3"
    assert str(line.at(line.text.index("one"))) == "f:2:8"
    assert str(line.at(line.text.index("two"))) == "f:4:4"
    assert str(line.at(line.text.index("three"))) == "f:4:8"


def test_parser_directives_only_at_the_top() -> None:
    lexed = run("# syntax=uklfile/1\n#  Escape = `\nRUN a `\n b\n# escape=\\\nRUN c \\\n")
    assert [(d.name, d.value) for d in lexed.directives] == [("syntax", "uklfile/1"), ("escape", "`")]
    assert lexed.escape == "`"
    assert [line.text for line in lexed.lines] == ["RUN a  b", "RUN c \\"]


@pytest.mark.parametrize("before", ["\n", "# a comment\n", "# unknown=1\n", "RUN x\n"])
def test_anything_else_ends_the_parser_directives(before: str) -> None:
    assert run(before + "# escape=`\n").escape == "\\"


def test_wrong_parser_directives() -> None:
    assert [e.line() for e in run("# escape=x\nRUN a").errors] == [
        "f:1:1: invalid escape character 'x' (it is \\ or `)"
    ]
    assert [e.line() for e in run("# escape=`\n# escape=`\n").errors] == [
        "f:2:1: the parser directive 'escape' is given twice (once is enough)"
    ]


def test_heredocs_in_order() -> None:
    text = 'RUN cat <<A <<-"B" 3<<C\na $x\nA\n\t b\n\tB\n# no comment\n\nC\nRUN after'
    first, second = run(text).lines
    found = [(h.name, h.expand, h.chomp, h.content) for h in first.heredocs]
    assert found == [
        ("A", True, False, "a $x\n"),
        ("B", False, True, "\t b\n"),
        ("C", True, False, "# no comment\n\n"),
    ]
    assert second.text == "RUN after"


@pytest.mark.parametrize(
    "line",
    ["ENV x=<<EOF", 'RUN ["cat", "<<EOF"]', "RUN cat <<<EOF", "RUN echo $((1<<2))x", "RUN cat '<<EOF", "RUN a <<"],
)
def test_what_is_no_heredoc(line: str) -> None:
    lexed = run(f"{line}\nRUN EOF\n")
    assert [entry.text for entry in lexed.lines] == [line, "RUN EOF"]
    assert not lexed.errors


def test_heredoc_without_an_end() -> None:
    lexed = run("FROM a\nCOPY <<EOF /x\nRUN b\n")
    assert [e.line() for e in lexed.errors] == [
        "f:2:6: the heredoc <<EOF is not ended (a line with nothing but EOF ends it)"
    ]


def test_heredoc_keeps_carriage_returns_and_may_end_the_file() -> None:
    (line,) = run("COPY <<EOF /x\r\na\r\nEOF").lines
    assert line.heredocs[0].content == "a\r\n"


@pytest.mark.parametrize(
    ("word", "name", "expands"), [("<<EOF", "EOF", True), ("<<'EOF'", "EOF", False), ('<<E"O"F', "EOF", False)]
)
def test_heredoc_names(word: str, name: str, expands: bool) -> None:
    (line,) = run("RUN x").lines
    heredoc = parse_heredoc(word, line.at(0))
    assert heredoc is not None
    assert (heredoc.name, heredoc.expand) == (name, expands)


def test_nul_is_an_error() -> None:
    assert [e.line() for e in run("RUN a\0b").errors] == ["f:1:6: a NUL or a lone surrogate (a Uklfile is text)"]


def test_keyword_and_flags() -> None:
    line = '  COPY --from=a --chown="x y" --li\\nk -- --b /c'
    keyword, start = split_keyword(line)
    assert (keyword.text, keyword.offset) == ("COPY", 2)
    flags, start = split_flags(line, start)
    assert [flag.text for flag in flags] == ["--from=a", "--chown=x y", "--link"]
    assert line[flags[1].offset :].startswith("--chown")
    assert rest_of(line, start).text == "--b /c"


@pytest.mark.parametrize("line", ["RUN --a='b", "RUN --a\\", "RUN --", "RUN", "--", "RUN --\\"])
def test_flags_of_odd_lines(line: str) -> None:
    _, start = split_keyword(line)
    flags, start = split_flags(line, start)
    assert rest_of(line, start).text == ""
    assert all(flag.text.startswith("--") for flag in flags)


def test_words_keep_their_quotes() -> None:
    words = split_words("""a="b c" 'd e'f g\\ h  "" i\\""", 0, "\\")
    assert [word.text for word in words] == ['a="b c"', "'d e'f", "g\\ h", '""', "i"]
    assert [word.offset for word in words] == [0, 8, 15, 21, 24]
    assert [word.text for word in split_words("a` b c", 0, "`")] == ["a` b", "c"]
    assert [word.text for word in split_white('a "b c"', 0)] == ["a", '"b', 'c"']


def test_json_form() -> None:
    assert parse_json('["a", "b\\n"]') == ("a", "b\n")
    assert parse_json("[]") == ()
    assert parse_json('["\\ud800"]') == ("\ufffd",)
    for text in ("['a']", '["a",]', '["a"', "a", "[" * 100_000, '["a"] b'):
        assert parse_json(text) is None
    with pytest.raises(NotStringsError):
        parse_json('["a", 1]')


ENV = {"x": "value", "empty": "", "path": "/usr/lib/libfoo.so.1", "list": "a b"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$x", "value"),
        ("${x}y$x-", "valueyvalue-"),
        ("\\$x", "$x"),
        ("'$x'", "$x"),
        ('"$x \\"q\\" \\n"', 'value "q" \\n'),
        ("a\\ b", "a b"),
        ("$", "$"),
        ("$.", "$."),
        ("$1x", "x"),
        ("${no:-word $x}", "word value"),
        ("${empty:-word}", "word"),
        ("${empty-word}", ""),
        ("${no-word}", "word"),
        ("${x:+word}", "word"),
        ("${empty:+word}", ""),
        ("${empty+word}", "word"),
        ("${no+word}", ""),
        ("${x:?never}", "value"),
        ("${empty?never}", ""),
        ("${no:-${empty:-${x}}}", "value"),
        ("${path#*/}", "usr/lib/libfoo.so.1"),
        ("${path##*/}", "libfoo.so.1"),
        ("${path%.*}", "/usr/lib/libfoo.so"),
        ("${path%%.*}", "/usr/lib/libfoo"),
        ("${path#/u?r}", "/lib/libfoo.so.1"),
        ("${path%no*}", "/usr/lib/libfoo.so.1"),
        ("${path/lib/LIB}", "/usr/LIB/libfoo.so.1"),
        ("${path//lib/LIB}", "/usr/LIB/LIBfoo.so.1"),
        ("${path//\\//_}", "_usr_lib_libfoo.so.1"),
        ("${path/l*o/X}", "/usr/X.1"),
        ("${x//?/ab}", "ababababab"),
        ("${empty//*/y}", "y"),
        ("${x/e/}", "valu"),
    ],
)
def test_substitution(text: str, result: str) -> None:
    assert expand(text, ENV).text == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${x", "missing '}'"),
        ("${", "missing '}'"),
        ("${x:", "missing '}'"),
        ("${x:-a", "missing '}'"),
        ("${}", "bad substitution"),
        ("${x!y}", "unknown modifier '!' in a substitution"),
        ("${x:!y}", "unknown modifier ':!' in a substitution"),
        ("${no:?give it}", "no: give it"),
        ("${no?}", "no: must be set"),
        ("${empty:?}", "empty: must not be empty"),
        ("'a", "a single quote is not closed"),
        ('"a', "a double quote is not closed"),
        ("${x#\\a}", "invalid escape '\\a' in the pattern '\\\\a'"),
        ("${x/a}", "missing '/'"),
    ],
)
def test_substitution_errors(text: str, message: str) -> None:
    with pytest.raises(SubstitutionError) as caught:
        expand(text, ENV)
    assert str(caught.value) == message


def test_words_split_at_unquoted_space() -> None:
    assert expand("$list '$list' \"c d\" e\\ f", ENV).words == ("a", "b", "$list", "c d", "e f")
    assert expand("x$list", ENV).words == ("xa", "b")


def test_unset_names_are_told() -> None:
    assert expand("$no ${nor} ${fine:-} $no", ENV).unset == ("no", "nor")


def test_heredoc_style_leaves_quotes_alone() -> None:
    assert expand('it\'s "$x" \\$x', ENV, Style(literal_quotes=True)).text == 'it\'s "value" $x'


def test_limits_on_depth_and_length() -> None:
    with pytest.raises(SubstitutionError, match="deeper"):
        expand("${a:-" * 10_000 + "}" * 10_000, {})
    with pytest.raises(SubstitutionError, match="longer"):
        expand("$x" * 4096, {"x": "y" * 4096})


def test_patterns_take_no_exponential_time() -> None:
    # Backtracking would not finish this in the age of the universe.
    assert expand("${x#" + "*a" * 40 + "b}", {"x": "a" * 2000}).text == "a" * 2000
    with pytest.raises(SubstitutionError, match="not searched"):
        expand("${x//a*b/c}", {"x": "a" * 5000})


@RELAXED
@given(st.text(alphabet="$x{}:-+?#%/*\\'\" ab", max_size=60))
def test_expansion_never_fails_otherwise(text: str) -> None:
    try:
        result = expand(text, {"x": "a b", "a": "x*"})
    except SubstitutionError:
        return
    assert all(result.words)
    assert len("".join(result.words)) <= len(result.text)


@RELAXED
@given(st.text(alphabet="RUN COPY<EOF-'\"\\\n\r#\t=abc", max_size=120))
def test_lexing_is_total_and_places_are_in_the_file(text: str) -> None:
    lines = text.split("\n")
    for line in run(text).lines:
        for offset, char in enumerate(line.text):
            place = line.at(offset)
            assert lines[place.line - 1][place.column - 1] == char
