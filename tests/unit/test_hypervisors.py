"""Firecracker and Cloud Hypervisor against their APIs' descriptions and a fake; volumes; whether an image fits."""

from __future__ import annotations

import json
import os
import struct
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import jsonschema
import pytest
from test_cli import Command, add_image

from uklimg import cpio
from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.guest.protocol import GuestConfig, Mount, Program, Status, encode
from uklimg.room import memory_total
from uklimg.runner.api import call
from uklimg.runner.cloudhypervisor import CloudHypervisor
from uklimg.runner.firecracker import CONFIG, Firecracker
from uklimg.runner.fit import check_fits, kernel_end
from uklimg.runner.hypervisors import HYPERVISORS
from uklimg.runner.launch import launch
from uklimg.runner.machine import (
    MIB,
    Accel,
    Call,
    Disk,
    Machine,
    MachineConfig,
    MachineType,
    Sharing,
    TapNetwork,
    UserNetwork,
    Volume,
)
from uklimg.runner.network import check_tap, parse_tap
from uklimg.runner.qemu import qemu_cmd
from uklimg.runner.stops import Stops
from uklimg.runner.virtiofs import virtiofsd_cmd
from uklimg.runner.vmconfig import cloud_hypervisor_config, firecracker_config
from uklimg.runner.volumes import Bind, Kind, check_binds, parse_bind, parse_mount, place

pytestmark = pytest.mark.unit

SCHEMAS = Path(__file__).parent / "schemas"
FOLDER = Path("/run/x")
FULL = MachineConfig(
    Path("/vmlinux"),
    Path("/initrd"),
    cpus=2,
    accel=Accel.KVM,
    network=TapNetwork("tap3", address="10.0.0.2::10.0.0.1:255.255.255.0::eth0:off"),
    disks=(Disk("/a.img"), Disk("/b.img", read_only=True)),
    folder=FOLDER,
)
FOLDERS = (Volume("/data", "t", sharing=Sharing.VIRTIOFS, socket="/run/x/fs0"),)


def validate(name: str, value: object) -> None:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(value)


# ---- what they are told


def test_firecracker() -> None:
    machine = Firecracker()
    assert machine.command(FULL) == [
        *("firecracker", "--api-sock", "/run/x/api", "--config-file", "/run/x/config.json"),
        *("--log-path", "/run/x/hypervisor.log", "--level", "Error"),
    ]
    files = machine.files(FULL)
    value = json.loads(files[CONFIG])
    validate("firecracker", value)
    assert value["boot-source"]["boot_args"].startswith("reboot=k console=ttyS0 panic=-1 ")
    assert "ip=10.0.0.2::10.0.0.1:" in value["boot-source"]["boot_args"]
    assert [(drive["path_on_host"], drive["is_read_only"]) for drive in value["drives"]] == [
        ("/a.img", False),
        ("/b.img", True),
    ]
    stop = machine.stop(FULL)
    assert stop is not None and (stop.socket, stop.path) == (FOLDER / "api", "/actions")
    validate("firecracker-action", stop.body)
    for cpus in (3, 34):
        with pytest.raises(UserError, match=f"no {cpus} processors"):
            firecracker_config(replace(FULL, cpus=cpus))
    with pytest.raises(UserError, match="parameters have more"):
        firecracker_config(replace(FULL, cmdline="x" * 2048))


def test_cloud_hypervisor_says_the_same_in_both_ways() -> None:
    config = replace(FULL, volumes=FOLDERS, disks=(Disk("/a.img"), Disk("/b.qcow2", "qcow2", True)))
    value = cloud_hypervisor_config(config)
    validate("cloud-hypervisor", value)
    argv = CloudHypervisor().command(config)
    assert argv == [
        *("cloud-hypervisor", "--api-socket", "path=/run/x/api", "--kernel", "/vmlinux", "--initramfs", "/initrd"),
        *("--cmdline", value["payload"]["cmdline"], "--cpus", "boot=2"),  # type: ignore[index,call-overload]
        *("--memory", "size=262144K,shared=on", "--rng", "src=/dev/urandom", "--serial", "tty", "--console", "off"),
        *("--net", "tap=tap3,mac=52:54:00:75:6b:6c"),
        *("--disk", "path=/a.img,image_type=raw", "path=/b.qcow2,image_type=qcow2,readonly=on"),
        *("--fs", "tag=t,socket=/run/x/fs0,num_queues=1,queue_size=1024"),
    ]
    stop = CloudHypervisor().stop(config)
    assert stop == Call(FOLDER / "api", "/api/v1/vm.power-button")
    with pytest.raises(UserError, match="cannot be told the name"):
        CloudHypervisor().command(replace(FULL, disks=(Disk("/a,b.img"),)))


@pytest.mark.parametrize(
    ("config", "both", "hint"),
    [
        (replace(FULL, accel=Accel.TCG), "has no emulation", "needs KVM"),
        (replace(FULL, type=MachineType.MICROVM), "has no machine types", ""),
        (replace(FULL, network=UserNetwork()), "has no network of its own", "--tap"),
        (replace(FULL, volumes=(Volume("/d", "t"),)), "has no folders over 9p", ""),
        (replace(FULL, gdb="tcp:127.0.0.1:1"), "has no debugger's stub", ""),
        (replace(FULL, extra=("-S",)), "has no emulation", "QEMU's"),
    ],
)
def test_what_neither_can_do_is_said_before_the_start(config: MachineConfig, both: str, hint: str) -> None:
    for machine in (Firecracker(), CloudHypervisor()):
        with pytest.raises(UserError, match=f"{machine.name} {both}") as caught:
            machine.command(config)
        assert hint in caught.value.hint
    assert qemu_cmd(replace(config, accel=Accel.TCG))


def test_what_only_firecracker_lacks() -> None:
    for config in (replace(FULL, volumes=FOLDERS), replace(FULL, disks=(Disk("/a", "qcow2"),))):
        with pytest.raises(UserError):
            Firecracker().command(config)
        assert CloudHypervisor().command(config)
    with pytest.raises(UserError) as caught:
        CloudHypervisor().command(replace(FULL, volumes=(Volume("/d", "t"),)))
    assert "virtiofs" in caught.value.hint


# ---- a fake that does what it is told

FAKE = """#!{python} -B
import json, os, pathlib, socket, sys

argv = sys.argv[1:]
options = dict(zip(argv[::2], argv[1::2]))
path = (options.get("--api-sock") or options["--api-socket"]).removeprefix("path=")
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
seen = {{"argv": argv}}
if "--config-file" in options:
    seen["config"] = json.loads(pathlib.Path(options["--config-file"]).read_text())
initrd = seen["config"]["boot-source"]["initrd_path"] if "config" in seen else options["--initramfs"]
seen["initrd"] = pathlib.Path(initrd).read_bytes().hex()
os.write(1, b"hello from the console\\r\\n")
client, _ = server.accept()
request = b""
while b"\\r\\n\\r\\n" not in request:
    request += client.recv(65536)
head, _, body = request.partition(b"\\r\\n\\r\\n")
length = [int(l.split(b":")[1]) for l in head.split(b"\\r\\n") if l.lower().startswith(b"content-length")]
while length and len(body) < length[0]:
    body += client.recv(65536)
seen["request"] = [head.split(b"\\r\\n")[0].decode(), body.decode()]
pathlib.Path({record!r}).write_text(json.dumps(seen))
client.sendall(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
os.write(1, b"uklimg: exit 7\\n")
"""


@pytest.mark.parametrize("kind", [Firecracker, CloudHypervisor])
def test_a_run_with_a_fake(kind: type[Firecracker] | type[CloudHypervisor], tmp_path: Path) -> None:
    """From the guest's configuration in the initramfs to the request that ends it, and its status."""
    record = tmp_path / "record.json"
    fake = tmp_path / "fake"
    fake.write_text(FAKE.format(python=sys.executable, record=str(record)))
    fake.chmod(0o755)
    own = tmp_path / "own.cpio"
    archive = BytesIO()
    cpio.write([cpio.directory("etc"), cpio.regular("etc/motd", b"hi")], archive, mtime=0)
    own.write_bytes(archive.getvalue()[:-1])  # a size that is no multiple of four
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    guest = GuestConfig(
        (Program("app", ("app", "a b")),), env={"SECRET": "s3cret"}, mounts=(Mount("/d", "/dev/vda"),)
    )
    machine: Machine = kind(str(fake))
    config = replace(FULL, kernel=tmp_path / "vmlinux", initrd=own, disks=(), network=None)
    printed: list[bytes] = []
    begun: list[str] = []
    stops = Stops()

    def show(data: bytes) -> None:
        printed.append(data)
        if b"hello" in b"".join(printed):
            stops.request()

    outcome = launch(
        machine,
        config,
        guest,
        env={"PATH": "/usr/bin:/bin"},
        show=show,
        stops=stops,
        on_report=lambda report: begun.append(report.name),
        scratch=tmp_path,
    )
    stops.close()
    assert outcome.status == Status(exit=7)
    assert b"".join(printed) == b"hello from the console\r\n"
    assert begun == ["app"]
    seen = json.loads(record.read_text())
    assert "s3cret" not in json.dumps(seen["argv"]), "what ps shows"
    initrd = bytes.fromhex(seen["initrd"])
    at = -(-(own.stat().st_size) // 4) * 4
    second = tmp_path / "second"
    second.write_bytes(initrd[at:])
    with second.open("rb") as file:
        found = {entry.path: entry for entry in cpio.read(file, 0, len(initrd) - at)}
        assert list(found) == ["etc", "etc/uklimg", "etc/uklimg/run.conf"]
        file.seek(found["etc/uklimg/run.conf"].offset)
        assert file.read(found["etc/uklimg/run.conf"].size) == encode(guest)
    line, body = seen["request"]
    if kind is Firecracker:
        validate("firecracker", seen["config"])
        assert line == "PUT /actions HTTP/1.1"
        validate("firecracker-action", json.loads(body))
    else:
        assert (line, body) == ("PUT /api/v1/vm.power-button HTTP/1.1", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fake",
        "own.cpio",
        "record.json",
        "second",
        "vmlinux",
    ]


@pytest.fixture
def uklimg(tmp_path: Path) -> Command:
    folder = tmp_path / "work"
    folder.mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "UKLIMG_STORE": str(tmp_path / "store")}
    return Command(folder, environ)


@pytest.mark.parametrize("name", ["firecracker", "cloud-hypervisor"])
def test_a_guest_by_itself_with_a_fake(
    name: str, uklimg: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line from `run -d` to `rm`, and what it refuses at the start."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    add_image(uklimg.store, tmp_path, "redis:latest")
    fakes = tmp_path / "bin"
    fakes.mkdir()
    (fakes / name).write_text(FAKE.format(python=sys.executable, record=str(tmp_path / "record.json")))
    (fakes / name).chmod(0o755)
    path = f"{fakes}:{uklimg.environ['PATH']}"
    start = ("run", "-d", "--hypervisor", name, "--accel", "kvm", "--name", "one")
    for options, said in (
        ((), "has no network of its own (--tap NAME, or --no-network)"),
        (("--no-network", "-v", f"{tmp_path}:/data"), "has no folders over 9p"),
        (("--no-network", "--health-cmd", "true"), "has no commands beside the program (--no-healthcheck)"),
        (("--no-network", "--accel", "tcg"), "has no emulation"),
    ):
        refused = uklimg(*start, *options, "redis", PATH=path)
        assert (refused.status, said in refused.err) == (ExitCode.RUN_FAILED, True), refused.err
    assert uklimg("ps", "-a").out.count("\n") == 1, "nothing was begun"
    started = uklimg(*start, "--no-network", "redis", PATH=path)
    assert started.status == 0, started.err
    assert f"  {started.out.strip()}  " in uklimg("ps").out
    denied = uklimg("exec", "one", "true")
    assert (denied.status, "hypervisor has no port for commands" in denied.err) == (ExitCode.RUN_FAILED, True)
    assert uklimg("stop", "one").out == "one\n"
    assert uklimg("wait", "one").out == "7\n"
    assert uklimg("logs", "one").out == "hello from the console\r\n"
    assert uklimg("rm", "one").status == 0
    assert [path.name for path in (tmp_path / "state/uklimg/guests").iterdir()] == [".lock"]


def test_bad_command_lines_about_guests(uklimg: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    add_image(uklimg.store, tmp_path, "redis:latest")
    for options, said in (
        (("--name", "x"), "--name is for guests that run by themselves"),
        (("--restart", "always"), "--restart is for guests"),
        (("--health-cmd", "x"), "--health-cmd is for guests"),
        (("-d", "-i"), "-d leaves no standard input"),
        (("-d", "--name", "a b"), "cannot be a guest's name"),
        (("-d", "--restart", "maybe"), "not a restart policy"),
        (("-d", "--rm", "--restart", "always"), "exclude one another"),
        (("--ip", "10.0.0.2/24"), "--tap DEVICE"),
        (("--tap", "t0", "-p", "80:80"), "exclude one another"),
        (("-m", "4096G"), "more than this machine has"),
    ):
        found = uklimg("run", "--accel", "tcg", *options, "redis")
        assert (found.status, said in found.err) == (ExitCode.RUN_FAILED, True), found.err
        assert found.err.count("\n") == 1
    for argv in (("logs", "none"), ("stop", "none"), ("rm", "none"), ("wait", "none")):
        assert uklimg(*argv).status == ExitCode.NOT_FOUND
    assert uklimg("exec", "none", "true").status == ExitCode.RUN_FAILED
    assert uklimg("logs", "--tail", "x", "none").status == ExitCode.USER
    assert uklimg("stop", "-t", "-5", "none").status == ExitCode.USER
    assert uklimg("ps", "--format", "json").out == "[]\n"


def test_an_api_that_is_not_there_or_says_no(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="does not answer"):
        call(Call(tmp_path / "api", "/actions"))


def test_all_hypervisors_have_their_names() -> None:
    assert {name: make().name for name, make in HYPERVISORS.items()} == {name: name for name in HYPERVISORS}


def test_taps() -> None:
    tap = parse_tap("tap0", "10.0.0.2/24,10.0.0.1")
    assert tap.address == "10.0.0.2::10.0.0.1:255.255.255.0::eth0:off"
    assert parse_tap("tap0", "").address == "dhcp"
    assert parse_tap("tap0", "").mac != parse_tap("tap1", "").mac
    for interface, address in (("", ""), ("x" * 16, ""), ("a/b", ""), ("a b", ""), ("t", "x"), ("t", "10.0.0.2/99")):
        with pytest.raises(UserError):
            parse_tap(interface, address)


# ---- volumes


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    (tmp_path / "raw.img").write_bytes(bytes(4096))
    (tmp_path / "disk.qcow2").write_bytes(b"QFI\xfb" + bytes(100))
    (tmp_path / "sly.img").write_bytes(b"QFI\xfb" + bytes(100))
    (tmp_path / "folder").mkdir()
    return tmp_path


def test_volumes_as_written(disks: Path) -> None:
    folder, raw, qcow2 = (str(disks / name) for name in ("folder", "raw.img", "disk.qcow2"))
    assert parse_bind("folder:/a", disks) == Bind(folder, "/a")
    assert parse_bind("folder:/a:ro,virtiofs", disks) == Bind(folder, "/a", True, Kind.VIRTIOFS)
    assert parse_bind("raw.img:/a:ro", disks) == Bind(raw, "/a", True, Kind.BLOCK)
    assert parse_bind("disk.qcow2:/a", disks) == Bind(qcow2, "/a", kind=Kind.BLOCK, format="qcow2")
    assert parse_mount("source=folder,target=/a,readonly", disks) == Bind(folder, "/a", True)
    assert parse_mount("type=virtiofs,src=folder,dst=/a", disks) == Bind(folder, "/a", kind=Kind.VIRTIOFS)
    assert parse_mount(f"type=block,source={raw}", disks) == Bind(raw, "", kind=Kind.BLOCK)
    assert parse_mount(f"type=block,source={raw},target=/a,fs=xfs,options=noatime,ro", disks) == Bind(
        raw, "/a", kind=Kind.BLOCK, filesystem="xfs", options="noatime,ro"
    )
    assert parse_mount("type=block,source=sly.img,format=raw", disks).format == "raw", "said, so it is so"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("folder", "not a volume"),
        ("folder:a", "not a volume"),
        ("folder:/a:x", "not a volume"),
        ("folder:/a:ro,rw", "exclude"),
        ("folder:/a:9p,virtiofs", "exclude"),
        ("folder:/", "mounted on /"),
        ("folder:/ukl/", "mounted on /ukl"),
        ("folder:/x/../proc", "mounted on /proc"),
        ("sly.img:/a", "looks like qcow2"),
    ],
)
def test_what_is_no_volume(disks: Path, text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        parse_bind(text, disks)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "what is ''"),
        ("source=folder", "not a mount"),
        ("type=tmpfs,source=folder,target=/a", "not a mount"),
        ("source=folder,target=a", "not a mount"),
        ("source=folder,target=/a,size=1", "what is 'size=1'"),
        ("source=folder,source=x,target=/a", "what is"),
        ("source=folder,target=/a,readonly=false", "takes no value"),
        ("source=folder,target=/a,fs=ext4", "for type=block"),
        ("type=block,source=none.img,target=/a", "no disk"),
        ("type=block,source=folder,target=/a", "no disk"),
        ("type=block,source=raw.img,format=qcow2,target=/a", "is not qcow2"),
        ("type=block,source=raw.img,format=vmdk,target=/a", "no format"),
        ("type=block,source=/dev/null,target=/a", "neither a file nor a block device"),
    ],
)
def test_what_is_no_mount(disks: Path, text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        parse_mount(text, disks)


def test_a_file_that_is_no_disk_is_refused_before_the_boot(tmp_path: Path) -> None:
    """`-v ./file.conf:/etc/file.conf`, as one may write with Docker; a disk that nobody formatted, too."""
    for size in (3, 4096):
        (tmp_path / "file.conf").write_bytes(b"x" * size)
        bind = parse_bind("file.conf:/etc/file.conf", tmp_path)
        with pytest.raises(UserError, match=r"file\.conf is no disk with ext4 on it"):
            check_binds([bind])
        for other in (replace(bind, target=""), replace(bind, filesystem="xfs"), replace(bind, format="qcow2")):
            check_binds([other])
    (tmp_path / "disk").write_bytes(bytes(1080) + b"\x53\xef" + bytes(100))
    check_binds([parse_bind("disk:/data", tmp_path)])


def test_a_tap_device_must_be_there() -> None:
    check_tap(TapNetwork("lo"))
    with pytest.raises(UserError, match="there is no network device nosuch0"):
        check_tap(TapNetwork("nosuch0"))


def test_where_volumes_are_in_the_guest(disks: Path) -> None:
    binds = [
        Bind(str(disks / "folder"), "/f"),
        Bind("/a.img", "/a", True, Kind.BLOCK, options="noatime"),
        Bind(str(disks), "/v", kind=Kind.VIRTIOFS),
        Bind("/b.img", "", kind=Kind.BLOCK),
    ]
    check_binds(binds)
    placed = place(binds)
    assert [(volume.tag, volume.sharing) for volume in placed.volumes] == [
        ("uklimg0", Sharing.NINE_P),
        ("uklimg2", Sharing.VIRTIOFS),
    ]
    assert placed.disks == (Disk("/a.img", read_only=True), Disk("/b.img"))
    assert [(mount.target, mount.source, mount.type, mount.read_only) for mount in placed.mounts] == [
        ("/f", "uklimg0", "9p", False),
        ("/a", "/dev/vda", "ext4", True),
        ("/v", "uklimg2", "virtiofs", False),
    ]
    assert (placed.mounts[1].options, placed.mounts[2].options) == ("noatime", "")
    one = Bind("/a.img", "/a", kind=Kind.BLOCK)
    for wrong in (
        [one, replace(one, path="/b.img")],
        [one, replace(one, target="/b")],
        [Bind("/no/such/folder", "/a")],
        [replace(one, path=f"/{n}", target="") for n in range(25)],
    ):
        with pytest.raises(UserError):
            check_binds(wrong)


def test_virtiofs_shares_the_guests_memory() -> None:
    config = MachineConfig(Path("/k"), volumes=(*FOLDERS, Volume("/x", "u")))
    argv = qemu_cmd(config)
    assert "memory-backend-memfd,id=memory,size=262144k,share=on" in argv
    assert argv[argv.index("-machine") + 1] == "q35,memory-backend=memory"
    assert "socket,id=fs0,path=/run/x/fs0" in argv
    assert "vhost-user-fs-pci,chardev=fs0,tag=t" in argv
    assert "virtio-9p-pci,fsdev=fs1,mount_tag=u" in argv
    assert virtiofsd_cmd("/v", FOLDERS[0], 7, root=True) == [
        *("/v", "--fd=7", "-o", "source=/data", "-o", "sandbox=chroot"),
    ]
    assert virtiofsd_cmd("/v", replace(FOLDERS[0], read_only=True), 7, root=False)[-2:] == [
        "sandbox=none",
        "--readonly",
    ]


# ---- whether it fits


def elf(*segments: tuple[int, int]) -> bytes:
    """The beginning of a vmlinux: segments of a physical address and a size in memory, and one that is not loaded."""
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(segments) + 1, 64, 0, 0
    )
    table = b"".join(struct.pack("<IIQQQQQQ", 1, 5, 0, 0, at, 0, size, 0) for at, size in segments)
    return head + table + struct.pack("<IIQQQQQQ", 4, 5, 0, 0, 1 << 50, 0, 1 << 50, 0)


def test_kernel_and_initramfs_must_fit(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(elf((16 * MIB, 4 * MIB), (32 * MIB, 100 * MIB)))
    assert kernel_end(kernel) == 132 * MIB, "the application is the last segment"
    with initrd.open("wb") as file:
        file.truncate(10 * MIB)
    config = MachineConfig(kernel, initrd, memory=168 * MIB)
    check_fits(config, 0)
    check_fits(config, 168 * MIB)
    with pytest.raises(ToolError, match="does not fit into 167 MiB") as caught:
        check_fits(replace(config, memory=167 * MIB), 0)
    assert (caught.value.hint, caught.value.exit_code) == ("give it at least 168M", ExitCode.RUN_FAILED)
    with pytest.raises(ToolError, match="168 MiB of memory are more than this machine has") as caught:
        check_fits(config, 100 * MIB)
    assert caught.value.hint == "it has 100M"
    setup = bytearray(0x1000)
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<QI", setup, 0x258, 16 * MIB, 30 * MIB)
    kernel.write_bytes(setup)
    assert kernel_end(kernel) == 46 * MIB
    for data in (b"", b"\x7fELF\x02\x01", elf((1, 1))[:80], bytes(0x1000)):
        kernel.write_bytes(data)
        assert kernel_end(kernel) == 0


def test_how_much_this_machine_has(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    assert memory_total(tmp_path) == 0
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nSwapTotal:  24 kB\n")
    assert memory_total(tmp_path) == 1024 << 10
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("4096\n")
    assert memory_total(tmp_path) == 4096
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert memory_total(tmp_path) == 1024 << 10
