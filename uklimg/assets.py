"""Reads the files of the package that build steps use: PID 1's source, and scripts that run inside containers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uklimg.errors import ToolError
from uklimg.plan import Assets
from uklimg.recipes import init, toolchain

_PACKAGE = Path(__file__).resolve().parent
_SUFFIXES = (".py", ".lds", ".s")


def read_assets(package: Path = _PACKAGE) -> Assets:
    """ToolError HOST when the installation lacks any."""
    try:
        wrapper = {
            name: (package / "toolchain" / name).read_bytes() for name in (*toolchain.MODULES, toolchain.HEADER)
        }
        return Assets(
            {name: (package / init.FOLDER / name).read_bytes() for name in init.SOURCES},
            wrapper,
            _folder(package, "link"),
            _folder(package, "inside"),
        )
    except OSError as error:
        raise ToolError(f"cannot read {error.filename}: {error.strerror}", hint="install uklimg again") from error


def _folder(package: Path, name: str) -> Mapping[str, bytes]:
    files = (path for path in sorted((package / name).iterdir()) if path.suffix in _SUFFIXES)
    return {path.name: path.read_bytes() for path in files}
