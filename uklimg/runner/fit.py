"""Whether an image fits into a guest's memory, and that into this machine's: said before the boot, not by a panic."""

from __future__ import annotations

import struct
from pathlib import Path

from uklimg.errors import ExitCode, ToolError
from uklimg.runner.machine import MIB, MachineConfig

# What a kernel wants beside its own image to come as far as PID 1.
_SLACK = 16 * MIB
_PT_LOAD = 1


def check_fits(config: MachineConfig, host: int) -> None:
    """ToolError RUN_FAILED when kernel, program and initramfs need more than ``config.memory``, or that is more than
    ``host`` bytes (0: not known)."""
    needed = memory_needed(config.kernel, config.initrd)
    if config.memory < needed:
        raise ToolError(
            f"the image does not fit into {config.memory // MIB} MiB of memory",
            hint=f"give it at least {-(-needed // MIB)}M",
            exit_code=ExitCode.RUN_FAILED,
        )
    if host and config.memory > host:
        raise ToolError(
            f"{config.memory // MIB} MiB of memory are more than this machine has",
            hint=f"it has {host // MIB}M",
            exit_code=ExitCode.RUN_FAILED,
        )


def memory_needed(kernel: Path, initrd: Path | None) -> int:
    """Bytes below which no boot can succeed: kernel and program to their last byte, and the initramfs twice, because
    packed and unpacked it is there at once. What the program takes when it runs is not in it."""
    return kernel_end(kernel) + _SLACK + (2 * initrd.stat().st_size if initrd is not None else 0)


def kernel_end(kernel: Path) -> int:
    """Where in physical memory the last byte of a vmlinux (its segments) or bzImage (Documentation/arch/x86/boot.rst:
    pref_address and init_size) lies; 0 for a file that is neither, which the hypervisor complains about itself."""
    with kernel.open("rb") as file:
        head = file.read(0x1000)
        if head[:6] == b"\x7fELF\x02\x01" and len(head) >= 64:
            start, size, count = struct.unpack_from("<Q14xHH", head, 32)
            file.seek(start)
            table = file.read(size * count)
            if size < 56 or len(table) < size * count:
                return 0
            headers = (struct.unpack_from("<IIQQQQQ", table, size * n) for n in range(count))
            return max((h[4] + h[6] for h in headers if h[0] == _PT_LOAD), default=0)
    if head[0x202:0x206] == b"HdrS" and len(head) >= 0x264:
        address, size = struct.unpack_from("<QI", head, 0x258)
        return int(address + size)
    return 0
