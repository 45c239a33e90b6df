"""Applications that cannot fit are told so before they are linked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uklimg import proc
from uklimg.link import link
from uklimg.link.elf import Elf
from uklimg.link.link import LinkError, check_sizes

pytestmark = pytest.mark.integration

# The module that link.py imports, which finds its neighbours as it does in the container.
embed = vars(link)["embed"]
CODE = 2 << 20


def compiled(folder: Path, source: str) -> Elf:
    (folder / "a.c").write_text(source)
    proc.run(["gcc", "-c", "-fPIE", "-o", str(folder / "a.o"), str(folder / "a.c")], env=proc.host_env(os.environ))
    return Elf((folder / "a.o").read_bytes())


def test_nine_hundred_mebibytes_of_bss_are_fine(tmp_path: Path) -> None:
    check_sizes(compiled(tmp_path, "char big[900 << 20];"), CODE)


def test_more_data_than_the_code_reaches(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="has 1100 MiB of static data, and its code reaches 1020 MiB"):
        check_sizes(compiled(tmp_path, "char big[1100 << 20];"), CODE)


def test_initialised_data_of_any_size_are_fine(tmp_path: Path) -> None:
    check_sizes(compiled(tmp_path, "char big[300 << 20] = {1};"), CODE)


def test_more_code_than_the_kernel_has_addresses_for(tmp_path: Path) -> None:
    with pytest.raises(embed.TooLarge, match=r"has 4 MiB of code, the kernel has addresses for 2 MiB \(KCONFIG"):
        check_sizes(compiled(tmp_path, 'asm(".text; .skip 3 << 20; .skip 1 << 19");'), CODE)
