"""With CONFIG_UKL off, the patched kernel has the unpatched one's code and linker script."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks import bench, byhand
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.data import Data, find_data
from uklimg.settings import read_settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

GUEST = bench.ROOT / "benchmarks/guest"


def test_the_code_is_that_of_the_unpatched_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LOCK", tmp_path / "none")
    host = Host(os.environ, tmp_path, os.getuid(), sys.stdout, sys.stderr, read_settings(os.environ, tmp_path))
    with console("plain", sys.stderr) as sink:
        found = bench.Bench(host, sink)
        tree = found.tree(byhand.kernel_off(found.graph(GUEST / "Uklfile", GUEST)), byhand.OFF)
    compared = set((tree / "compared").read_text().split())
    touched = {
        file.removesuffix(suffix).replace("/", "_") + ".o"
        for file in Data(find_data()).kernel("6.12").patches.added_lines()
        for suffix in (".c", ".S")
        if file.endswith(suffix) and not file.startswith(("arch/x86/ukl/", "arch/x86/tools/"))
    }
    # The first two are no objects of the kernel; the decompressor is not built here.
    others = {"arch_x86_kernel_vmlinux.lds.o", "arch_x86_kernel_asm-offsets.o", "arch_x86_boot_compressed_kaslr.o"}
    assert touched - others <= compared
    assert "vmlinux.lds" in compared and len(compared) > 300
    assert (tree / "differences").read_text() == ""
