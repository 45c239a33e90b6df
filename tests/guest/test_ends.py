"""How a kernel with an application ends: panic, reboot, and kexec out of it and into it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from guestlib import PREPARE_TOOLS, RUN, BuildImage, Image, boot, program, shell, trouble

from uklimg.errors import ToolError
from uklimg.guest.protocol import Program
from uklimg.runner.request import RunOptions

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(1800)]

# PID 1 of the next kernel: what a clean run prints, and then its log.
NEXT = (
    "b=/bin/busybox; $b mount -t devtmpfs d /dev; $b mount -t proc p /proc; echo next kernel; EXPECT_UKL=1 HOME=/root"
    " UKL_PROGRAM=threads /ukl/suite && echo status 0; $b dmesg; echo the end; $b poweroff -f"
)
CMDLINE = f'console=ttyS0 panic=-1 quiet no_timer_check rdinit=/bin/busybox -- sh -c "{NEXT}"'


def console_of(image: Image, programs: Sequence[Program], options: RunOptions, match: str) -> str:
    """The console of a boot that ends without a report of PID 1; ``match`` says in which words."""
    console: list[bytes] = []
    with pytest.raises(ToolError, match=match):
        boot(image, programs, options, show=console.append)
    return b"".join(console).decode("utf-8", "replace").replace("\r\n", "\n")


@pytest.mark.parametrize("call", ["kexec_load", "kexec_file_load"])
def test_kexec_out_of_and_into_a_kernel_with_an_application(
    suite_image: BuildImage, tool_options: Callable[[str], RunOptions], call: str
) -> None:
    """While the application runs. The next kernel, a bzImage, runs it again, and has nothing to complain of."""
    how = {"kexec_load": "-c", "kexec_file_load": "-s"}[call]
    load = (
        f"chroot /tools /usr/sbin/kexec {how} -l /files/bzImage --initrd=/files/initramfs --command-line='{CMDLINE}'"
    )
    begin = RUN.format("threads") + f"{load} && chroot /tools /usr/sbin/kexec -e; echo kexec came back"
    text = console_of(
        suite_image("debug"), [PREPARE_TOOLS, shell(begin, "kexec")], tool_options("debug"), "ended without"
    )
    assert "kexec came back" not in text
    after = text[text.index("next kernel") :]
    assert "\nthreads: all checks passed\n" in after and "\nstatus 0\n" in after, after
    assert "the end" in after and "ukl: suite: " in after
    assert trouble(after) == []


def test_a_panic_restarts_the_machine(suite_image: BuildImage) -> None:
    """panic=-1, which is how `uklimg run` starts kernels; the panic comes in a system call of the application."""
    debugfs = "/sys/kernel/debug"
    programs = [
        shell(f"mount -t debugfs d {debugfs}", "mount"),
        program("provoke", "ukl", ["write", "PANIC", f"{debugfs}/provoke-crash/DIRECT"]),
    ]
    text = console_of(suite_image("debug"), programs, RunOptions(cpus=2), "panicked")
    panic = text[text.index("Kernel panic - not syncing: dumptest") :]
    assert re.search(r"<UKL>\n.* provoke_inner\+0x.*\n.* provoke_outer\+0x", panic, re.DOTALL), panic


def test_reboot_while_the_application_runs(suite_image: BuildImage) -> None:
    begin = RUN.format("threads") + "sleep 1; echo b > /proc/sysrq-trigger"
    text = console_of(suite_image("debug"), [shell(begin, "reboot")], RunOptions(cpus=2), "ended without")
    assert not re.search(r"\bBUG\b|\bOops\b|WARNING|panic", text), text
