"""What moved between two locks, item by item, for people and programs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from uklimg.digest import JSON, Digest
from uklimg.lock import (
    Entry,
    EntryKey,
    Lock,
    LockedBase,
    LockedComponent,
    LockedImage,
    LockedPackages,
)

# What a program is linked with beside its own objects: packages of the base image, by what they are called there.
_RUNTIME = (
    ("libc", r"libc6-dev"),
    ("gcc", r"gcc-[0-9]+"),
    ("libgcc", r"libgcc-[0-9]+-dev"),
    ("libstdc++", r"libstdc\+\+-[0-9]+-dev"),
)


@dataclass(frozen=True, order=True)
class Change:
    """``item`` of the entry ``kind`` ``name`` was ``old`` and is ``new``; "" where it was or is not there.

    ``item`` is a package's name, a file's, "version", "patches" and the like, or "" for the whole entry.
    """

    kind: str
    name: str
    item: str
    old: str
    new: str

    def line(self) -> str:
        """For people: ``base debian-trixie: gcc 14.2.0-19 → 14.2.0-20``."""
        what = f"{self.kind} {self.name}" + (f": {self.item}" if self.item else "")
        if not self.old:
            return f"+ {what} {self.new}".rstrip()
        if not self.new:
            return f"- {what} {self.old}".rstrip()
        return f"  {what} {self.old} → {self.new}"

    def fields(self) -> Mapping[str, JSON]:
        return {"kind": self.kind, "name": self.name, "item": self.item, "old": self.old, "new": self.new}


def changes(old: Lock, new: Lock) -> tuple[Change, ...]:
    """Sorted; none for equal locks."""
    before = {entry.key: entry for entry in old.entries}
    after = {entry.key: entry for entry in new.entries}
    found: list[Change] = []
    for key in sorted({*before, *after}):
        found.extend(_entry(key, before.get(key), after.get(key)))
    return tuple(found)


def _entry(key: EntryKey, old: Entry | None, new: Entry | None) -> Iterator[Change]:
    kind, name = key
    if old is None or new is None:
        yield Change(kind, name, "", _summary(old), _summary(new))
        return
    before, after = _items(old), _items(new)
    for item in sorted({*before, *after}):
        one, other = before.get(item), after.get(item)
        if one == other:
            continue
        # Versions say what moved; digests do where equal versions have other bytes.
        texts = [("" if it is None else it.text or it.digest) for it in (one, other)]
        if one and other and one.text == other.text and one.text:
            texts = [f"{it.text} ({it.digest})" for it in (one, other)]
        yield Change(kind, name, item, *texts)


def _summary(entry: Entry | None) -> str:
    """An entry in a few words."""
    if entry is None:
        return ""
    if isinstance(entry, LockedBase | LockedPackages):
        return f"({len(entry.packages)} packages)"
    if isinstance(entry, LockedComponent):
        return entry.version
    if isinstance(entry, LockedImage):
        return entry.manifest.short
    return entry.version or " ".join(file.digest.short for file in entry.files)


@dataclass(frozen=True)
class _Item:
    text: str
    digest: str = ""


def _items(entry: Entry) -> Mapping[str, _Item]:
    """Everything of an entry that can move, by name."""
    if isinstance(entry, LockedBase | LockedPackages):
        items = {it.name: _Item(it.version, it.file.digest.short) for it in entry.packages}
        return {**items, "definition": _Item("", entry.definition.short)} if isinstance(entry, LockedBase) else items
    if isinstance(entry, LockedComponent):
        return {"": _Item(entry.version, entry.file.digest.short), "patches": _Item("", entry.patches.short)}
    if isinstance(entry, LockedImage):
        return {"": _Item("", entry.manifest.short)}
    if entry.version:
        return {"": _Item(entry.version, Digest.of_json([str(file.digest) for file in entry.files]).short)}
    return {file.name: _Item("", file.digest.short) for file in entry.files}


def runtime(lock: Lock) -> Mapping[str, Mapping[str, str]]:
    """What a program is linked with beside its own objects, by base image: version by ``libc``, ``libgcc`` and the
    like. They are packages of the base image, so the lock has them by digest."""
    found: dict[str, Mapping[str, str]] = {}
    for entry in lock.entries:
        if isinstance(entry, LockedBase):
            found[entry.name] = {
                name: package.version
                for name, pattern in _RUNTIME
                for package in entry.packages
                if re.fullmatch(pattern, package.name)
            }
    return found
