"""Each guest program as UKL and in ring 3, in one boot of the same kernel: equal output, and a clean kernel log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from guestlib import (
    LINUX,
    UKL,
    BuildImage,
    Ended,
    NmiStorm,
    boot,
    guest_programs,
    program,
    sections,
    shell,
    trouble,
)

from uklimg.errors import ToolError
from uklimg.runner.request import RunOptions

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(3600)]

NAMES = [p.name for p in guest_programs()]
BOOTS = [("base", 1), ("base", 2), ("debug", 1), ("debug", 2)]


Results = Callable[[str, int], Mapping[str, Ended]]


@pytest.fixture(scope="module")
def results(suite_image: BuildImage) -> Results:
    """What every program did in a boot; one boot for all programs, made when it is first asked for."""

    @cache
    def boot_all(config: str, cpus: int) -> Mapping[str, Ended]:
        programs = [program(p.name, mode, p.args) for p in guest_programs() for mode in (LINUX, UKL)]
        programs.append(shell("dmesg", "dmesg"))
        return sections(boot(suite_image(config), programs, RunOptions(cpus=cpus)))

    return boot_all


@pytest.mark.parametrize("config, cpus", BOOTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_program_does_the_same_as_ukl(results: Results, name: str, config: str, cpus: int) -> None:
    ended = results(config, cpus)
    assert f"{LINUX}:{name}" in ended, f"ring 3 never ended; the boot got to {list(ended)}"
    assert f"{UKL}:{name}" in ended, f"UKL never ended; the boot got to {list(ended)}"
    assert ended[f"{LINUX}:{name}"].status == "exit 0", ended[f"{LINUX}:{name}"].output
    assert ended[f"{UKL}:{name}"].status == "exit 0", ended[f"{UKL}:{name}"].output
    assert ended[f"{UKL}:{name}"].output == ended[f"{LINUX}:{name}"].output


@pytest.mark.parametrize("config, cpus", BOOTS)
def test_the_kernel_has_nothing_to_complain_of(results: Results, config: str, cpus: int) -> None:
    log = results(config, cpus)["dmesg"].output
    assert "ukl: suite:" in log
    assert trouble(log) == []


def test_a_shell_runs_beside_it(suite_image: BuildImage) -> None:
    """A busybox shell in ring 3, started by the application, which goes on meanwhile and is there to be seen."""
    look = "grep -q suite /proc/$UKL_VICTIM/comm && ls /ukl && seq 300 | tail -n 1"
    beside = program("beside", UKL, ["/bin/busybox", "sh", "-c", look])
    ended = sections(boot(suite_image("base"), [beside, shell("ls /ukl", "after")], RunOptions(cpus=2)))
    assert ended["ukl:beside"].status == "exit 0", ended["ukl:beside"].output
    assert {"suite", "300"} <= set(ended["ukl:beside"].output.split())
    assert ended["after"].output.split() == ["suite"]


def test_ring_3_cannot_become_ukl(suite_image: BuildImage) -> None:
    """Every attempt of the attack program, with the application running beside it, is refused.

    Emulators before QEMU 9.1 read a far return's frame with the kernel's rights, and an unpatched kernel oopses on
    that, too: with SMAP off they get it right.
    """
    attack = program("beside", UKL, ["@attack@"])
    attack = replace(attack, env={**attack.env, "UKL_FAR_STACK": "1"}, timeout=900)
    options = RunOptions(cpus=2, extra=("-cpu", "max,smap=off"))
    ended = sections(boot(suite_image("base"), [attack, shell("dmesg", "dmesg")], options))
    output = ended["ukl:beside"].output
    assert "SUCCEEDED" not in output
    assert "attack: all refused" in output
    assert output.count("refused:") > 500
    assert ended["ukl:beside"].status == "exit 0"
    assert trouble(ended["dmesg"].output) == []


def test_ring_3_cannot_become_ukl_with_smap(suite_image: BuildImage) -> None:
    attack = replace(program("beside", UKL, ["@attack@"]), timeout=900)
    ended = sections(boot(suite_image("debug"), [attack, shell("dmesg", "dmesg")], RunOptions(cpus=2)))
    assert "attack: all refused" in ended["ukl:beside"].output
    assert ended["ukl:beside"].status == "exit 0"
    assert trouble(ended["dmesg"].output) == []


@pytest.mark.parametrize("pti", ["off", "on"])
def test_nmis_at_any_moment(suite_image: BuildImage, tmp_path: Path, pti: str) -> None:
    """NMIs all the time, also into the code that moves exception frames: nothing is lost, nobody complains."""
    programs = [program(name, UKL) for name in ("sigalrm", "threads", "fork", "segv")]
    programs += [shell("grep NMI /proc/interrupts", "count"), shell("dmesg", "dmesg")]
    with NmiStorm(tmp_path / "qmp") as storm:
        options = RunOptions(cpus=2, cmdline=f"pti={pti}", extra=storm.options)
        ended = sections(boot(suite_image("debug"), programs, options, on_report=storm.on_report))
    for name in ("sigalrm", "threads", "fork", "segv"):
        assert ended[f"ukl:{name}"].status == "exit 0", ended[f"ukl:{name}"].output
    counts = [int(word) for word in ended["count"].output.split() if word.isdigit()]
    assert sum(counts) > 1000
    assert trouble(ended["dmesg"].output) == []


def test_a_kernel_stack_that_overflows_is_told(suite_image: BuildImage) -> None:
    """The kernel's own test module exhausts a kernel stack: a report and a panic as on any Linux, not a hang."""
    debugfs = "/sys/kernel/debug"
    provoke = f"mount -t debugfs d {debugfs}; echo EXHAUST_STACK > {debugfs}/provoke-crash/DIRECT"
    console: list[bytes] = []
    with pytest.raises(ToolError, match="panicked"):
        boot(suite_image("debug"), [shell(provoke, "overflow")], RunOptions(cpus=2), show=console.append)
    assert b"stack guard page was hit" in b"".join(console)
