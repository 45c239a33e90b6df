"""Where things are on this machine: the store, the user's configuration, what is remembered about the machine.

In this order: command line, environment, the XDG base directories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from uklimg.errors import Location, UserError
from uklimg.mirror import CONFIG_NAME, read_section

STORE_VARIABLE = "UKLIMG_STORE"
CONFIG_VARIABLE = "UKLIMG_CONFIG"
ENGINE_VARIABLE = "UKLIMG_ENGINE"
DEBUG_VARIABLE = "UKLIMG_DEBUG"
NAME = "uklimg"
ENGINES = ("buildah", "docker")


@dataclass(frozen=True)
class Settings:
    """``store`` is the store's folder, ``config`` the user's uklimg.toml (which need not exist), ``state`` a folder
    for what was found out about this machine and for traceback files. ``engine`` is the command line's or the
    environment's choice of a container engine, "" when neither says anything."""

    store: Path
    config: Path
    state: Path
    engine: str = ""

    def chosen_engine(self) -> str:
        """One of ENGINES, or "" where nothing was chosen: then also the configuration has been asked."""
        if self.engine:
            return self.engine
        value = read_section(self.config, "engine").get("name")
        if value is not None and value not in ENGINES:
            problem = f"[engine] name is {value!r}, not {' or '.join(ENGINES)}"
            raise UserError(problem, location=Location(str(self.config)))
        return str(value or "")


def read_settings(environ: Mapping[str, str], cwd: Path, *, store: str = "", engine: str = "") -> Settings:
    """``store`` and ``engine`` are the values of these options, "" when they were not given; relative paths start at
    ``cwd``."""
    chosen = store or environ.get(STORE_VARIABLE, "")
    if "\0" in chosen:
        raise UserError("the path of the store holds a NUL byte")
    config = environ.get(CONFIG_VARIABLE, "")
    engine = engine or environ.get(ENGINE_VARIABLE, "")
    if engine and engine not in ENGINES:
        raise UserError(f"{ENGINE_VARIABLE} is {engine!r}, not {' or '.join(ENGINES)}")
    return Settings(
        store=cwd / Path(chosen).expanduser() if chosen else platformdirs.user_cache_path(NAME) / "store",
        config=cwd / Path(config).expanduser() if config else platformdirs.user_config_path(NAME) / CONFIG_NAME,
        state=platformdirs.user_state_path(NAME),
        engine=engine,
    )
