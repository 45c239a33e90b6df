"""A commit of a git repository as one tar file, the same bytes whichever git made it.

git fetches (which checks that every object has the name that the commit gives it) and hands out trees and blobs; the
tar is written here, because the output of `git archive` depends on git's version and on attributes in the tree. Files
are exactly what was committed: no line ends are changed, no keywords or filters applied, nothing left out. Submodules
are empty folders, as in an archive that a hosting site makes.

No configuration of the user or the host is read, no hook runs, nobody is asked for a password, and no protocol but
http and https is spoken.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from urllib.parse import unquote, urlsplit

from uklimg import proc
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.events import Note, Sink, discard
from uklimg.oci import EPOCH
from uklimg.store import BlobWriter
from uklimg.store.trees import check_name

PREFIX = "git+"
COMMIT = re.compile(r"[0-9a-f]{40}")
_MODES = {"100644": 0o644, "100664": 0o644, "100755": 0o755}
_ABBREVIATED = re.compile(r"[0-9a-f]{7,39}")


def origin(url: str, commit: str) -> str:
    """How a lock writes where a tar comes from."""
    return f"{PREFIX}{url}#{commit}"


def split_origin(text: str) -> tuple[str, str]:
    """URL and commit of an origin. UserError for what ``origin`` did not write."""
    url, _, commit = text.removeprefix(PREFIX).partition("#")
    if not text.startswith(PREFIX) or not url or not COMMIT.fullmatch(commit):
        raise UserError(
            f"{text!r} is not a commit of a git repository", hint="correct the lock: uklimg lock --update"
        )
    return url, commit


def tar_name(url: str, commit: str) -> str:
    """The file's name; without ``.tar`` that of the folder in it."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2])
    return f"{name.removesuffix('.git').strip('-.') or 'source'}-{commit[:12]}.tar"


def git_env(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment for git: ``environ`` (``proc.host_env``: paths, proxies) and nothing of anybody's settings."""
    env = {
        **environ,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_ALLOW_PROTOCOL": "http:https",
        "LC_ALL": "C.UTF-8",
    }
    if "SSL_CERT_FILE" in environ:
        env["GIT_SSL_CAINFO"] = environ["SSL_CERT_FILE"]
    return env


def init_cmd(repository: Path) -> list[str]:
    return ["git", "init", "--quiet", "--bare", "--template=", str(repository)]


def refs_cmd(url: str) -> list[str]:
    return ["git", "ls-remote", "--quiet", "--", url]


def fetch_cmd(repository: Path, url: str, *what: str, shallow: bool) -> list[str]:
    """``what``: commits or refspecs."""
    depth = ["--depth=1"] if shallow else []
    return ["git", f"--git-dir={repository}", "fetch", "--quiet", "--no-tags", *depth, "--", url, *what]


def tree_cmd(repository: Path, commit: str) -> list[str]:
    return ["git", f"--git-dir={repository}", "ls-tree", "-r", "-z", "--full-tree", commit]


def blobs_cmd(repository: Path) -> list[str]:
    return ["git", f"--git-dir={repository}", "cat-file", "--batch"]


@dataclass(frozen=True)
class _Entry:
    path: str
    mode: str
    object: str


class Git:
    """Git with a repository of its own below ``folder``, which is empty and private to this object."""

    def __init__(self, folder: Path, environ: Mapping[str, str], sink: Sink = discard) -> None:
        self._folder = folder
        self._repository = folder / "repository"
        self._env = git_env(environ, folder)
        self._sink = sink

    def commit_of(self, url: str, name: str) -> str:
        """The commit that a tag, a branch or a whole commit id means now; a tag goes before a branch.

        ToolError NETWORK, UserError NOT_FOUND.
        """
        if COMMIT.fullmatch(name):
            return name
        proc.find("git", self._env)
        done = proc.run(refs_cmd(url), env=self._env, check=False)
        if done.status != 0:
            raise _failed(url, done.tail)
        refs: dict[str, str] = {}
        for line in done.text.splitlines():
            commit, _, ref = line.partition("\t")
            refs[ref] = commit
        # A tag that is an object of its own is listed again with the commit that it is about.
        for ref in (f"refs/tags/{name}^{{}}", f"refs/tags/{name}", f"refs/heads/{name}", name):
            if COMMIT.fullmatch(refs.get(ref, "")):
                return refs[ref]
        hint = "a tag, a branch, or a commit's 40 digits"
        if _ABBREVIATED.fullmatch(name):
            hint = "a commit is written with all of its 40 digits"
        raise UserError(f"{_shown(url)} has no tag or branch {name!r}", hint=hint, exit_code=ExitCode.NOT_FOUND)

    def export(self, url: str, commit: str, out: BlobWriter) -> None:
        """Write the commit's tar to ``out``. ToolError NETWORK, NOT_FOUND; CorruptError for a tree that is none."""
        proc.find("git", self._env)
        self._fetch(url, commit)
        done = proc.run(tree_cmd(self._repository, commit), env=self._env)
        entries, submodules = _parse_tree(done.stdout)
        for path in submodules:
            text = f"the submodule {path} of {_shown(url)} is not fetched; its folder is empty"
            self._sink(Note(f"{text} (a SOURCE of its own can fill it)", warning=True))
        contents = self._folder / "blobs"
        objects = "".join(f"{entry.object}\n" for entry in entries).encode()
        with contents.open("wb") as file:
            proc.run(blobs_cmd(self._repository), env=self._env, stdin=objects, stdout=file)
        with contents.open("rb") as file:
            write_tar(tar_name(url, commit).removesuffix(".tar"), entries, submodules, file, out)

    def _fetch(self, url: str, commit: str) -> None:
        """That commit alone, or where the server does not give out single commits, all branches and tags."""
        proc.run(init_cmd(self._repository), env=self._env)
        single = proc.run(fetch_cmd(self._repository, url, commit, shallow=True), env=self._env, check=False)
        if single.status != 0:
            refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            done = proc.run(fetch_cmd(self._repository, url, *refs, shallow=False), env=self._env, check=False)
            if done.status != 0:
                raise _failed(url, done.tail)
        kind = proc.run(
            ["git", f"--git-dir={self._repository}", "cat-file", "-t", commit], env=self._env, check=False
        )
        if kind.status != 0 or kind.text != "commit":
            raise ToolError(
                f"{_shown(url)} has no commit {commit}",
                hint="its branch may have been rewritten: update the lock, or vendor the source",
                exit_code=ExitCode.NOT_FOUND,
            )


def _parse_tree(data: bytes) -> tuple[list[_Entry], list[str]]:
    """Files and symbolic links, and the paths of submodules."""
    entries: list[_Entry] = []
    submodules: list[str] = []
    for line in data.decode("utf-8", "surrogateescape").split("\0"):
        if not line:
            continue
        about, _, path = line.partition("\t")
        mode, kind, name = about.split()
        if check_name(path, CorruptError) != path:
            raise CorruptError(f"the commit has the odd name {path!r}")
        if kind == "commit":
            submodules.append(path)
        elif kind == "blob" and (mode in _MODES or mode == "120000"):
            entries.append(_Entry(path, mode, name))
        else:
            raise CorruptError(f"{path!r} of the commit is a {kind} with mode {mode}")
    return entries, submodules


def write_tar(
    top: str, entries: Sequence[_Entry], submodules: Sequence[str], contents: IO[bytes], out: BlobWriter
) -> None:
    """The tar: a folder ``top``, in it the entries in git's order, each after its folders. ``contents`` is what `git
    cat-file --batch` says of the entries' objects, in the same order."""
    made: set[str] = set()
    with tarfile.open(
        fileobj=cast(IO[bytes], _Counted(out)),
        mode="w",
        format=tarfile.PAX_FORMAT,
        encoding="utf-8",
        errors="surrogateescape",
    ) as archive:

        def folder(path: str) -> None:
            parts = path.split("/") if path else []
            for depth in range(len(parts) + 1):
                name = "/".join([top, *parts[:depth]])
                if name not in made:
                    made.add(name)
                    archive.addfile(_info(name, tarfile.DIRTYPE, 0o755))

        folder("")
        for entry in entries:
            size = _header(contents, entry)
            folder(entry.path.rpartition("/")[0])
            if entry.mode == "120000":
                info = _info(f"{top}/{entry.path}", tarfile.SYMTYPE, 0o777)
                info.linkname = contents.read(size).decode("utf-8", "surrogateescape")
                archive.addfile(info)
            else:
                info = _info(f"{top}/{entry.path}", tarfile.REGTYPE, _MODES[entry.mode])
                info.size = size
                archive.addfile(info, contents)
            if contents.read(1) != b"\n":
                raise CorruptError(f"git gives more of {entry.path} than it says")
        for path in submodules:
            folder(path)


def _header(contents: IO[bytes], entry: _Entry) -> int:
    """The size of the next object, which must be the entry's."""
    words = contents.readline().decode("ascii", "replace").split()
    if len(words) != 3 or words[:2] != [entry.object, "blob"] or not words[2].isdecimal():
        raise CorruptError(f"git does not give the content of {entry.path}: {' '.join(words)}")
    return int(words[2])


def _info(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, EPOCH
    return info


class _Counted:
    """The two methods that tarfile wants of a file it writes."""

    def __init__(self, out: BlobWriter) -> None:
        self._out = out

    def write(self, data: bytes) -> int:
        return self._out.write(data)

    def tell(self) -> int:
        return self._out.size


def _shown(url: str) -> str:
    """The URL without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _failed(url: str, tail: str) -> ToolError:
    lines = [line for line in tail.splitlines() if line.strip()] or ["git says nothing"]
    reason = re.sub(r"://[^/@\s]+@", "://…@", lines[0].removeprefix("fatal: "))
    return ToolError(
        f"cannot fetch from {_shown(url)}: {reason}",
        hint="check the address; repositories that ask for a password are not fetched",
        exit_code=ExitCode.NETWORK,
    )
