"""The application's debug file of a build: its ELF file with everything, as the link left it in the store."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from uklimg import proc
from uklimg.digest import Digest
from uklimg.recipes.app import step_id
from uklimg.settings import read_settings
from uklimg.store import Store

UKLIMG = (sys.executable, "-m", "uklimg")


def debug_file(uklfile: Path, context: Path, program: str, options: Sequence[str] = ()) -> Path:
    """Of ``program`` in what ``uklfile`` describes. ``options`` are those of its build, which has been made."""
    env = dict(os.environ)
    words = ["-f", str(uklfile), *options, str(context)]
    planned = proc.run([*UKLIMG, "plan", "--format", "json", *words], env=env)
    (key,) = (step["key"] for step in json.loads(planned.text) if step["step"] == step_id(program))
    store = Store(read_settings(os.environ, Path.cwd()).store)
    if store.lookup(Digest.parse(key)) is None:
        _make(uklfile, context, options)
    linked = store.lookup(Digest.parse(key))
    assert linked is not None, "a build leaves the results of its steps"
    return store.tree(linked) / f"{program}.debug"


def _make(uklfile: Path, context: Path, options: Sequence[str]) -> None:
    """A prune may leave an image and not its link, which a build does not need; one with another label does."""
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / uklfile.name
        again.write_text(f"{uklfile.read_text()}\nLABEL uklimg.test.again={uuid.uuid4()}\n")
        lock = uklfile.with_name("Uklfile.lock")
        if lock.exists():
            shutil.copy(lock, folder)
        proc.run([*UKLIMG, "build", "-f", str(again), *options, str(context)], env=dict(os.environ), timeout=3000)
