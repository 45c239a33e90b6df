"""Firecracker: its command line, its configuration file, and the one request that ends a guest politely. Pure.

It needs KVM, takes its network from a tap device, and has no port for PID 1: the guest's configuration goes into the
initramfs (``launch``), its status comes from the console's last line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from uklimg import proc
from uklimg.runner.machine import Call, Feature, MachineConfig, folder_of, refuse
from uklimg.runner.vmconfig import firecracker_config

PROGRAM = "firecracker"
CONFIG, LOG, SOCKET = "config.json", "hypervisor.log", "api"


class Firecracker:
    """The Machine that is Firecracker; ``program`` may be a path."""

    def __init__(self, program: str = PROGRAM) -> None:
        self._program = program

    @property
    def name(self) -> str:
        return "firecracker"

    @property
    def features(self) -> frozenset[Feature]:
        return frozenset()

    def command(self, config: MachineConfig) -> list[str]:
        refuse(self, config)
        folder = folder_of(config)
        argv = [self._program, "--api-sock", str(folder / SOCKET), "--config-file", str(folder / CONFIG)]
        # Its own messages would be in the guest's console otherwise.
        return [*argv, "--log-path", str(folder / LOG), "--level", "Error"]

    def files(self, config: MachineConfig) -> Mapping[str, bytes]:
        return {CONFIG: json.dumps(firecracker_config(config), indent=1).encode(), LOG: b""}

    def stop(self, config: MachineConfig) -> Call | None:
        # The guest hears it if its kernel has a keyboard (KCONFIG SERIO_I8042=y KEYBOARD_ATKBD=y).
        return Call(folder_of(config) / SOCKET, "/actions", {"action_type": "SendCtrlAltDel"})

    def version(self, env: Mapping[str, str]) -> str:
        return proc.run([self._program, "--version"], env=env).text.partition("\n")[0]
