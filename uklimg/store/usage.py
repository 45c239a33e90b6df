"""What a store takes on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_KINDS = ("blobs", "trees", "mounts", "engine")


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk: of blobs and unpacked trees by the digest's digits, of RUN's cache folders by name, of the
    engine's storage, and of everything else."""

    blobs: Mapping[str, int]
    trees: Mapping[str, int]
    mounts: Mapping[str, int]
    engine: int
    other: int

    @property
    def total(self) -> int:
        parts = (self.blobs, self.trees, self.mounts)
        return sum(size for part in parts for size in part.values()) + self.engine + self.other


@dataclass(frozen=True)
class Usage:
    """Bytes on disk by kind. Of blobs: ``images`` is what names need, ``results`` what only results of steps need,
    ``sources`` what only steps read that have one, ``unused`` the rest, which ``prune`` removes."""

    images: int
    results: int
    sources: int
    unused: int
    trees: int
    mounts: int
    engine: int
    other: int

    @property
    def blobs(self) -> int:
        return self.images + self.results + self.sources + self.unused

    @property
    def total(self) -> int:
        return self.blobs + self.trees + self.mounts + self.engine + self.other


@dataclass(frozen=True)
class ResultUsage:
    """A result's room: ``size`` of all it needs, ``frees`` of what goes when it alone goes."""

    key: str
    step: str
    last_used: float
    size: int
    frees: int


def measure(root: Path) -> Sizes:
    """Look at every file below ``root``."""
    blobs = {path.name: path.lstat().st_blocks * 512 for path in _entries(root / "blobs" / "sha256")}
    trees = {path.name: size_of(path) for path in _entries(root / "trees" / "sha256") if path.is_dir()}
    mounts = {path.name: size_of(path) for path in _entries(root / "mounts") if path.is_dir()}
    other = 0
    for path in _entries(root):
        if path.name not in _KINDS:
            other += size_of(path) if path.is_dir() else path.lstat().st_blocks * 512
    return Sizes(blobs, trees, mounts, size_of(root / "engine"), other)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def size_of(folder: Path) -> int:
    """Bytes on disk of the files below ``folder``, each hard link once; what vanishes meanwhile does not count."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(f"{path}/{name}")
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total
