"""Build a kernel kit: what linking applications into this kernel needs, without its source tree.

    kit.py --source linux.tar.xz --patches DIR --config FRAGMENT... --tree NAME --out DIR

BUILD may hold what an earlier build left: the source, and for each NAME (of a configuration) the objects. Kbuild
makes anew what the changed options and sources touch, and nothing else; what comes out is the same as from nothing.

The kit holds vmlinux (its application segment empty), System.map, config, kit.json, and in boot/ the objects,
headers and commands that make a bzImage of a vmlinux with an application (bzimage.py runs them). Standard library
only; runs in the build container. Exit status: 0; 1 with one line on stderr that starts with ``ukl-kit:``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

BUILD = Path("/tmp/ukl-kernel")
SOURCE = BUILD / "source"
# Of every configuration in turn, since its path is in what is built.
OBJECTS = BUILD / "objects"
PACKAGES = Path("/var/lib/dpkg/status")
BOOT = "arch/x86/boot"
# Fixed, so that the kernel's bytes do not tell who built it when.
MAKE = [
    "make", f"O={OBJECTS}", "KBUILD_BUILD_TIMESTAMP=Wed Jan  1 00:00:00 UTC 2025", "KBUILD_BUILD_USER=uklimg",
    "KBUILD_BUILD_HOST=uklimg", "KBUILD_BUILD_VERSION=1",
]  # fmt: skip
# The targets whose commands turn a vmlinux into a bzImage, in order.
STEPS = (
    "compressed/vmlinux.bin.gz", "compressed/piggy.S", "compressed/piggy.o", "compressed/vmlinux", "zoffset.h",
    "header.o", "setup.elf", "setup.bin", "vmlinux.bin", "bzImage",
)  # fmt: skip
# Made by those commands: not part of the kit.
MADE = {"vmlinux.bin.gz", "vmlinux.bin", "piggy.S", "piggy.o", "vmlinux", "zoffset.h", "header.o", "setup.elf",
        "setup.bin", "bzImage"}  # fmt: skip


class KitError(Exception):
    """One line for the user."""


def run(argv: list[str], cwd: Path) -> None:
    print("+ " + " ".join(argv), flush=True)
    done = subprocess.run(argv, cwd=cwd, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise KitError(f"{argv[0]} {argv[-1]} failed with status {done.returncode}")


def unpack(tarball: Path, patches: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    run(["tar", "--extract", "--strip-components=1", f"--file={tarball}"], folder)
    for patch in patches:
        # Zero fuzz: a patch that only nearly fits was written for another kernel.
        run(["patch", "--strip=1", "--fuzz=0", "--quiet", f"--input={patch}"], folder)


def digest(*files: Path) -> str:
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


def prepare_source(tarball: Path, patches: list[Path]) -> None:
    """SOURCE becomes the patched source. Of one that is there, files that stay the same keep their dates."""
    stamp, wanted = BUILD / "source.stamp", digest(tarball, *patches)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    fresh = BUILD / "fresh"
    remove(fresh)
    unpack(tarball, patches, fresh)
    if SOURCE.exists():
        same = ["--recursive", "--links", "--perms", "--checksum", "--delete"]
        run(["rsync", *same, f"{fresh}/", f"{SOURCE}/"], BUILD)
        remove(fresh)
    else:
        fresh.rename(SOURCE)
    stamp.write_text(wanted)


def take_objects(tree: Path) -> None:
    """OBJECTS become those of ``tree``, if the same tools made them. What a killed build left there nobody trusts."""
    remove(OBJECTS)
    stamp = tree / "tools.stamp"
    if stamp.exists() and stamp.read_text() == digest(PACKAGES):
        tree.rename(OBJECTS)
        return
    remove(tree)
    OBJECTS.mkdir()
    (OBJECTS / stamp.name).write_text(digest(PACKAGES))


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def wanted_config(fragments: list[Path]) -> dict[str, str]:
    """NAME → value of all fragments; a later one wins. Values as in .config, "n" for not set."""
    wanted: dict[str, str] = {}
    for fragment in fragments:
        for number, line in enumerate(fragment.read_text().splitlines(), 1):
            text = line.strip()
            unset = re.fullmatch(r"# (CONFIG_\w+) is not set", text)
            if unset:
                wanted[unset[1]] = "n"
            elif text and not text.startswith("#"):
                match = re.fullmatch(r"(CONFIG_\w+)=(.+)", text)
                if not match:
                    raise KitError(f"{fragment.name}:{number}: not a line of a kernel configuration: {text}")
                wanted[match[1]] = match[2]
    return wanted


def configure(fragments: list[Path]) -> None:
    """allnoconfig with our settings; raises KitError when one does not survive."""
    wanted = wanted_config(fragments)
    seed = BUILD / "wanted.config"
    lines = [f"# {n} is not set" if v == "n" else f"{n}={v}" for n, v in sorted(wanted.items())]
    seed.write_text("\n".join(lines) + "\n")
    run([*MAKE, f"KCONFIG_ALLCONFIG={seed}", "allnoconfig"], SOURCE)
    got = wanted_config([OBJECTS / ".config"])
    unmet = [f"{n}={v} (is {got.get(n, 'n')})" for n, v in sorted(wanted.items()) if got.get(n, "n") != v]
    if unmet:
        raise KitError("the kernel configuration cannot have " + ", ".join(unmet) + "; see its `depends on`")


def saved(target: str) -> tuple[str, list[str]]:
    """The command that made arch/x86/boot/``target`` and the files it read, from Kbuild's own record."""
    path = OBJECTS / BOOT / target
    text = (path.parent / f".{path.name}.cmd").read_text()
    command = re.search(r"^savedcmd_\S+ := (.*)$", text, re.MULTILINE)
    if not command:
        raise KitError(f"Kbuild has not recorded how it made {target}")
    deps = re.search(r"^deps_\S+ := \\\n((?:.*\\\n)*)", text, re.MULTILINE)
    names = re.findall(r"^\s+([^\s$(]+) \\$", deps[1], re.MULTILINE) if deps else []
    shell = command[1].replace("$$", "$").replace("$(pound)", "#")
    return shell.replace(f"{SOURCE}/", "source/"), names


def collect_boot(out: Path) -> None:
    """Copy what the bzImage commands read, and write them down."""
    script = ["set -e"]
    for target in STEPS:
        command, deps = saved(target)
        script.append(command)
        for name in deps:
            file = Path(name)
            if file.is_absolute():
                where = out / "source" / file.relative_to(SOURCE)
            else:
                file, where = OBJECTS / name, out / name
            if where.name not in MADE:
                where.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, where)
        for word in command.split():
            copy_word(word, out)
    # Every compilation includes it, and fixdep leaves it out of the record.
    autoconf = out / "include/generated/autoconf.h"
    autoconf.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(OBJECTS / "include/generated/autoconf.h", autoconf)
    (out / "bzimage.sh").write_text("\n".join(script) + "\n")


def copy_word(word: str, out: Path) -> None:
    """A word of a command may be the name of a file that it reads."""
    if word.startswith("source/"):
        file = SOURCE / word.removeprefix("source/")
    elif word.startswith(("arch/", "drivers/")):
        file = OBJECTS / word
    else:
        return
    if file.is_file() and file.name not in MADE:
        target = out / word
        target.parent.mkdir(parents=True, exist_ok=True)
        # `make` may have made a thin archive, which names files that the kit lacks.
        if file.suffix == ".a":
            shutil.copyfile(file, target)
            members = subprocess.run(["ar", "t", str(file)], capture_output=True, text=True, check=True, cwd=OBJECTS)
            target.unlink()
            objects = [str(OBJECTS / m) if not m.startswith("/") else m for m in members.stdout.split()]
            subprocess.run(["ar", "rcsD", str(target), *objects], check=True)
        else:
            shutil.copy(file, target)


def kernel_value(name: str) -> str:
    text = (OBJECTS / "include/generated/utsrelease.h").read_text()
    match = re.search(rf'{name} "([^"]+)"', text)
    if not match:
        raise KitError(f"{name} is not in utsrelease.h")
    return match[1]


def collect(out: Path) -> None:
    start = re.search(r"^([0-9a-f]{16}) \w ukl_text_start$", (OBJECTS / "System.map").read_text(), re.MULTILINE)
    if not start:
        raise KitError("the kernel does not say where the application's code lies")
    config = wanted_config([OBJECTS / ".config"])
    facts = {
        "version": 2,
        "kernel": kernel_value("UTS_RELEASE"),
        "text_start": f"0x{start[1]}",
        "text_mib": int(config["CONFIG_UKL_TEXT_MIB"]),
        "kaslr": config.get("CONFIG_RANDOMIZE_BASE", "n") == "y",
    }
    shutil.copy(OBJECTS / "vmlinux", out / "vmlinux")
    shutil.copy(OBJECTS / "System.map", out / "System.map")
    shutil.copy(OBJECTS / ".config", out / "config")
    collect_boot(out / "boot")
    (out / "kit.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="ukl-kit")
    parser.add_argument("--source", type=Path, required=True, help="the kernel's source, a tar file")
    parser.add_argument("--patches", type=Path, required=True, help="folder of NNNN-*.patch")
    parser.add_argument("--config", type=Path, nargs="+", required=True, help="configuration fragments")
    parser.add_argument("--tree", required=True, help="a name for the objects, of which the next build makes use")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    args = parser.parse_args()
    tree = BUILD / f"objects.{args.tree}"
    try:
        BUILD.mkdir(exist_ok=True)
        prepare_source(args.source, sorted(args.patches.glob("*.patch")))
        take_objects(tree)
        try:
            configure(args.config)
        except KitError:
            OBJECTS.rename(tree)
            raise
        run([*MAKE, f"-j{len(os.sched_getaffinity(0))}", "vmlinux", "bzImage"], SOURCE)
        collect(args.out)
        OBJECTS.rename(tree)
    except KitError as error:
        print(f"ukl-kit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
