"""The syntax tree: shapes, places, all errors at once. What whole files give is in tests/golden/uklfile."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uklimg.errors import UserErrors
from uklimg.uklfile import ast
from uklimg.uklfile.directives import RULES, Shape
from uklimg.uklfile.parser import did_you_mean, parse

pytestmark = pytest.mark.unit

# A loaded machine may be slow at any one example; that says nothing about the code.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def only(line: str) -> ast.AnyDirective:
    (directive,) = parse(f"FROM x\n{line}", "f").stages[0].directives
    return directive


def errors(text: str) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        parse(text, "f")
    return caught.value.line().split("\n")


def test_stages_and_arguments() -> None:
    tree = parse("ARG a=1 b\nFROM x as Y\nRUN a\nRUN b\nfrom z\n", "f")
    assert [(p.name.text, p.value.text if p.value else None) for p in tree.arguments[0].pairs] == [
        ("a", "1"),
        ("b", None),
    ]
    assert [(s.origin.base.text, s.origin.name.text if s.origin.name else None) for s in tree.stages] == [
        ("x", "Y"),
        ("z", None),
    ]
    assert [len(stage.directives) for stage in tree.stages] == [2, 0]
    assert tree.stages[1].origin.keyword == "FROM"


def test_places_are_those_of_the_words() -> None:
    directive = only("COPY --from=a  one \\\n   two /dest")
    assert isinstance(directive, ast.Transfer)
    assert [str(word.location) for word in directive.sources] == ["f:2:16", "f:3:4"]
    assert directive.dest is not None
    assert str(directive.dest.location) == "f:3:8"
    assert str(directive.flags[0].location) == "f:2:6"


def test_json_and_shell_form() -> None:
    command = only('RUN [ "a", "b c" ]')
    assert isinstance(command, ast.Command)
    assert command.command.argv == ("a", "b c")
    shell = only("RUN ['a']")
    assert isinstance(shell, ast.Command)
    assert shell.command.argv is None
    assert shell.command.text == "['a']"
    words = only('VOLUME ["/a b"]')
    assert isinstance(words, ast.Words)
    assert [word.text for word in words.words] == ["/a b"]


def test_pairs_keep_quotes_for_later() -> None:
    directive = only("""ENV a="b c" d=$x e='f'""")
    assert isinstance(directive, ast.Pairs)
    assert [(p.name.text, p.value.text) for p in directive.pairs if p.value] == [
        ("a", '"b c"'),
        ("d", "$x"),
        ("e", "'f'"),
    ]


def test_flags_with_and_without_values() -> None:
    directive = only("COPY --link --exclude=a --exclude=b x /y")
    assert [(flag.name, flag.value) for flag in directive.flags] == [
        ("link", None),
        ("exclude", "a"),
        ("exclude", "b"),
    ]
    last = directive.flag("exclude")
    assert last is not None
    assert last.value == "b"
    assert directive.flag("from") is None


def test_named_commands() -> None:
    none = only("HEALTHCHECK NONE")
    test = only('TEST ping ["a"]')
    assert isinstance(none, ast.NamedCommand)
    assert isinstance(test, ast.NamedCommand)
    assert none.command is None
    assert test.command is not None
    assert test.command.argv == ("a",)


def test_all_errors_come_at_once_and_in_order() -> None:
    assert errors("FRMO a\nFROM a\nRNU x\nCOPY --x a b\n") == [
        "f:1:1: unknown directive 'FRMO' (did you mean FROM?)",
        "f:3:1: unknown directive 'RNU' (did you mean RUN?)",
        "f:4:6: COPY has no flag '--x' (it has --from, --chown, --chmod, --link, --parents, --exclude)",
    ]


def test_long_words_are_cut_in_errors() -> None:
    (line,) = errors("FROM a\n" + "X" * 10_000)
    assert len(line) < 200


def test_escape_directive_reaches_the_tree() -> None:
    assert parse("# escape=`\nFROM x", "f").escape == "`"


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.least])
def test_every_directive_wants_its_arguments(name: str) -> None:
    assert errors(f"FROM a\n{name}\n")[0].startswith(f"f:2:1: {name} needs ")


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_directive_is_found_again_when_misspelt(name: str) -> None:
    misspelt = f"{name[:2]}X{name[2:]}"
    assert did_you_mean(misspelt, RULES) == f"did you mean {name}?"


def test_every_shape_has_a_directive() -> None:
    assert {rule.shape for rule in RULES.values()} == set(Shape)


WORDS = st.sampled_from(
    [
        *RULES,
        "#",
        "<<EOF",
        "EOF",
        "\\",
        "\n",
        "\n",
        "=",
        "--from=a",
        "--x",
        "$x",
        "${x",
        '"',
        "'",
        '["a"]',
        "[",
        "\t",
        "a",
        "",
    ]
)


@RELAXED
@given(st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=30).map(" ".join), st.lists(WORDS).map("".join)))
def test_any_text_parses_or_gives_user_errors(text: str) -> None:
    try:
        tree = parse(text, "f")
    except UserErrors as caught:
        assert all(error.location is not None and error.location.file == "f" for error in caught.errors)
        assert len(caught.line().split("\n")) == len(caught.errors)
        return
    assert tree.stages
