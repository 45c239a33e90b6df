"""Typed readings of the JSON parameters of host steps. Each raises TypeError for a value of another type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uklimg.digest import JSON


def text(value: JSON) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def number(value: JSON) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no number")
    return value


def texts(value: JSON) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{value!r} is no list")
    return tuple(text(item) for item in value)


def text_map(value: JSON) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no object")
    return {name: text(item) for name, item in value.items()}
