"""Unpack a source as a fresh writable tree, inside a container. Standard library, tar, patch and dpkg-source only.

    source.py --from PATH --dest DIR [--strip N] [--patches DIR]

PATH is a .dsc (unpacked with Debian's patches, as ``dpkg-source -x`` does; the files it names lie beside it), a
tar or zip archive, or a folder. Exit status: 0; 1 with one line on stderr that starts with ``uklimg-source:``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath


class SourceError(Exception):
    """One line for the user."""


def run(*argv: str, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SourceError(f"{argv[0]} failed with status {done.returncode}")


def unpack(path: Path, into: Path, strip: int | None) -> None:
    """Make the folder ``into`` of the archive or folder ``path``."""
    if path.is_dir():
        shutil.copytree(path, into, symlinks=True)
    elif path.suffix == ".dsc":
        # Signature and checksums: the lock has the digest of every file, and they were compared before.
        run("dpkg-source", "--no-check", "--extract", str(path), str(into))
    elif zipfile.is_zipfile(path):
        into.mkdir()
        unzip(path, into, strip)
    elif tarfile.is_tarfile(path):
        into.mkdir()
        depth = strip if strip is not None else suggested_strip(tar_names(path))
        run("tar", "--extract", "--no-same-owner", f"--file={path}", f"--strip-components={depth}", cwd=into)
    else:
        raise SourceError(f"{path.name} is neither a Debian source package nor an archive nor a folder")


def tar_names(path: Path) -> list[str]:
    with tarfile.open(path, "r:*") as archive:
        return [info.name if not info.isdir() else f"{info.name}/" for info in archive]


def suggested_strip(names: list[str]) -> int:
    """1 when everything lies in one folder, as in an upstream's release, else 0."""
    paths = [PurePosixPath(name) for name in names if PurePosixPath(name).parts and name != "pax_global_header"]
    tops = {path.parts[0] for path in paths}
    flat = any(len(PurePosixPath(name).parts) == 1 and not name.endswith("/") for name in names)
    return 1 if len(tops) == 1 and not flat else 0


def unzip(path: Path, into: Path, strip: int | None) -> None:
    with zipfile.ZipFile(path) as archive:
        depth = strip if strip is not None else suggested_strip(archive.namelist())
        for info in archive.infolist():
            parts = PurePosixPath(info.filename).parts[depth:]
            if not parts or info.filename.startswith("/") or ".." in parts:
                continue
            target = into.joinpath(*parts)
            if info.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer)
            target.chmod((info.external_attr >> 16) & 0o777 or 0o644)


def apply_patches(folder: Path, tree: Path) -> None:
    """The folder's patches in the order of its ``series``, or else of their names; no fuzz."""
    series = folder / "series"
    if series.is_file():
        lines = (line.partition("#")[0].split() for line in series.read_text().splitlines())
        patches = [folder / words[0] for words in lines if words]
    else:
        patches = sorted(path for path in folder.iterdir() if path.suffix in (".patch", ".diff"))
    if not patches:
        raise SourceError(f"there is no patch in {folder.name}")
    for patch in patches:
        print(f"applying {patch.name}", flush=True)
        run("patch", "--strip=1", "--fuzz=0", f"--input={patch}", cwd=tree)


def settle(tree: Path, dest: Path) -> None:
    """Move the tree to its place; into a folder that is there already, its contents."""
    if not dest.exists():
        dest.parent.mkdir(parents=True, exist_ok=True)
        tree.rename(dest)
        return
    shutil.copytree(tree, dest, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(tree)


def main() -> int:
    parser = argparse.ArgumentParser(prog="uklimg-source")
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--dest", type=Path, required=True)
    parser.add_argument("--strip", type=int)
    parser.add_argument("--patches", type=Path)
    args = parser.parse_args()
    # On the root file system: the tree is renamed to its place, and whatever is left over would be seen.
    work = Path("/.ukl-source")
    work.mkdir()
    try:
        tree = work / "tree"
        unpack(args.source, tree, args.strip)
        if args.patches:
            apply_patches(args.patches, tree)
        tree.chmod(0o755)
        settle(tree, args.dest)
    except (SourceError, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        print(f"uklimg-source: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
