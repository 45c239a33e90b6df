"""The lock: one text for equal locks, strict reading, and what may change in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uklimg.digest import Digest
from uklimg.errors import UserError
from uklimg.lock import (
    ComponentKind,
    Lock,
    LockedBase,
    LockedComponent,
    LockedFile,
    LockedPackage,
    LockedPackages,
    LockedSource,
    SourceKind,
    format_lock,
    parse_lock,
)

pytestmark = pytest.mark.unit


def digest(text: str) -> Digest:
    return Digest.of(text.encode())


def package(name: str, version: str = "1.0-1") -> LockedPackage:
    path = f"pool/main/{name[0]}/{name}/{name}_{version}_amd64.deb"
    return LockedPackage(
        name, version, "amd64", LockedFile(path.rpartition("/")[2], digest(name + version), 10, f"debian:{path}")
    )


BASE = LockedBase("debian-trixie", digest("definition"), (package("gcc"), package("g++")))
PACKAGES = LockedPackages("debian-trixie", ("tcl",), ("cmake", "ninja-build=1.12"), (package("cmake"),))
SOURCE = LockedSource(
    "debian:redis=5:8.0.2-3",
    SourceKind.DEBIAN,
    "5:8.0.2-3",
    (LockedFile("redis_8.0.2-3.dsc", digest("dsc"), 7, "debian:pool/main/r/redis/redis_8.0.2-3.dsc"),),
)
KERNEL = LockedComponent(
    ComponentKind.KERNEL,
    "6.12",
    "6.12.107",
    LockedFile("linux.tar.xz", digest("linux"), 99, "debian:pool/main/l/linux/linux.tar.xz"),
    digest("patches"),
)
LOCK = Lock((SOURCE, PACKAGES, KERNEL, BASE))


def test_round_trip_and_one_text() -> None:
    text = format_lock(LOCK)
    assert format_lock(parse_lock(text)) == text
    assert format_lock(Lock(tuple(reversed(LOCK.entries)))) == text
    assert {entry.key for entry in parse_lock(text).entries} == {entry.key for entry in LOCK.entries}
    assert parse_lock(text).get(KERNEL.key) == KERNEL
    assert parse_lock(text).get(SOURCE.key) == SOURCE
    assert text.endswith("\n") and 'name = "g++", version = "1.0-1"' in text


def test_an_empty_lock() -> None:
    assert parse_lock(format_lock(Lock())) == Lock()


NAMES = st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,9}", fullmatch=True)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.text(max_size=12), max_size=4), st.text(min_size=1, max_size=20))
def test_any_text_survives(versions: dict[str, str], reference: str) -> None:
    packages = tuple(
        LockedPackage(name, version, "all", LockedFile(f"{name}.deb", digest(version), 1, f"debian:pool/{name}.deb"))
        for name, version in sorted(versions.items())
    )
    lock = Lock(
        (
            LockedBase("b", digest("d"), packages),
            LockedSource(reference, SourceKind.ARCHIVE, "", (LockedFile("a.tar", digest("a"), 0, reference),)),
        )
    )
    assert parse_lock(format_lock(lock)) == lock


def test_a_build_adds_and_never_changes() -> None:
    other = LockedBase(BASE.name, digest("other"), ())
    merged = Lock((BASE,)).with_missing([other, SOURCE])
    assert merged.get(BASE.key) == BASE
    assert merged.get(SOURCE.key) == SOURCE


def test_update_drops_what_it_names() -> None:
    assert LOCK.without(["redis"]).get(SOURCE.key) is None
    assert LOCK.without(["kernel"]).get(KERNEL.key) is None
    assert LOCK.without(["6.12", "debian-trixie"]).get(BASE.key) is None
    with pytest.raises(UserError, match="nothing named 'nginx'") as caught:
        LOCK.without(["nginx"])
    assert "debian:redis=5:8.0.2-3" in caught.value.hint


def test_packages_go_with_the_base_image_they_were_resolved_for() -> None:
    assert LOCK.without(["debian-trixie"]).get(PACKAGES.key) is None


def test_only_and_files() -> None:
    assert LOCK.only([BASE.key]).entries == (BASE,)
    names = {file.name for file in LOCK.files()}
    assert {"linux.tar.xz", "redis_8.0.2-3.dsc", "g++_1.0-1_amd64.deb", "cmake_1.0-1_amd64.deb"} <= names


def test_blobs() -> None:
    blob = KERNEL.file.blob()
    assert (blob.digest, blob.size, blob.urls) == (KERNEL.file.digest, 99, (KERNEL.file.origin,))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version = 1\n", "version = 2\n", "version 2"),
        ("version = 1\n", "version = \n", "U.lock:2:11: the lock is not TOML"),
        ("version = 1\n", "version = 1\nextra = 2\n", "unknown 'extra'"),
        ("[[base]]\n", "[[bass]]\n", "unknown 'bass'"),
        ("[[base]]\n", "[[base]]\nsize = 1\n", "base 1: unknown 'size'"),
        ("size = 99\n", "size = -1\n", "component 1: 'size' must be a number"),
        ("size = 99\n", 'size = "99"\n', "'size' must be a number"),
        ('kind = "kernel"', 'kind = "kernal"', "'kind' is 'kernal', not one of kernel, libc, library"),
        ('file = "linux.tar.xz"', 'file = "../linux.tar.xz"', "is not a file name"),
        ('file = "linux.tar.xz"\n', "", "'file' must be a string"),
        (digest("linux").hex, digest("linux").hex[:-1], "not a sha256 digest"),
        ('requested = ["cmake", "ninja-build=1.12"]', 'requested = "cmake"', "must be a list of strings"),
        ("g++_1.0-1_amd64.deb", "..", "does not name a .deb"),
    ],
)
def test_what_we_cannot_have_written(old: str, new: str, expected: str) -> None:
    text = format_lock(LOCK)
    assert old in text
    with pytest.raises(UserError) as caught:
        parse_lock(text.replace(old, new, 1), "U.lock")
    assert expected in caught.value.line()
    assert caught.value.line().startswith("U.lock")


def test_an_entry_twice() -> None:
    text = format_lock(Lock((SOURCE,)))
    with pytest.raises(UserError, match="twice"):
        parse_lock(text + text[text.index("[[source]]") :])
