"""A whole image from a warm store in a network without interfaces: every step's result is there, and nothing runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.boot

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_is_asked_for_when_everything_is_there(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Uklfile.example", tmp_path)
    shutil.copy(ROOT / "scripts/example.lock", tmp_path / "Uklfile.lock")
    build = [sys.executable, "-m", "uklimg", "build", "-f", str(tmp_path / "Uklfile.example"), "--progress", "plain"]
    tag = ["-t", "uklimg-test/offline"]
    first = subprocess.run([*build, *tag, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    argv = ["unshare", "-n", *build, "--offline", *tag, str(tmp_path)]
    second = subprocess.run(argv, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert re.search(r"^0 of \d+ steps ran", second.stderr, re.MULTILINE), second.stderr
    assert second.stdout == first.stdout
