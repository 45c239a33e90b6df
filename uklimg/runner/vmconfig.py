"""A machine as the JSON that Firecracker and Cloud Hypervisor read. Pure.

Sources: Firecracker's ``--config-file`` (its API's FullVmConfiguration; an absent "drives" is an error in some
versions) and Cloud Hypervisor's API, ``PUT /api/v1/vm.create`` (VmConfig). Both start the ELF kernel, have a first
serial port, and take a tap device for a network; neither has a DHCP server of its own.
"""

from __future__ import annotations

from uklimg.digest import JSON
from uklimg.errors import UserError
from uklimg.runner.machine import MIB, MachineConfig, TapNetwork, UserNetwork
from uklimg.runner.qemu import kernel_cmdline

_FIRECRACKER_CMDLINE = 2047


def firecracker_config(config: MachineConfig) -> JSON:
    """Firecracker's configuration file. UserError for what it cannot do."""
    network = _tap(config, "Firecracker")
    boot = {"kernel_image_path": str(config.kernel), "boot_args": firecracker_cmdline(config)}
    if config.cpus > 32 or (config.cpus > 1 and config.cpus % 2):
        raise UserError(f"Firecracker has no {config.cpus} processors", hint="--cpus 1, or an even number up to 32")
    if len(boot["boot_args"]) > _FIRECRACKER_CMDLINE:
        raise UserError(f"the kernel's parameters have more than Firecracker's {_FIRECRACKER_CMDLINE} bytes")
    if config.initrd is not None:
        boot["initrd_path"] = str(config.initrd)
    drives: list[JSON] = [
        {
            "drive_id": f"disk{number}",
            "path_on_host": disk.path,
            "is_root_device": False,
            "is_read_only": disk.read_only,
        }
        for number, disk in enumerate(config.disks)
    ]
    interfaces: list[JSON] = []
    if network is not None:
        interfaces = [{"iface_id": "eth0", "host_dev_name": network.interface, "guest_mac": network.mac}]
    return {
        "boot-source": boot,
        "drives": drives,
        "machine-config": {"vcpu_count": config.cpus, "mem_size_mib": config.memory // MIB},
        "network-interfaces": interfaces,
    }


def firecracker_cmdline(config: MachineConfig) -> str:
    # A reset through the keyboard controller is the one end of a guest that Firecracker understands.
    return f"reboot=k {kernel_cmdline(config)}"


def cloud_hypervisor_config(config: MachineConfig, host: str = "", mask: str = "") -> JSON:
    """Cloud Hypervisor's VmConfig; ``host`` and ``mask`` are what it gives the tap device, "" to leave that alone."""
    network = _tap(config, "Cloud Hypervisor")
    payload = {"kernel": str(config.kernel), "cmdline": kernel_cmdline(config)}
    if config.initrd is not None:
        payload["initramfs"] = str(config.initrd)
    machine: dict[str, JSON] = {
        "cpus": {"boot_vcpus": config.cpus, "max_vcpus": config.cpus},
        "memory": {"size": config.memory},
        "payload": payload,
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
    }
    if config.disks:
        machine["disks"] = [
            {"path": disk.path, "readonly": disk.read_only, "image_type": disk.format.capitalize()}
            for disk in config.disks
        ]
    if config.volumes:
        machine["memory"] = {"size": config.memory, "shared": True}
        machine["fs"] = [
            {"tag": volume.tag, "socket": volume.socket, "num_queues": 1, "queue_size": 1024}
            for volume in config.volumes
        ]
    if network is not None:
        addresses = {"ip": host, "mask": mask} if host else {}
        machine["net"] = [{"tap": network.interface, "mac": network.mac, **addresses}]
    return machine


def _tap(config: MachineConfig, who: str) -> TapNetwork | None:
    if isinstance(config.network, UserNetwork):
        raise UserError(f"{who} has no network of its own", hint="give it a tap device, or no network")
    return config.network
