"""The folder of kept objects: ``<build id>.o`` with ``<build id>.json``, or ``<build id>.error``.

Keyed by the build ID of the executable that the same link made, so that a program that was moved, copied or stripped
still leads to its object. Writers never meet half a file: everything is written under a temporary name and renamed,
the .json after the .o. Nothing in the files depends on time or chance.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path("/var/lib/ukl/objects")
VARIABLE = "UKL_OBJECTS"  # names another folder
VERSION = 1


def folder() -> Path:
    return Path(os.environ.get(VARIABLE) or FOLDER)


def ensure(path: Path) -> None:
    """Make the folder, writable for every user of the container, as /tmp is. Raises OSError."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o1777)


def write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.rename(path)


def keep(path: Path, build_id: str, relocatable: Path, facts: bytes) -> None:
    """Move ``relocatable`` (a temporary file in ``path``) to its place, with its facts (JSON)."""
    relocatable.chmod(0o644)
    relocatable.rename(path / f"{build_id}.o")
    write(path / f"{build_id}.json", facts)
    (path / f"{build_id}.error").unlink(missing_ok=True)


def keep_error(path: Path, build_id: str, reason: str) -> None:
    """Record why there is no object. An object that the same program has from another link stays."""
    if not (path / f"{build_id}.json").exists():
        write(path / f"{build_id}.error", f"{reason.rstrip()}\n".encode(errors="surrogateescape"))
