"""Build a kernel kit with further patches on top of the series' own.

    override.py --more DIR KIT-ARGUMENT...

Lays the patches of kit.py's ``--patches`` and those of DIR into one folder, DIR's after the others, and runs kit.py
with it. DIR's order is that of its ``series`` (as Debian's and quilt's), else of the names; patches are unified diffs
with one leading folder (``a/``, ``b/``), applied without fuzz. Standard library only; runs in the build container.
Exit status: kit.py's; 1 with one line on stderr that starts with ``ukl-kit:``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

if __package__:
    from uklimg.link import kit
else:  # a script in the container, with kit.py beside it
    import kit  # type: ignore[import-not-found,no-redef]

LAID = Path("/tmp/ukl-patches")


def ordered(folder: Path) -> list[Path]:
    """The folder's patches in the order in which they are applied; KitError when there is none or one is no patch."""
    series = folder / "series"
    if series.is_file():
        lines = (line.partition("#")[0].split() for line in series.read_text().splitlines())
        found = [folder / words[0] for words in lines if words]
    else:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".patch", ".diff"))
    if not found:
        raise kit.KitError(f"there is no patch in {folder.name}")
    for patch in found:
        if not patch.is_file():
            raise kit.KitError(f"{folder.name}/series names {patch.name}, which is not there")
        if not re.search(rb"^\+\+\+ [^\s/]+/", patch.read_bytes(), re.MULTILINE):
            raise kit.KitError(f"{folder.name}/{patch.name} is not a patch with names like a/… and b/…")
    return found


def lay(ours: Path, more: Path, into: Path) -> None:
    """Both folders' patches in ``into``, under names that sort in their order."""
    into.mkdir()
    for patch in sorted(ours.glob("*.patch")):
        shutil.copyfile(patch, into / patch.name)
    for number, patch in enumerate(ordered(more), 1):
        # Ours begin with digits.
        shutil.copyfile(patch, into / f"x{number:04d}-{patch.stem}.patch")


def main() -> int:
    parser = argparse.ArgumentParser(prog="ukl-kit", allow_abbrev=False)
    parser.add_argument("--more", type=Path, required=True)
    parser.add_argument("--patches", type=Path, required=True)
    args, rest = parser.parse_known_args()
    try:
        lay(args.patches, args.more, LAID)
    except (kit.KitError, OSError) as error:
        print(f"ukl-kit: {error}", file=sys.stderr)
        return 1
    sys.argv[1:] = ["--patches", str(LAID), *rest]
    return kit.main()


if __name__ == "__main__":
    sys.exit(main())
