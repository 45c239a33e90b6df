"""With CONFIG_UKL off, the patched kernel has the unpatched one's code and linker script."""

from __future__ import annotations

import pytest

from benchmarks import bench, byhand
from uklimg.data import Data, find_data

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

GUEST = bench.ROOT / "benchmarks/guest"


def test_the_code_is_that_of_the_unpatched_kernel() -> None:
    with bench.opened(lock=bench.EXAMPLE_LOCK) as found:
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
