"""Our scripts that run inside containers, as inputs of steps. Pure: the contents are given (``uklimg.assets``)."""

from __future__ import annotations

from collections.abc import Mapping

from uklimg.errors import InternalError
from uklimg.graph import Inline, InlineFile

HOME = "/run/ukl"
"""Where scripts are mounted: each folder of ours below it, under its own name."""


def scripts(contents: Mapping[str, bytes], *names: str) -> Inline:
    """The files ``names`` alone, so that a change of another one changes no key."""
    missing = [name for name in names if name not in contents]
    if missing:
        raise InternalError(f"the package lacks {', '.join(missing)}")
    return Inline(tuple(InlineFile(name, contents[name]) for name in names))


def python(path: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a mounted script; it must not write bytecode beside itself."""
    return ("/usr/bin/python3", "-B", f"{HOME}/{path}", *arguments)
