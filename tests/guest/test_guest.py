"""Each guest program as UKL and in ring 3, in one boot of the same kernel: equal output, and a clean kernel log."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from conftest import BuildImage
from guestlib import LINUX, UKL, Ended, boot, guest_programs, program, sections, shell, trouble

from uklimg.runner.request import RunOptions

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(3600)]

NAMES = [p.name for p in guest_programs()]
BOOTS = [("base", 1), ("base", 2), ("debug", 1), ("debug", 2)]


@pytest.fixture(scope="module")
def results(suite_image: BuildImage) -> Mapping[tuple[str, int], Mapping[str, Ended]]:
    """What every program did in every boot; one boot for all programs."""
    found: dict[tuple[str, int], Mapping[str, Ended]] = {}
    for config, cpus in BOOTS:
        programs = [program(p.name, mode, p.args) for p in guest_programs() for mode in (LINUX, UKL)]
        programs.append(shell("dmesg", "dmesg"))
        programs.append(shell("echo kernel pid $$; ls /ukl", "busybox"))
        found[config, cpus] = sections(boot(suite_image(config), programs, RunOptions(cpus=cpus)))
    return found


@pytest.mark.parametrize("config, cpus", BOOTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_program_does_the_same_as_ukl(
    results: Mapping[tuple[str, int], Mapping[str, Ended]], name: str, config: str, cpus: int
) -> None:
    ended = results[config, cpus]
    assert f"{LINUX}:{name}" in ended, f"ring 3 never ended; the boot got to {list(ended)}"
    assert f"{UKL}:{name}" in ended, f"UKL never ended; the boot got to {list(ended)}"
    assert ended[f"{LINUX}:{name}"].status == "exit 0", ended[f"{LINUX}:{name}"].output
    assert ended[f"{UKL}:{name}"].status == "exit 0", ended[f"{UKL}:{name}"].output
    assert ended[f"{UKL}:{name}"].output == ended[f"{LINUX}:{name}"].output


@pytest.mark.parametrize("config, cpus", BOOTS)
def test_the_kernel_has_nothing_to_complain_of(
    results: Mapping[tuple[str, int], Mapping[str, Ended]], config: str, cpus: int
) -> None:
    log = results[config, cpus]["dmesg"].output
    assert "ukl: suite:" in log
    assert trouble(log) == []


def test_a_shell_runs_beside_it(results: Mapping[tuple[str, int], Mapping[str, Ended]]) -> None:
    assert "suite" in results["base", 1]["busybox"].output
