"""QEMU's argument list, and what else of the runner is pure."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.guest.protocol import Status
from uklimg.oci import RunConfig
from uklimg.runner.accel import MARKER, host_tsc_khz, probe_program
from uklimg.runner.console import Console
from uklimg.runner.launch import check
from uklimg.runner.machine import (
    MIB,
    Accel,
    Disk,
    MachineConfig,
    MachineType,
    PortForward,
    TapNetwork,
    UserNetwork,
    Volume,
)
from uklimg.runner.network import TapPlan, check_forwards, free_port, inside_cmd, parse_forward, tap_cmds
from uklimg.runner.qemu import Qemu, kernel_cmdline, qemu_cmd
from uklimg.runner.request import RunOptions, configure
from uklimg.runner.volumes import Bind, parse_bind

pytestmark = pytest.mark.unit

PLAIN = MachineConfig(Path("/k"), Path("/i"))


def test_the_whole_command() -> None:
    config = replace(
        PLAIN,
        cmdline="isolcpus=1",
        memory=512 * MIB,
        cpus=2,
        network=UserNetwork((PortForward(8080, 80), PortForward(53, 53, "udp", "0.0.0.0"))),
        control=7,
        console=8,
    )
    assert qemu_cmd(config) == [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "524288k"),
        *("-kernel", "/k", "-initrd", "/i"),
        *("-append", "console=ttyS0 panic=-1 quiet no_timer_check ip=dhcp isolcpus=1"),
        *("-chardev", "socket,id=console,fd=8", "-serial", "chardev:console"),
        *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        *("-chardev", "socket,id=control,fd=7", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=control,name=org.uklimg.control"),
        *("-netdev", "user,id=net0,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:0.0.0.0:53-:53"),
        *("-device", "virtio-net-pci,netdev=net0,romfile="),
    ]


def test_microvm_uses_mmio_devices_only() -> None:
    config = replace(
        PLAIN, type=MachineType.MICROVM, network=UserNetwork(), control=7, volumes=(Volume("/v", "v"),), tsc_khz=5
    )
    argv = qemu_cmd(config)
    assert not [word for word in argv if "-pci" in word or "romfile" in word]
    assert "virtio-mmio.force-legacy=false" in argv
    assert "tsc_early_khz=5" in kernel_cmdline(config).split()


def test_kvm() -> None:
    argv = qemu_cmd(replace(PLAIN, accel=Accel.KVM))
    assert argv[argv.index("-accel") + 1] == "kvm"
    assert argv[argv.index("-cpu") + 1] == "host"
    assert "no_timer_check" not in argv[argv.index("-append") + 1]


def test_volumes_disks_and_commas() -> None:
    config = replace(PLAIN, volumes=(Volume("/a,b", "t", True),), disks=(Disk("/d,e", "qcow2", True),))
    argv = qemu_cmd(config)
    assert "local,id=fs0,path=/a,,b,security_model=none,multidevs=remap,readonly=on" in argv
    assert "if=none,id=disk0,file=/d,,e,format=qcow2,readonly=on" in argv


def test_tap_in_a_name_space() -> None:
    plan = TapPlan("space")
    argv = qemu_cmd(replace(PLAIN, network=plan.network))
    assert argv[:5] == ["ip", "netns", "exec", "space", "qemu-system-x86_64"]
    assert "tap,id=net0,ifname=tap0,script=no,downscript=no" in argv
    assert "ip=10.75.0.2::10.75.0.1:255.255.255.0::eth0:off" in kernel_cmdline(replace(PLAIN, network=plan.network))
    assert inside_cmd(plan, ["redis-cli"]) == ["ip", "netns", "exec", "space", "redis-cli"]
    assert tap_cmds(plan)[0] == ["ip", "netns", "add", "space"]


def test_debugging_and_counting() -> None:
    argv = qemu_cmd(replace(PLAIN, gdb="unix:/s", paused=True, icount=4))
    assert argv[argv.index("-gdb") + 1] == "unix:/s,server=on,wait=off"
    assert "-S" in argv
    assert argv[argv.index("-icount") + 1] == "shift=4,sleep=off"
    assert argv[argv.index("-cpu") + 1] == "max,-rdrand,-rdseed"
    assert "virtio-rng" not in " ".join(argv)
    with pytest.raises(UserError):
        qemu_cmd(replace(PLAIN, icount=4, accel=Accel.KVM))


def test_the_images_own_parameters_win_and_no_network_asks_for_no_address() -> None:
    assert "ip=" not in kernel_cmdline(PLAIN)
    own = replace(PLAIN, network=UserNetwork(), cmdline="ip=10.0.0.1 -- ip=x")
    assert kernel_cmdline(own).count("ip=dhcp") == 0
    passed = replace(PLAIN, network=UserNetwork(), cmdline="quiet -- ip=x")
    assert "ip=dhcp quiet -- ip=x" in kernel_cmdline(passed)
    assert "quiet" not in kernel_cmdline(replace(PLAIN, verbose=True))
    assert TapNetwork("t").address == "dhcp"


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("8080:80", PortForward(8080, 80)),
        ("53:53/udp", PortForward(53, 53, "udp")),
        ("0.0.0.0:1:65535/tcp", PortForward(1, 65535, "tcp", "0.0.0.0")),
    ],
)
def test_forwards(text: str, forward: PortForward) -> None:
    assert parse_forward(text) == forward


@pytest.mark.parametrize(
    "text", ["", "80", ":80", "80:", "a:80", "80:0", "80:65536", "80:80/sctp", "host:1:2", ":1:2", "1.2.3:1:2", "²:1"]
)
def test_bad_forwards(text: str) -> None:
    with pytest.raises(UserError):
        parse_forward(text)


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ToolError, match=f"tcp port {port} of 127.0.0.1 is in use") as caught:
            check_forwards([PortForward(port, 80)])
    assert caught.value.exit_code is ExitCode.RUN_FAILED
    free = free_port()
    check_forwards([PortForward(free, 80)])
    with pytest.raises(UserError, match="twice"):
        check_forwards([PortForward(free, 80), PortForward(free, 81)])


def test_binds(tmp_path: Path) -> None:
    assert parse_bind("data:/data", tmp_path) == Bind(str(tmp_path / "data"), "/data")
    assert parse_bind("/x:/a/../b:ro", tmp_path) == Bind("/x", "/b", read_only=True)
    for text in ("", "x", "x:y", "x:/", ":/x", "x:/y:rx"):
        with pytest.raises(UserError):
            parse_bind(text, tmp_path)


def test_configure(tmp_path: Path) -> None:
    run = RunConfig("p", memory=64 * MIB, cpus=3, cmdline="a=1 -- x", env={"A": "1"})
    options = RunOptions(
        arguments=("arg",), forwards=(PortForward(1, 2),), binds=(Bind(str(tmp_path), "/d", True),), cmdline="b=2",
        tsc_khz=9,
    )  # fmt: skip
    machine, guest = configure(run, Path("/k"), Path("/i"), options)
    assert (machine.memory, machine.cpus, machine.cmdline, machine.tsc_khz) == (64 * MIB, 3, "a=1 b=2 -- x", 9)
    assert machine.network == UserNetwork((PortForward(1, 2),))
    assert machine.volumes == (Volume(str(tmp_path), "uklimg0", True),)
    assert [(m.target, m.source, m.read_only) for m in guest.mounts] == [("/d", "uklimg0", True)]
    assert guest.programs[0].argv == ("arg",)
    assert guest.raw_console
    defaults, _ = configure(RunConfig("p"), Path("/k"), Path("/i"), RunOptions(no_network=True, accel=Accel.KVM))
    assert (defaults.memory, defaults.cpus, defaults.network, defaults.tsc_khz) == (256 * MIB, 1, None, 0)
    with pytest.raises(UserError, match="no folder"):
        configure(run, Path("/k"), Path("/i"), RunOptions(binds=(Bind(str(tmp_path / "no"), "/d"),)))
    with pytest.raises(UserError, match="network"):
        configure(run, Path("/k"), Path("/i"), RunOptions(forwards=(PortForward(1, 2),), no_network=True))


def test_what_cannot_boot_is_said_before(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "k", tmp_path / "i"
    kernel.touch()
    with initrd.open("wb") as file:
        file.truncate(100 * MIB)
    program = tmp_path / "qemu"
    program.touch(0o755)
    env = {"PATH": "/nowhere"}
    with pytest.raises(ToolError, match="qemu-system-x86_64 is not installed") as missing:
        check(Qemu(), MachineConfig(kernel), env)
    assert missing.value.exit_code is ExitCode.HOST
    with pytest.raises(ToolError, match="does not fit into 128 MiB"):
        check(Qemu(str(program)), MachineConfig(kernel, initrd, memory=128 * MIB), env)
    with pytest.raises(ToolError, match="no file"):
        check(Qemu(str(program)), MachineConfig(tmp_path / "none"), env)
    with pytest.raises(ToolError, match="no folder"):
        check(Qemu(str(program)), MachineConfig(kernel, volumes=(Volume(str(tmp_path / "v"), "t"),)), env)
    check(Qemu(str(program)), MachineConfig(kernel, initrd, memory=256 * MIB), env)


class TestConsole:
    TEXT = b"one\nuklimg: hello\n> uklimg: exit 3\nreboot: Power down\n"

    @pytest.mark.parametrize("size", range(1, 60))
    def test_the_end_is_hidden_however_it_is_cut(self, size: int) -> None:
        console = Console()
        shown = b"".join(console.feed(self.TEXT[at : at + size]) for at in range(0, len(self.TEXT), size))
        assert shown + console.flush() == b"one\nuklimg: hello\n> "
        assert console.final == Status(exit=3)

    def test_verbose_shows_all(self) -> None:
        console = Console(hide_end=False)
        assert console.feed(self.TEXT) + console.flush() == self.TEXT

    def test_nothing_is_lost_without_an_end(self) -> None:
        console = Console()
        assert console.feed(b"prompt> ukl") == b"prompt> "
        assert console.flush() == b"ukl"

    def test_a_program_that_writes_such_a_line_itself_is_still_heard(self) -> None:
        console = Console()
        shown = b"".join(console.feed(text) for text in (b"uklimg: exit 0\n", b"[x] more", b"\nuklimg: exit 1\n"))
        assert shown + console.flush() == b"uklimg: exit 0\n[x] more\n"
        assert console.final == Status(exit=1)

    def test_panic(self) -> None:
        console = Console()
        console.feed(b"[ 1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\r\n")
        assert console.panic == "Attempted to kill init! exitcode=0x0000000b"
        assert console.final is None


def test_probe_program_is_an_elf_file_that_holds_the_marker() -> None:
    program = probe_program()
    assert program.endswith(MARKER.encode() + b"\n")
    assert program[:6] == b"\x7fELF\x02\x01"
    entry, offset = struct.unpack_from("<QQ", program, 24)
    kind, flags, position, address = struct.unpack_from("<IIQQ", program, offset)
    assert (kind, flags, position) == (1, 5, 0)
    code = program[entry - address :]
    assert code[10:13] == b"\x48\x8d\x35", "lea rsi, [rip + …]"
    (distance,) = struct.unpack_from("<i", code, 13)
    assert code[17 + distance :] == MARKER.encode() + b"\n"


@pytest.mark.parametrize(
    ("text", "khz"),
    [
        ("model name\t: Xeon CPU @ 2.50GHz\ncpu MHz\t\t: 3000.1\n", 2_500_000),
        ("cpu MHz\t\t: 2300.000\nmodel name\t: Xeon Processor\n", 2_300_000),
        ("processor : 0\n", 0),
        ("", 0),
    ],
)
def test_time_stamp_counter(text: str, khz: int) -> None:
    assert host_tsc_khz(text) == khz
