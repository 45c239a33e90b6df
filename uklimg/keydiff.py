"""Which fields of two steps' keys differ, in words. Pure.

A step's fields (``graph.Step.key_fields``) are nested JSON. Some of it is known here by form: a reference to another
step, a folder of ours with the digest of each file, files of the build context. Everything else is compared as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from uklimg.digest import JSON

Fields: TypeAlias = Mapping[str, JSON]
Listing: TypeAlias = Callable[[str], JSON]
"""The digest of files of a build context → what ``context`` notes of each, a list; None when that is not known."""

INPUT = "input "
_ROOTFS = "action.container.rootfs"
# Texts up to this length are shown whole, of longer ones what differs.
_WHOLE = 60
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Kind(Enum):
    CHANGED = "changed"
    ADDED = "added"
    REMOVED = "removed"
    STEP = "step"  # another result of the step ``step``
    UNKNOWN = "unknown"  # files of the build context, but nobody knows which


@dataclass(frozen=True)
class Change:
    """One difference. ``field`` leads to it (``action.container.env.CFLAGS``, ``input /in/config``), for a folder
    with the ``file`` in it; ``before`` and ``after`` are texts, of a file digests or modes.
    """

    field: str
    kind: Kind
    before: str = ""
    after: str = ""
    file: str = ""
    step: str = ""

    @property
    def text(self) -> str:
        """``action.container.env.CFLAGS: -O2 → -O3``"""
        if self.kind is Kind.STEP:
            step = f"step {self.step} changed"
            return f"input {step}" if self.field == _ROOTFS else f"{self.field}: {step}"
        if self.kind is Kind.UNKNOWN:
            return f"{self.field}: files of the build context changed; which ones was not noted"
        where = f"{self.field}: file {self.file}" if self.file else self.field
        if self.kind is Kind.ADDED:
            return f"{where} is new" if self.file or not self.after else f"{where} is new: {_cut(self.after)}"
        if self.kind is Kind.REMOVED:
            return f"{where} is gone" if self.file or not self.before else f"{where} is gone: {_cut(self.before)}"
        if self.file and _DIGEST.match(self.before) and _DIGEST.match(self.after):
            return f"{where} changed"
        before, after = _difference(self.before, self.after)
        if before and after:
            return f"{where}: {before} → {after}"
        return f"{where}: + {after}" if after else f"{where}: - {before}"


def compare(before: Fields, after: Fields, steps: Mapping[str, str], listing: Listing) -> tuple[Change, ...]:
    """What is different in ``after``. ``steps`` says whose key a key of ``after`` is. Changes of the step itself
    come before those of steps that it needs."""
    found: list[Change] = []
    renamed = _renamed(before, after)
    for name in sorted({*before, *after} - {*renamed.values()}, key=lambda name: (name.startswith(INPUT), name)):
        old, new = before.get(name, ...), after.get(name, ...)
        if name in renamed:
            found.append(Change(_package(name), Kind.CHANGED, _last(renamed[name]), _last(name)))
        elif old != new:
            found += (
                _input(name, old, new, steps, listing) if name.startswith(INPUT) else _value(name, old, new, steps)
            )
    return tuple(sorted(found, key=lambda change: change.kind is Kind.STEP))


def leaves(fields: Fields) -> dict[str, JSON]:
    """The fields as one flat table, with a row for each file of a folder of ours."""
    return dict(_leaves("", fields))


def is_reference(leaf: str) -> bool:
    """Whether a leaf is another step's key, which differs with everything before it."""
    return leaf == _ROOTFS or (leaf.startswith(INPUT) and leaf.endswith(".step"))


def _leaves(where: str, value: JSON) -> Iterator[tuple[str, JSON]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(f"{where}.{name}" if where else name, item)
    elif isinstance(value, str) or not isinstance(value, Sequence):
        yield where, value
    else:
        for number, item in enumerate(value):
            path = item.get("path") if isinstance(item, Mapping) else None
            yield from _leaves(f"{where}[{path if isinstance(path, str) else number}]", item)


def _value(where: str, old: object, new: object, steps: Mapping[str, str]) -> list[Change]:
    if old == new:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted({*old, *new})
        return [
            change
            for name in names
            for change in _value(f"{where}.{name}", old.get(name, ...), new.get(name, ...), steps)
        ]
    if where == _ROOTFS and isinstance(new, str) and new in steps:
        return [Change(where, Kind.STEP, str(old), new, step=steps[new])]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        changes = (
            _value(f"{where}[{number}]", *pair, steps) for number, pair in enumerate(zip(old, new, strict=True))
        )
        return [change for some in changes for change in some]
    if old is ...:
        return [Change(where, Kind.ADDED, after=_text(new))]
    if new is ...:
        return [Change(where, Kind.REMOVED, before=_text(old))]
    return [Change(where, Kind.CHANGED, _text(old), _text(new))]


def _input(where: str, old: object, new: object, steps: Mapping[str, str], listing: Listing) -> list[Change]:
    before, after = (value if isinstance(value, Mapping) else {} for value in (old, new))
    if old is ... or new is ...:
        return [Change(where, Kind.ADDED if old is ... else Kind.REMOVED)]
    if "step" in before and "step" in after:
        found = _value(f"{where}.path", before.get("path"), after.get("path"), steps)
        key = str(after["step"])
        if before["step"] != key:
            found.append(Change(where, Kind.STEP, str(before["step"]), key, step=steps.get(key, "")))
        return found
    if "inline" in before and "inline" in after:
        return _files(where, before["inline"], after["inline"])
    if "context" in before and "context" in after:
        lists = listing(str(before["context"])), listing(str(after["context"]))
        if lists[0] is None or lists[1] is None:
            return [Change(where, Kind.UNKNOWN, str(before["context"]), str(after["context"]))]
        return _files(where, *lists)
    if "blob" in before and "blob" in after:
        part = "name" if before.get("name") != after.get("name") else "blob"
        return [Change(where, Kind.CHANGED, str(before[part]), str(after[part]))]
    return [Change(where, Kind.CHANGED, _what(before), _what(after))]


def _files(where: str, old: JSON, new: JSON) -> list[Change]:
    before, after = _by_path(old), _by_path(new)
    found = []
    for path in sorted({*before, *after}):
        if path not in after:
            found.append(Change(where, Kind.REMOVED, before=before[path][0], file=path))
        elif path not in before:
            found.append(Change(where, Kind.ADDED, after=after[path][0], file=path))
        else:
            for one, other in zip(before[path], after[path], strict=True):
                if one != other:
                    found.append(Change(where, Kind.CHANGED, one, other, file=path))
    return found


def _by_path(files: JSON) -> dict[str, tuple[str, str]]:
    """Path → what is in it, and its mode, both as texts; from what a key has of a folder or a listing of files."""
    found: dict[str, tuple[str, str]] = {}
    for file in files if isinstance(files, Sequence) and not isinstance(files, str) else ():
        if not isinstance(file, Mapping):
            continue
        content = str(file.get("digest") or file.get("kind") or "")
        if file.get("kind") == "link":
            content = f"link to {file.get('target')}"
        mode = file.get("mode")
        executable = "executable" if file.get("executable") else "not executable"
        found[str(file.get("path"))] = content, f"mode {mode:o}" if isinstance(mode, int) else executable
    return found


def _what(value: Mapping[str, object]) -> str:
    """What kind of input it is."""
    words = {"step": "a step's result", "inline": "files of uklimg", "context": "files of the build context"}
    return next((text for name, text in words.items() if name in value), "a file")


def _renamed(before: Fields, after: Fields) -> dict[str, str]:
    """Inputs that are one package in another version, which their names hold: the new name → the old one."""
    gone, come = (
        {_package(name): name for name in one if name.startswith(INPUT) and name not in other and "_" in _last(name)}
        for one, other in ((before, after), (after, before))
    )
    return {come[package]: gone[package] for package in gone.keys() & come.keys()}


def _package(name: str) -> str:
    """``input /in/packages/hello`` of ``input /in/packages/hello_2.10-3_amd64.deb``"""
    return name.removesuffix(_last(name)) + _last(name).partition("_")[0]


def _last(name: str) -> str:
    return name.removeprefix(INPUT).rpartition("/")[2]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return shlex.join(value) or "nothing"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_text(item)}" for name, item in sorted(value.items())) or "nothing"
    return str(value)


def _difference(before: str, after: str) -> tuple[str, str]:
    """Both, or of long ones the part that differs, beginning and ending at words; "" for one that lacks that part."""
    before, after = _plain(before), _plain(after)
    if max(len(before), len(after)) <= _WHOLE:
        return before, after
    old, new = (re.findall(r"\s+|\S+", text) for text in (before, after))
    shorter = min(len(old), len(new))
    start = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    end = next((n for n in range(shorter - start) if old[-1 - n] != new[-1 - n]), shorter - start)
    return _part(old, start, end), _part(new, start, end)


def _part(words: Sequence[str], start: int, end: int) -> str:
    """The words without the first ``start`` and the last ``end``."""
    text = _cut("".join(words[start : len(words) - end]).strip())
    return f"{'…' if start else ''}{text}{'…' if end else ''}" if text else ""


def _cut(text: str) -> str:
    text = _plain(text)
    return text if len(text) <= _WHOLE else f"{text[:_WHOLE]}…"


def _plain(text: str) -> str:
    """On one line, digests with their first digits."""
    return _DIGEST.sub(lambda found: found[0][:19], text).replace("\n", "\\n")
