"""The runner and PID 1 against real boots: QEMU, a kernel of ours, a busybox shell as the program."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bootlib import shell

from uklimg.errors import ExitCode, ToolError
from uklimg.guest.protocol import GuestConfig, Helper, Mount, Program, Report, ReportKind, Status
from uklimg.runner.accel import MARKER, HostFacts, find_accel, host_tsc_khz, probe
from uklimg.runner.launch import Outcome, launch
from uklimg.runner.machine import (
    MIB,
    Accel,
    Disk,
    Feature,
    MachineConfig,
    MachineType,
    PortForward,
    UserNetwork,
    Volume,
)
from uklimg.runner.network import TapPlan, free_port, inside_cmd, tap
from uklimg.runner.qemu import Qemu
from uklimg.runner.stops import Stops

pytestmark = pytest.mark.boot

ENV = {"PATH": "/bin"}
_9P = "trans=virtio,version=9p2000.L"


@dataclass
class Boot:
    """Boots with one call; keeps console and reports."""

    kernel: Path
    initrd: Path
    env: Mapping[str, str]
    console: bytes = b""
    reports: list[Report] = field(default_factory=list)

    def machine(self, **options: object) -> MachineConfig:
        khz = 0 if "icount" in options else host_tsc_khz(Path("/proc/cpuinfo").read_text())
        return MachineConfig(self.kernel, self.initrd, tsc_khz=khz, **options)  # type: ignore[arg-type]

    def keep(self, data: bytes) -> None:
        self.console += data

    def by_hand(self, machine: MachineConfig) -> str:
        """The whole console of a QEMU that nobody talks to."""
        argv = Qemu().command(machine)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
        return done.stdout.replace("\r", "").replace("\n\n", "\n")

    def __call__(
        self,
        guest: GuestConfig,
        machine: MachineConfig | None = None,
        *,
        stops: Stops | None = None,
        when: Mapping[bytes, object] | None = None,
    ) -> Outcome:
        """``when``: text of the console -> what to call once it has been seen."""
        waiting = dict(when or {})

        def show(data: bytes) -> None:
            self.console += data
            for text in [text for text in waiting if text in self.console]:
                action = waiting.pop(text)
                assert callable(action)
                action()

        return launch(
            Qemu(),
            machine or self.machine(),
            guest,
            env=self.env,
            show=show,
            stops=stops,
            on_report=self.reports.append,
        )


@pytest.fixture
def boot(boot_kernel: Path, shell_initramfs: Path, env: Mapping[str, str]) -> Boot:
    return Boot(boot_kernel, shell_initramfs, env)


def config(script: str, **options: object) -> GuestConfig:
    return GuestConfig((shell(script),), env=ENV, raw_console=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(MachineType))
@pytest.mark.parametrize("cpus", [1, 2])
def test_console_is_exactly_what_the_program_writes(boot: Boot, kind: MachineType, cpus: int) -> None:
    outcome = boot(config("printf 'one\\ntwo\\tthree'; nproc >&2; exit 3"), boot.machine(type=kind, cpus=cpus))
    assert outcome.status == Status(exit=3)
    assert outcome.code == 3
    assert boot.console == b"one\ntwo\tthree%d\n" % cpus
    assert boot.reports[0] == Report(ReportKind.READY)
    assert boot.reports[-1] == Report(ReportKind.FINAL, status=Status(exit=3))


def test_death_by_signal(boot: Boot) -> None:
    outcome = boot(config("kill -SEGV $$"))
    assert outcome.status == Status(signal=11)
    assert outcome.code == 139


def test_arguments_environment_folder_and_mounts(boot: Boot) -> None:
    program = Program(
        "shell",
        (
            "sh",
            "-c",
            'printf "%s|" "$0" "$@" "$A" "$B" "$PWD"; cut -d" " -f2 /proc/mounts',
            "a b",
            'q"uo$te',
            "",
            "ü\n",
        ),
        env={"B": "own\nline"},
        workdir="/work",
    )
    outcome = boot(GuestConfig((program,), env={**ENV, "A": "x=y", "B": "global"}, raw_console=True))
    assert outcome.code == 0
    text = boot.console.decode()
    assert text.startswith('a b|q"uo$te||ü\n|x=y|own\nline|/work|')
    assert set(text.rpartition("|")[2].split()) >= {"/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/tmp", "/run"}


def test_a_program_that_is_not_there(boot: Boot) -> None:
    with pytest.raises(ToolError, match=r"cannot execute /no/such: No such file") as caught:
        boot(GuestConfig((Program("/no/such"),)))
    assert caught.value.exit_code is ExitCode.RUN_FAILED


def test_without_a_runner_the_file_and_the_command_line_say_what_runs(boot: Boot) -> None:
    """QEMU by hand, no control port: run.conf, words after --, NAME=value, and the last line of the console."""

    def by_hand(append: str) -> str:
        argv = Qemu().command(boot.machine(cmdline=append))
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300).stdout

    assert by_hand("").replace("\r", "").startswith("from the file\nuklimg: exit 9\n")
    replaced = by_hand("PATH=/bin WORD=spoken -- -c \"echo $WORD 'and' done; kill -9 $$\"").replace("\r", "")
    assert replaced.startswith("spoken and done\nuklimg: signal 9 (SIGKILL)\n")


def test_programs_in_order_with_markers(boot: Boot) -> None:
    programs = (
        shell("echo first", label="one"),
        shell("echo second; exit 4", label="two"),
        shell("while :; do :; done", label="slow", timeout=1),
        shell("echo last", label="four"),
    )
    outcome = boot(GuestConfig(programs, env=ENV, markers=True, raw_console=True))
    assert outcome.code == 4, "the first failure is the run's status"
    assert boot.console.decode() == textwrap.dedent("""\
        @@BEGIN one
        first
        @@END one exit 0
        @@BEGIN two
        second
        @@END two exit 4
        @@BEGIN slow
        @@END slow signal 9 timeout
        @@BEGIN four
        last
        @@END four exit 0
        """)
    ends = [report for report in boot.reports if report.kind is ReportKind.END]
    assert [(r.name, r.status.code, r.timeout) for r in ends] == [
        ("one", 0, False),
        ("two", 4, False),
        ("slow", 137, True),
        ("four", 0, False),
    ]


def test_a_helper_beside_the_program_stops_it(boot: Boot) -> None:
    helper = Helper(shell('kill -0 "$UKLIMG_PID" && echo it lives'), stop=True)
    outcome = boot(config("while :; do sleep 1; done", beside=(helper,)))
    assert outcome.code == 0, "a program that its helper stopped has not failed"
    assert boot.console == b"it lives\n"


def test_the_run_waits_for_a_helper(boot: Boot) -> None:
    helper = Helper(shell("sleep 1; echo late; exit 6"), wait=True)
    outcome = boot(config("echo early", beside=(helper,)))
    assert boot.console == b"early\nlate\n"
    assert outcome.code == 6


def test_orphans_are_reaped(boot: Boot) -> None:
    script = """
        for i in 1 2 3 4 5; do (sh -c 'sleep 0.1' &) ; done
        sleep 1
        grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l
    """
    boot(config(script))
    assert boot.console.strip() == b"0"


def test_a_stop_request_is_the_stop_signal(boot: Boot) -> None:
    stops = Stops()
    guest = config("trap 'echo stopping; exit 5' USR2; echo ready; while :; do sleep 0.1; done", stop_signal=12)
    outcome = boot(guest, stops=stops, when={b"ready": stops.request})
    stops.close()
    assert outcome.code == 5
    assert boot.console == b"ready\nstopping\n"


def test_a_program_that_ignores_the_stop_signal_is_killed(boot: Boot) -> None:
    stops = Stops()
    guest = config("trap '' TERM; echo ready; while :; do sleep 0.1; done", grace=1)
    outcome = boot(guest, stops=stops, when={b"ready": stops.request})
    stops.close()
    assert outcome.status == Status(signal=9)


def test_a_second_request_ends_the_machine(boot: Boot) -> None:
    stops = Stops()

    def twice() -> None:
        stops.request()
        stops.request()

    guest = config("trap '' TERM; echo ready; while :; do sleep 0.1; done", grace=600)
    name = f"uklimg-twice-{os.getpid()}"
    with pytest.raises(ToolError, match="interrupted") as caught:
        boot(guest, boot.machine(extra=("-name", name)), stops=stops, when={b"ready": twice})
    stops.close()
    assert caught.value.exit_code is ExitCode.INTERRUPTED
    assert not running(name)


@pytest.mark.parametrize("kind", list(MachineType))
def test_network_port_forward_and_name_server(boot: Boot, kind: MachineType) -> None:
    port = free_port()
    heard: list[bytes] = []

    def talk() -> None:
        def run() -> None:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(b"hello\n")
                connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(100):
                    heard.append(data)

        threading.Thread(target=run, daemon=True).start()

    script = """
        grep -c nameserver /etc/resolv.conf
        ip addr show lo | grep -c LOOPBACK,UP
        (until netstat -ltn | grep -q :7; do :; done; echo up) &
        nc -l -p 7 -e cat
    """
    machine = boot.machine(type=kind, network=UserNetwork((PortForward(port, 7),)))
    assert boot(config(script), machine, when={b"up\n": talk}).code == 0
    assert boot.console.startswith(b"1\n1\n")
    assert b"".join(heard) == b"hello\n"


def test_tap_in_a_name_space(boot: Boot) -> None:
    plan = TapPlan(f"uklimg-{os.getpid()}")
    answers: list[bytes] = []

    def talk() -> None:
        argv = inside_cmd(plan, ["/bin/busybox", "nc", plan.guest, "7"])
        done = subprocess.run(argv, input=b"over the tap\n", capture_output=True, timeout=60)
        answers.append(done.stdout)

    script = "(until netstat -ltn | grep -q :7; do :; done; echo up) & nc -l -p 7 -e head -n 1"
    with tap(plan, boot.env):
        machine = boot.machine(network=plan.network)
        thread = threading.Thread(target=talk)
        assert boot(config(script), machine, when={b"up\n": thread.start}).code == 0
        thread.join()
    assert answers == [b"over the tap\n"]
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert plan.netns not in spaces.stdout


def test_standard_input_is_typed(boot: Boot) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one line\n")
    os.close(writer)
    outcome = launch(
        Qemu(),
        boot.machine(),
        config('read line; echo "<$line>"; cat; exit 4'),
        env=boot.env,
        show=boot.keep,
        stdin=reader,
    )
    os.close(reader)
    assert (outcome.code, boot.console) == (4, b"<one line>\n")


def test_what_the_hypervisor_says_when_it_cannot_start(boot: Boot) -> None:
    with pytest.raises(ToolError, match="'nonsense' is not a valid device model name") as caught:
        boot(config("true"), boot.machine(extra=("-device", "nonsense")))
    assert caught.value.exit_code is ExitCode.RUN_FAILED
    assert caught.value.detail.startswith("$ env -i ")


def test_power_off_without_a_switch(boot: Boot) -> None:
    """A microvm without ACPI cannot be switched off: PID 1 resets it, and does not halt for ever."""
    machine = boot.machine(type=MachineType.MICROVM, extra=("-machine", "microvm,acpi=off"))
    assert "uklimg: exit 9" in boot.by_hand(machine)


@pytest.mark.parametrize("kind", list(MachineType))
def test_volumes(boot: Boot, tmp_path: Path, kind: MachineType) -> None:
    data, fixed = tmp_path / "da,ta", tmp_path / "fixed"
    data.mkdir()
    fixed.mkdir()
    (fixed / "in").write_text("inside\n")
    mounts = (Mount("/data", "d", options=_9P), Mount("/fixed", "f", options=_9P, read_only=True))
    volumes = (Volume(str(data), "d"), Volume(str(fixed), "f", read_only=True))
    script = "cat /fixed/in > /data/out && sync; touch /fixed/no 2>/dev/null && echo written"
    assert boot(config(script, mounts=mounts), boot.machine(volumes=volumes, type=kind)).code == 1
    assert (data / "out").read_text() == "inside\n"
    assert boot.console == b""


def test_a_volume_that_cannot_be_mounted(boot: Boot) -> None:
    with pytest.raises(ToolError, match="cannot mount the volume /data"):
        boot(config("true", mounts=(Mount("/data", "nobody", options=_9P),)))


def test_disk(boot: Boot, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(8 * MIB)
    boot(config("printf abc > /dev/vda; sync"), boot.machine(disks=(Disk(str(disk)),)))
    with disk.open("rb") as file:
        assert file.read(4) == b"abc\0"


def test_a_kernel_panic_is_our_failure(boot: Boot) -> None:
    with pytest.raises(ToolError, match="the guest's kernel panicked: VFS: Unable to mount root fs") as caught:
        boot(config("true"), boot.machine(cmdline="rdinit=/no/such"))
    assert caught.value.exit_code is ExitCode.RUN_FAILED


def test_a_reset_without_status_is_our_failure(boot: Boot) -> None:
    with pytest.raises(ToolError, match="without the program's status"):
        boot(config("reboot -f"))


def test_a_status_line_of_the_program_itself_is_not_believed(boot: Boot) -> None:
    outcome = boot(config("echo 'uklimg: exit 0'; exit 1"))
    assert outcome.code == 1


def test_large_arguments(boot: Boot) -> None:
    """More than a socket buffer and a virtio queue hold at once."""
    words = tuple("x" * 100_000 for _ in range(8))
    program = Program("/bin/sh", ("sh", "-c", 'echo $#; printf %s "$@" | md5sum', "sh", *words))
    boot(GuestConfig((program,), env=ENV, raw_console=True))
    assert boot.console.split()[0] == b"8"


def test_bzimage_boots_too(boot: Boot) -> None:
    image = boot.kernel.with_name("bzImage")
    assert image.is_file(), "the product makes both, side by side"
    machine = MachineConfig(image, boot.initrd)
    assert boot(config("exit 2"), machine).code == 2


class Portless(Qemu):
    """A hypervisor such as Firecracker: no port for PID 1, the serial console on standard input and output."""

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset(Feature) - {Feature.CONTROL, Feature.COMMANDS}


def test_a_guest_is_told_what_to_run_where_there_is_no_port(boot: Boot, tmp_path: Path) -> None:
    script = 'printf "%s|" "$0" "$A"; cat /proc/cmdline | grep -c quiet; exit 4'
    program = Program("/bin/sh", ("sh", "-c", script, 'a "b"\n'), label="told")
    guest = GuestConfig((program,), env={**ENV, "A": "line\nline"}, raw_console=True)
    seen: list[Report] = []
    outcome = launch(
        Portless(), boot.machine(), guest, env=boot.env, show=boot.keep, on_report=seen.append, scratch=tmp_path
    )
    assert outcome.status == Status(exit=4)
    assert boot.console == b'a "b"\n|line\nline|1\n'
    assert [report.kind for report in seen] == [ReportKind.BEGIN]
    assert list(tmp_path.iterdir()) == [], "what it needed is gone"


def test_instruction_counting_is_repeatable(boot: Boot) -> None:
    """Without the control port, whose bytes come when the host has time."""
    append = 'PATH=/bin -- -c "cat /proc/uptime /proc/interrupts; date"'
    first, second = (boot.by_hand(boot.machine(icount=4, cmdline=append)) for _ in range(2))
    assert "uklimg: exit 0" in first
    assert first == second


def test_the_probe_says_yes_for_emulation_and_never_hangs_for_kvm(boot: Boot, tmp_path: Path) -> None:
    yes = probe(Qemu(), boot.kernel, env=boot.env, accel=Accel.TCG, limit=300)
    assert "boots under TCG" in yes.reason
    state = tmp_path / "state" / "accel.json"
    notes: list[str] = []
    answer = find_accel(Qemu(), boot.kernel, state=state, env=boot.env, note=notes.append)
    if HostFacts.read().device.exists():
        assert notes, "where there is a device, it is tried"
        notes.clear()
        assert find_accel(Qemu(), boot.kernel, state=state, env=boot.env, note=notes.append) == answer
        assert not notes, "once"
    else:
        assert answer.accel is Accel.TCG
    outcome = boot(config("exit 0"), boot.machine(accel=answer.accel))
    assert outcome.code == 0, "what the probe chose boots"
    assert MARKER not in boot.console.decode()


def test_nothing_survives_a_killed_runner(boot: Boot, tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from bootlib import shell
        from uklimg.guest.protocol import GuestConfig
        from uklimg.proc import host_env
        from uklimg.runner.launch import launch
        from uklimg.runner.machine import MachineConfig
        from uklimg.runner.qemu import Qemu
        guest = GuestConfig((shell("echo ready; while :; do sleep 1; done"),), env={"PATH": "/bin"})
        machine = MachineConfig(Path(sys.argv[1]), Path(sys.argv[2]), extra=("-name", sys.argv[3]))
        launch(Qemu(), machine, guest, env=host_env(os.environ), show=lambda data: os.write(1, data))
    """)
    name = f"uklimg-test-{os.getpid()}"
    argv = [sys.executable, "-c", script, str(boot.kernel), str(boot.initrd), name]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=child_env()) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline().strip() == b"ready"
        assert running(name)
        runner.send_signal(signal.SIGKILL)
    until_gone(name)


def test_ctrl_c_ends_the_guest_cleanly(boot: Boot) -> None:
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from bootlib import shell
        from uklimg.guest.protocol import GuestConfig
        from uklimg.proc import host_env
        from uklimg.runner.launch import launch
        from uklimg.runner.machine import MachineConfig
        from uklimg.runner.qemu import Qemu
        from uklimg.runner.stops import Stops
        guest = GuestConfig(
            (shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done"),), env={"PATH": "/bin"}
        )
        machine = MachineConfig(Path(sys.argv[1]), Path(sys.argv[2]))
        with Stops() as stops:
            outcome = launch(
                Qemu(), machine, guest, env=host_env(os.environ), show=lambda data: os.write(1, data), stops=stops
            )
        sys.exit(outcome.code)
    """)
    argv = [sys.executable, "-c", script, str(boot.kernel), str(boot.initrd)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=child_env()) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline().strip() == b"ready"
        runner.send_signal(signal.SIGINT)
        assert runner.stdout.read().strip() == b"bye"
        assert runner.wait() == 7


def child_env() -> dict[str, str]:
    """Ours, with the package and the tests' helpers importable."""
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{here}:{here.parents[1]}"}


def running(name: str) -> bool:
    """Whether a process has ``name`` among its arguments (the test's own processes aside)."""
    return any(words[0].endswith(b"qemu-system-x86_64") for words in command_lines(name))


def command_lines(name: str) -> Sequence[list[bytes]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if name.encode() in words:
            found.append(words)
    return found


def until_gone(name: str) -> None:
    while running(name):
        time.sleep(0.05)
