"""What one would type into the build container to do a step's work without uklimg. Pure.

The scripts find the step's inputs where the step does.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace

from uklimg.errors import InternalError
from uklimg.graph import Container, Graph, Inline, InlineFile, Input, Step
from uklimg.recipes import kernel as kernel_recipe
from uklimg.recipes.scripts import HOME
from uklimg.recipes.toolchain import environment

KERNEL = """\
mkdir -p /tmp/hand/source
cd /tmp/hand/source
tar --extract --strip-components=1 --file="$(echo /in/linux_*.tar.xz)"
find /in/patches -name '*.patch' | sort | xargs -r cat | patch --strip=1 --quiet
cat /in/config/*.config > /tmp/hand/wanted
make O=/tmp/hand/objects KCONFIG_ALLCONFIG=/tmp/hand/wanted allnoconfig
make O=/tmp/hand/objects -j"$(nproc)" vmlinux bzImage
"""
# Compiles what the patches touch, and all that includes their headers most, before and after they are applied.
UNCHANGED_PARTS = (
    "arch/x86/entry/ arch/x86/kernel/ arch/x86/mm/ arch/x86/events/core.o arch/x86/kernel/vmlinux.lds kernel/ "
    "drivers/firmware/efi/libstub/x86-stub.o fs/binfmt_elf.o fs/exec.o fs/proc/ mm/memory.o mm/usercopy.o"
)
UNCHANGED = f"""\
mkdir -p /tmp/hand/source /tmp/hand/before /tmp/hand/after
cd /tmp/hand/source
tar --extract --strip-components=1 --file="$(echo /in/linux_*.tar.xz)"
cat /in/config/*.config > /tmp/hand/wanted
disassemble() {{
    make O=/tmp/hand/objects KCONFIG_ALLCONFIG=/tmp/hand/wanted allnoconfig
    make O=/tmp/hand/objects -j"$(nproc)" {UNCHANGED_PARTS}
    (cd /tmp/hand/objects
    cp arch/x86/kernel/vmlinux.lds /tmp/hand/$1/
    for object in $(find arch/x86 drivers kernel fs mm -name '*.o'); do
        objdump --disassemble --reloc --no-show-raw-insn "$object" > "/tmp/hand/$1/$(echo "$object" | tr / _)"
    done)
}}
disassemble before
find /in/patches -name '*.patch' | sort | xargs cat | patch --strip=1 --quiet
disassemble after
ls /tmp/hand/after > /out/compared
diff --recursive --brief /tmp/hand/before /tmp/hand/after > /out/differences || test $? = 1
"""
SOURCE = """\
mkdir /tmp/hand
dpkg-source --no-check --extract /in/source/*.dsc /tmp/hand/source
"""
# The object that the compiler wrapper kept.
LINK = """\
gcc -static -o /tmp/hand "$(ukl-find {program})" -lm
"""
# /in/build.sh says which, and how; the kernel's source has them.
SELFTESTS = """\
mkdir -p /tmp/hand/source
cd /tmp/hand/source
tar --extract --strip-components=1 --file="$(echo /in/linux_*.tar.xz)"
sh /in/selftests/build.sh /tmp/hand/source /out
"""
# Enough of a kernel to boot from an initramfs and talk to the runner.
SMALL_CONFIG = """\
64BIT SMP PCI ACPI PVH HYPERVISOR_GUEST PARAVIRT PRINTK BUG TTY SERIAL_8250 SERIAL_8250_CONSOLE BLK_DEV_INITRD
BINFMT_ELF BINFMT_SCRIPT PROC_FS SYSFS SHMEM TMPFS DEVTMPFS MULTIUSER FUTEX EPOLL SIGNALFD TIMERFD EVENTFD
POSIX_TIMERS HIGH_RES_TIMERS KALLSYMS PERF_EVENTS VIRTIO_MENU VIRTIO_PCI VIRTIO_CONSOLE HW_RANDOM HW_RANDOM_VIRTIO
ADVISE_SYSCALLS STRICT_KERNEL_RWX CPU_MITIGATIONS MITIGATION_PAGE_TABLE_ISOLATION COREDUMP ELF_CORE NET UNIX INET
DEBUG_KERNEL DEBUG_ENTRY UKL
"""
EACH_PREFIX = f"""\
mkdir -p /tmp/hand/source
cd /tmp/hand/source
tar --extract --strip-components=1 --file="$(echo /in/linux_*.tar.xz)"
for option in {" ".join(SMALL_CONFIG.split())}; do echo "CONFIG_$option=y"; done > /tmp/hand/wanted
number=0
build() {{
    echo "$1" >> /out/names
    make O=/tmp/hand/objects KCONFIG_ALLCONFIG=/tmp/hand/wanted allnoconfig
    make O=/tmp/hand/objects -j"$(nproc)" vmlinux > /tmp/hand/log 2>&1 || {{ tail -n 50 /tmp/hand/log; exit 1; }}
    grep -i warning /tmp/hand/log > "/out/$number.warnings" || true
    strip -o "/out/$number.vmlinux" /tmp/hand/objects/vmlinux
    number=$((number + 1))
}}
build "none"
for patch in $(find /in/patches -name '*.patch' | sort); do
    patch --strip=1 --fuzz=0 --quiet --input="$patch"
    build "$(basename "$patch")"
done
grep --quiet CONFIG_UKL=y /tmp/hand/objects/.config
"""
PLAIN = "plain-kernel"
OFF = "kernel-off"
TESTS = "kernel-selftests"
PREFIXES = "kernel-prefixes"


def script(step: Step) -> str:
    """For /bin/sh; "" for a step that has no counterpart outside uklimg."""
    action = step.action
    if step.id == kernel_recipe.STEP_ID:
        return KERNEL
    if step.recipe == "stage-source":
        return SOURCE
    if step.recipe == "stage-run" and isinstance(action, Container) and action.argv[:2] == ("/bin/sh", "-c"):
        # With the distribution's own compiler instead of our wrapper.
        return f"unset {' '.join(sorted(environment()))}\ncd {action.workdir}\n{action.argv[2]}"
    return ""


def static_link(step: Step) -> str:
    """For the application step: an ordinary static link of what the step links for the kernel."""
    if not isinstance(step.action, Container):
        raise InternalError("the application's recipe has changed")
    argv = step.action.argv
    program = argv[argv.index(f"{HOME}/inside/app.py") + 1]
    return LINK.format(program=shlex.quote(program))


def plain_kernel(graph: Graph) -> Graph:
    """A step that builds the kernel of ``graph`` without our patches, and with the same configuration but for
    CONFIG_UKL; it leaves ``vmlinux``. Stored like any step."""
    script = f"{KERNEL}cp /tmp/hand/objects/vmlinux /out/\n"
    return _instead_of_kit(graph, PLAIN, "kernel without our patches", script, {"/in/patches": Inline(())})


def kernel_off(graph: Graph) -> Graph:
    """A step that compiles parts of the kernel of ``graph`` with CONFIG_UKL off, without and with our patches.

    It leaves ``compared``, the files compared, a line each, and ``differences``, a line for each that differs: the
    disassembly of an object, or the linker script.
    """
    return _instead_of_kit(graph, OFF, "kernel with our patches off", UNCHANGED, {})


def selftests(graph: Graph, script: bytes) -> Graph:
    """A step that builds selftests of the kernel of ``graph``, as ``script`` does for a source and an output."""
    inputs = {"/in/selftests": Inline((InlineFile("build.sh", script),)), "/in/patches": Inline(())}
    return _instead_of_kit(graph, TESTS, "selftests of the kernel", SELFTESTS, inputs)


def prefixes(graph: Graph) -> Graph:
    """A step that builds the kernel of ``graph`` after each of its patches, with a small configuration.

    It leaves ``names``, a line for each, and for the Nth ``N.vmlinux`` and ``N.warnings``, which should be empty.
    """
    return _instead_of_kit(graph, PREFIXES, "kernels after each patch", EACH_PREFIX, {})


def _instead_of_kit(graph: Graph, name: str, title: str, script: str, inputs: Mapping[str, Input]) -> Graph:
    step = graph.step(kernel_recipe.STEP_ID)
    config, action = step.inputs["/in/config"], step.action
    if not isinstance(config, Inline) or not isinstance(action, Container):
        raise InternalError("the kernel's recipe has changed")
    all_inputs = {**step.inputs, "/in/config": Inline(_without_ukl(config)), **inputs}
    argv = ("/bin/sh", "-ec", script)
    other = replace(step, id=name, title=title, action=replace(action, argv=argv, mounts=()), inputs=all_inputs)
    return Graph.of([*graph.steps, other], name)


def _without_ukl(config: Inline) -> tuple[InlineFile, ...]:
    return tuple(replace(file, content=_lines_without_ukl(file.content)) for file in config.files)


def _lines_without_ukl(content: bytes) -> bytes:
    return b"".join(line for line in content.splitlines(keepends=True) if b"CONFIG_UKL" not in line)
