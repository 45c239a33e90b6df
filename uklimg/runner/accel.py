"""Finds out whether KVM works here, by booting a kernel under it.

/dev/kvm that exists, opens and answers is not enough: on some hosts (nested ones above all) guests hang or QEMU
aborts. So the first run boots the image's own kernel with a tiny initramfs that prints a marker, under a time
limit. The answer is remembered for this boot of this kernel with this QEMU.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from uklimg import cpio, proc
from uklimg.digest import Digest
from uklimg.errors import ToolError
from uklimg.runner.machine import MIB, Accel, Machine, MachineConfig

MARKER = "uklimg-probe-reached-user-space"
# Seconds that a boot under KVM may take; a working one needs less than two, also nested and on a loaded machine.
LIMIT = 15.0
DEVICE = Path("/dev/kvm")
_LOAD = 0x400000


@dataclass(frozen=True)
class Answer:
    """``reason`` says in a few words why KVM is or is not used."""

    accel: Accel
    reason: str


@dataclass(frozen=True)
class HostFacts:
    """What the answer depends on."""

    kernel: str
    boot: str
    device: Path = DEVICE

    @classmethod
    def read(cls) -> HostFacts:
        uname = os.uname()
        boot = Path("/proc/sys/kernel/random/boot_id")
        return cls(f"{uname.release} {uname.version}", boot.read_text().strip() if boot.exists() else "")


def find_accel(
    machine: Machine,
    kernel: Path,
    *,
    state: Path,
    env: Mapping[str, str],
    facts: HostFacts | None = None,
    note: Callable[[str], None] = lambda _: None,
    limit: float = LIMIT,
) -> Answer:
    """KVM where a kernel really boots under it, else TCG.

    ``kernel`` is a Linux that ``machine`` can start; ``state`` the file that remembers (made when missing, replaced
    when unreadable). ``note`` hears that a probe begins. Never raises because of KVM.
    """
    facts = facts or HostFacts.read()
    if not os.access(facts.device, os.R_OK | os.W_OK):
        # Not remembered: one `usermod -aG kvm` later it is another answer.
        missing = "does not exist" if not facts.device.exists() else "may not be opened by this user"
        return Answer(Accel.TCG, f"{facts.device} {missing}")
    key = Digest.of_json([machine.name, machine.version(env), facts.kernel, facts.boot]).hex
    known = _recall(state, key)
    if known is not None:
        return known
    note(f"trying whether KVM works here (at most {limit:g} s, once)")
    answer = probe(machine, kernel, env=env, limit=limit)
    _remember(state, key, answer)
    return answer


def probe(
    machine: Machine, kernel: Path, *, env: Mapping[str, str], accel: Accel = Accel.KVM, limit: float = LIMIT
) -> Answer:
    """Boot ``kernel`` under ``accel`` and see whether it reaches user space within ``limit`` seconds."""
    seen = threading.Event()

    def look(line: str) -> None:
        if MARKER in line:
            seen.set()

    with tempfile.TemporaryDirectory(prefix="uklimg-") as folder:
        initrd = Path(folder) / "probe.cpio"
        initrd.write_bytes(probe_initramfs())
        config = MachineConfig(kernel, initrd, memory=192 * MIB, accel=accel)
        try:
            # It ends by itself soon after the marker.
            result = proc.run(
                machine.command(config), env=env, on_line=look, merge=True, check=False, timeout=limit, grace=1
            )
        except ToolError:
            if not seen.is_set():
                return Answer(Accel.TCG, f"{accel.name} does not work here: a kernel hangs under it")
        else:
            if not seen.is_set():
                why = (result.tail.splitlines() or [proc.describe(result.status)])[-1]
                return Answer(Accel.TCG, f"{accel.name} does not work here: {why}")
    return Answer(accel, f"a kernel boots under {accel.name}")


def probe_initramfs() -> bytes:
    """An initramfs whose /init prints MARKER and resets the machine."""
    out = BytesIO()
    entries = [
        cpio.directory("dev"),
        cpio.character_device("dev/console", 5, 1),
        cpio.regular("init", probe_program(), 0o755),
    ]
    cpio.write(entries, out, mtime=0)
    return out.getvalue()


def probe_program() -> bytes:
    """A static x86-64 ELF executable of one segment: write(1, MARKER), reboot(RESTART), for ever."""
    text = f"{MARKER}\n".encode()
    tail = (
        b"\xb8\xa9\x00\x00\x00"  # mov eax, 169 (reboot)
        b"\xbf\xad\xde\xe1\xfe"  # mov edi, 0xfee1dead
        b"\xbe\x69\x19\x12\x28"  # mov esi, 0x28121969
        b"\xba\x67\x45\x23\x01"  # mov edx, 0x01234567 (restart)
        b"\x45\x31\xd2"  # xor r10d, r10d
        b"\x0f\x05"  # syscall
        b"\xeb\xfe"  # jmp .
    )
    print_it = (
        b"\xb8\x01\x00\x00\x00"  # mov eax, 1 (write)
        b"\xbf\x01\x00\x00\x00"  # mov edi, 1
        + b"\x48\x8d\x35"  # lea rsi, [rip + distance to the text]
        + struct.pack("<i", 7 + len(tail))
        + b"\xba"  # mov edx, length
        + struct.pack("<I", len(text))
        + b"\x0f\x05"  # syscall
    )
    code = print_it + tail + text
    start = 64 + 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, _LOAD + start, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    size = start + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD, _LOAD, size, size, 0x1000)
    return header + segment + code


def host_tsc_khz(cpuinfo: str) -> int:
    """The frequency of this machine's time stamp counter, from /proc/cpuinfo; 0 when it does not say.

    The nominal frequency in the model's name is the counter's; "cpu MHz" is, on virtual machines.
    """
    found = 0.0
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name" and "@" in value and value.rstrip().endswith("GHz"):
            with contextlib.suppress(ValueError):
                return round(float(value.rpartition("@")[2].replace("GHz", "").strip()) * 1e6)
        if name.strip() == "cpu MHz" and not found:
            with contextlib.suppress(ValueError):
                found = float(value)
    return round(found * 1000)


def _recall(state: Path, key: str) -> Answer | None:
    try:
        value = json.loads(state.read_text())
        if value["key"] == key:
            return Answer(Accel(value["accel"]), str(value["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no answer yet, or a file that somebody broke: the probe tells
    return None


def _remember(state: Path, key: str, answer: Answer) -> None:
    value = {"key": key, "accel": answer.accel.value, "reason": answer.reason}
    with contextlib.suppress(OSError):  # a read-only home costs a probe a run, not the run
        state.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=state.parent, prefix=f".{state.name}.", delete=False) as file:
            json.dump(value, file)
        Path(file.name).replace(state)
