"""`uklimg export` of the example: the same bytes twice, and each that can boot here boots and answers as Redis."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from bootlib import Example
from redislib import PORT, Ended, Server, uklimg

from uklimg.export.formats import FORMATS
from uklimg.export.libvirt import DOMAIN
from uklimg.export.plain import SCRIPT
from uklimg.runner.network import free_port

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1200)]

FIRMWARE = (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd"))
IMAGE = "registry.example.com/me/redis"
# What the export needs beside --format and -o, and what makes it fit for emulation.
EXTRA = {"libvirt": ("--network", "user", "--name", "uklimg-export-test"), "kubevirt": ("--image", IMAGE)}
EXTRA["urunc"] = EXTRA["kubevirt"]
NOBODY = 65534


def export(name: str, out: Path, ref: str, *options: str) -> Path:
    accel = ("--accel", "tcg") if "accel" in FORMATS[name].options else ()
    done = uklimg("export", "--format", name, "-o", str(out), *accel, *EXTRA.get(name, ()), *options, ref)
    assert (done.status, done.stderr) == (0, ""), done.stderr
    assert done.stdout == f"{out}\n"
    return out


@pytest.fixture(scope="module")
def exported(example: Example) -> Iterator[Callable[[str], Path]]:
    """Each format's export, made when it is asked for first, in a folder that other users may read."""
    with tempfile.TemporaryDirectory(prefix="uklimg-export-", dir="/var/tmp") as text:
        folder = Path(text)
        folder.chmod(0o755)
        made: dict[str, Path] = {}

        def get(name: str) -> Path:
            if name not in made:
                made[name] = export(name, folder / name, example.tag)
            return made[name]

        yield get


# Booted by firmware


def firmware_cmd(port: int, folder: Path, *medium: str) -> list[str]:
    """A machine with OVMF and no more memory than the image asks for."""
    code, variables = FIRMWARE
    shutil.copy(variables, folder / "vars.fd")
    flash = [f"format=raw,readonly=on,file={code}", f"format=raw,file={folder / 'vars.fd'}"]
    return [
        *machine_cmd(),
        *(word for part in flash for word in ("-drive", f"if=pflash,{part}")),
        *net(port),
        *medium,
    ]


def machine_cmd() -> list[str]:
    argv = ["qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-m", "256", "-no-reboot", "-nodefaults"]
    return [*argv, "-no-user-config", "-display", "none", "-vga", "std", "-serial", "stdio"]


def net(port: int, options: str = "", rom: str = ",romfile=") -> list[str]:
    forward = f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:{PORT}{options}"
    return ["-netdev", forward, "-device", f"virtio-net-pci,netdev=net{rom}"]


def disk(file: str, kind: str = "raw") -> list[str]:
    return [
        "-drive",
        f"if=none,id=disk,format={kind},readonly=on,file={file}",
        "-device",
        "virtio-blk-pci,drive=disk",
    ]


def cd(file: str) -> list[str]:
    drive = f"if=none,id=disk,format=raw,media=cdrom,readonly=on,file={file}"
    return ["-drive", drive, "-device", "ide-cd,drive=disk,bus=ide.0"]


def works(argv: Sequence[str], port: int, folder: Path) -> Ended:
    """Redis answers, ends when it is asked to, and its status is the last line but the kernel's."""
    out, err = folder / "out", folder / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    server = Server(process, port, out, err)
    try:
        # To ask it earlier takes long: QEMU accepts the connection, and the guest never hears of it.
        while "Ready to accept connections" not in server.stdout:
            assert process.poll() is None, f"it ended: {server.stdout}\n{server.stderr}"
            time.sleep(0.1)
        server.wait_ready()
        use(server)
        ended = server.end("SHUTDOWN", "NOSAVE")
    finally:
        process.kill()
        process.wait()
    assert ended.status == 0, ended.stderr
    assert re.search(r"^uklimg: exit 0\r?$", ended.stdout, re.MULTILINE), ended.stdout
    return ended


def use(server: Server) -> None:
    assert server("SET", "greeting", "hello") == "OK" and server("GET", "greeting") == "hello"


def test_a_unified_kernel_image_boots(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """Where firmware looks for it on a medium that it does not know, as on a stick that somebody copied it to."""
    loader = tmp_path / "esp/EFI/BOOT/BOOTX64.EFI"
    loader.parent.mkdir(parents=True)
    loader.symlink_to(exported("uki"))
    port = free_port()
    works(firmware_cmd(port, tmp_path, *disk(f"fat:{tmp_path / 'esp'}")), port, tmp_path)


@pytest.mark.parametrize("name", ["raw", "qcow2"])
def test_a_disk_boots(exported: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    port = free_port()
    works(firmware_cmd(port, tmp_path, *disk(str(exported(name)), name)), port, tmp_path)


@pytest.mark.parametrize("medium", [cd, disk])
def test_an_iso_boots_as_cd_and_as_stick(
    exported: Callable[[str], Path], tmp_path: Path, medium: Callable[[str], list[str]]
) -> None:
    port = free_port()
    works(firmware_cmd(port, tmp_path, *medium(str(exported("iso")))), port, tmp_path)


def test_network_boot(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """The network card's own iPXE fetches script, kernel and initramfs by TFTP."""
    port = free_port()
    tftp = f",tftp={exported('pxe')},bootfile=boot.ipxe"
    works([*machine_cmd(), *net(port, tftp, rom="")], port, tmp_path)


# Booted by hypervisors


def test_the_script_for_qemu(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """As it is, but for the port of this machine, which another test may have."""
    port = free_port()
    script = exported("folder") / SCRIPT
    text = script.read_text()
    assert f"127.0.0.1:{PORT}-:{PORT}" in text
    moved = tmp_path / "moved"
    shutil.copytree(script.parent, moved)
    (moved / SCRIPT).write_text(text.replace(f"127.0.0.1:{PORT}-", f"127.0.0.1:{port}-"))
    works([str(moved / SCRIPT)], port, tmp_path)


class Libvirt:
    """libvirtd of an ordinary user (session mode), which is not root's business."""

    def __init__(self, home: Path) -> None:
        self.env = {
            **{name: str(home) for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")},
            "PATH": os.environ["PATH"],
        }
        self.home = home

    def virsh(self, *words: str) -> str:
        done = subprocess.run(
            ["virsh", "-q", "-c", "qemu:///session", *words],
            env=self.env, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, cwd=self.home,
        )  # fmt: skip
        assert done.returncode == 0, f"virsh {shlex.join(words)}: {done.stderr}"
        return done.stdout.strip()


@contextmanager
def libvirtd() -> Iterator[Libvirt]:
    """Ended by process ids: the daemon's and that of each machine which it still has."""
    with tempfile.TemporaryDirectory(prefix="uklimg-libvirt-", dir="/var/tmp") as text:
        home = Path(text)
        # Without it a second daemon, virtlogd, would write logs and stay.
        (home / "libvirt").mkdir()
        (home / "libvirt/qemu.conf").write_text('stdio_handler = "file"\n')
        for path in (home, home / "libvirt"):
            os.chown(path, NOBODY, NOBODY)
        there = Libvirt(home)
        with (home / "log").open("wb") as log:
            daemon = subprocess.Popen(
                ["libvirtd", "-p", str(home / "pid")],
                env=there.env, user=NOBODY, group=NOBODY, extra_groups=[], stdout=log, stderr=log, cwd=home,
            )  # fmt: skip
        try:
            while not (home / "libvirt/libvirt-sock").exists():
                assert daemon.poll() is None, (home / "log").read_text()
                time.sleep(0.1)
            yield there
        finally:
            for pid in (home / "libvirt").rglob("*.pid"):
                if pid.parent.name == "run":
                    end(int(pid.read_text()))
            daemon.terminate()
            daemon.wait()


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_libvirt_defines_and_starts_the_domain(exported: Callable[[str], Path]) -> None:
    xml = exported("libvirt") / DOMAIN
    subprocess.run(["virt-xml-validate", str(xml), "domain"], check=True, capture_output=True)
    with libvirtd() as there:
        name = EXTRA["libvirt"][-1]
        there.virsh("define", str(xml))
        there.virsh("start", name)
        port = free_port()
        there.virsh("qemu-monitor-command", name, "--hmp", f"hostfwd_add tcp:127.0.0.1:{port}-:{PORT}")
        client = ["redis-cli", "-p", str(port)]
        while subprocess.run([*client, "PING"], capture_output=True, text=True).stdout != "PONG\n":
            assert there.virsh("domstate", name) == "running"
            time.sleep(0.2)
        assert there.virsh("ttyconsole", name).startswith("/dev/pts/")
        subprocess.run([*client, "SHUTDOWN", "NOSAVE"], capture_output=True)
        while there.virsh("domstate", name) != "shut off":
            time.sleep(0.2)
        there.virsh("define", str(xml))  # the same UUID: it is replaced, not there twice
        assert there.virsh("list", "--all", "--name") == name
        there.virsh("undefine", name)


# The same bytes


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_twice_the_same(exported: Callable[[str], Path], example: Example, tmp_path: Path, name: str) -> None:
    """Late, so that clocks have moved on since the first time; in another folder, by the image's digest."""
    first = exported(name)
    options = ("--at", str(first)) if "at" in FORMATS[name].options else ()
    second = export(name, tmp_path / "again", str(example.root.digest), *options)
    if not FORMATS[name].folder:
        assert first.read_bytes() == second.read_bytes()
        return
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
        assert (first / file).stat().st_mode == (second / file).stat().st_mode
