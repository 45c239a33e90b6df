"""What a link written for shared libraries lacks when it is done with static ones.

A shared object names what it needs itself (libcurl.so brings libssl), an archive does not. And an installed library
without an archive does no harm as long as nothing of it is used. So when a static link fails, it is tried once more
with what the shared objects name, and without the libraries of which there is no archive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from uklimg.toolchain import elf, ldargs
from uklimg.toolchain.ldargs import Kind, Link, Missing, Word

IMPLIED = ldargs.ALWAYS_LINKED | {"mvec"}  # libm.a is a linker script that names libmvec.a
SCRIPT_LIMIT = 4096  # a linker script in place of a .so is a line or two


def needs(path: str) -> tuple[str, ...]:
    """What the shared object, or the linker script in its place, names: ``libssl.so.3``, ``-ltinfo``, a path."""
    try:
        return elf.needed(Path(path))
    except OSError:
        return ()
    except elf.NotElf:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            text = file.read(SCRIPT_LIMIT)
    for mark in "(),":
        text = text.replace(mark, " ")
    return tuple(w for w in text.split() if w.startswith("-l") or (".so" in w and "*" not in w))


def shared_object(link: Link, word: Word) -> str:
    """The shared object that a dynamic link would take for ``word``, or ""."""
    if word.kind is Kind.LIBRARY and not word.name.startswith(":"):
        return link.find(f"lib{word.name}.so")
    if word.kind is Kind.FILE and ".so" in word.name and link.exists(word.name):
        return word.name
    return ""


@dataclass(frozen=True)
class Closure:
    """What the shared objects of a link need, directly or not, in order of discovery.

    ``archives`` are libraries to link as well; of those ``lacking`` there is only a shared object.
    """

    archives: tuple[Word, ...]
    lacking: tuple[Missing, ...]


def closure(link: Link, read: Callable[[str], tuple[str, ...]] = needs) -> Closure:
    todo = [found for word in link.words if link.is_user_input(word) and (found := shared_object(link, word))]
    seen = set(todo)
    archives: dict[Word, None] = {}
    lacking: dict[Missing, None] = {}
    while todo:
        for name in read(todo.pop(0)):
            base = name.rpartition("/")[2]
            library = name[2:] if name.startswith("-l") else ldargs.library_name(base)
            if not library or library in IMPLIED:
                continue
            found = link.find(f"lib{library}.so" if name.startswith("-l") else base)
            if link.find(f"lib{library}.a"):
                archives[Word(Kind.LIBRARY, library, "", (f"-l{library}",))] = None
            elif found:
                lacking[Missing(library, found)] = None
            if found and found not in seen:
                seen.add(found)
                todo.append(found)
    return Closure(tuple(archives), tuple(lacking))


@dataclass(frozen=True)
class SecondTry:
    """A link to try after another failed. ``without`` names the libraries it leaves out."""

    link: Link
    without: tuple[str, ...]


def second_try(link: Link, *, is_check: bool, read: Callable[[str], tuple[str, ...]] = needs) -> SecondTry | None:
    """The link to try after ``link`` failed; None when it would be the same.

    A library that is not installed at all stays in a build system's check, whose answer it may be; elsewhere it is
    often a name that `pkg-config --static` gave for a feature nobody uses.
    """
    missing = tuple(dict.fromkeys(m.name for m in link.missing_archives() if m.shared or not is_check))
    extra = closure(link, read).archives
    if not missing and not extra:
        return None
    last = max((i for i, w in enumerate(link.words) if link.is_user_input(w)), default=-1)
    group = tuple(Word(Kind.OPTION, name, "", (f"--{name}",)) for name in ("start-group", "end-group"))
    words: list[Word] = []
    for index, word in enumerate(link.words):
        if not (missing and word.kind is not Kind.OPTION and link.missing_name(word) in missing):
            words.append(word)
        if index == last and extra:
            words += [group[0], *extra, group[1]]
    return SecondTry(replace(link, words=tuple(words)), missing)
