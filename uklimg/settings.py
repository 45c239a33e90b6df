"""Where things are on this machine: the store, the user's configuration, what is remembered about the machine.

In this order: command line, environment, the XDG base directories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from uklimg.errors import UserError
from uklimg.mirror import CONFIG_NAME

STORE_VARIABLE = "UKLIMG_STORE"
CONFIG_VARIABLE = "UKLIMG_CONFIG"
DEBUG_VARIABLE = "UKLIMG_DEBUG"
NAME = "uklimg"


@dataclass(frozen=True)
class Settings:
    """``store`` is the store's folder, ``config`` the user's uklimg.toml (which need not exist), ``state`` a folder
    for what was found out about this machine and for traceback files."""

    store: Path
    config: Path
    state: Path


def read_settings(environ: Mapping[str, str], cwd: Path, *, store: str = "") -> Settings:
    """``store`` is --store's value, "" when it was not given; relative paths start at ``cwd``."""
    chosen = store or environ.get(STORE_VARIABLE, "")
    if "\0" in chosen:
        raise UserError("the path of the store holds a NUL byte")
    config = environ.get(CONFIG_VARIABLE, "")
    return Settings(
        store=cwd / Path(chosen).expanduser() if chosen else platformdirs.user_cache_path(NAME) / "store",
        config=cwd / Path(config).expanduser() if config else platformdirs.user_config_path(NAME) / CONFIG_NAME,
        state=platformdirs.user_state_path(NAME),
    )
