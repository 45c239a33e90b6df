"""Makes a base image's file system from .deb files that are already here: offline, and to the same bits every time.

mmdebstrap installs from a local repository of exactly the locked packages, so nothing is left to resolve. What
would differ between runs or hosts is then taken out: device nodes, the host's name and resolver, logs, caches, the
clock in compiled Python files.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from debian.debfile import DebFile

from uklimg.debian import Run
from uklimg.digest import JSON, Digest
from uklimg.errors import CorruptError, ExitCode, InternalError, ToolError
from uklimg.proc import find, pasteable
from uklimg.store.trees import walk

# Emptied: what tools leave there speaks of this run or this host.
_EMPTY_FOLDERS = (
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "var/cache/apt",
    "var/cache/ldconfig",
    "var/lib/apt",
    "var/log",
    "var/tmp",
)
# mmdebstrap copies the first two from the host.
_REMOVED = (
    "etc/hostname",
    "etc/resolv.conf",
    "etc/apt/sources.list",
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/statoverride-old",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/triggers/Lock",
)


@dataclass(frozen=True)
class BaseParams:
    """The parameters of the step (``uklimg.recipes.base_image``), typed."""

    suite: str
    architecture: str
    exclude: tuple[str, ...]
    include: tuple[str, ...]

    @classmethod
    def of(cls, params: JSON) -> BaseParams:
        if not isinstance(params, Mapping):
            raise InternalError("base-image wants parameters")
        return cls(
            suite=str(params["suite"]),
            architecture=str(params["architecture"]),
            exclude=_texts(params["exclude"]),
            include=_texts(params["include"]),
        )


def _texts(value: JSON) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InternalError("base-image wants a list")
    return tuple(str(item) for item in value)


def build_base_image(
    params: BaseParams,
    debs: Iterable[Path],
    out: Path,
    work: Path,
    *,
    run: Run,
    env: Mapping[str, str],
    epoch: int,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Make the file system of the packages ``debs``, whose digests are verified already, as the tar file ``out``.

    ``work`` is an empty folder for some 600 MB of temporary files, gone afterwards; ``epoch`` is SOURCE_DATE_EPOCH in
    seconds and the date of all files; ``env`` the host environment for tools; ``on_line`` gets mmdebstrap's output.
    Needs root; ``basechild`` is for others. ToolError HOST when mmdebstrap is missing, STEP when it fails;
    CorruptError when a file is no package.
    """
    if os.geteuid() != 0:
        raise InternalError("a base image made without being root")
    repository, temporary, root = work / "repository", work / "tmp", work / "root"
    names = write_repository(sorted(debs), repository, params)
    temporary.mkdir()
    temporary.chmod(0o1777)
    argv = mmdebstrap_cmd(params, names, repository.absolute(), root.absolute())
    tool_env = {**env, "SOURCE_DATE_EPOCH": str(epoch), "TMPDIR": str(temporary.absolute()), "LC_ALL": "C.UTF-8"}
    find("mmdebstrap", tool_env)
    done = run(argv, env=tool_env, on_line=on_line, check=False)
    if done.status != 0:
        detail = f"$ {pasteable(argv, tool_env)}\n{done.tail}"
        raise ToolError("mmdebstrap could not make the base image", exit_code=ExitCode.STEP, detail=detail)
    scrub(root)
    pack_rootfs(root, out, epoch)
    shutil.rmtree(work)


def mmdebstrap_cmd(params: BaseParams, names: Sequence[str], repository: Path, out: Path) -> tuple[str, ...]:
    """mmdebstrap in network and process namespaces of its own: maintainer scripts run outside of any container.

    When we are killed the whole process namespace goes too. A crash leaves no half-made image behind, so dpkg need
    not wait for the disk after each file.
    """
    patterns = ["--dpkgopt=force-unsafe-io"]
    patterns += [f"--dpkgopt=path-exclude={pattern}" for pattern in params.exclude]
    patterns += [f"--dpkgopt=path-include={pattern}" for pattern in params.include]
    return (
        "unshare",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
        "mmdebstrap",
        "--mode=root",
        "--variant=essential",
        "--format=directory",
        f"--architectures={params.architecture}",
        f"--include={','.join(names)}",
        *patterns,
        params.suite,
        str(out),
        f"deb [trusted=yes] copy:{repository} ./",
    )


def write_repository(debs: Sequence[Path], folder: Path, params: BaseParams) -> tuple[str, ...]:
    """A flat apt repository of ``debs`` in ``folder``; returns the packages' names, sorted."""
    folder.mkdir()
    stanzas: dict[str, str] = {}
    for deb in debs:
        try:
            control = DebFile(str(deb)).debcontrol()
        except Exception as error:  # the library raises whatever its tar and compression modules do
            raise CorruptError(f"{deb.name} is not a Debian package: {error}") from error
        name = str(control["Package"])
        if name in stanzas:
            raise InternalError(f"two packages {name} in one base image")
        with deb.open("rb") as stream:
            digest = Digest.of_stream(stream)
        control["Filename"] = f"./{name}.deb"
        control["Size"] = str(deb.stat().st_size)
        control["SHA256"] = digest.hex
        stanzas[name] = control.dump()
        (folder / f"{name}.deb").symlink_to(deb.absolute())
    packages = "\n".join(stanzas[name] for name in sorted(stanzas)).encode()
    (folder / "Packages").write_bytes(packages)
    (folder / "Release").write_text(release_file(params, packages), encoding="utf-8")
    return tuple(sorted(stanzas))


def release_file(params: BaseParams, packages: bytes) -> str:
    """mmdebstrap picks essential packages by the suite that a Release file names."""
    return (
        f"Suite: {params.suite}\nCodename: {params.suite}\nArchitectures: {params.architecture}\n"
        "Date: Wed, 01 Jan 2025 00:00:00 UTC\n"
        f"SHA256:\n {Digest.of(packages).hex} {len(packages)} Packages\n"
    )


def scrub(root: Path) -> None:
    """Take out of a fresh file system what depends on the run or the host."""
    for name in _EMPTY_FOLDERS:
        folder = root / name
        if folder.is_dir() and not folder.is_symlink():
            for entry in folder.iterdir():
                _remove(entry)
    for name in _REMOVED:
        _remove(root / name)
    # apt and dpkg want these, and tools that log do not make the folder first.
    for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/machine-id").write_bytes(b"")
    for path in sorted(root.rglob("*.pyc")):
        if path.is_file() and not path.is_symlink():
            freeze_pyc(path)


def pack_rootfs(root: Path, out: Path, epoch: int) -> None:
    """Write the file system ``root`` as the tar ``out``: names sorted, owners and modes kept, one date for all.

    ToolError STEP for a device, pipe or socket. Extended attributes are left out; build steps run as root.
    """
    seen: dict[tuple[int, int], str] = {}
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as archive:
        for name, status in walk(root):
            info = _member(root, name, status, seen)
            info.mtime = epoch
            if info.isreg():
                with (root / name).open("rb") as content:
                    archive.addfile(info, content)
            else:
                archive.addfile(info)


def _member(root: Path, name: str, status: os.stat_result, seen: dict[tuple[int, int], str]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    # Of several names of one file the first in order is the file.
    first = seen.setdefault((status.st_dev, status.st_ino), name)
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type = tarfile.SYMTYPE
        info.linkname = str((root / name).readlink())
    elif not stat.S_ISREG(status.st_mode):
        raise ToolError(f"the base image has a device, pipe or socket {name}", exit_code=ExitCode.STEP)
    elif first != name:
        info.type = tarfile.LNKTYPE
        info.linkname = first
    else:
        info.size = status.st_size
    return info


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def freeze_pyc(path: Path) -> None:
    """Make a compiled Python file valid whatever the time of its source (PEP 552, unchecked hash).

    Layers store one date for all files; a file compiled against the package's own time would be compiled again,
    and written again, by whatever build step imports it first.
    """
    content = path.read_bytes()
    if len(content) < 16:
        raise CorruptError(f"{path} is not a compiled Python file")
    if content[4:8] == b"\0\0\0\0":
        frozen = content[:4] + b"\1\0\0\0" + bytes.fromhex(Digest.of(content[16:]).hex)[:8] + content[16:]
        path.write_bytes(frozen)
