"""`uklimg check` tells the truth: what it warns of is done by a program in a kernel, and does not work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bootlib import Example
from redislib import ROOT, uklimg

pytestmark = pytest.mark.boot

TAG = "uklimg-test/refused:1"
SAID = {
    "int80": "does nothing",
    "run_time_code": "refused",
    "executable_stack": "signal 11",
    "segments": "the kernel's",
    "kernel_option": "ENOSYS",
    "dlopen": "fails",
    "exec": "system() gives 127",
    "own_path": "no path",
}


def test_what_check_warns_of_does_not_work(example: Example, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "programs/refused.c", tmp_path)
    shutil.copy(ROOT / "scripts/example.lock", tmp_path / "Uklfile.lock")
    (tmp_path / "Makefile").write_text("refused: refused.c\n\t$(CC) -o $@ refused.c\n")
    assert uklimg("init", str(tmp_path)).status == 0
    assert uklimg("build", "-t", TAG, str(tmp_path)).status == 0
    try:
        ran = uklimg("run", "--no-network", TAG)
    finally:
        uklimg("rmi", TAG)
    assert ran.status == 0
    said = dict(line.split(": ", 1) for line in ran.stdout.replace("\r", "").splitlines() if ": " in line)
    assert {name: said.get(name) for name in SAID} == SAID
    checked = uklimg("check", "--format", "json", str(tmp_path))
    rules = {str(finding["rule"]).replace("-", "_") for finding in json.loads(checked.stdout)}
    # An executable stack is seen in the object alone (tests/unit/test_advice.py).
    assert set(SAID) - {"executable_stack"} <= rules
    assert checked.status == 1
