"""Build the plain-Linux twin of a kernel kit: the same source and configuration, with UKL off.

    twin.py [--more DIR] KIT-ARGUMENT...

Takes the arguments of kit.py, and ``--more`` as override.py does. The source is patched as for UKL, so that the two
share its tree; the patches change no code when CONFIG_UKL is off. Options that begin with UKL are left out of the
fragments. Makes vmlinux (as it boots, without symbols), vmlinux.debug, bzImage, System.map and config. Standard
library only; runs in the build container. Exit status: 0; 1 with one line on stderr that starts with ``ukl-kit:``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

if __package__:
    from uklimg.link import kit, override
else:  # a script in the container, with the others beside it
    import kit  # type: ignore[import-not-found,no-redef]
    import override  # type: ignore[import-not-found,no-redef]

OWN = re.compile(r"(?:# )?CONFIG_UKL(?:_\w+)?(?:=| is not set)")
# As Kbuild makes the vmlinux that goes into a bzImage (arch/x86/boot/compressed/Makefile).
STRIP = ("objcopy", "-R", ".comment", "-S")


def without_ukl(fragments: list[Path], folder: Path) -> list[Path]:
    """The fragments without lines about UKL in ``folder``, in their order, and one that switches it off."""
    found = []
    for number, fragment in enumerate(fragments):
        lines = fragment.read_text().splitlines()
        kept = [line for line in lines if not OWN.match(line.strip())]
        found.append(folder / f"{number:02d}-{fragment.name}")
        found[-1].write_text("\n".join(kept) + "\n")
    found.append(folder / "99-linux.config")
    found[-1].write_text("# CONFIG_UKL is not set\n")
    return found


def collect(out: Path) -> None:
    """What boots, and what debuggers want."""
    for name in ("vmlinux", "System.map", ".config"):
        shutil.copy(kit.OBJECTS / name, out / {"vmlinux": "vmlinux.debug", ".config": "config"}.get(name, name))
    shutil.copy(kit.OBJECTS / kit.BOOT / "bzImage", out / "bzImage")
    kit.run([*STRIP, "vmlinux.debug", "vmlinux"], out)


def build(args: argparse.Namespace, patches: list[Path]) -> None:
    tree = kit.BUILD / f"objects.{args.tree}"
    kit.BUILD.mkdir(exist_ok=True)
    kit.prepare_source(args.source, patches)
    kit.take_objects(tree)
    with tempfile.TemporaryDirectory() as folder:
        try:
            kit.configure(without_ukl(args.config, Path(folder)))
        except kit.KitError:
            kit.OBJECTS.rename(tree)
            raise
    kit.run([*kit.MAKE, f"-j{len(os.sched_getaffinity(0))}", "vmlinux", "bzImage"], kit.SOURCE)
    collect(args.out)
    kit.OBJECTS.rename(tree)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ukl-kit", allow_abbrev=False)
    parser.add_argument("--more", type=Path, help="a folder of further patches")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--patches", type=Path, required=True)
    parser.add_argument("--config", type=Path, nargs="+", required=True)
    parser.add_argument("--tree", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        if args.more:
            override.lay(args.patches, args.more, override.LAID)
        folder = override.LAID if args.more else args.patches
        build(args, sorted(folder.glob("*.patch")))
    except (kit.KitError, OSError) as error:
        print(f"ukl-kit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
