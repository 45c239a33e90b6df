"""The compiler wrapper's pure parts: command lines in, command lines out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from uklimg.graph import Inline, Kind
from uklimg.recipes import toolchain as recipe
from uklimg.toolchain import driver, find, linker, response, store

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b\n c\t", ["a", "b", "c"]),
        ("'a b' \"c 'd\"", ["a b", "c 'd"]),
        ("a\\ b \\\" c'' ''", ["a b", '"', "c", ""]),
        ("'open", ["open"]),
        ("", []),
        ("trailing\\", ["trailing"]),
    ],
)
def test_response_words(text: str, words: list[str]) -> None:
    assert response.split(text) == words


def test_response_files_expand_recursively(tmp_path: Path) -> None:
    inner, outer, loop = tmp_path / "inner", tmp_path / "outer", tmp_path / "loop"
    inner.write_text("b 'c d'")
    outer.write_text(f"a @{inner} @{tmp_path}/absent")
    loop.write_text(f"x @{loop}")
    assert response.expand(["0", f"@{outer}", "@"]) == ["0", "a", "b", "c d", f"@{tmp_path}/absent", "@"]
    assert response.expand([f"@{loop}"]).count("x") == response.MAX_FILES
    assert response.expand([f"@{tmp_path}"]) == [f"@{tmp_path}"]


def test_long_commands_go_through_a_response_file() -> None:
    words = ["plain", "two words", 'quo"te', "back\\slash", "new\nline", ""]
    with response.shortened(["ld", *words]) as cmd:
        assert cmd == ["ld", *words]
    many = [*words, *["x" * 1000] * 200]
    with response.shortened(["ld", *many]) as cmd:
        assert len(cmd) == 2
        assert response.expand(cmd[1:]) == many
        path = Path(cmd[1][1:])
    assert not path.exists()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("-c a.c", "-fPIE -c a.c"),
        ("-c a.c -fPIC", "-c a.c -fPIC"),
        ("-fno-pie -fno-pic -mcmodel=kernel -c a.c", "-fPIE -c a.c"),
        ("-mcmodel=large -c a.c", "-fPIE -mcmodel=large -c a.c"),
        ("-c a.c -MT -static -o -shared", "-fPIE -c a.c -MT -static -o -shared"),
        ("-E -x c -", "-fPIE -E -x c -"),
        ("-r -nostdlib a.o", "-fPIE -r -nostdlib a.o"),
        # Untouched:
        ("-shared -static a.o -o a.so", "-shared -static a.o -o a.so"),
        ("-Wl,-shared -fno-pic a.o", "-Wl,-shared -fno-pic a.o"),
        ("-Xlinker -shared a.o", "-Xlinker -shared a.o"),
        ("-m32 -fno-pie -c a.c", "-m32 -fno-pie -c a.c"),
        ("--version", "--version"),
        ("-v", "-v"),
        ("-print-file-name=libc.so -static", "-print-file-name=libc.so -static"),
        ("-dumpmachine a.c", "-dumpmachine a.c"),
        ("", ""),
    ],
)
def test_compiling(args: str, expected: str) -> None:
    assert driver.command(args.split()) == (expected.split(), False)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("a.c -o a", "-static -no-pie -fPIE a.c -o a"),
        ("-pie a.o -rdynamic -ldl", "-static -no-pie -fPIE a.o -ldl"),
        ("-static-pie -fPIC a.o", "-static -no-pie -fPIC a.o"),
        ("-no-pie -fno-use-linker-plugin a.o -Wl,-E -MMD", "-static -no-pie -fPIE a.o -Wl,-E -MMD"),
        ("-lmain", "-static -no-pie -fPIE -lmain"),
        ("-l main", "-static -no-pie -fPIE -l main"),
        ("-o -c a.o", "-static -no-pie -fPIE -o -c a.o"),
        ("a.o -o", "-static -no-pie -fPIE a.o -o"),
    ],
)
def test_linking(args: str, expected: str) -> None:
    assert driver.command(args.split()) == (expected.split(), True)


def test_response_file_is_passed_on_unless_it_must_change(tmp_path: Path) -> None:
    file = tmp_path / "args"
    file.write_text("-O2 'a b.c'")
    assert driver.command([f"@{file}"]) == (["-static", "-no-pie", "-fPIE", f"@{file}"], True)
    file.write_text("-no-pie -c 'a b.c'")
    assert driver.command([f"@{file}"]) == (["-fPIE", "-c", "a b.c"], False)


def test_compiler_path_keeps_the_callers() -> None:
    assert driver.compiler_path("/ours", "") == "/ours"
    assert driver.compiler_path("/ours", "/theirs") == "/ours:/theirs"


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ("'-O2' '-flto=auto' '-o' 'a'", True),
        ("'-flto'", True),
        ("'-flto' '-fno-lto'", False),
        ("'-flto-partition=none'", False),
        ("'-O2'", False),
        ("", False),
    ],
)
def test_lto_is_seen(options: str, answer: bool) -> None:
    assert linker.asks_for_lto(options) is answer


def test_relocatable_lto_is_native_and_position_independent() -> None:
    environment = linker.lto_environment({"COLLECT_GCC_OPTIONS": "'-O2'", "A": "b"})
    assert environment == {"COLLECT_GCC_OPTIONS": "'-O2' '-flinker-output=nolto-rel' '-fPIE'", "A": "b"}


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("/b/conftest", True),
        ("/b/conftest.exe", True),
        ("/b/CMakeFiles/CMakeScratch/TryCompile-x/cmTC_1a2b3", True),
        ("/b/CMakeFiles/3.31/CompilerIdC/a.out", True),
        ("/b/meson-private/tmp1/output.exe", True),
        ("/dev/null", True),
        ("/b/a.out", False),
        ("/b/redis-server", False),
    ],
)
def test_checks_are_recognised(output: str, answer: bool) -> None:
    assert linker.is_check(output) is answer


def test_real_linker_is_the_first_that_is_not_ours(tmp_path: Path) -> None:
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    own = tmp_path / "linker"
    for file in (own, tmp_path / "theirs/ld.odd"):
        file.write_text("")
        file.chmod(0o755)
    (tmp_path / "ours/ld.odd").symlink_to(own)
    path = f"{tmp_path}/ours:{tmp_path}/theirs"
    assert linker.real_linker("ld.odd", path, str(own)) == f"{tmp_path}/theirs/ld.odd"
    assert linker.real_linker("ld.odd", f"{tmp_path}/ours", str(own)) == ""


def test_objects_are_kept_whole_and_errors_give_way(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    store.ensure(folder)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    store.keep_error(folder, "abcd", "because")
    assert (folder / "abcd.error").read_text() == "because\n"
    temporary = folder / ".1.o"
    temporary.write_bytes(b"object")
    store.keep(folder, "abcd", temporary, b"{}")
    store.keep_error(folder, "abcd", "a later link of the same program")
    assert sorted(path.name for path in folder.iterdir()) == ["abcd.json", "abcd.o"]
    assert (folder / "abcd.o").read_bytes() == b"object"


def test_folder_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(store.VARIABLE, raising=False)
    assert str(store.folder()) == recipe.OBJECTS
    monkeypatch.setenv(store.VARIABLE, "/elsewhere")
    assert store.folder() == Path("/elsewhere")


def test_find_names_what_is_wrong(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(find.NotFound, match=r"\.libs/"):
        find.find(script, tmp_path)
    with pytest.raises(find.NotFound, match="No such file"):
        find.find(tmp_path / "absent", tmp_path)


def modules() -> dict[str, bytes]:
    return {name: name.encode() for name in (*recipe.MODULES, recipe.HEADER)}


def test_recipe_installs_every_module() -> None:
    package = Path(driver.__file__).parent
    assert set(recipe.MODULES) == {path.name for path in package.glob("*.py")}
    paths = {file.path: file for file in recipe.files(modules())}
    assert {f"usr/lib/ukl/python/uklimg/toolchain/{name}" for name in recipe.MODULES} <= paths.keys()
    assert paths["usr/lib/ukl/driver"].mode == 0o755
    assert paths["usr/lib/ukl/driver"].content.startswith(b"#!/usr/bin/python3 -ISB\n")


def test_links_lead_to_installed_files_or_to_the_system() -> None:
    installed = {file.path for file in recipe.files(modules())}
    for path, target in recipe.links().items():
        if not target.startswith("/"):
            assert os.path.normpath(Path(path).parent / target) in installed
    names = {path.rpartition("/")[2] for path in recipe.links()}
    assert {
        "ukl-gcc",
        "ukl-g++",
        "ukl-cc",
        "ukl-find",
        "ukl-gcc-ar",
        "x86_64-ukl-linux-gnu-pkg-config",
        "ld",
    } <= names
    assert set(recipe.environment().values()) <= names


def test_step_installs_on_top_of_the_base() -> None:
    step = recipe.step("base:debian-trixie", modules())
    assert step.kind is Kind.ROOTFS
    assert step.needs() == ("base:debian-trixie",)
    folder = step.inputs[recipe.MOUNT]
    assert isinstance(folder, Inline)
    content = {file.path: file.content for file in folder.files}
    plan = json.loads(content["plan.json"])
    assert {path for path, _ in plan["files"]} == content.keys() - {"plan.json", "install.py"}
    assert ["var/lib/ukl/objects", 0o1777] in plan["folders"]
