"""What RUN --mount shows a command, as folders and files of this machine that an engine only has to bind.

Caches lie below a folder of the store: ``<sha256 of the id>.<number>/`` with a ``.lock`` beside each, which is held
as long as a step uses it. Everything else is made for one step, in its own temporary folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event

from uklimg import locks
from uklimg.digest import Digest
from uklimg.engine.base import Mount
from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.graph import RunMount

_VARIABLES = "/run/uklimg-secrets"
_PRIVATE = 64  # caches of one id that steps use at once without sharing
# The value as it is, with the newlines at its end; then the command.
_EXPORT = """\
while [ "$1" != -- ]; do
    value=$(cat "$2" && printf x) || exit 1
    export "$1=${value%x}"
    shift 2
done
unset value; shift
exec "$@"
"""


@dataclass(frozen=True)
class Prepared:
    """``variables`` are (name, file in the container) of secrets that the environment gets."""

    mounts: tuple[Mount, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    def argv(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The command to run in place of ``argv``: no secret stands in it."""
        if not self.variables:
            return tuple(argv)
        words = [word for variable in self.variables for word in variable]
        return ("/bin/sh", "-c", _EXPORT, "sh", *words, "--", *argv)


@contextmanager
def prepared(
    wanted: Sequence[RunMount],
    inputs: Mapping[str, Path],
    work: Path,
    caches: Path,
    secrets: Mapping[str, bytes],
    cancel: Event | None = None,
    *,
    again: bool = False,
) -> Iterator[Prepared]:
    """Make what a step's mounts show; caches are held until the end. ``work``: a folder that goes with the step.
    ``again``: caches of ours are empty. Setting ``cancel`` ends the waiting for a cache as KeyboardInterrupt."""
    mounts: list[Mount] = []
    variables: list[tuple[str, str]] = []
    with ExitStack() as held:
        empty = {number for number, mount in enumerate(wanted) if again and mount.ours}
        kept = [mount for n, mount in enumerate(wanted) if mount.kind == "cache" and n not in empty]
        folders = _caches(kept, caches, held, cancel)
        for number, mount in enumerate(wanted):
            if mount.kind == "secret" and mount.id not in secrets:
                continue  # as with Docker; one that is required was looked for when the build was planned
            path = work / f"mount-{number}"
            if mount.kind == "bind":
                path = inside(inputs[mount.input], mount.path)
            elif mount.kind == "cache" and number not in empty:
                path = folders.pop(0)
            elif mount.kind == "secret":
                _write_secret(path, secrets[mount.id], mount)
            else:
                path.mkdir()
                _give(path, mount)
            target = mount.target or f"{_VARIABLES}/{number}"
            mounts.append(Mount(path, target, read_only=mount.read_only))
            if mount.variable:
                variables.append((mount.variable, target))
        yield Prepared(tuple(sorted(mounts, key=lambda mount: mount.target)), tuple(variables))


def inside(root: Path, path: str) -> Path:
    """The file at ``path`` of the tree ``root``, every symbolic link followed as if ``root`` were "/".

    The engine must not follow them: they would lead into this machine's file system.
    """
    todo = [part for part in PurePosixPath(path).parts if part not in ("/", ".")][::-1]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            del done[-1:]
            continue
        here = root.joinpath(*done, part)
        if here.is_symlink():
            links += 1
            if links > 40:
                raise UserError(f"too many symbolic links in {path!r}")
            target = PurePosixPath(here.readlink())
            if target.is_absolute():
                done = []
            todo += [piece for piece in target.parts if piece != "/"][::-1]
            continue
        if not here.exists():
            raise UserError(f"there is no {path!r} to mount")
        done.append(part)
    return root.joinpath(*done)


def _caches(wanted: Sequence[RunMount], caches: Path, held: ExitStack, cancel: Event | None) -> list[Path]:
    """The folders of the caches, in that order. All take the locks in one order, so that no
    two wait for each other."""
    if wanted:
        caches.mkdir(parents=True, exist_ok=True)
    alone = {mount.id for mount in wanted if mount.sharing == "locked"}
    found: dict[str, Path] = {}
    for name in sorted({mount.id for mount in wanted if mount.sharing != "private"}):
        path = _cache_path(caches, name, 0)
        held.enter_context(locks.locked(_lock_of(path), shared=name not in alone, cancel=cancel))
        found[name] = path
    result: list[Path] = []
    for mount in wanted:
        path = _free(caches, mount, held) if mount.sharing == "private" else found[mount.id]
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            _give(path, mount)
        result.append(path)
    return result


def _free(caches: Path, mount: RunMount, held: ExitStack) -> Path:
    """A folder of the id that nobody uses."""
    for number in range(_PRIVATE):
        path = _cache_path(caches, mount.id, number)
        if held.enter_context(locks.try_locked(_lock_of(path))):
            return path
    raise ToolError(f"{_PRIVATE} steps use the private cache {mount.id!r} at once", exit_code=ExitCode.HOST)


def _cache_path(caches: Path, name: str, number: int) -> Path:
    return caches / f"{Digest.of(name.encode()).hex}.{number}"


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _write_secret(path: Path, content: bytes, mount: RunMount) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    _give(path, mount)


def _give(path: Path, mount: RunMount) -> None:
    try:
        if (mount.uid, mount.gid) != (0, 0):
            os.chown(path, mount.uid, mount.gid)
        path.chmod(mount.mode)
    except PermissionError as error:
        message = f"only root can give the mount at {mount.target} to user {mount.uid}, group {mount.gid}"
        raise UserError(message, hint="leave out uid= and gid=") from error
