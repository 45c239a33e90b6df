"""Cloud Hypervisor: its command line and its power button. Pure.

It needs KVM, takes its network from a tap device, and shares folders over virtiofs. As with Firecracker, the guest's
configuration goes into the initramfs and its status comes from the console.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from uklimg import proc
from uklimg.errors import UserError
from uklimg.runner.machine import Call, Feature, MachineConfig, Sharing, TapNetwork, folder_of, refuse
from uklimg.runner.qemu import kernel_cmdline

PROGRAM = "cloud-hypervisor"
SOCKET = "api"
_KIB = 1024


class CloudHypervisor:
    """The Machine that is Cloud Hypervisor (50.1 or later, for ``image_type``); ``program`` may be a path."""

    def __init__(self, program: str = PROGRAM) -> None:
        self._program = program

    @property
    def name(self) -> str:
        return "cloud-hypervisor"

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset({Feature.VIRTIOFS, Feature.QCOW2, Feature.BZIMAGE})

    def command(self, config: MachineConfig) -> list[str]:
        refuse(self, config)
        return cloud_hypervisor_cmd(config, self._program)

    def files(self, _config: MachineConfig) -> Mapping[str, bytes]:
        return {}

    def stop(self, config: MachineConfig) -> Call | None:
        return Call(folder_of(config) / SOCKET, "/api/v1/vm.power-button")

    def version(self, env: Mapping[str, str]) -> str:
        return proc.run([self._program, "--version"], env=env).text.partition("\n")[0]


def cloud_hypervisor_cmd(config: MachineConfig, program: str = PROGRAM) -> list[str]:
    """The argument list (options as its VmConfig has them, see ``vmconfig``)."""
    argv = [program, "--api-socket", f"path={folder_of(config) / SOCKET}", "--kernel", str(config.kernel)]
    if config.initrd is not None:
        argv += ["--initramfs", str(config.initrd)]
    shared = any(volume.sharing is Sharing.VIRTIOFS for volume in config.volumes)
    argv += ["--cmdline", kernel_cmdline(config), "--cpus", f"boot={config.cpus}"]
    argv += ["--memory", f"size={config.memory // _KIB}K{',shared=on' if shared else ''}"]
    argv += ["--rng", "src=/dev/urandom", "--serial", "tty", "--console", "off", *_devices(config)]
    return argv


def _devices(config: MachineConfig) -> Iterator[str]:
    if isinstance(config.network, TapNetwork):
        yield from ("--net", f"tap={_plain(config.network.interface)},mac={config.network.mac}")
    if config.disks:
        yield "--disk"
        for disk in config.disks:
            read_only = ",readonly=on" if disk.read_only else ""
            yield f"path={_plain(disk.path)},image_type={disk.format}{read_only}"
    if config.volumes:
        yield "--fs"
        for volume in config.volumes:
            yield f"tag={_plain(volume.tag)},socket={_plain(volume.socket)},num_queues=1,queue_size=1024"


def _plain(value: str) -> str:
    """Its option syntax has quotes and brackets of its own."""
    if set(value) & set(',"[]'):
        raise UserError(f"Cloud Hypervisor cannot be told the name {value!r}", hint="no ',', '\"', '[' or ']'")
    return value
