"""The `metal` configuration on a machine without virtio, from a disk, under UEFI firmware (OVMF)."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redislib import PORT, ROOT, Server, serving, uklimg_cmd, uklimg_env

from uklimg.runner.network import free_port

pytestmark = [pytest.mark.boot, pytest.mark.timeout(3600)]

TAG = "uklimg-test/example:metal"
FIRMWARE = (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd"))
MIB = 1 << 20

# What each machine boots from, and what else is plugged in.
USB = ("-device", "qemu-xhci", "-device", "usb-kbd", "-device", "usb-storage,drive=stick")
MACHINES = {
    "ahci": ("-device", "ide-hd,drive=disk,bus=ide.0", "-device", "e1000e,netdev=net", *USB),
    "nvme": ("-device", "nvme,drive=disk,serial=1", "-device", "e1000e,netdev=net", *USB),
}
SEEN = {
    "ahci": (r"ahci .*AHCI", r"sd 0:0:0:0: \[sd\w\] Attached SCSI disk", r"e1000e .*eth0"),
    "nvme": (r"nvme nvme0: ", r" nvme0n1: p1", r"e1000e .*eth0"),
}
ALL_SEE = (
    r"efi: EFI v2", r"efifb: ", r"Console: switching to colour frame buffer",
    r"input: QEMU QEMU USB Keyboard", r"usb-storage .*USB Mass Storage device detected", r"ukl: redis-server: ",
)  # fmt: skip


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `uklimg export` makes: an EFI system partition with kernel, initramfs and parameters in one file."""
    folder = tmp_path_factory.mktemp("metal")
    shutil.copy(ROOT / "Uklfile.example", folder)
    shutil.copy(ROOT / "scripts/example.lock", folder / "Uklfile.lock")
    build = uklimg_cmd("build", "-f", str(folder / "Uklfile.example"), "-t", TAG, "--kernel-config", "metal")
    subprocess.run([*build, str(folder)], env=uklimg_env(), check=True)
    # The monitor's NMI makes the kernel panic, and emulation on a loaded machine starves its timers.
    parameters = "unknown_nmi_panic loglevel=7"
    export = ["export", "--format", "raw", "--accel", "tcg", "--cmdline", parameters, "-o", str(folder / "disk.img")]
    subprocess.run(uklimg_cmd(*export, TAG), env=uklimg_env(), check=True)
    return folder / "disk.img"


@contextmanager
def booted(disk: Path, folder: Path, machine: str, *options: str) -> Iterator[Server]:
    """A machine that starts from ``disk``, when Redis answers."""
    code, variables = FIRMWARE
    shutil.copy(variables, folder / "vars.fd")
    (folder / "stick.img").write_bytes(bytes(MIB))
    port = free_port()
    argv = ["qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "1024", "-no-reboot"]
    # A thread for each processor now and then executes an int3 that the kernel has taken back (QEMU 7.2).
    argv += ["-accel", "tcg,thread=single"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-vga", "std", "-serial", "stdio"]
    argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={code}"]
    argv += ["-drive", f"if=pflash,format=raw,file={folder / 'vars.fd'}"]
    argv += ["-drive", f"if=none,id=disk,format=raw,snapshot=on,file={disk}"]
    argv += ["-drive", f"if=none,id=stick,format=raw,file={folder / 'stick.img'}"]
    argv += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:{PORT}", *MACHINES[machine], *options]
    with serving(argv, port, folder / "out", folder / "err") as server:
        yield server


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_redis_boots_from_a_disk_on_a_machine_without_virtio(disk: Path, tmp_path: Path, machine: str) -> None:
    with booted(disk, tmp_path, machine) as server:
        assert server("SET", "where", machine) == "OK" and server("GET", "where") == machine
        ended = server.end("SHUTDOWN", "NOSAVE")
    assert ended.status == 0, ended.stderr
    for pattern in (*SEEN[machine], *ALL_SEE):
        assert re.search(pattern, ended.stdout), f"{pattern}: {ended.stdout}"
    assert not re.search(r"\bBUG\b|\bOops\b|WARNING|Call Trace", ended.stdout), ended.stdout


def test_the_firmware_starts_it_elsewhere_each_time(disk: Path, tmp_path: Path) -> None:
    """The EFI stub has a KASLR of its own. The kernel says where it was when an NMI makes it panic."""
    offsets = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        with booted(disk, folder, "ahci", "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off") as server:
            assert server("PING") == "PONG"
            with socket.socket(socket.AF_UNIX) as monitor:
                monitor.connect(str(folder / "qmp"))
                monitor.sendall(b'{"execute": "qmp_capabilities"} {"execute": "inject-nmi"}')
                ended = server.end()
        found = re.search(r"Kernel Offset: (0x[0-9a-f]+) from", ended.stdout)
        assert found, ended.stdout
        offsets.append(int(found[1], 16))
    assert offsets[0] != offsets[1] and all(offset % (2 * MIB) == 0 for offset in offsets)
