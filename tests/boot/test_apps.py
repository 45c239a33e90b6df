"""The catalogue of apps/: each is built from its sources, booted, and passes its own tests.

A few of them each time; UKLIMG_APPS names others, or all (`make apps`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from redislib import ROOT, uklimg

from uklimg.errors import ExitCode

APPS = ROOT / "apps"
ALL = sorted(path.parent.name for path in APPS.glob("*/Uklfile"))
# Quickly built, and of two kinds: servers, and a program that ends by itself.
FEW = ("lighttpd", "memcached", "sqlite3")
# Their sources could not be had when they were written: README.md says so.
UNTRIED = ("stress-ng",)

pytestmark = [pytest.mark.boot, pytest.mark.apps]


def chosen() -> Sequence[str]:
    wanted = os.environ.get("UKLIMG_APPS", " ".join(FEW)).split()
    return ALL if wanted == ["all"] else wanted


def test_a_table_tells_of_every_app() -> None:
    rows = [line for line in (APPS / "README.md").read_text().splitlines() if line.startswith("| [")]
    assert sorted(row[3:].partition("]")[0] for row in rows) == ALL


@pytest.mark.timeout(3600)  # it is built here, perhaps on a busy machine
@pytest.mark.parametrize("name", chosen())
def test_app(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(APPS / name, folder, ignore=shutil.ignore_patterns("Uklfile.lock"))
    shutil.copy(APPS / "sources.lock", folder / "Uklfile.lock")
    done = uklimg("test", str(folder))
    if name in UNTRIED and done.status == ExitCode.NOT_FOUND:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.status == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.startswith("pass ")
