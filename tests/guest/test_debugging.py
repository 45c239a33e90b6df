"""What shows an application from inside the guest: stack traces, perf, ftrace, strace, gdb, core dumps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest
from guestlib import PREPARE_TOOLS, BuildImage, Ended, boot, program, sections, shell, trouble

from uklimg.guest.protocol import Program
from uklimg.runner.request import RunOptions

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(1800)]

LKDTM = "/sys/kernel/debug/provoke-crash/DIRECT"
MOUNT = "mount -t debugfs debugfs /sys/kernel/debug"
PROVOKE = "HOME=/root UKL_PROGRAM=provoke"

ToolOptions = Callable[[str], RunOptions]
WithTools = Callable[..., Mapping[str, Ended]]


@pytest.fixture(scope="module")
def with_tools(suite_image: BuildImage, tool_options: ToolOptions) -> WithTools:
    """Boot the suite (configuration ``base``) with TOOLS; what each program did, and a clean kernel log."""

    def run(program: Program, *others: Program, kernel: str = "vmlinux") -> Mapping[str, Ended]:
        programs = [PREPARE_TOOLS, program, *others, shell("dmesg", "dmesg")]
        ended = sections(boot(suite_image("base"), programs, tool_options("base"), kernel=kernel))
        assert trouble(ended["dmesg"].output) == []
        return ended

    return run


# gdb uses debug registers for breakpoints there.
READ_ONLY = ("set mem inaccessible-by-default off", "mem 0xffffffff80000000 0 ro")


def gdb(*commands: str) -> str:
    words = " ".join(f"-ex '{command}'" for command in commands)
    return f"chroot /tools gdb -nx -q -batch {words}"


@pytest.mark.parametrize(
    ("config", "kernel"),
    [("debug", "vmlinux"), ("debug", "bzimage"), ("debug:BYP", "vmlinux"), ("debug:BYP@ukl", "bzimage")],
)
def test_an_oops_shows_who_called(suite_image: BuildImage, config: str, kernel: str) -> None:
    """A kernel function faults in a system call: the trace goes on through the application, and the guest goes on."""
    programs = [
        shell(MOUNT, "mount"),
        program("provoke", "ukl", ["write", "EXCEPTION", LKDTM]),
        shell("dmesg", "dmesg"),
        program("cxx", "ukl"),
    ]
    ended = sections(boot(suite_image(config), programs, RunOptions(cpus=2), kernel=kernel))
    log = ended["dmesg"].output
    oops = log[log.index("BUG: kernel NULL pointer dereference") :]
    assert re.search(r"RIP: 0010:lkdtm_EXCEPTION\+0x", oops)
    codes = re.findall(r"Code: (.*)", oops)
    assert len(codes) >= 2 and all(re.fullmatch(r"([0-9a-f]{2}|<[0-9a-f]{2}>| )+", code.strip()) for code in codes)
    callers = re.search(r"<UKL>\n(.*?)</UKL>", oops, re.DOTALL)
    assert callers, oops
    names = re.findall(r"^ (\w+)[\w.]*\+0x", callers[1], re.MULTILINE)
    lines = callers[1].strip().splitlines()
    assert lines[-1].strip().startswith("_start+0x") and len(names) == len(lines), callers[1]
    ours = [name for name in names if "provoke" in name]
    assert ours == ["provoke_inner", "provoke_outer", "provoke_aligned", "main_provoke"], callers[1]
    assert ended["ukl:cxx"].status == "exit 0"


def test_ftrace_names_functions_of_the_application(suite_image: BuildImage) -> None:
    trace = "/sys/kernel/tracing"
    start = f"mount -t tracefs t {trace}; echo 1 > {trace}/events/exceptions/page_fault_user/enable"
    look = f"grep -m 1 'suite.*ip=provoke_crash' {trace}/trace"
    programs = [shell(start, "start"), program("provoke", "ukl", ["crash"]), shell(look, "trace")]
    ended = sections(boot(suite_image("debug"), programs, RunOptions(cpus=2), kernel="bzimage"))
    assert ended["ukl:provoke"].status == "signal 11"
    assert "page_fault_user: address=0x0 ip=provoke_crash" in ended["trace"].output, ended["trace"].output


def test_perf_names_functions_and_their_callers(with_tools: WithTools) -> None:
    record = "perf record -q -e cpu-clock -g -o /tmp/perf.data -- /ukl/suite spin 5"
    report = (
        "perf report -i /tmp/perf.data --stdio --stdio-color=never --no-children -g caller --comm suite 2>/dev/null"
    )
    recorded = shell(f"{PROVOKE} chroot /tools {record}", "record")
    ended = with_tools(recorded, shell(f"chroot /tools {report}", "report"), kernel="bzimage")
    assert ended["record"].status == "exit 0", ended["record"].output
    text = ended["report"].output
    top = re.search(
        r"^ +([0-9.]+)% .*\[k\] provoke_busy(.*?)\n\n +[0-9.]+%", f"{text}\n\n 0%", re.DOTALL | re.MULTILINE
    )
    assert top, text
    assert float(top[1]) > 50
    assert "main_provoke" in top[2] and "_start" in top[2], top[0]


def test_strace_sees_system_calls_of_a_64_bit_process(with_tools: WithTools) -> None:
    trace = "strace -f -o /tmp/log /ukl/suite write hello /tmp/file"
    command = f"touch /tools/tmp/file; {PROVOKE} chroot /tools {trace}; cat /tools/tmp/log"
    ended = with_tools(shell(command, "strace"))
    lines = re.findall(r"^\d+ +(.*)$", ended["strace"].output, re.MULTILINE)
    assert lines[0].startswith('execve("/ukl/suite", ["/ukl/suite", "write", "hello"'), ended["strace"].output
    assert any(re.fullmatch(r'write\(\d, "hello", 5\) += 5', line) for line in lines), ended["strace"].output
    assert lines[-1] == "+++ exited with 0 +++"
    assert not any("32 bit" in line or "strace:" in line for line in lines)


def test_gdb_in_the_guest(with_tools: WithTools) -> None:
    """Attached to the running application: stops by debug register, frames, data and code read, data written, steps;
    a breakpoint, which would be in the kernel's code, is refused in so many words."""
    commands = gdb(
        "attach PID", "symbol-file /files/suite", *READ_ONLY, "break provoke_tick", "continue", "backtrace 3",
        "print/x $cs", "x/1i $pc", "print provoke_count", "set var provoke_count = 1000000",
        "print provoke_count", "continue", "info registers rip", "stepi", "info registers rip", "delete",
        "set breakpoint auto-hw off", "break provoke_inner", "continue", "detach",
    ).replace("attach PID", "attach '$p'")  # fmt: skip
    start = f"{PROVOKE} chroot /tools /ukl/suite tick & p=$!; sleep 1; "
    end = "; kill -0 $p && echo goes on; kill $p"
    ended = with_tools(shell(f"{start}{commands}{end}", "gdb"))
    text = ended["gdb"].output
    assert text.count("Breakpoint 1, provoke_tick (") == 2, text
    assert re.search(r"#1 .* tick \(\).*\n#2|#1 .*main_provoke", text), text
    assert "$1 = 0x33" in text
    assert re.search(r"=> 0xffffffffc\w+ <provoke_tick.*>:\t\w+", text)
    numbers = [int(n) for n in re.findall(r"^\$[23] = (\d+)$", text, re.MULTILINE)]
    assert 0 < numbers[0] < 1000000 <= numbers[1], text
    before, after = re.findall(r"^rip +(0x\w+)", text, re.MULTILINE)
    assert 0 < int(after, 16) - int(before, 16) < 16
    assert re.search(r"Cannot (set|insert) .*breakpoint", text[text.index("Breakpoint 2 at") :]), text
    assert "goes on" in text


def test_a_core_dump_opens_in_gdb(with_tools: WithTools) -> None:
    crash = f"ulimit -c unlimited; echo /tools/tmp/core > /proc/sys/kernel/core_pattern; {PROVOKE} /ukl/suite crash"
    show = f"{gdb('backtrace', 'print/x $cs', 'print $rdi')} /files/suite /tmp/core"
    ended = with_tools(shell(crash, "crash"), shell(show, "show"))
    text = ended["show"].output
    assert "Program terminated with signal SIGSEGV" in text, text
    assert re.search(r"#0 .*provoke_crash \(.*\n#1 .* main \(.*provoke\.c:", text), text
    assert "$1 = 0x33" in text and "$2 = 0" in text
