"""Make a bzImage of a vmlinux that has an application, with a kernel kit: ``bzimage.py --kit K --vmlinux V --out F``.

The kernel's own objects and commands do the work (arch/x86/boot/Makefile); the kit brought them. Standard library
only; runs in the build container.

When the bzImage boots, vmlinux is unpacked, its segments are moved to their places from where they were unpacked, and
only then the kernel's relocations are read, which lie behind vmlinux. The application comes after the kernel's bss,
which takes room in memory and none in the file: it must not be moved over the relocations, so vmlinux is made as
long as what it becomes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.link.elf import PT_LOAD, Elf
else:  # in the container there is this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from elf import PT_LOAD, Elf


def extent(vmlinux: bytes) -> int:
    """Bytes from the first that is loaded to the last one that the file has, where they are in memory."""
    loads = [s for s in Elf(vmlinux).segments() if s.type == PT_LOAD]
    return max(s.paddr + s.filesz for s in loads) - min(s.paddr for s in loads)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ukl-bzimage")
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--vmlinux", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "boot"
        shutil.copytree(args.kit / "boot", tree)
        boot = tree / "arch/x86/boot"
        # Kbuild strips vmlinux here; ours has neither symbols nor sections.
        shutil.copyfile(args.vmlinux, boot / "compressed/vmlinux.bin")
        with (boot / "compressed/vmlinux.bin").open("r+b") as file:
            kernel = file.read()
            file.truncate(max(len(kernel), extent(kernel)))
        done = subprocess.run(["sh", "bzimage.sh"], cwd=tree, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            print(f"ukl-bzimage: failed with status {done.returncode}", file=sys.stderr)
            return 1
        shutil.copyfile(boot / "bzImage", args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
