"""The kernel's own selftests in ring 3: on our kernel they find what they find on the unpatched one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from guestlib import BuildImage, Ended, Image, boot, sections, shell

from benchmarks import bench, byhand
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.guest.protocol import Program
from uklimg.runner.machine import MIB
from uklimg.runner.request import Bind, RunOptions
from uklimg.settings import read_settings

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(3600)]

GUEST = bench.ROOT / "benchmarks/guest"
SCRIPT = Path(__file__).with_name("selftests") / "build.sh"
# Seconds for one of them; the slowest needs half a minute.
LIMIT = 120
# How a test program says what it found.
VERDICT = re.compile(r"^(?:(?:not )?ok \d+|\[(?:OK|FAIL|SKIP)\]|# Totals: .*$)", re.MULTILINE)


def test_they_find_the_same(suite_image: BuildImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SMAP off: QEMU before 9.1 reads the frame of ring 3's IRET with the kernel's rights; any kernel oopses."""
    monkeypatch.setattr(bench, "LOCK", tmp_path / "none")
    host = Host(os.environ, tmp_path, os.getuid(), sys.stdout, sys.stderr, read_settings(os.environ, tmp_path))
    with console("plain", sys.stderr) as sink:
        found = bench.Bench(host, sink)
        graph = found.graph(GUEST / "Uklfile", GUEST)
        tests = found.tree(byhand.selftests(graph, SCRIPT.read_bytes()), byhand.TESTS)
        plain = found.tree(byhand.plain_kernel(graph), byhand.PLAIN) / "vmlinux"
    image = suite_image("base")
    ours, theirs = run(image, tests), run(replace(image, vmlinux=plain), tests)
    assert len(theirs) > 60 and sum(ended.status == "exit 0" for ended in theirs.values()) > 50
    assert {n: verdicts(e) for n, e in ours.items()} == {n: verdicts(e) for n, e in theirs.items()}


def run(image: Image, tests: Path) -> Mapping[str, Ended]:
    names = sorted(file.name for file in tests.iterdir())
    env = {"PATH": "/bin", "HOME": "/root"}
    programs = [Program(f"/tests/{n}", (n,), env=env, workdir="/tmp", timeout=LIMIT, label=n) for n in names]
    binds = (Bind(str(tests), "/tests", True),)
    options = RunOptions(cpus=2, memory=1024 * MIB, binds=binds, extra=("-cpu", "max,smap=off"))
    ended = sections(boot(image, [*programs, shell("dmesg", "dmesg")], options))
    log = ended["dmesg"].output
    assert not re.search(r"\bBUG\b|\bOops\b|WARNING|Call Trace", log), log
    return {name: ended[name] for name in names}


def verdicts(ended: Ended) -> tuple[str, list[str]]:
    return ended.status, VERDICT.findall(ended.output)
