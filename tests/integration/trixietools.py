"""Programs of Debian 13 that scripts/trixie.sh unpacked for the tests: cosign, oras, skopeo and others."""

from __future__ import annotations

import os
from pathlib import Path


def trixie(program: str) -> str:
    """The path of one."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(home) / "uklimg-trixie/bin" / program
    assert path.exists(), "run scripts/trixie.sh"
    return str(path)
