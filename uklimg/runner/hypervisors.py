"""The hypervisors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from uklimg.runner.cloudhypervisor import CloudHypervisor
from uklimg.runner.firecracker import Firecracker
from uklimg.runner.machine import Machine
from uklimg.runner.qemu import Qemu

HYPERVISORS: Mapping[str, Callable[[], Machine]] = {
    "qemu": Qemu,
    "firecracker": Firecracker,
    "cloud-hypervisor": CloudHypervisor,
}
