"""Each guest program as UKL and in ring 3, in one boot of the same kernel: equal output, and a clean kernel log."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from guestlib import (
    LIMIT,
    LINUX,
    RUN,
    UKL,
    BuildImage,
    Ended,
    Image,
    NmiStorm,
    boot,
    guest_programs,
    program,
    sections,
    shell,
    trouble,
)

from uklimg.errors import ToolError
from uklimg.guest.protocol import Program
from uklimg.runner.machine import MIB
from uklimg.runner.request import RunOptions

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(3600)]

NAMES = [p.name for p in guest_programs()]


@dataclass(frozen=True)
class Boot:
    """A configuration, and how it is booted. A bzImage has KASLR. ``cpu``: QEMU's model, if not all that it knows."""

    config: str
    cpus: int
    kernel: str
    cmdline: str = ""
    cpu: str = ""
    memory: int = 0

    def options(self) -> RunOptions:
        extra = ("-cpu", self.cpu) if self.cpu else ()
        return RunOptions(cpus=self.cpus, cmdline=self.cmdline, extra=extra, memory=self.memory)


# `base` is PREEMPT_VOLUNTARY, `debug` has all models and full preemption unless told otherwise. The return thunks of
# retbleed and SRSO are for AMD's processors.
BOOTS = {
    "base-2-vmlinux": Boot("base", 2, "vmlinux"),
    "base-unmitigated": Boot("base", 2, "bzimage", "mitigations=off pti=off"),
    "base-pti": Boot("base", 2, "bzimage", "pti=on spectre_v2=retpoline"),
    "base-amd": Boot(
        "base", 2, "vmlinux", "spectre_v2=retpoline retbleed=unret spec_rstack_overflow=safe-ret", "EPYC"
    ),
    "base-glibc": Boot("base@ukl", 2, "bzimage"),
    "metal-2-bzimage": Boot("metal", 2, "bzimage"),
    "debug-1-vmlinux": Boot("debug", 1, "vmlinux", "pti=on"),
    "debug-2-bzimage": Boot("debug", 2, "bzimage"),
    "debug-none": Boot("debug", 2, "vmlinux", "preempt=none"),
    "base-byp": Boot("base:BYP", 2, "bzimage", "spectre_v2=retpoline"),
    "debug-all": Boot("debug:BYP,RET,SHORTCUT,RTC", 2, "bzimage"),
}
ATTACKED = ["base-pti", "base-amd", "metal-2-bzimage", "debug-2-bzimage", "debug-none", "debug-all"]
if os.environ.get("UKLIMG_TEST_BOOTS") == "all":
    BOOTS |= {
        "base-1-bzimage": Boot("base", 1, "bzimage"),
        "base-shortcut": Boot("base:BYP,SHORTCUT", 2, "vmlinux"),
        "debug-byp": Boot("debug:BYP", 2, "vmlinux"),
        "debug-voluntary": Boot("debug", 2, "bzimage", "preempt=voluntary pti=on"),
    }
if os.environ.get("UKLIMG_TEST_KASAN"):  # a kernel more, which takes longest of all
    BOOTS["kasan"] = Boot("debug+kasan", 2, "bzimage", memory=1536 * MIB)
    ATTACKED.append("kasan")
# What says that the kernel is what was asked for: a command, and words of its output.
VULNERABILITIES = "cat /sys/devices/system/cpu/vulnerabilities"
SAYS = {
    "base-unmitigated": (f"{VULNERABILITIES}/spectre_v2", "Vulnerable"),
    "base-pti": (f"{VULNERABILITIES}/spectre_v2", "Mitigation: Retpolines"),
    "base-amd": (f"{VULNERABILITIES}/retbleed", "Mitigation: untrained return thunk"),
    "debug-none": ("dmesg", "Dynamic Preempt: none"),
    "debug-voluntary": ("dmesg", "Dynamic Preempt: voluntary"),
    "debug-2-bzimage": ("dmesg", "Dynamic Preempt: full"),
    "kasan": ("dmesg", "KernelAddressSanitizer initialized"),
}
Results = Callable[[str], Mapping[str, Ended]]


@pytest.fixture(scope="module")
def results(suite_image: BuildImage) -> Results:
    """What every program did in a boot; one boot for all programs, made when it is first asked for."""

    @cache
    def boot_all(name: str) -> Mapping[str, Ended]:
        how = BOOTS[name]
        programs = [program(p.name, mode, p.args) for p in guest_programs() for mode in (LINUX, UKL)]
        if name in SAYS:
            programs.append(shell(SAYS[name][0], "says"))
        programs.append(shell("dmesg", "dmesg"))
        return sections(boot(suite_image(how.config), programs, how.options(), kernel=how.kernel))

    return boot_all


@pytest.mark.parametrize("how", BOOTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_program_does_the_same_as_ukl(results: Results, name: str, how: str) -> None:
    ended = results(how)
    assert f"{LINUX}:{name}" in ended, f"ring 3 never ended; the boot got to {list(ended)}"
    assert f"{UKL}:{name}" in ended, f"UKL never ended; the boot got to {list(ended)}"
    assert ended[f"{LINUX}:{name}"].status == "exit 0", ended[f"{LINUX}:{name}"].output
    assert ended[f"{UKL}:{name}"].status == "exit 0", ended[f"{UKL}:{name}"].output
    assert ended[f"{UKL}:{name}"].output == ended[f"{LINUX}:{name}"].output


@pytest.mark.parametrize("how", BOOTS)
def test_the_kernel_has_nothing_to_complain_of(results: Results, how: str) -> None:
    log = results(how)["dmesg"].output
    assert "ukl: suite:" in log
    assert trouble(log) == []
    assert ("Kernel/User page tables isolation: enabled" in log) == ("pti=on" in BOOTS[how].cmdline)
    if how in SAYS:
        assert SAYS[how][1] in results(how)["says"].output


BYPASS_REFUSED = "randomize_kstack_offset=on"


@pytest.mark.parametrize(
    "config, cmdline, on",
    [("base:BYP", "", True), ("debug:BYP", "", True), ("base", "", False), ("base:BYP", BYPASS_REFUSED, False)],
)
def test_system_calls_bypass_where_asked_for(suite_image: BuildImage, config: str, cmdline: str, on: bool) -> None:
    """All threads do, and no other; four threads under signals for UKL_STRESS_SECONDS (default 5)."""
    env = {"UKL_BYPASSES": str(int(on)), "UKL_STRESS_SECONDS": os.environ.get("UKL_STRESS_SECONDS", "5")}
    bypass = program("bypass", UKL)
    bypass = replace(bypass, env={**bypass.env, **env}, timeout=1200)
    programs = [bypass, shell("dmesg", "dmesg")]
    ended = sections(boot(suite_image(config), programs, RunOptions(cpus=2, cmdline=cmdline)))
    assert ended["ukl:bypass"].status == "exit 0", ended["ukl:bypass"].output
    log = ended["dmesg"].output
    assert trouble(log) == []
    assert ("ukl: suite: options byp" in log) == (config != "base")
    assert ("no bypass with" in log) == bool(cmdline)


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


@pytest.mark.parametrize("how", ATTACKED)
def test_ring_3_cannot_become_ukl_with_smap(suite_image: BuildImage, how: str) -> None:
    attack = replace(program("beside", UKL, ["@attack@"]), timeout=900)
    programs = [attack, shell("dmesg", "dmesg")]
    wanted = BOOTS[how]
    ended = sections(boot(suite_image(wanted.config), programs, wanted.options(), kernel=wanted.kernel))
    assert "attack: all refused" in ended["ukl:beside"].output
    assert ended["ukl:beside"].status == "exit 0"
    assert trouble(ended["dmesg"].output) == []


@pytest.mark.parametrize("config", ["base", "base@ukl"])
def test_a_shared_object_cannot_be_loaded_into_the_kernel(suite_image: BuildImage, config: str) -> None:
    """dlopen fails and says why, since nothing can be mapped executable; an ordinary program loads it."""
    programs = [program("shared", mode) for mode in (LINUX, UKL)]
    ended = sections(boot(suite_image(config), [*programs, shell("dmesg", "dmesg")], RunOptions()))
    assert ended["linux:shared"].output.count("answer: 42\n") == 3
    assert ended["ukl:shared"].output.count("dlopen: /lib/shared.so: ") == 3
    assert ended["ukl:shared"].status == ended["linux:shared"].status == "exit 0"
    assert trouble(ended["dmesg"].output) == []


def test_large_code_has_large_pages(suite_image: BuildImage) -> None:
    """2 MiB of the suite's code are one page, read-only and executable; what is left has small ones."""
    look = "mount -t debugfs d /sys/kernel/debug; grep -i '^0xffffffffc0' /sys/kernel/debug/page_tables/kernel"
    ended = sections(boot(suite_image("debug"), [shell(look, "pages")], RunOptions()))
    rows = [line.split() for line in ended["pages"].output.splitlines()]
    first = next(row for row in rows if row[0].lower() == "0xffffffffc0000000-0xffffffffc0200000")
    assert {"2M", "ro", "PSE", "x", "pmd"} <= set(first)
    assert any({"ro", "x", "pte"} <= set(row) for row in rows), rows
    assert not any({"RW", "x"} <= set(row) for row in rows)


def test_each_boot_of_a_bzimage_moves_the_application(suite_image: BuildImage) -> None:
    """As far as the kernel, and elsewhere each time; vmlinux stays where it was linked, and so does nokaslr."""
    ask = ["/bin/busybox", "sh", "-c", "echo addresses $(grep ' _text$' /proc/kallsyms) $UKL_TEXT"]
    programs = [program("beside", UKL, ask), program("cxx", UKL), shell("dmesg", "dmesg")]

    def addresses(kernel: str, cmdline: str = "") -> tuple[int, int]:
        ended = sections(boot(suite_image("base"), programs, RunOptions(cmdline=cmdline), kernel=kernel))
        assert ended["ukl:cxx"].status == "exit 0", ended["ukl:cxx"].output
        assert trouble(ended["dmesg"].output) == []
        line = next(x for x in ended["ukl:beside"].output.splitlines() if x.startswith("addresses "))
        return int(line.split()[1], 16), int(line.split()[-1], 16)

    text, app = addresses("vmlinux")
    assert addresses("bzimage", "nokaslr") == (text, app)
    moves = set()
    for _ in range(20):
        moved_text, moved_app = addresses("bzimage")
        assert moved_app - app == moved_text - text
        assert (moved_text - text) % (2 << 20) == 0
        moves.add(moved_text - text)
    assert len(moves) > 15


@pytest.mark.parametrize("options, taken", [("BYP,RET,SHORTCUT,RTC", True), ("BYP", False)])
def test_shortcuts_are_taken_where_asked_for(suite_image: BuildImage, options: str, taken: bool) -> None:
    tracing = "/sys/kernel/tracing"
    watch = (
        f"mount -t tracefs t {tracing}; cd {tracing}; echo ukl_send >set_ftrace_filter; echo function >current_tracer"
    )
    programs = [shell(watch, "watch"), program("tcp", UKL), shell(f"grep -c ukl_send {tracing}/trace", "count")]
    ended = sections(boot(suite_image(f"debug:{options}"), programs, RunOptions(cpus=2)))
    assert ended["ukl:tcp"].status == "exit 0", ended["ukl:tcp"].output
    count = int(ended["count"].output)
    assert count > 500 if taken else count < 5  # the header of the trace has the name, too


@pytest.mark.parametrize("pti", ["off", "on"])
def test_nmis_at_any_moment(suite_image: BuildImage, tmp_path: Path, pti: str) -> None:
    """NMIs during the whole suite, also into the code that moves exception frames: nothing is lost."""
    # An NMI that nobody expected is an emergency, which the kernel writes into the middle of what programs write.
    programs = [shell("echo 0 4 0 7 >/proc/sys/kernel/printk", "quiet")]
    programs += [program(p.name, UKL, p.args) for p in guest_programs()]
    programs += [shell("grep NMI /proc/interrupts", "count"), shell("dmesg", "dmesg")]
    with NmiStorm(tmp_path / "qmp") as storm:
        options = RunOptions(cpus=2, cmdline=f"pti={pti}", extra=storm.options)
        ended = sections(boot(suite_image("debug"), programs, options, on_report=storm.on_report))
    for one in guest_programs():
        assert ended[f"{UKL}:{one.name}"].status == "exit 0", ended[f"{UKL}:{one.name}"].output
    counts = [int(word) for word in ended["count"].output.split() if word.isdigit()]
    assert sum(counts) > 3000
    assert trouble(ended["dmesg"].output) == []


def test_a_kernel_stack_that_overflows_is_told(suite_image: BuildImage) -> None:
    """The kernel's own test module exhausts a kernel stack: a report and a panic as on any Linux, not a hang."""
    debugfs = "/sys/kernel/debug"
    provoke = f"mount -t debugfs d {debugfs}; echo EXHAUST_STACK > {debugfs}/provoke-crash/DIRECT"
    console: list[bytes] = []
    with pytest.raises(ToolError, match="panicked"):
        boot(suite_image("debug"), [shell(provoke, "overflow")], RunOptions(cpus=2), show=console.append)
    assert b"stack guard page was hit" in b"".join(console)


END = " wait $p; echo status $?; grep checks /tmp/out"


def test_functions_of_the_application_have_names(suite_image: BuildImage) -> None:
    """In /proc/kallsyms, for root only, and in the kernel's warnings, whose Code: lines can be read. With KASLR."""
    debugfs = "mount -t debugfs d /sys/kernel/debug"
    file = "/sys/kernel/debug/provoke-crash/DIRECT"
    look = "grep -w -e main_provoke -e _text -e main /proc/kallsyms"
    programs = [
        shell(debugfs, "mount"),
        program("provoke", UKL, ["write", "WARNING", file]),
        shell(look, "root"),
        shell(f"unshare -U {look}", "other"),
        shell("dmesg", "dmesg"),
    ]
    ended = sections(boot(suite_image("debug"), programs, RunOptions(cpus=2), kernel="bzimage"))
    assert ended["ukl:provoke"].status == "exit 0", ended["ukl:provoke"].output
    log = ended["dmesg"].output
    warning = log[log.index("lkdtm_WARNING") :]
    assert re.search(r"RIP: 0013:[A-Za-z_]\w+\+0x\w+/0x", warning), warning
    assert "Unable to access opcode bytes" not in warning
    rows = {line.split()[2]: int(line.split()[0], 16) for line in ended["root"].output.splitlines()}
    assert rows["main_provoke"] > rows["_text"] > 0xFFFFFFFF80000000
    assert {line.split()[0] for line in ended["other"].output.splitlines()} == {"0" * 16}


def test_stop_and_continue(suite_image: BuildImage) -> None:
    stop = "kill -STOP $p; sleep 1; cut -d' ' -f3 /proc/$p/stat; kill -CONT $p;"
    programs = [shell(RUN.format("threads") + stop + END, "stop"), shell("dmesg", "dmesg")]
    ended = sections(boot(suite_image("debug"), programs, RunOptions(cpus=2)))
    assert ended["stop"].output.split("\n")[:3] == ["T", "status 0", "threads: all checks passed"]
    assert trouble(ended["dmesg"].output) == []


def test_processors_come_and_go(suite_image: BuildImage) -> None:
    """The second processor goes and comes while the application has threads on both."""
    online = "/sys/devices/system/cpu/cpu1/online"
    cycle = f"n=0; while kill -0 $p 2>/dev/null; do echo 0 >{online}; echo 1 >{online}; n=$((n+1)); done;"
    programs = [
        shell(RUN.format("threads") + cycle + END + "; echo times $n", "hotplug"),
        program("fork", UKL),
        shell(f"cat {online}; dmesg", "dmesg"),
    ]
    ended = sections(boot(suite_image("debug"), programs, RunOptions(cpus=2)))
    assert ended["hotplug"].output.split("\n")[:2] == ["status 0", "threads: all checks passed"]
    assert int(ended["hotplug"].output.split()[-1]) >= 2, "times the processor went and came"
    assert ended["ukl:fork"].status == "exit 0"
    assert trouble(ended["dmesg"].output) == []


def test_out_of_memory_ends_the_application_and_nothing_else(suite_image: BuildImage) -> None:
    programs = [program("provoke", UKL, ["eat"]), program("cxx", UKL), shell("dmesg", "dmesg")]
    ended = sections(boot(suite_image("base"), programs, RunOptions(cpus=2)))
    assert ended["ukl:provoke"].status == "signal 9"
    assert ended["ukl:cxx"].status == "exit 0", ended["ukl:cxx"].output
    log = ended["dmesg"].output
    assert re.search(r"Out of memory: Killed process \d+ \(suite\)", log)
    assert not re.search(r"\bBUG\b|\bOops\b|WARNING", log)


BIG = r"""
#include <stdio.h>
#include <string.h>
static char big[900 << 20];
int main(void)
{
	long sum = 0;
	for (size_t at = 0; at < sizeof big; at += 8 << 20)
		big[at] = 1;
	for (size_t at = 0; at < sizeof big; at += 4 << 20)
		sum += big[at];
	printf("sum %ld\n", sum);
	return sum != 113;
}
"""


def test_900_mib_of_static_data(tmp_path: Path, build_image: Callable[[Path, str], Image]) -> None:
    (tmp_path / "big.c").write_text(BIG)
    (tmp_path / "Uklfile").write_text(
        "FROM debian:trixie AS build\nCOPY big.c /\nRUN $CC -O1 -o /big /big.c\n"
        'FROM ukl:6.12\nLINK --from=build /big\nCMD ["big"]\nMEMORY 1200M\n'
    )
    image = build_image(tmp_path, "uklimg-test/guest-big:base")
    for kernel in ("vmlinux", "bzimage"):
        big = Program("/ukl/big", ("big",), timeout=LIMIT, label="big")
        ended = sections(boot(image, [big], RunOptions(), kernel=kernel))
        assert (ended["big"].output, ended["big"].status) == ("sum 113\n", "exit 0")
