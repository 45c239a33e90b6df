"""What `uklimg lock` says that it moved."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uklimg.digest import Digest
from uklimg.lock import (
    ComponentKind,
    Lock,
    LockedBase,
    LockedComponent,
    LockedFile,
    LockedPackage,
    LockedSource,
    SourceKind,
)
from uklimg.lockdiff import Change, changes, runtime

pytestmark = pytest.mark.unit


def digest(text: str) -> Digest:
    return Digest.of(text.encode())


def package(name: str, version: str, content: str = "") -> LockedPackage:
    file = LockedFile(f"{name}_{version}_amd64.deb", digest(content or name + version), 1, f"debian:pool/{name}")
    return LockedPackage(name, version, "amd64", file)


BASE = LockedBase(
    "debian-trixie",
    digest("definition"),
    (
        package("gcc-14", "14.2.0-19"),
        package("gcc-14-base", "14.2.0-19"),
        package("libc6-dev", "2.41-12"),
        package("libgcc-14-dev", "14.2.0-19"),
        package("libstdc++-14-dev", "14.2.0-19"),
    ),
)
REDIS = LockedSource(
    "debian:redis",
    SourceKind.DEBIAN,
    "5:8.0.2-3",
    (LockedFile("redis.dsc", digest("dsc"), 1, "debian:pool/redis.dsc"),),
)
URL = "https://example.org/lib.tar.gz"
ARCHIVE = LockedSource(URL, SourceKind.ARCHIVE, "", (LockedFile("lib.tar.gz", digest("one"), 1, URL),))
KERNEL = LockedComponent(
    ComponentKind.KERNEL,
    "6.12",
    "6.12.107",
    LockedFile("linux.tar.xz", digest("linux"), 9, "debian:pool/linux.tar.xz"),
    digest("patches"),
)
LOCK = Lock((BASE, REDIS, ARCHIVE, KERNEL))


def lines(old: Lock, new: Lock) -> list[str]:
    return [change.line() for change in changes(old, new)]


def test_nothing_moved() -> None:
    assert changes(LOCK, Lock(tuple(reversed(LOCK.entries)))) == ()


def test_a_new_lock_and_an_emptied_one() -> None:
    assert lines(Lock(), LOCK) == [
        "+ base debian-trixie (5 packages)",
        "+ kernel 6.12 6.12.107",
        "+ source debian:redis 5:8.0.2-3",
        f"+ source {URL} {digest('one').short}",
    ]
    assert lines(LOCK, Lock((BASE, KERNEL, ARCHIVE))) == ["- source debian:redis 5:8.0.2-3"]


def test_versions_that_moved_and_packages_that_came_and_went() -> None:
    moved = replace(
        BASE,
        packages=(
            *(p for p in BASE.packages if p.name not in ("libc6-dev", "gcc-14-base")),
            package("libc6-dev", "2.41-13"),
            package("make", "4.4"),
        ),
    )
    redis = replace(REDIS, version="5:8.0.5-1", files=(replace(REDIS.files[0], digest=digest("other")),))
    kernel = replace(KERNEL, version="6.12.108", patches=digest("more"))
    assert lines(LOCK, Lock((moved, redis, ARCHIVE, kernel))) == [
        "- base debian-trixie: gcc-14-base 14.2.0-19",
        "  base debian-trixie: libc6-dev 2.41-12 → 2.41-13",
        "+ base debian-trixie: make 4.4",
        "  kernel 6.12 6.12.107 → 6.12.108",
        f"  kernel 6.12: patches {digest('patches').short} → {digest('more').short}",
        "  source debian:redis 5:8.0.2-3 → 5:8.0.5-1",
    ]


def test_other_bytes_of_the_same_version_are_news() -> None:
    first = BASE.packages[0]
    again = replace(BASE, packages=(package("gcc-14", "14.2.0-19", "again"), *BASE.packages[1:]))
    archive = replace(ARCHIVE, files=(replace(ARCHIVE.files[0], digest=digest("two")),))
    assert lines(LOCK, Lock((again, REDIS, archive, KERNEL))) == [
        f"  base debian-trixie: gcc-14 14.2.0-19 ({first.file.digest.short}) → 14.2.0-19 ({digest('again').short})",
        f"  source {URL}: lib.tar.gz {digest('one').short} → {digest('two').short}",
    ]


def test_for_programs() -> None:
    change = Change("base", "debian-trixie", "make", "", "4.4")
    assert change.fields() == {"kind": "base", "name": "debian-trixie", "item": "make", "old": "", "new": "4.4"}


def test_the_run_time_is_in_the_base_image() -> None:
    assert runtime(LOCK) == {
        "debian-trixie": {
            "libc": "2.41-12",
            "gcc": "14.2.0-19",
            "libgcc": "14.2.0-19",
            "libstdc++": "14.2.0-19",
        }
    }
