"""Make a bzImage of a vmlinux that has an application, with a kernel kit: ``bzimage.py --kit K --vmlinux V --out F``.

The kernel's own objects and commands do the work (arch/x86/boot/Makefile); the kit brought them. Standard library
only; runs in the build container.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


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
        done = subprocess.run(["sh", "bzimage.sh"], cwd=tree, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            print(f"ukl-bzimage: failed with status {done.returncode}", file=sys.stderr)
            return 1
        shutil.copyfile(boot / "bzImage", args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
