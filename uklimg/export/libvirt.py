"""A domain of libvirt (formatdomain: direct kernel boot), with the files that it boots."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from uklimg import oci
from uklimg.export.model import Job
from uklimg.export.plain import copy_files
from uklimg.runner.machine import Accel, MachineConfig, TapNetwork, UserNetwork

DOMAIN = "domain.xml"
NETWORK = "default"  # libvirt's own, with DHCP and NAT


def libvirt(job: Job, out: Path) -> None:
    copy_files(job, out, oci.BZIMAGE, oci.INITRAMFS)
    (out / DOMAIN).write_text(domain(job, Path(job.wanted.at)))


def domain(job: Job, at: Path) -> str:
    """The XML; the files lie in the folder ``at``."""
    machine = job.machine(oci.BZIMAGE, NETWORK)
    emulated = machine.accel is Accel.TCG
    top = ET.Element("domain", type="qemu" if emulated else "kvm")
    _text(top, "name", job.name)
    _text(top, "uuid", job.guid(f"libvirt {job.name}"))
    _text(top, "title", job.comment())
    _text(top, "memory", str(machine.memory >> 10), unit="KiB")
    _text(top, "vcpu", str(machine.cpus))
    boot = ET.SubElement(top, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine="q35")
    _text(boot, "kernel", str(at / oci.BZIMAGE))
    _text(boot, "initrd", str(at / oci.INITRAMFS))
    _text(boot, "cmdline", job.parameters(network=machine.network is not None))
    ET.SubElement(ET.SubElement(top, "features"), "acpi")
    ET.SubElement(top, "cpu", mode="maximum" if emulated else "host-passthrough")
    # A guest that ends resets where it cannot switch off; a panic resets, too. Either is the end.
    for event in ("poweroff", "reboot", "crash"):
        _text(top, f"on_{event}", "destroy")
    _devices(ET.SubElement(top, "devices"), machine)
    ET.indent(top)
    return ET.tostring(top, encoding="unicode") + "\n"


def _devices(devices: ET.Element, machine: MachineConfig) -> None:
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "target", port="0")
    network = machine.network
    if network is not None:
        user = isinstance(network, UserNetwork)
        interface = ET.SubElement(devices, "interface", type="user" if user else "network")
        if isinstance(network, TapNetwork):
            ET.SubElement(interface, "source", network=network.interface)
        ET.SubElement(interface, "model", type="virtio")
    random = ET.SubElement(devices, "rng", model="virtio")
    _text(random, "backend", "/dev/urandom", model="random")


def _text(parent: ET.Element, name: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, name, attributes).text = text
