"""Move a kernel series' patches to another point release: ``python scripts/move_patches.py [--to VERSION] [SERIES]``.

The sources come from Debian's archive, the newest of the suite unless VERSION (``6.12.113-1``) says which. ``--source
TARBALL --url URL --to VERSION`` takes a tarball that one has, and writes where others find it. The
patches are rebased with git's three-way merge, on the files alone that they touch, and exported again; source.toml
follows. Nothing is written when a patch does not go over: the repository with the conflict stays, to be resolved
there (``git rebase --continue``), and the next call with ``--resume FOLDER`` exports it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomlkit

from uklimg import proc
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.data import Data, find_data
from uklimg.digest import Digest
from uklimg.errors import ToolError, UklimgError, UserError
from uklimg.graph import Blob
from uklimg.lock import LockedFile
from uklimg.patchset import PatchSet, parse_patchset
from uklimg.settings import read_settings

BASE = "debian-trixie"
EXPORT = ("format-patch", "-N", "--no-signature", "--zero-commit", "--full-index", "--quiet")
IDENTITY = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
OLD, NEW, WORK = "old", "new", "work"


def touched(patches: PatchSet) -> list[str]:
    """The files that the patches change or add, sorted."""
    found = set()
    for patch in patches.patches:
        for line in patch.content.decode().splitlines():
            if line.startswith("diff --git a/"):
                found.add(line.split(" ")[2].removeprefix("a/"))
    return sorted(found)


def git(folder: Path, env: Mapping[str, str], *words: str, check: bool = True) -> proc.Completed:
    name, mail = ("user.name=uklimg", "user.email=dev@uklimg.invalid")
    return proc.run(["git", "-C", str(folder), "-c", name, "-c", mail, *words], env={**env, **IDENTITY}, check=check)


def commit_files(folder: Path, env: Mapping[str, str], tarball: Path, files: Sequence[str], branch: str) -> None:
    """A root commit with the ``files`` of a source tarball that it has, on a new branch."""
    git(folder, env, "checkout", "--quiet", "--orphan", branch)
    git(folder, env, "rm", "-r", "--force", "--quiet", "--ignore-unmatch", ".")
    listing = proc.run(["tar", "--list", f"--file={tarball}"], env=env).text.splitlines()
    members = [name for name in listing if name.partition("/")[2] in set(files)]
    proc.run(
        ["tar", "--extract", f"--file={tarball}", f"--directory={folder}", "--strip-components=1", *members], env=env
    )
    git(folder, env, "add", "--all", "--force")
    git(folder, env, "commit", "--quiet", "--allow-empty", f"--message={branch}")
    git(folder, env, "tag", f"{branch}-source")


def rebase(folder: Path, env: Mapping[str, str], patches: PatchSet, old: Path, new: Path) -> None:
    """In the empty ``folder``: a repository whose branch WORK has the patches on the ``new`` source.

    ToolError when one does not go over; the repository is left in the middle of it.
    """
    files = touched(patches)
    git(folder, env, "init", "--quiet")
    commit_files(folder, env, new, files, NEW)
    commit_files(folder, env, old, files, OLD)
    git(folder, env, "checkout", "--quiet", "-b", WORK)
    with tempfile.TemporaryDirectory() as mails:
        for patch in patches.patches:
            (Path(mails) / patch.name).write_bytes(patch.content)
        names = [str(Path(mails) / patch.name) for patch in patches.patches]
        git(folder, env, "am", "--quiet", "--committer-date-is-author-date", *names)
    moved = git(
        folder, env, "rebase", "--quiet", "--committer-date-is-author-date",
        "--onto", f"{NEW}-source", f"{OLD}-source",
        WORK, check=False,
    )  # fmt: skip
    if moved.status != 0:
        conflicts = git(folder, env, "diff", "--name-only", "--diff-filter=U").text.split()
        raise ToolError(
            f"a patch does not go over: {', '.join(conflicts) or 'see git status'}",
            hint=f"resolve it in {folder}, git rebase --continue, then call again with --resume {folder}",
            detail=moved.tail,
        )


def export(folder: Path, env: Mapping[str, str]) -> dict[str, bytes]:
    """The patches of the branch WORK by file name, linted. UserErrors when one breaks the rules."""
    with tempfile.TemporaryDirectory() as out:
        git(folder, env, *EXPORT, f"--output-directory={out}", f"{NEW}-source..{WORK}")
        files = {path.name: path.read_bytes() for path in sorted(Path(out).iterdir())}
    parse_patchset(files)
    return files


def write(series: Path, patches: Mapping[str, bytes], version: str, file: LockedFile, signature: str = "") -> None:
    """Replace the patches and what source.toml says of the source (``signature`` unless ""); comments stay."""
    toml = series / "source.toml"
    document = tomlkit.parse(toml.read_text())
    source = document["source"]
    values = {
        "version": version,
        "file": file.name,
        "size": file.size,
        "sha256": file.digest.hex,
        "urls": [file.origin],
        **({"signature": signature} if signature else {}),
    }
    for key, value in values.items():
        source[key] = value
    source["urls"] = [file.origin]
    folder = series / "patches"
    for path in folder.glob("*.patch"):
        path.unlink()
    for name, content in patches.items():
        (folder / name).write_bytes(content)
    toml.write_text(tomlkit.dumps(document))


def local_file(path: Path, url: str) -> LockedFile:
    """What source.toml says of the tarball at ``path``. UserError when it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = Digest.parse(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    return LockedFile(path.name, digest, path.stat().st_size, url)


def main() -> int:
    parser = argparse.ArgumentParser(prog="move_patches.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("series", nargs="?", default="6.12", help="a folder of kernel/ (6.12)")
    parser.add_argument("--to", metavar="VERSION", default="", help="Debian's version, 6.12.113-1; else the newest")
    parser.add_argument("--source", metavar="TARBALL", type=Path, help="the new source, instead of the archive's")
    parser.add_argument("--url", default="", help="where TARBALL can be fetched: https://… or debian:pool/…")
    parser.add_argument("--resume", metavar="FOLDER", help="export this repository, whose conflicts are resolved")
    args = parser.parse_args()
    if args.source and not (args.url and args.to):
        parser.error("--source needs --url and --to")
    host = Host(os.environ, Path.cwd(), os.getuid(), sys.stdout, sys.stderr, read_settings(os.environ, Path.cwd()))
    try:
        with console("plain", sys.stderr) as sink:
            store = host.store(sink)
            data = Data(find_data())
            kernel = data.kernel(args.series)
            if args.source:
                debian, orig = args.to, local_file(args.source, args.url)
            else:
                with host.resolver(store, sink) as resolver:
                    debian, files = resolver.source(data.base_image(BASE), kernel.definition.name, args.to)
                orig = next(file for file in files if ".orig.tar" in file.name)
            version = debian.partition("-")[0]
            if not version.startswith(f"{args.series}."):
                raise UserError(f"{kernel.definition.name} {version} is not of the series {args.series}")
            folder = Path(args.resume or tempfile.mkdtemp(prefix="uklimg-patches-"))
            if not args.resume:
                fetch = host.fetch(store, sink, offline=False)
                file = kernel.definition.file
                before = Blob(file.name, file.digest, file.size, kernel.definition.urls)
                after = args.source or fetch(orig.blob())
                rebase(folder, host.env, kernel.patches, fetch(before), after)
            patches = export(folder, host.env)
            signature = "none: a tarball given by hand" if args.source else ""
            write(find_data() / "kernel" / args.series, patches, version, orig, signature)
            shutil.rmtree(folder)
    except UklimgError as error:
        sys.stderr.write(f"{error.detail}\n" if error.detail else "")
        sys.stderr.write(f"{error.line()}\n")
        return int(error.exit_code)
    print(f"{len(patches)} patches of {args.series} are for {version} now: build it, and run the tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
