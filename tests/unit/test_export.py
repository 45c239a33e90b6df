"""uklimg export, without an image: the PE writer, the table, descriptions of machines against schemas, the output."""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from uklimg import oci
from uklimg.cli.main import parser
from uklimg.digest import Digest
from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.export import firmware, kubernetes, libvirt, microvm, netboot, plain
from uklimg.export.formats import FORMATS, check_network, check_options, check_tools
from uklimg.export.model import NONE, USER, Job, Wanted
from uklimg.export.output import placed
from uklimg.export.pe import Section, add_sections
from uklimg.runner.machine import MIB, Accel, MachineConfig, TapNetwork
from uklimg.runner.vmconfig import cloud_hypervisor_config, firecracker_config

pytestmark = pytest.mark.unit

SCHEMAS = Path(__file__).parent / "schemas"
RUN = oci.RunConfig(
    "Redis_Server",
    cmd=("redis-server",),
    exposed_ports=("6379/tcp", "53/udp"),
    memory=256 * MIB,
    cpus=2,
    cmdline="sysctl.x=1",
    kernel_version="6.12.107",
)
IMAGE = "registry.example.com/me/redis:8"
PORTS = {6379: "tcp", 53: "udp"}


def job(tmp_path: Path, run: oci.RunConfig = RUN, **wanted: Any) -> Job:
    files = {}
    for role, data in ((oci.VMLINUX, b"\x7fELF"), (oci.BZIMAGE, b"MZ" + bytes(600)), (oci.INITRAMFS, b"0707" * 9)):
        files[role] = tmp_path / f"file-{role}"
        files[role].write_bytes(data)
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return Job(Digest.of(b"image"), run, files, Wanted(**wanted), {"PATH": os.environ["PATH"]}, scratch)


def validate(name: str, value: object) -> None:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(value)


# PE


def stub(sections: int = 2, headers: int = 0x400) -> bytes:
    """A PE32+ file whose sections are one file block and one page each."""
    optional = struct.pack("<H6xI12xQII16xII", 0x20B, 0x200 * sections, 0x140000000, 0x1000, 0x200, 0, headers)
    optional = optional.ljust(240, b"\0")
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    head += b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, sections, 0, 0, 0, 240, 0x22) + optional
    for number in range(sections):
        raw = headers + 0x200 * number
        head += struct.pack(
            "<8s6I2HI", b".old%d" % number, 0x180, 0x1000 * (number + 1), 0x200, raw, 0, 0, 0, 0, 0x20
        )
    return head.ljust(headers, b"\0") + bytes(0x200 * sections)


def test_nothing_lies_between_the_sections() -> None:
    """Symbols and a signature of the stub's, which follow its sections, go, and so do their places in the header."""
    data = bytearray(stub() + b"symbols")
    struct.pack_into("<II", data, 0x40 + 12, len(data) - 7, 3)
    struct.pack_into("<II", data, 0x40 + 24 + 112 + 4 * 8, len(data) - 7, 7)
    assert add_sections(bytes(data), [Section(".one", 5)]) == add_sections(stub(), [Section(".one", 5)])


def sections_of(data: bytes) -> dict[str, tuple[int, int, int, int]]:
    """Name → (address, virtual size, place in the file, size in the file), as another reader sees them."""
    (at,) = struct.unpack_from("<I", data, 0x3C)
    (count,) = struct.unpack_from("<H", data, at + 6)
    (optional,) = struct.unpack_from("<H", data, at + 20)
    found = {}
    for number in range(count):
        name, size, address, raw, place = struct.unpack_from("<8s4I", data, at + 24 + optional + 40 * number)
        found[name.rstrip(b"\0").decode()] = (address, size, place, raw)
    return found


def test_sections_lie_behind_the_stubs_own() -> None:
    layout = add_sections(stub(), [Section(".one", 5), Section(".two", 0x1001)])
    assert sections_of(layout.head) == {
        ".old0": (0x1000, 0x180, 0x400, 0x200),
        ".old1": (0x2000, 0x180, 0x600, 0x200),
        ".one": (0x3000, 5, 0x800, 0x200),
        ".two": (0x4000, 0x1001, 0xA00, 0x1200),
    }
    assert layout.alignment == 0x200 and len(layout.head) == 0x800
    assert struct.unpack_from("<I", layout.head, 0x40 + 24 + 56) == (0x6000,), "SizeOfImage"
    assert struct.unpack_from("<I", layout.head, 0x40 + 24 + 8) == (0x400 + 0x200 + 0x1200,), "SizeOfInitializedData"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut off"),
        (b"MZ" + bytes(100), "no 64-bit PE"),
        (stub()[:0x60], "cut off"),
        (stub().replace(b"PE\0\0", b"PF\0\0"), "no 64-bit PE"),
        (stub(headers=0x200), "no room"),
    ],
)
def test_what_is_no_stub(data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        add_sections(data, [Section(".one", 5), Section(".two", 5), Section(".three", 5)])


def test_a_unified_kernel_image_holds_everything(tmp_path: Path) -> None:
    (tmp_path / "stub").write_bytes(stub())
    work = job(tmp_path, stub=tmp_path / "stub", cmdline="extra=1")
    firmware.uki(work, tmp_path / "out.efi")
    data = (tmp_path / "out.efi").read_bytes()
    found = {name: data[place : place + size] for name, (_, size, place, _) in sections_of(data).items()}
    assert found[".linux"] == work.files[oci.BZIMAGE].read_bytes()
    assert found[".initrd"] == work.files[oci.INITRAMFS].read_bytes()
    assert found[".cmdline"] == b"console=tty0 console=ttyS0 panic=-1 quiet ip=dhcp sysctl.x=1 extra=1"
    assert found[".uname"] == b"6.12.107" and b"VERSION_ID=6.12.107\n" in found[".osrel"]
    assert list(found)[-1] == ".linux" and len(data) % 0x200 == 0


def test_a_kernel_without_efi_stub_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stub").write_bytes(stub())
    work = job(tmp_path, stub=tmp_path / "stub")
    work.files[oci.BZIMAGE].write_bytes(b"\xea\x05" + bytes(600))
    with pytest.raises(UserError, match="no EFI stub") as caught:
        firmware.uki(work, tmp_path / "out.efi")
    assert "CONFIG_EFI_STUB" in caught.value.hint


def test_a_missing_stub_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*/nowhere"):
        firmware.read_stub(tmp_path / "nowhere")


# Disks


def test_commands_that_make_a_disk(tmp_path: Path) -> None:
    work = job(tmp_path)
    commands = firmware.fat_cmds("d@@1048576", 81920, "0123abcd", Path("/l.efi"))
    assert [" ".join(command) for command in commands] == [
        "mformat -i d@@1048576 -F -T 81920 -h 16 -s 63 -c 1 -N 0123abcd -v UKL ::",
        "mmd -i d@@1048576 ::/EFI ::/EFI/BOOT",
        "mcopy -i d@@1048576 /l.efi ::/EFI/BOOT/BOOTX64.EFI",
    ]
    table = firmware.partition_table(work, 81920)
    assert table.splitlines()[0] == "label: gpt" and "start=2048, size=81920, type=C12A7328-" in table
    assert table == firmware.partition_table(job(tmp_path), 81920), "GUIDs depend on the image alone"
    assert firmware.tool_env(work)["SOURCE_DATE_EPOCH"] == str(oci.EPOCH)
    assert "-e --interval:appended_partition_2:all::" in " ".join(
        firmware.xorriso_cmd(work, Path("/t"), Path("/e"), Path("/o"))
    )


@pytest.mark.parametrize("size", [1, 30 * MIB, 39 * MIB, 40 * MIB, 1000 * MIB])
def test_the_partition_has_room_for_its_file_and_tables(tmp_path: Path, size: int) -> None:
    loader = tmp_path / "loader"
    with loader.open("wb") as file:
        file.truncate(size)
    sectors = firmware.partition_sectors(loader)
    clusters = sectors - 32  # reserved sectors
    tables = 2 * -(-clusters * 4 // 512)
    assert clusters - tables >= 65525, "or it is no FAT32"
    assert (clusters - tables) * 512 >= size + 8 * 512


# Descriptions of machines


@pytest.mark.parametrize("network", ["", NONE, "tap7"])
def test_firecracker(tmp_path: Path, network: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    microvm.firecracker(job(tmp_path, network=network), out)
    value = json.loads((out / microvm.FIRECRACKER).read_text())
    validate("firecracker", value)
    assert value["machine-config"] == {"vcpu_count": 2, "mem_size_mib": 256}
    assert all((out / value["boot-source"][key]).is_file() for key in ("kernel_image_path", "initrd_path"))
    assert ("ip=" in value["boot-source"]["boot_args"]) == (network != NONE)
    assert [entry["host_dev_name"] for entry in value["network-interfaces"]] == (
        [] if network == NONE else [network or "tap0"]
    )


@pytest.mark.parametrize("network", ["", NONE])
def test_cloud_hypervisor(tmp_path: Path, network: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    microvm.cloud_hypervisor(job(tmp_path, network=network, at=str(out)), out)
    value = json.loads((out / microvm.CLOUD_HYPERVISOR).read_text())
    validate("cloud-hypervisor", value)
    assert Path(value["payload"]["kernel"]).is_file() and Path(value["payload"]["initramfs"]).is_file()
    script = (out / microvm.SCRIPT).read_text()
    assert "--cpus boot=2" in script and ("--net tap=tap0," in script) == (network != NONE)


def test_neither_has_a_network_of_its_own(tmp_path: Path) -> None:
    for write in (microvm.firecracker, microvm.cloud_hypervisor):
        with pytest.raises(UserError, match="has no network of its own"):
            write(job(tmp_path, network=USER, at="/srv"), tmp_path)


def test_the_schemas_refuse_what_is_wrong() -> None:
    machine = MachineConfig(Path("/vmlinux"), Path("/initrd"), network=TapNetwork("tap0"))
    for name, value in (
        ("firecracker", firecracker_config(machine)),
        ("cloud-hypervisor", cloud_hypervisor_config(machine)),
    ):
        assert isinstance(value, dict)
        validate(name, value)
        with pytest.raises(jsonschema.ValidationError):
            validate(name, {**value, "surprise": 1})


@pytest.mark.parametrize("network", ["", NONE])
def test_kubevirt(tmp_path: Path, network: str) -> None:
    kubernetes.kubevirt(job(tmp_path, image=IMAGE, network=network), tmp_path / "vm.yaml")
    value = yaml.safe_load((tmp_path / "vm.yaml").read_text())
    validate("kubernetes", value)
    inside = value["spec"]["template"]["spec"]
    boot = inside["domain"]["firmware"]["kernelBoot"]
    assert boot["container"]["image"] == f"registry.example.com/me/redis@{Digest.of(b'image')}"
    paths = {boot["container"]["kernelPath"], boot["container"]["initrdPath"]}
    assert paths == {oci.PATHS[oci.BZIMAGE], oci.PATHS[oci.INITRAMFS]}
    assert inside["domain"]["memory"] == {"guest": "256Mi"} and inside["domain"]["cpu"] == {"cores": 2}
    if network == NONE:
        assert "networks" not in inside and "ip=" not in boot["kernelArgs"]
    else:
        (interface,) = inside["domain"]["devices"]["interfaces"]
        assert {entry["port"]: entry["protocol"].lower() for entry in interface["ports"]} == PORTS
        assert "ip=dhcp" in boot["kernelArgs"]


def test_urunc(tmp_path: Path) -> None:
    kubernetes.urunc(job(tmp_path, image=IMAGE, name="cache"), tmp_path / "pod.yaml")
    value = yaml.safe_load((tmp_path / "pod.yaml").read_text())
    validate("kubernetes", value)
    (container,) = value["spec"]["containers"]
    assert value["metadata"]["name"] == container["name"] == "cache"
    assert container["resources"] == {"limits": {"memory": "256Mi", "cpu": "2"}}
    assert {entry["containerPort"]: entry["protocol"].lower() for entry in container["ports"]} == PORTS


@pytest.mark.parametrize("image", ["", "redis:8"])
def test_a_cluster_needs_a_registry(tmp_path: Path, image: str) -> None:
    with pytest.raises(UserError, match="pulls the image from a registry"):
        kubernetes.urunc(job(tmp_path, image=image), tmp_path / "pod.yaml")


@pytest.mark.parametrize(
    ("wanted", "kind", "interface"),
    [
        ({}, "kvm", "network"),
        ({"accel": Accel.TCG, "network": USER}, "qemu", "user"),
        ({"network": NONE}, "kvm", ""),
        ({"network": "lab"}, "kvm", "network"),
    ],
)
def test_libvirt(tmp_path: Path, wanted: Mapping[str, Any], kind: str, interface: str) -> None:
    """Against libvirt's own schema."""
    text = libvirt.domain(job(tmp_path, **wanted), Path("/srv/a b&c"))
    (tmp_path / "domain.xml").write_text(text)
    subprocess.run(["virt-xml-validate", str(tmp_path / "domain.xml"), "domain"], check=True, capture_output=True)
    top = ET.fromstring(text)
    assert top.get("type") == kind and top.findtext("name") == "redis-server"
    assert top.findtext("os/kernel") == "/srv/a b&c/bzImage"
    found = top.find("devices/interface")
    assert ("" if found is None else found.get("type")) == interface
    assert ("ip=dhcp" in str(top.findtext("os/cmdline"))) == bool(interface)
    assert ("no_timer_check" in str(top.findtext("os/cmdline"))) == (kind == "qemu")


def test_network_boot_names_its_files_relatively(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    netboot.pxe(job(tmp_path), out)
    script = (out / netboot.SCRIPT).read_text().splitlines()
    assert script[0] == "#!ipxe" and script[-1] == "boot"
    assert script[2].startswith("kernel bzImage initrd=initramfs console=tty0 console=ttyS0 ")
    assert "  INITRD initramfs" in (out / netboot.PXELINUX).read_text()
    assert (out / "bzImage").is_file() and (out / "initramfs").is_file()


@pytest.mark.parametrize("cmdline", ["a=1 && reboot", "x=${net0/ip}", "#1"])
def test_what_ipxe_would_take_for_its_own(tmp_path: Path, cmdline: str) -> None:
    with pytest.raises(UserError, match="iPXE cannot pass"):
        netboot.pxe(job(tmp_path, cmdline=cmdline), tmp_path)


def test_the_script_for_qemu(tmp_path: Path) -> None:
    def script(**wanted: Any) -> str:
        out = tmp_path / "-".join(("out", *wanted))
        out.mkdir()
        plain.folder(job(tmp_path, **wanted), out)
        text = (out / plain.SCRIPT).read_text()
        assert os.access(out / plain.SCRIPT, os.X_OK)
        subprocess.run(["sh", "-n", str(out / plain.SCRIPT)], check=True)
        assert (out / plain.CMDLINE).read_text().strip() in text
        return text

    default = script()
    assert "    -accel kvm \\\n    -accel tcg \\\n    -cpu max \\\n" in default
    assert "hostfwd=tcp:127.0.0.1:6379-:6379,hostfwd=udp:127.0.0.1:8053-:53" in default
    tcg = script(accel=Accel.TCG, memory=512 * MIB)
    assert "-accel kvm" not in tcg and "no_timer_check" in tcg and "-m 524288k" in tcg
    assert "ifname=tap3" in script(network="tap3") and "-netdev" not in script(network=NONE, cpus=1)


def test_an_image_that_does_not_fit(tmp_path: Path) -> None:
    """Said when it is written, not by a panic; of what gets its memory elsewhere nothing is known."""
    work = job(tmp_path)
    with work.files[oci.INITRAMFS].open("wb") as file:
        file.truncate(160 * MIB)
    for write in (microvm.firecracker, libvirt.libvirt, kubernetes.urunc):
        with pytest.raises(UserError, match="does not fit into 256 MiB"):
            write(work, tmp_path)
    assert work.parameters()


@pytest.mark.parametrize("name", ["Redis", "-a", "a_b", "x" * 64, "a\n"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is no name"):
        _ = job(tmp_path, name=name).name


# The table


def test_every_format_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/export.md").read_text()
    assert [name for name in FORMATS if f"`{name}`" not in page] == []


def test_every_command_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs/export.md").read_text()
    commands = re.findall(r"^    (uklimg export (?!--format FORMAT).*?)(?: +#.*| \|.*)?$", page, re.MULTILINE)
    assert len(commands) > 8
    for command in commands:
        args = parser().parse_args(shlex.split(command)[1:])
        check_options(args.format, frozenset(name for name in ("memory", "network", "accel") if getattr(args, name)))


def test_options_that_do_nothing_are_refused() -> None:
    check_options("libvirt", frozenset({"name", "at", "cpus"}))
    with pytest.raises(UserError, match="--memory does nothing for uki") as caught:
        check_options("uki", frozenset({"memory"}))
    assert "libvirt" in caught.value.hint
    check_network("folder", "tap0")
    check_network("uki", NONE)
    for name, network in (("uki", "br0"), ("kubevirt", USER), ("folder", "a b"), ("folder", "x" * 64)):
        with pytest.raises(UserError):
            check_network(name, network)


def test_a_missing_tool_names_its_package() -> None:
    for name, package in (("qcow2", "qemu-utils"), ("iso", "xorriso"), ("raw", "fdisk")):
        with pytest.raises(ToolError, match="is not installed") as caught:
            check_tools(name, {"PATH": "/nowhere"})
        assert caught.value.exit_code is ExitCode.HOST and package in caught.value.hint


# The output


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with placed(out, folder=False, force=False) as path:
        path.write_text("first")
        assert not out.exists() and path.parent == tmp_path
    with pytest.raises(UserError, match="is there already"), placed(out, folder=False, force=False):
        raise AssertionError("it began")
    with pytest.raises(ToolError), placed(out, folder=False, force=True) as path:
        path.write_text("half")
        raise ToolError("no")
    assert out.read_text() == "first" and names(tmp_path) == ["out"]
    with placed(out, folder=False, force=True) as path:
        path.write_text("second")
    assert out.read_text() == "second" and names(tmp_path) == ["out"]


def test_a_folder_is_replaced_only_by_its_like(tmp_path: Path) -> None:
    def write(force: bool, *names: str) -> None:
        with placed(out, folder=True, force=force) as path:
            for name in names:
                (path / name).parent.mkdir(exist_ok=True)
                (path / name).write_text(name)

    out = tmp_path / "out"
    out.mkdir()
    write(False, "a", "sub/b")  # into an empty folder
    with pytest.raises(UserError, match="is there already"):
        write(False, "a")
    (out / "sub/b").write_text("old")
    write(True, "a", "sub/b", "c")
    assert (out / "sub/b").read_text() == "sub/b"
    with pytest.raises(UserError, match="has 'c', which this export does not"):
        write(True, "a", "sub/b")
    assert (out / "c").read_text() == "c" and names(tmp_path) == ["out"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("kept")
    for name in ("folder", "link", "fifo"):
        with pytest.raises(UserError, match="no file"), placed(tmp_path / name, folder=False, force=True):
            raise AssertionError("it began")
    with pytest.raises(UserError, match="no folder"), placed(tmp_path / "file", folder=True, force=True):
        raise AssertionError("it began")
    with (
        pytest.raises(UserError, match=r"no folder .* to write into"),
        placed(tmp_path / "no/out", folder=False, force=False),
    ):
        raise AssertionError("it began")
    assert (tmp_path / "file").read_text() == "kept"
