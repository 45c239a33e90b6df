"""Static libraries: their recipes, what DEPENDS resolves to, the steps it becomes and what changes their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from test_plan import ASSETS, SERIES, select
from test_resolve import KERNEL, Archive, Folders, problems, spec

from uklimg.data import Data, find_data
from uklimg.definitions import BuildSystem, LibraryBuild, SourceDefinition, SourceFolder, parse_source
from uklimg.digest import Digest
from uklimg.errors import UserError, UserErrors
from uklimg.graph import Blob, Container, Inline, Kind, Output, Step
from uklimg.inside import depends, library
from uklimg.lock import ComponentKind, Lock, LockedComponent, LockedFile, format_lock, parse_lock
from uklimg.patchset import PatchSet
from uklimg.plan import Assets, Plan, plan
from uklimg.resolve import ResolvedSpec, resolve

pytestmark = pytest.mark.unit

LAST = "FROM ukl:6.12\nLINK --from=build /p\n"
NAMES = ("jemalloc", "libaio", "libevent", "liburing", "lz4", "openssl", "pcre2", "sqlite3", "zlib", "zstd")


def recipe(name: str, version: str = "1.0", **build: object) -> SourceFolder:
    file = LockedFile(f"{name}.tar.gz", Digest.of(name.encode()), 5, f"debian:pool/{name}.tar.gz")
    how = replace(LibraryBuild(BuildSystem.CONFIGURE, (f"lib{name}.a",)), **build)  # type: ignore[arg-type]
    definition = SourceDefinition(name, version, file, (file.origin,), "signed", library=how)
    return SourceFolder(f"libs/{name}", definition, PatchSet(), {})


@dataclass
class Libraries(Folders):
    known: Mapping[str, SourceFolder] = field(default_factory=dict)

    def library(self, name: str, /) -> SourceFolder:
        if name not in self.known:
            raise UserError(f"unknown library {name!r}")
        return self.known[name]


# web needs tls, tls needs zip and cmake; mem nothing.
KNOWN = {
    "zip": recipe("zip"),
    "tls": recipe("tls", needs=("zip",), packages=("cmake",)),
    "web": recipe("web", needs=("tls",)),
    "mem": recipe("mem", build=BuildSystem.SCRIPT),
}


def uklfile(depends: str) -> str:
    return f"FROM debian:trixie AS build\n{depends}\nRUN make\n{LAST}"


def resolved(depends: str, known: Mapping[str, SourceFolder] = KNOWN, lock: Lock | None = None) -> ResolvedSpec:
    return resolve(spec(uklfile(depends)), lock or Lock(), Libraries(series=SERIES, known=known), Archive())


def planned(depends: str, known: Mapping[str, SourceFolder] = KNOWN, assets: Assets = ASSETS) -> Plan:
    return plan(resolved(depends, known), select, assets)


def refused(depends: str, known: Mapping[str, SourceFolder] = KNOWN) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        resolved(depends, known)
    return [error.line() for error in caught.value.errors]


def container(step: Step) -> Container:
    assert isinstance(step.action, Container)
    return step.action


# --- resolving


def test_a_library_is_locked_with_all_that_it_needs() -> None:
    found = resolved("DEPENDS web")
    assert set(found.libraries) == {"web", "tls", "zip"}
    assert found.tools["debian-trixie", "tls"].requested == ("cmake",)
    assert set(found.tools) == {("debian-trixie", "tls")}
    file = KNOWN["zip"].definition.file
    wanted = LockedComponent(ComponentKind.LIBRARY, "zip", "1.0", file, PatchSet().digest)
    assert found.lock.get(("library", "zip")) == wanted
    alone = resolved("DEPENDS zip").lock.only([wanted.key])
    assert parse_lock(format_lock(alone)) == alone == Lock((wanted,))
    again = resolve(spec(uklfile("DEPENDS web")), found.lock, Libraries(series=SERIES, known=KNOWN), None)
    assert again.lock == found.lock
    assert again.tools == found.tools


def test_the_recipes_version_may_be_said_and_no_other() -> None:
    assert set(resolved("DEPENDS zip=1.0").libraries) == {"zip"}
    assert refused("DEPENDS zip=2 mem=3") == [
        "Uklfile:2:1: there is no recipe for mem 3 (libs/ has mem 1.0)",
        "Uklfile:2:1: there is no recipe for zip 2 (libs/ has zip 1.0)",
    ]


def test_a_recipe_that_moved_on_asks_for_an_update_of_the_lock() -> None:
    lock = resolved("DEPENDS zip mem").lock
    moved = {**KNOWN, "zip": recipe("zip", "1.1")}
    with pytest.raises(UserErrors) as caught:
        resolved("DEPENDS zip mem", moved, lock)
    (error,) = caught.value.errors
    assert "the version of library zip changed" in error.message
    assert error.hint == "uklimg lock --update zip moves it forward"
    updated = resolved("DEPENDS zip mem", moved, lock.without(["zip"]))
    assert updated.libraries["zip"].locked.version == "1.1"
    assert updated.libraries["mem"].locked == lock.get(("library", "mem"))


def test_libraries_that_need_each_other_are_an_error_and_no_endless_loop() -> None:
    known = {"a": recipe("a", needs=("b",)), "b": recipe("b", needs=("a",))}
    assert refused("DEPENDS a", known) == [
        "Uklfile:2:1: libraries need each other: a, b, a (correct their recipes)",
    ]


def test_without_a_resolver_what_the_lock_lacks_is_named() -> None:
    lock = resolved("DEPENDS mem").lock
    with pytest.raises(UserErrors) as caught:
        resolve(spec(uklfile("DEPENDS mem\nDEPENDS tls")), lock, Libraries(series=SERIES, known=KNOWN), None)
    assert [error.line() for error in caught.value.errors] == [
        "Uklfile:3:1: Uklfile.lock lacks library tls (uklimg lock)"
    ]


def test_debians_packages_are_locked_like_those_of_PACKAGES() -> None:
    found = resolved("PACKAGES cmake\nDEPENDS zip debian:libfoo-dev=1")
    locked = found.packages[next(place for place in found.packages if place.line == 3)]
    assert (locked.after, locked.requested) == (("cmake",), ("libfoo-dev=1",))


# --- the steps


def test_the_steps_of_depends() -> None:
    graph = planned("DEPENDS web mem").graph
    needs = {step.id: step.needs() for step in graph.steps}
    base, wrapper = "base:debian-trixie", "toolchain:debian-trixie"
    assert needs["tools:debian-trixie:cmake"] == (wrapper,)
    assert needs["library:debian-trixie:zip"] == (wrapper,)
    assert needs["library:debian-trixie:tls"] == ("library:debian-trixie:zip", "tools:debian-trixie:cmake")
    assert needs["library:debian-trixie:web"] == (
        "library:debian-trixie:tls",
        "library:debian-trixie:zip",
        wrapper,
    )
    assert needs["stage:build:1"] == tuple(
        sorted([*(f"library:debian-trixie:{name}" for name in ("mem", "tls", "web", "zip")), wrapper])
    )
    assert needs["kernel-kit"] == (base,)
    step = graph.step("stage:build:1")
    assert (step.kind, step.title) == (Kind.ROOTFS, "[build 1/2] DEPENDS mem web")
    assert step.inputs["/in/libraries/tls"] == Output("library:debian-trixie:tls")
    assert container(step).argv[2:] == ("/run/ukl/inside/depends.py", "--libraries", "/in/libraries")


def test_a_librarys_step_has_its_source_its_recipe_and_the_wrapper() -> None:
    step = planned("DEPENDS web mem").graph.step("library:debian-trixie:mem")
    assert step.kind is Kind.TREE
    action = container(step)
    assert action.env["CC"] == "ukl-gcc"
    assert not action.network
    blob = step.inputs["/in/source/mem.tar.gz"]
    assert isinstance(blob, Blob)
    assert blob.digest == KNOWN["mem"].definition.file.digest
    files = step.inputs["/in/recipe"]
    assert isinstance(files, Inline)
    assert [file.path for file in files.files] == ["recipe.json", "build.sh"]


def test_debians_packages_are_installed_and_checked_in_the_same_step() -> None:
    step = planned("DEPENDS zip debian:libfoo-dev=1").graph.step("stage:build:1")
    assert step.title == "[build 1/2] DEPENDS zip debian:libfoo-dev=1"
    argv = container(step).argv
    assert "dpkg --force-unsafe-io --install /in/packages/*.deb" in argv[2]
    assert argv[2].endswith('exec "$@"')
    assert argv[-2:] == ("--packages", "libfoo-dev")
    assert "/in/packages/libfoo-dev_1_amd64.deb" in step.inputs


def keys(depends: str, known: Mapping[str, SourceFolder] = KNOWN, assets: Assets = ASSETS) -> Mapping[str, Digest]:
    found = planned(depends, known, assets).graph.keys
    return {name: key for name, key in found.items() if name.startswith("library:")}


def changed(known: Mapping[str, SourceFolder]) -> set[str]:
    before, after = keys("DEPENDS web mem"), keys("DEPENDS web mem", known)
    return {name.rpartition(":")[2] for name in before if before[name] != after.get(name)}


def test_a_library_is_the_same_step_whatever_else_a_stage_has() -> None:
    alone = keys("DEPENDS zip")
    amidst = keys("PACKAGES ninja-build\nENV A=1\nRUN first\nDEPENDS mem web")
    assert alone.items() <= amidst.items()


@pytest.mark.parametrize(
    ("name", "after", "wanted"),
    [
        ("mem", replace(KNOWN["mem"], script=b"make"), {"mem"}),
        ("zip", recipe("zip", options=("--fast",)), {"zip", "tls", "web"}),
        ("web", recipe("web", needs=("tls",), targets=("all",)), {"web"}),
        ("tls", recipe("tls", needs=("zip",), packages=("cmake", "ninja-build")), {"tls", "web"}),
        ("zip", recipe("zip", "1.1"), {"zip", "tls", "web"}),
    ],
)
def test_a_changed_recipe_rebuilds_its_library_and_those_that_need_it(
    name: str, after: SourceFolder, wanted: set[str]
) -> None:
    assert changed({**KNOWN, name: after}) == wanted


def test_a_build_that_needs_the_same_packages_shares_their_step() -> None:
    known = {**KNOWN, "zip": recipe("zip", packages=("cmake",))}
    steps = [step.id for step in planned("DEPENDS tls", known).graph.steps if step.id.startswith("tools:")]
    assert steps == ["tools:debian-trixie:cmake"]
    # and it is what PACKAGES at the beginning of a stage makes
    graph = planned("PACKAGES cmake\nDEPENDS tls").graph
    assert graph.keys["stage:build:1"] == graph.keys["tools:debian-trixie:cmake"]


def test_the_scripts_of_libraries_are_in_the_keys_of_what_runs_them() -> None:
    for script, hit in (("library.py", True), ("depends.py", True), ("source.py", True), ("copy.py", False)):
        inside = {**ASSETS.inside, script: b"changed"}
        assert (keys("DEPENDS zip") != keys("DEPENDS zip", assets=replace(ASSETS, inside=inside))) is hit


# --- the recipes' form

SOURCE = f"""[source]
name = "l"
version = "1"
file = "l.tar"
size = 1
sha256 = "{Digest.of(b"").hex}"
urls = ["debian:p/l.tar"]
signature = "x"
"""
LIBRARY = '[library]\nbuild="make"\narchives=["libl.a"]\n'


def test_a_recipe_says_how_its_library_is_built() -> None:
    assert parse_source(SOURCE, "s").library is None
    assert parse_source(SOURCE + LIBRARY, "s").library == LibraryBuild(BuildSystem.MAKE, ("libl.a",))
    more = 'needs=["z"]\npackages=["cmake"]\nfolder="a/b"\noptions=["A=1"]\ntargets=["t"]\ninstall=["i"]\n'
    assert parse_source(SOURCE + LIBRARY + more, "s").library == LibraryBuild(
        BuildSystem.MAKE, ("libl.a",), ("z",), ("cmake",), "a/b", ("A=1",), ("t",), ("i",)
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('build="make"', 'build="bazel"', "build: 'bazel' is not one of configure, cmake, make, script"),
        ('["libl.a"]', '["libl.so"]', "archives: wants at least one"),
        ('["libl.a"]', "[]", "archives: wants at least one"),
        ('["libl.a"]', '["libl.a"]\nneeds=["-x"]', "needs: '-x' is not a name"),
        ('["libl.a"]', '["libl.a"]\npackages=["cmake;rm"]', "packages: 'cmake;rm' is not a name"),
        ('["libl.a"]', '["libl.a"]\nfolder="../x"', "folder: '../x' leaves the source"),
        ('["libl.a"]', '["libl.a"]\noptions="-x"', "options: wants a list of strings"),
        ('["libl.a"]', '["libl.a"]\nmore=1', "unknown key 'more'"),
    ],
)
def test_a_wrong_recipe_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_source(SOURCE + LIBRARY.replace(old, new), "libs/l/source.toml")
    assert message in caught.value.line()
    assert caught.value.line().startswith("libs/l/source.toml")


def test_every_recipe_that_travels_with_the_package_is_complete() -> None:
    data = Data(find_data())
    assert data.libraries() == NAMES
    for name in NAMES:
        folder = data.library(name)
        how = folder.library
        assert bool(folder.script) == (how.build is BuildSystem.SCRIPT), name
        assert set(how.needs) <= set(NAMES)
        assert folder.definition.file.origin.startswith("debian:pool/main/"), name


def test_unknown_libraries() -> None:
    data = Data(find_data())
    for name, hint in (
        ("zlibb", "did you mean 'zlib'?"),
        ("libcurl4-openssl-dev", "Debian's own package is debian:libcurl4-openssl-dev"),
        ("qqq", "there is jemalloc, libaio"),
    ):
        with pytest.raises(UserError) as caught:
            data.library(name)
        assert f"unknown library {name!r} ({hint}" in caught.value.line()


def test_a_library_folder_without_a_recipe_or_script(tmp_path: Path) -> None:
    folder = tmp_path / "libs/l"
    folder.mkdir(parents=True)
    (folder / "source.toml").write_text(SOURCE)
    with pytest.raises(UserError, match=r"section \[library\] is missing"):
        Data(tmp_path).library("l")
    with pytest.raises(UserError, match=r"section \[library\] is missing"):
        assert KERNEL.library


# --- the scripts inside the container


def commands(build: str, **more: object) -> list[list[str]]:
    fields: dict[str, object] = {
        "name": "l",
        "version": "1",
        "archives": ["libl.a"],
        "folder": ".",
        "options": [],
        "targets": [],
        "install": ["install"],
    }
    found = library.Recipe(**{**fields, **more, "build": build})  # type: ignore[arg-type]
    return library.commands(found, Path("/in/recipe/build.sh"), Path("/d"), 3)


def test_the_commands_of_the_build_systems() -> None:
    assert commands("configure", options=["--static"], targets=["libl.a"]) == [
        ["./configure", "--prefix=/usr/local", "--static"],
        ["make", "-j3", "libl.a"],
        ["make", "DESTDIR=/d", "install"],
    ]
    assert commands("make", options=["A=b c"], install=["i", "j"]) == [
        ["make", "A=b c", "-j3"],
        ["make", "A=b c", "DESTDIR=/d", "i", "j"],
    ]
    cmake = commands("cmake", options=["-DX=1"], targets=["t"])
    assert cmake[0][:5] == ["cmake", "-S", ".", "-B", "ukl-build"]
    assert {"-DBUILD_SHARED_LIBS=OFF", "-DCMAKE_INSTALL_PREFIX=/usr/local", "-DX=1"} <= set(cmake[0])
    assert cmake[1:] == [
        ["cmake", "--build", "ukl-build", "-j3", "--target", "t"],
        ["cmake", "--install", "ukl-build"],
    ]
    assert commands("script") == [["/bin/sh", "-eux", "/in/recipe/build.sh"]]


def test_of_what_was_installed_only_a_static_sysroot_is_kept(tmp_path: Path) -> None:
    installed, out = tmp_path / "installed", tmp_path / "out"
    kept = (
        "include/l/l.h",
        "lib/libl.a",
        "lib/pkgconfig/l.pc",
        "lib/cmake/l/l-config.cmake",
    )
    for name in (*kept, "lib/libl.so.1", "lib/libl.la", "bin/l", "share/man/man3/l.3", "share/pkgconfig/m.pc"):
        path = installed / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o755)
    (installed / "lib/libl.so").symlink_to("libl.so.1")
    (installed / "lib/libm.a").symlink_to("libl.a")
    library.collect(installed, out)
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if not path.is_dir()}
    assert set(files) == {*kept, "lib/libm.a", "lib/pkgconfig/m.pc"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files.values())
    (installed / "lib/libn.a").symlink_to("gone.a")
    with pytest.raises(library.LibraryError, match=r"lib/libn\.a is a link to something that was not installed"):
        library.collect(installed, tmp_path / "other")


def test_an_archive_that_was_not_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(library.LibraryError, match=r"the build has not made libl\.a"):
        library.settle_archives(tmp_path, ["libl.a"])


def test_shared_objects_of_a_package() -> None:
    folder = "/usr/lib/x86_64-linux-gnu"
    files = [
        f"{folder}/libfoo.so",
        f"{folder}/libfoo.a",
        "/lib/x86_64-linux-gnu/libbar.so.1.2",
        f"{folder}/pkgconfig/foo.pc",
        f"{folder}/foo/libplugin.so",
        "/usr/share/doc/libfoo.so",
        f"{folder}/foo.so",
    ]
    assert depends.shared_objects(files) == {
        "libbar": "/lib/x86_64-linux-gnu/libbar.a",
        "libfoo": f"{folder}/libfoo.a",
    }


def test_gcc_is_led_to_the_libraries(tmp_path: Path) -> None:
    prefix, first = tmp_path / "local", tmp_path / "gcc/lib"
    (prefix / "lib").mkdir(parents=True)
    (prefix / "lib/libz.a").write_text("")
    for _ in range(2):
        depends.lead_gcc(prefix, first)
        assert first.readlink() == prefix / "lib"
    # A folder that is there already keeps what it has.
    first.unlink()
    first.mkdir()
    (first / "libother.a").write_text("")
    for _ in range(2):
        depends.lead_gcc(prefix, first)
    assert (first / "libz.a").readlink() == prefix / "lib/libz.a"
    assert (first / "libother.a").is_file()


def test_unknown_and_known_libraries_are_told_together() -> None:
    text = uklfile("DEPENDS zip nobodys").replace("RUN make", "SOURCE git+https://x.org/y#v1 /g")
    with pytest.raises(UserErrors) as caught:
        resolve(spec(text), Lock(), Libraries(series=SERIES, known=KNOWN), Archive())
    assert caught.value.errors[0].line() == "Uklfile:2:1: unknown library 'nobodys'"
    assert problems(uklfile("DEPENDS zip"))[0] == "Uklfile:2:1: unknown library 'zip'"
