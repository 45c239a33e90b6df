"""Response files (``@file``) as gcc and binutils read them: libiberty's expandargv."""

# os.path: this is part of every compilation.
# ruff: noqa: PTH112, PTH123

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

LONG = 100_000  # characters of a command line above which a response file is used; the kernel's limit is 2 MiB
MAX_FILES = 2000  # libiberty's own limit against files that name themselves


def split(text: str) -> list[str]:
    """The words of a response file: white space separates, both quotes and the backslash quote."""
    words: list[str] = []
    word: list[str] = []
    quote = ""
    inside = False
    chars = iter(text)
    for char in chars:
        if char == "\\":
            word.append(next(chars, ""))
            inside = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                word.append(char)
        elif char in "'\"":
            quote = char
            inside = True
        elif char in " \t\n\v\f\r":
            if inside:
                words.append("".join(word))
                word, inside = [], False
        else:
            word.append(char)
            inside = True
    if inside or quote:
        words.append("".join(word))
    return words


def expand(args: list[str]) -> list[str]:
    """``args`` with every readable ``@file`` replaced by its words, recursively; others stay as they are."""
    result: list[str] = []
    todo = list(reversed(args))
    files = 0
    while todo:
        arg = todo.pop()
        if not (arg.startswith("@") and len(arg) > 1) or files >= MAX_FILES or os.path.isdir(arg[1:]):
            result.append(arg)
            continue
        try:
            with open(arg[1:], encoding="utf-8", errors="surrogateescape") as file:
                words = split(file.read())
        except OSError:
            result.append(arg)
            continue
        files += 1
        todo.extend(reversed(words))
    return result


def quote(word: str) -> str:
    """``word`` as ``split`` reads it back."""
    return "".join(char if char.isalnum() or char in "-_./=+,:@%" else f"\\{char}" for char in word) or "''"


@contextmanager
def shortened(cmd: Sequence[str]) -> Iterator[list[str]]:
    """``cmd``, or when it is long, the same with all arguments in a temporary response file."""
    if sum(map(len, cmd)) < LONG:
        yield list(cmd)
        return
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="ukl-", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n".join(map(quote, cmd[1:])))
        file.flush()
        yield [cmd[0], f"@{file.name}"]
