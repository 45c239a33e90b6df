"""UKL RET: interrupts, faults and system calls return to the application by RET, where that can be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from guestlib import LINUX, UKL, BuildImage, Ended, NmiStorm, boot, guest_programs, program, sections, shell, trouble

from uklimg.guest.protocol import Program
from uklimg.runner.request import RunOptions

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(3600)]

KERNELS = {"base:RET": "vmlinux"}  # test_guest.py boots `debug` with RET among other options
if os.environ.get("UKLIMG_TEST_BOOTS") == "all":
    KERNELS["debug:RET"] = "bzimage"


def looks(how: str) -> Program:
    """``returns``, which also looks how interrupts return."""
    return replace(program("returns", UKL, [how]), label=how)


@pytest.fixture(scope="module", params=KERNELS)
def ended(request: pytest.FixtureRequest, suite_image: BuildImage) -> Mapping[str, Ended]:
    """The suite, and the attacks, with RET."""
    config = str(request.param)
    programs = [program(p.name, mode, p.args) for p in guest_programs() for mode in (LINUX, UKL)]
    programs += [looks("ret"), replace(program("beside", UKL, ["@attack@"]), timeout=900), shell("dmesg", "dmesg")]
    return sections(boot(suite_image(config), programs, RunOptions(cpus=2), kernel=KERNELS[config]))


@pytest.mark.parametrize("name", [p.name for p in guest_programs()])
def test_a_program_does_the_same(ended: Mapping[str, Ended], name: str) -> None:
    assert ended[f"{UKL}:{name}"].status == "exit 0", ended[f"{UKL}:{name}"].output
    assert ended[f"{UKL}:{name}"].output == ended[f"{LINUX}:{name}"].output


def test_interrupts_return_by_ret(ended: Mapping[str, Ended]) -> None:
    """Flags and address are below the red zone of what was interrupted; the kernel said at boot that it does so."""
    assert ended["ret"].status == "exit 0", ended["ret"].output
    assert "ukl: suite: options ret" in ended["dmesg"].output
    assert trouble(ended["dmesg"].output) == []


def test_ring_3_cannot_become_ukl(ended: Mapping[str, Ended]) -> None:
    assert "attack: all refused" in ended["ukl:beside"].output
    assert ended["ukl:beside"].status == "exit 0"


def test_who_does_not_ask_has_iret(suite_image: BuildImage) -> None:
    """Nothing is written below the red zone."""
    found = sections(boot(suite_image("base"), [looks("iret")], RunOptions(cpus=1)))
    assert found["iret"].status == "exit 0", found["iret"].output


def test_nmis_at_any_moment(suite_image: BuildImage, tmp_path: Path) -> None:
    """Also between the kernel's last instruction on its own stack and the application's first."""
    programs = [shell("echo 0 4 0 7 >/proc/sys/kernel/printk", "quiet")]
    programs += [program(p.name, UKL, p.args) for p in guest_programs()]
    programs += [looks("ret"), shell("grep NMI /proc/interrupts", "count"), shell("dmesg", "dmesg")]
    with NmiStorm(tmp_path / "qmp") as storm:
        options = RunOptions(cpus=2, extra=storm.options)
        found = sections(boot(suite_image("debug:RET"), programs, options, on_report=storm.on_report))
    for one in guest_programs():
        assert found[f"{UKL}:{one.name}"].status == "exit 0", found[f"{UKL}:{one.name}"].output
    assert found["ret"].status == "exit 0", found["ret"].output
    assert sum(int(word) for word in found["count"].output.split() if word.isdigit()) > 3000
    assert trouble(found["dmesg"].output) == []
