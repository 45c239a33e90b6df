"""The programs of docs/examples/ukl-h, as a user builds them: as part of the kernel, and in ring 3."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from guestlib import LIMIT, Image, boot, sections

from uklimg.guest.protocol import Program
from uklimg.runner.request import RunOptions

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(1800)]

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples/ukl-h"
SAY = {
    "echo": (
        "part of the kernel: yes\nbypass: on\nrun to completion: on\n32000 bytes\n",
        "part of the kernel: no\nbypass: not here\nrun to completion: not here\n32000 bytes\n",
    ),
    "kernel": (
        "clock: agrees\nrandom: yes\npages that are free: some\nin a page of memory: yes\n",
        "in ring 3, where no function of the kernel can be called\n",
    ),
}


@pytest.mark.parametrize("name", SAY)
def test_an_example(name: str, tmp_path: Path, build_image: Callable[[Path, str], Image]) -> None:
    folder = tmp_path / "ukl-h"
    shutil.copytree(EXAMPLES, folder)
    uklfile = folder / "Uklfile"
    text = uklfile.read_text()
    assert "ARG PROGRAM=echo" in text
    uklfile.write_text(text.replace("ARG PROGRAM=echo", f"ARG PROGRAM={name}"))
    image = build_image(folder, f"uklimg-test/ukl-h-{name}:base")
    programs = [
        Program(path, (name, "test"), timeout=LIMIT, label=label)
        for label, path in (("ukl", f"/ukl/{name}"), ("linux", f"/ring3/{name}"))
    ]
    ended = sections(boot(image, programs, RunOptions()))
    found = tuple((ended[label].output, ended[label].status) for label in ("ukl", "linux"))
    assert found == tuple((output, "exit 0") for output in SAY[name])
