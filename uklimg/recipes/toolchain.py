"""The compiler wrapper's place in a build container: files, links and environment.

Pure: the contents of ``MODULES`` and ``HEADER`` (files of uklimg/toolchain) are given by the caller, as layer 1 reads
no file.
``files`` and ``links`` say what lies where; ``step`` is the layer on top of a base image that installs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from uklimg.graph import Container, Inline, InlineFile, Kind, Step

RECIPE = "toolchain"
RECIPE_VERSION = 1
STEP_ID = "toolchain"
HOME = "usr/lib/ukl"
BINARIES = "usr/bin"
TRIPLET = "x86_64-ukl-linux-gnu"
OBJECTS = "/var/lib/ukl/objects"
MOUNT = "/run/ukl-toolchain"
LIBC = f"/{HOME}/libc"  # where a libc of ours lies, of which programs are linked then (driver.py)

# Files of the package uklimg.toolchain that run in the container.
MODULES = (
    "__init__.py",
    "archives.py",
    "driver.py",
    "elf.py",
    "find.py",
    "ldargs.py",
    "linker.py",
    "response.py",
    "store.py",
)
# The interface for applications, where any compiler looks.
HEADER, HEADERS = "ukl.h", "usr/include"
SCRIPTS = ("driver", "linker", "find")
# Isolated from the caller's Python settings (-I), quick (-S), and leaving no bytecode behind in a layer (-B).
SCRIPT = """#!/usr/bin/python3 -ISB
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), "python"))
from uklimg.toolchain.{module} import main

main()
"""
PKG_CONFIG = """#!/bin/sh
# A static link needs what Libs.private names.
exec pkg-config --static "$@"
"""
# gcc's own ar, ranlib and nm know slim LTO objects.
TOOLS = {
    "ar": "gcc-ar",
    "ranlib": "gcc-ranlib",
    "nm": "gcc-nm",
    # CMake looks for these beside the compiler, by its prefix.
    "gcc-ar": "gcc-ar",
    "gcc-ranlib": "gcc-ranlib",
    "gcc-nm": "gcc-nm",
    "as": "as",
    "ld": "ld",
    "strip": "strip",
    "objcopy": "objcopy",
    "objdump": "objdump",
    "readelf": "readelf",
    "size": "size",
    "strings": "strings",
    "addr2line": "addr2line",
    "cpp": "cpp",
    "gcov": "gcov",
}
PREFIXES = ("ukl-", f"{TRIPLET}-")
COMPILERS = ("gcc", "g++", "cc", "c++")
LINKERS = ("ld", "ld.bfd", "ld.gold", "ld.lld", "ld.mold")  # what gcc looks for, with and without -fuse-ld

INSTALL = """\
import json, os, py_compile, shutil, sys
source, root = sys.argv[1], sys.argv[2]
plan = json.load(open(os.path.join(source, "plan.json")))
for path, mode in plan["files"]:
    target = os.path.join(root, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(os.path.join(source, path), target)
    os.chmod(target, mode)
    if path.endswith(".py"):
        # A third of a small link would be compiling this; the bytecode holds no time.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(target, dfile="/" + path, doraise=True, invalidation_mode=mode)
for path, target in plan["links"]:
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(target, path)
for path, mode in plan["folders"]:
    os.makedirs(os.path.join(root, path), exist_ok=True)
    os.chmod(os.path.join(root, path), mode)
"""


def files(modules: Mapping[str, bytes]) -> tuple[InlineFile, ...]:
    """What is installed, by path below the container's root; ``modules``: MODULES and HEADER, each with its bytes."""
    package = f"{HOME}/python/uklimg"
    return (
        InlineFile(f"{package}/__init__.py", b""),
        *(InlineFile(f"{package}/toolchain/{name}", modules[name]) for name in MODULES),
        *(InlineFile(f"{HOME}/{name}", SCRIPT.format(module=name).encode(), 0o755) for name in SCRIPTS),
        InlineFile(f"{HOME}/pkg-config", PKG_CONFIG.encode(), 0o755),
        InlineFile(f"{HEADERS}/{HEADER}", modules[HEADER]),
    )


def links() -> Mapping[str, str]:
    """Symbolic links: path below the root -> target (absolute in the container, or relative to the link)."""
    found: dict[str, str] = {f"{HOME}/ld/{name}": "../linker" for name in LINKERS}
    found[f"{BINARIES}/ukl-find"] = "../lib/ukl/find"
    for prefix in PREFIXES:
        for name in COMPILERS:
            found[f"{BINARIES}/{prefix}{name}"] = "../lib/ukl/driver"
        for name, tool in TOOLS.items():
            found[f"{BINARIES}/{prefix}{name}"] = f"/{BINARIES}/{tool}"
        for name in ("pkg-config", "pkgconf"):
            found[f"{BINARIES}/{prefix}{name}"] = "../lib/ukl/pkg-config"
    return found


def environment() -> Mapping[str, str]:
    """Variables of every build stage."""
    return {
        "CC": "ukl-gcc",
        "CXX": "ukl-g++",
        **{name.upper(): f"{TRIPLET}-{name}" for name in ("ar", "ranlib", "nm")},
        "PKG_CONFIG": f"{TRIPLET}-pkg-config",
    }


def inline(modules: Mapping[str, bytes]) -> Inline:
    """The folder that ``install_cmd`` installs from: the files, install.py and its plan."""
    content = files(modules)
    plan = {
        "files": [[file.path, file.mode] for file in content],
        "links": [list(pair) for pair in sorted(links().items())],
        "folders": [[OBJECTS.lstrip("/"), 0o1777]],
    }
    return Inline(
        (
            *content,
            InlineFile("install.py", INSTALL.encode()),
            InlineFile("plan.json", json.dumps(plan, indent=1).encode()),
        )
    )


def install_cmd(source: str = MOUNT, root: str = "/") -> tuple[str, ...]:
    """Install the folder ``source`` (an unpacked ``inline``) below ``root``; can be run again."""
    return ("/usr/bin/python3", "-ISB", f"{source}/install.py", source, root)


def step(base: str, modules: Mapping[str, bytes], step_id: str = STEP_ID) -> Step:
    """A ROOTFS step: the rootfs of step ``base`` with the wrapper installed. Build stages start from it."""
    return Step(
        id=step_id,
        title="compiler wrapper",
        recipe=RECIPE,
        recipe_version=RECIPE_VERSION,
        action=Container(rootfs=base, argv=install_cmd()),
        inputs={MOUNT: inline(modules)},
        kind=Kind.ROOTFS,
    )
