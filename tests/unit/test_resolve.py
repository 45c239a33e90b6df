"""Resolving: what the lock has is used, what it lacks is found once, and every problem is told at its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from uklimg.definitions import BaseDefinition, SourceDefinition, SourceFolder, UklHow, parse_base, parse_source
from uklimg.digest import Digest
from uklimg.errors import InternalError, ToolError, UserError, UserErrors
from uklimg.lock import (
    ComponentKind,
    Lock,
    LockedComponent,
    LockedFile,
    LockedImage,
    LockedPackage,
    SourceKind,
    format_lock,
    parse_lock,
)
from uklimg.patchset import PatchSet
from uklimg.recipes.base_image import base_image_step, step_id
from uklimg.resolve import OutdatedError, ResolvedSpec, advise_update, resolve
from uklimg.resolver import archive_name
from uklimg.spec import SeriesInfo, Spec, build_spec
from uklimg.uklfile.parser import parse

pytestmark = pytest.mark.unit

UKLFILE = """FROM debian:trixie AS build
SOURCE debian:redis=5:8.0.2 /src
SOURCE https://example.org/a/lib-1.0.tar.gz /lib
SOURCE local /local
PACKAGES ninja-build cmake
FROM build AS more
PACKAGES tcl=8.6
RUN make
FROM ukl:6.12
LINK --from=more /src/redis-server
CMD ["redis-server"]
"""

BASE = BaseDefinition("debian-trixie", "trixie", ("main",), "amd64", ("required",), ("gcc", "libc6-dev"))
FILE = LockedFile("linux.tar.xz", Digest.of(b"linux"), 5, "debian:pool/linux.tar.xz")
KERNEL = SourceFolder(
    "kernel/6.12", SourceDefinition("linux", "6.12.107", FILE, (FILE.origin,), "signed"), PatchSet(), {}
)

SOURCE = LockedFile("glibc.tar.xz", Digest.of(b"glibc"), 5, "debian:pool/glibc.tar.xz")
GLIBC = SourceFolder(
    "glibc/2.41",
    SourceDefinition("glibc", "2.41", SOURCE, (SOURCE.origin,), "signed", packages=("gawk",)),
    PatchSet(),
    {},
)


def package(name: str, version: str = "1") -> LockedPackage:
    file = LockedFile(
        f"{name}_{version}_amd64.deb", Digest.of(f"{name}{version}".encode()), 3, f"debian:pool/{name}.deb"
    )
    return LockedPackage(name, version, "amd64", file)


@dataclass
class Folders:
    base: BaseDefinition = BASE
    series: SourceFolder = KERNEL
    glibc: SourceFolder = GLIBC

    def base_image(self, name: str, /) -> BaseDefinition:
        assert name == self.base.name
        return self.base

    def kernel(self, series: str, /) -> SourceFolder:
        assert series == "6.12"
        return self.series

    def libc(self, version: str, /) -> SourceFolder:
        if version not in ("ukl", "2.41"):
            raise UserError(f"unknown glibc {version!r}")
        return self.glibc

    def library(self, name: str, /) -> SourceFolder:
        raise UserError(f"unknown library {name!r}")


@dataclass
class Archive:
    """A resolver that notes what it is asked."""

    asked: list[str] = field(default_factory=list)

    def base(self, definition: BaseDefinition, /) -> tuple[LockedPackage, ...]:
        self.asked.append(f"base {definition.name}")
        return tuple(package(name) for name in definition.packages)

    def packages(
        self, definition: BaseDefinition, names: Sequence[str], installed: Sequence[LockedPackage], /
    ) -> tuple[LockedPackage, ...]:
        self.asked.append(f"packages {' '.join(names)} on {' '.join(p.name for p in installed)}")
        return tuple(package(name.partition("=")[0]) for name in names)

    def source(self, definition: BaseDefinition, name: str, version: str, /) -> tuple[str, tuple[LockedFile, ...]]:
        self.asked.append(f"source {definition.suite} {name} {version}")
        if name == "unknown":
            raise UserError("Debian trixie has no source package 'unknown'")
        return version or "9", (LockedFile(f"{name}.dsc", Digest.of(name.encode()), 3, f"debian:pool/{name}.dsc"),)

    def archive(self, url: str, checksum: Digest | None, /) -> LockedFile:
        self.asked.append(f"archive {url}")
        return LockedFile(archive_name(url), checksum or Digest.of(url.encode()), 4, url)

    def image(self, reference: str, /) -> LockedImage:
        self.asked.append(f"image {reference}")
        files = tuple(
            LockedFile(name, Digest.of(f"{name} {reference}".encode()), 4, "oci:registry.example.org/gcc")
            for name in ("config.json", "layer-000", "layer-001")
        )
        return LockedImage(reference, Digest.of(reference.encode()), ("PATH=/opt/bin:/bin", "GO=1"), files)

    def git(self, url: str, commit: str, /) -> tuple[str, LockedFile]:
        self.asked.append(f"git {url} {commit}")
        return "c" * 40, LockedFile("y.tar", Digest.of(url.encode()), 4, f"git+{url}#{'c' * 40}")


def spec(text: str = UKLFILE) -> Spec:
    series = {"6.12": SeriesInfo("6.12", ())}
    return build_spec(parse(text, "Uklfile"), build_args={}, base_images=["debian-trixie"], series=series)


def resolved(text: str = UKLFILE, lock: Lock | None = None, folders: Folders | None = None) -> ResolvedSpec:
    return resolve(spec(text), lock or Lock(), folders or Folders(), Archive())


def problems(text: str, lock: Lock | None = None, folders: Folders | None = None) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        resolved(text, lock, folders)
    return [error.line() for error in caught.value.errors]


def test_everything_that_is_missing_is_found_once() -> None:
    archive = Archive()
    result = resolve(spec(), Lock(), Folders(), archive)
    assert archive.asked == [
        "base debian-trixie",
        "source trixie redis 5:8.0.2",
        "archive https://example.org/a/lib-1.0.tar.gz",
        "packages cmake ninja-build on gcc libc6-dev",
        "packages tcl=8.6 on gcc libc6-dev cmake ninja-build",
    ]
    assert result.stage_bases == {"build": "debian-trixie", "more": "debian-trixie"}
    assert result.base_of("more").locked.packages == (package("gcc"), package("libc6-dev"))
    assert result.kernel.locked.file == FILE
    assert result.libc_version == "1"
    redis, archive_source, local = result.spec.stages[0].instructions[:3]
    assert [file.name for file in result.source(redis).files] == ["redis.dsc"]  # type: ignore[union-attr, arg-type]
    assert result.source(archive_source).kind is SourceKind.ARCHIVE  # type: ignore[union-attr, arg-type]
    assert result.source(local) is None  # type: ignore[arg-type]
    tcl = next(item for item in result.spec.stages[1].instructions if item.location in result.packages)
    assert result.packages[tcl.location].packages == (package("tcl"),)
    assert {entry.key for entry in result.lock.entries} == result.used


def test_a_userland_is_locked_as_packages_beside_the_base_image() -> None:
    text = UKLFILE.replace("CMD", "USERLAND busybox\nCMD")
    archive = Archive()
    result = resolve(spec(text), Lock(), Folders(), archive)
    assert archive.asked[-1] == "packages busybox-static on gcc libc6-dev"
    assert result.userland is not None
    assert result.userland.packages == (package("busybox-static"),)
    assert resolve(spec(text), result.lock, Folders(), None).userland == result.userland
    assert resolved().userland is None


def test_what_cannot_be_fetched_is_told_at_its_place() -> None:
    class Offline(Archive):
        def archive(self, url: str, checksum: Digest | None, /) -> LockedFile:
            raise ToolError("cannot fetch it")

    text = UKLFILE.replace("RUN", "SOURCE https://example.org/x.tar.gz /x\nRUN", 1)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "example.org" in line)
    with pytest.raises(ToolError) as caught:
        resolve(spec(text), Lock(), Folders(), Offline())
    assert caught.value.line() == f"Uklfile:{line}:1: cannot fetch it"


def test_a_complete_lock_needs_no_resolver_and_stays_as_it_is() -> None:
    lock = resolved().lock
    again = resolve(spec(), lock, Folders(), None)
    assert again.lock == lock
    assert again.lock.only(again.used) == lock


def test_without_a_resolver_all_that_is_missing_is_told_at_its_place() -> None:
    lock = resolved().lock.without(["redis"])
    lock = lock.only(entry.key for entry in lock.entries if entry.key[0] != "packages")
    with pytest.raises(UserErrors) as caught:
        resolve(spec(), lock, Folders(), None)
    lines = [error.line() for error in caught.value.errors]
    assert lines == [
        "Uklfile:2:1: Uklfile.lock lacks source debian:redis=5:8.0.2 (uklimg lock)",
        "Uklfile:5:1: Uklfile.lock lacks the packages cmake ninja-build (uklimg lock)",
        "Uklfile:7:1: Uklfile.lock lacks the packages tcl=8.6 (uklimg lock)",
    ]


def test_an_edited_base_image_or_patch_set_is_noticed() -> None:
    lock = resolved().lock
    base = replace(BASE, packages=(*BASE.packages, "make"))
    found = problems(UKLFILE, lock, Folders(base=base))
    assert "the definition of base image debian-trixie changed since" in found[0]
    assert "(uklimg lock --update debian-trixie" in found[0]
    kernel = replace(KERNEL, definition=replace(KERNEL.definition, version="6.12.108"))
    found = problems(UKLFILE, lock, Folders(series=kernel))
    assert found == [
        "Uklfile:9:1: the version of kernel 6.12 changed since Uklfile.lock was made "
        "(uklimg lock --update 6.12 moves it forward)"
    ]
    # One command for both: each alone fails for the other.
    both = problems(UKLFILE, lock, Folders(base=base, series=kernel))
    hints = [line.partition("(")[2] for line in both if "changed since" in line]
    assert hints == ["uklimg lock --update 6.12 --update debian-trixie moves them forward)"] * 2
    with pytest.raises(UserErrors) as caught:
        resolve(spec(), lock.without(["kernel"]), Folders(base=base, series=kernel), Archive())
    advise_update(caught.value.errors, ["kernel"])
    (hint,) = {error.hint for error in caught.value.errors if isinstance(error, OutdatedError)}
    assert hint == "uklimg lock --update kernel --update debian-trixie moves them forward"


def test_checksums_are_compared_with_the_lock() -> None:
    url = "https://example.org/a/lib-1.0.tar.gz"
    good, bad = Digest.of(url.encode()), Digest.of(b"bad")
    lock = resolved().lock
    resolved(UKLFILE.replace("SOURCE https", f"SOURCE --checksum={good} https"), lock)
    found = problems(UKLFILE.replace("SOURCE https", f"SOURCE --checksum={bad} https"), lock)
    assert found[0].startswith(f"Uklfile:3:1: {url} is {good}, not the --checksum {bad}")
    dsc = Digest.of(b"redis")
    resolved(UKLFILE.replace("SOURCE debian", f"SOURCE --checksum={dsc} debian"), lock)
    assert "not the --checksum" in problems(UKLFILE.replace("SOURCE debian", f"SOURCE --checksum={bad} debian"))[0]


def test_errors_of_the_resolver_get_a_place_and_do_not_hide_others() -> None:
    found = problems(
        UKLFILE.replace("debian:redis=5:8.0.2", "debian:unknown").replace("debian:trixie", "debian:trixie")
    )
    assert found[0] == "Uklfile:2:1: Debian trixie has no source package 'unknown'"


def test_a_git_source_is_locked_as_a_commit() -> None:
    text = UKLFILE.replace("local /local", "git+https://x.org/y#v1 /g")
    result = resolved(text)
    locked = result.sources["git+https://x.org/y#v1"]
    assert (locked.kind, locked.version, len(locked.files)) == (SourceKind.GIT, "c" * 40, 1)
    assert resolve(spec(text), result.lock, Folders(), None).sources == result.sources
    right, wrong = locked.files[0].digest, Digest.of(b"wrong")
    resolved(text.replace("SOURCE git", f"SOURCE --checksum={right} git"), result.lock)
    (problem,) = problems(text.replace("SOURCE git", f"SOURCE --checksum={wrong} git"), result.lock)
    assert f"git+https://x.org/y#v1 is {right}, not the --checksum {wrong}" in problem


URL = "https://example.org/linux-6.12.110.tar.xz"


def kernel(words: str) -> str:
    return UKLFILE.replace("LINK", f"KERNEL {words}\nLINK")


def test_another_kernel_is_locked_by_its_url() -> None:
    text = kernel(f"--source={URL} 6.12.110")
    result = resolved(text)
    entry = result.lock.get(("kernel", "6.12"))
    file = LockedFile("linux-6.12.110.tar.xz", Digest.of(URL.encode()), 4, URL)
    assert entry == LockedComponent(ComponentKind.KERNEL, "6.12", "6.12.110", file, KERNEL.patches.digest)
    assert result.kernel.folder.definition.version == result.kernel_version == "6.12.110"
    assert result.kernel.folder.definition.urls == (URL,)
    assert resolve(spec(text), result.lock, Folders(), None).kernel == result.kernel
    # Neither the series' own kernel nor another URL is taken for it.
    for other, part in (
        (UKLFILE, "version and file"),
        (kernel(f"--source={URL}.new 6.12.110"), "source"),
        (kernel(f"--source={URL} 6.12.111"), "version"),
    ):
        (problem,) = problems(other, result.lock)
        assert f"the {part} of kernel 6.12 changed since Uklfile.lock was made" in problem
        assert "uklimg lock --update 6.12" in problem
    moved = resolved(kernel(f"--source={URL} 6.12.111"), result.lock.without(["kernel"]))
    assert moved.kernel_version == "6.12.111"


def test_a_kernel_of_the_context_and_patches_leave_the_lock_as_it_is() -> None:
    plain = resolved()
    for words in ("6.12.107", "--patches=mine", "--source=linux.tar.xz 6.12.200", "--patches=mine 6.12.107"):
        result = resolved(kernel(words))
        assert result.lock == plain.lock
        assert result.kernel.folder == KERNEL
    assert resolved(kernel("--source=linux.tar.xz 6.12.200")).kernel_version == "6.12.200"
    assert plain.kernel_version == "6.12.107"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("6.12.110", "the series 6.12 is made for 6.12.107 (another version needs its tarball: KERNEL --source="),
        (f"--source={URL}", "KERNEL --source= without a version (which kernel it is, as in 6.12.107)"),
    ],
)
def test_kernels_that_cannot_be(words: str, problem: str) -> None:
    (found,) = problems(kernel(words))
    assert problem in found and found.startswith("Uklfile:10:1: ")


def test_an_image_of_a_registry_is_locked() -> None:
    text = """FROM registry.example.org/gcc:14 AS build
SOURCE debian:redis=5:8.0.2 /src
FROM build AS more
RUN make
FROM ukl:6.12
LINK --from=more /src/redis-server
COPY --from=registry.example.org/tiny:1 /x /x
"""
    result = resolved(text)
    assert sorted(result.images) == ["registry.example.org/gcc:14", "registry.example.org/tiny:1"]
    assert result.stage_images == dict.fromkeys(("build", "more"), "registry.example.org/gcc:14")
    # Kernels are made in our own base image, and Debian's sources are those of its suite.
    assert result.stage_bases == dict.fromkeys(("build", "more"), "debian-trixie")
    assert result.libc_version == ""
    again = resolve(spec(text), result.lock, Folders(), None)
    assert again.images == result.images and again.lock == result.lock
    read = parse_lock(format_lock(result.lock))
    assert all(read.get(entry.key) == entry for entry in result.images.values())
    lines = [error.line() for error in unresolved(text).errors]
    assert "Uklfile:1:1: Uklfile.lock lacks image registry.example.org/gcc:14 (uklimg lock)" in lines


def unresolved(text: str) -> UserErrors:
    with pytest.raises(UserErrors) as caught:
        resolve(spec(text), Lock(), Folders(), None)
    return caught.value


@pytest.mark.parametrize("word", ["2.41", "ukl"])
def test_our_libc_is_locked_with_what_its_build_needs(word: str) -> None:
    text = UKLFILE.replace("LINK", f"GLIBC {word}\nLINK")
    archive = Archive()
    result = resolve(spec(text), Lock(), Folders(), archive)
    assert archive.asked[-1] == "packages gawk on gcc libc6-dev", "whatever the stages' PACKAGES have added"
    assert result.libc_version == "2.41-ukl"
    locked = result.lock.get(("libc", "2.41"))
    assert locked == LockedComponent(ComponentKind.LIBC, "2.41", "2.41", SOURCE, PatchSet().digest)
    again = resolve(spec(text), parse_lock(format_lock(result.lock)), Folders(), None)
    assert again.libc == result.libc and again.tools.keys() == result.tools.keys()
    moved = replace(GLIBC, definition=replace(GLIBC.definition, version="2.41.1"))
    with pytest.raises(UserErrors) as caught:
        resolve(spec(text), result.lock, Folders(glibc=moved), None)
    assert "the version of libc 2.41 changed since Uklfile.lock was made" in caught.value.errors[0].line()


def test_the_series_chooses_the_libc_and_a_uklfile_may_differ() -> None:
    ours = Folders(series=replace(KERNEL, definition=replace(KERNEL.definition, libc="ukl")))
    assert resolve(spec(), Lock(), ours, Archive()).libc_version == "2.41-ukl"
    text = UKLFILE.replace("LINK", "GLIBC debian\nLINK")
    result = resolve(spec(text), Lock(), ours, Archive())
    assert result.libc is None and result.libc_version == "1"
    assert ("libc", "2.41") not in result.used


def test_what_is_not_supported_is_said() -> None:
    found = problems(UKLFILE.replace("LINK", "GLIBC 2.40\nLINK"))
    assert found == ["Uklfile:10:1: unknown glibc '2.40'"]
    found = problems(UKLFILE.replace("LINK", "GLIBC --patches=mine 2.41\nLINK"))
    assert found[0].startswith("Uklfile:10:1: GLIBC takes no --source= or --patches=")
    found = problems(UKLFILE.replace("FROM debian:trixie AS build", "FROM registry.example.org/gcc:14 AS build"))
    assert len(found) == 2 and all("nothing can be added to registry.example.org/gcc:14" in f for f in found)


def test_the_base_image_step_has_every_package_as_an_input() -> None:
    result = resolved()
    base = result.base_of("build")
    step = base_image_step(base.definition, base.locked)
    assert step.id == step_id("debian-trixie") == "base:debian-trixie"
    assert sorted(step.inputs) == ["gcc_1_amd64.deb", "libc6-dev_1_amd64.deb"]
    assert step.needs() == ()
    with pytest.raises(InternalError):
        base_image_step(replace(base.definition, suite="sid"), base.locked)


def test_definition_files_are_read_strictly() -> None:
    good = (
        '[source]\nname="l"\nversion="1"\nfile="l.tar"\nsize=1\nsha256="%s"\nurls=["debian:p/l.tar"]\nsignature="x"\n'
    )
    text = good % Digest.of(b"").hex
    assert parse_source(text, "s").file.origin == "debian:p/l.tar"
    assert parse_source(text + '[series]\nlibc="debian"\nukl={BYP="image"}\n', "s").ukl == {"BYP": UklHow.IMAGE}
    for old, new in (
        ("size=1", "size=0"),
        ("size=1", "size=1\nmore=1"),
        ("debian:p", "ftp://p"),
        ('"l.tar"', '"../l.tar"'),
        ("[source]", "[sauce]"),
        ('name="l"', "name="),
    ):
        assert old in text
        with pytest.raises(UserError) as caught:
            parse_source(text.replace(old, new, 1), "kernel/1/source.toml")
        assert caught.value.line().startswith("kernel/1/source.toml")
    with pytest.raises(UserError, match="suite: wants a string"):
        parse_base("[base]\n", "b", "debian-trixie")


def test_archive_names() -> None:
    assert archive_name("https://example.org/x/lib%2B1.tar.gz?raw=1") == "lib+1.tar.gz"
    for url in ("https://example.org/", "https://example.org/..", "https://example.org/a%2F..%2Fb"):
        with pytest.raises(UserError):
            archive_name(url)
