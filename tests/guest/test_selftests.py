"""The kernel's own selftests: in ring 3 they find on our kernel what they find without CONFIG_UKL, and as the
application what they find in ring 3.

With CONFIG_UKL off the code is the unpatched kernel's (tests/integration/test_kernel_off.py); UKLIMG_TEST_UNPATCHED=1
builds that one nevertheless, and compares with it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from guestlib import LINUX, UKL, BuildImage, Image, boot, program, sections, shell

from benchmarks import bench, byhand
from uklimg import proc
from uklimg.data import Data, find_data
from uklimg.guest.protocol import Program
from uklimg.recipes import kernel
from uklimg.runner.machine import MIB
from uklimg.runner.request import RunOptions
from uklimg.runner.volumes import Bind

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(3600)]

GUEST = bench.ROOT / "benchmarks/guest"
HERE = Path(__file__).with_name("selftests")
BUSYBOX = Path("/bin/busybox")
# Of the kernel's selftests, those that the Makefile wants.
FOLDERS = (
    "kselftest.h", "kselftest_harness.h", "futex", "timers", "mm", "clone3", "pidfd", "proc", "ptrace", "sigaltstack",
    "kcmp", "membarrier", "exec",
)  # fmt: skip
# Seconds for one of them; the slowest needs half a minute.
LIMIT = 120
# How a test program says what it found.
VERDICT = re.compile(r"^(?:(?:not )?ok \d+|\[(?:OK|FAIL|SKIP)\]|# Totals: .*$)", re.MULTILINE)
# By name: status, and what it found.
Verdicts = Mapping[str, tuple[str, tuple[str, ...]]]


@pytest.fixture
def found() -> Iterator[bench.Bench]:
    with bench.opened(lock=bench.EXAMPLE_LOCK) as opened:
        yield opened


def test_ring_3_finds_the_same_as_without_ukl(suite_image: BuildImage, found: bench.Bench) -> None:
    """With SMAP off: QEMU before 9.1 reads the frame of ring 3's IRET with the kernel's rights; any kernel oopses."""
    graph = found.graph(GUEST / "Uklfile", GUEST)
    tests = found.tree(byhand.selftests(graph, (HERE / "build.sh").read_bytes()), byhand.TESTS)
    if os.environ.get("UKLIMG_TEST_UNPATCHED"):
        plain = found.tree(byhand.plain_kernel(graph), byhand.PLAIN) / "vmlinux"
    else:
        plain = found.tree(found.graph(GUEST / "Uklfile", GUEST, twin=True), kernel.STEP_ID) / "vmlinux"
    image = suite_image("base")
    env = {"PATH": "/bin", "HOME": "/root"}
    programs = {
        file.name: Program(
            f"/tests/{file.name}", (file.name,), env=env, workdir="/tmp", timeout=LIMIT, label=file.name
        )
        for file in tests.iterdir()
    }
    options = RunOptions(
        cpus=2, memory=1024 * MIB, binds=(Bind(str(tests), "/tests", True),), extra=("-cpu", "max,smap=off")
    )

    def compare(names: Iterable[str]) -> tuple[Verdicts, Verdicts]:
        chosen = [programs[name] for name in names]
        return run(image, chosen, options), run(replace(image, vmlinux=plain), chosen, options)

    ours, theirs = compare(sorted(programs))
    assert len(theirs) > 60 and sum(status == "exit 0" for status, _ in theirs.values()) > 50
    again(compare, ours, theirs)


def test_the_application_finds_the_same_as_ring_3(
    tmp_path: Path, found: bench.Bench, build_image: Callable[[Path, str], Image]
) -> None:
    definition = Data(find_data()).kernel("6.12").definition
    tarball = found.store.verified_path(definition.file.digest)
    for name in ("Makefile", "Uklfile"):
        shutil.copy(HERE / name, tmp_path)
    shutil.copy(BUSYBOX, tmp_path)
    shutil.copy(HERE.parent / "suite/suite.c", tmp_path)
    top = f"linux-{definition.version}/tools/testing/selftests"
    folders = [f"{top}/{name}" for name in FOLDERS]
    argv = ["tar", "--extract", f"--file={tarball}", f"--directory={tmp_path}", "--strip-components=1"]
    proc.run([*argv, *folders], env=proc.host_env(os.environ), timeout=600)
    image = build_image(tmp_path, "uklimg-test/guest-selftests:base")
    programs = {
        mode: {name: replace(program(name, mode), timeout=LIMIT) for name in names(tmp_path)} for mode in (LINUX, UKL)
    }

    def compare(chosen: Iterable[str]) -> tuple[Verdicts, Verdicts]:
        both = [programs[mode][name] for name in chosen for mode in (LINUX, UKL)]
        ended = run(image, both, RunOptions(cpus=2))
        by_mode = {
            mode: {label.partition(":")[2]: e for label, e in ended.items() if label.startswith(mode)}
            for mode in (LINUX, UKL)
        }
        return by_mode[UKL], by_mode[LINUX]

    ours, theirs = compare(names(tmp_path))
    assert len(theirs) > 35 and sum(status == "exit 0" for status, _ in theirs.values()) > 30
    again(compare, ours, theirs)


def names(context: Path) -> list[str]:
    """Of the programs of the Makefile."""
    argv = ["make", "--silent", f"--directory={context}", "--eval=names: ; @echo $(NAMES)", "names"]
    return proc.run(argv, env=proc.host_env(os.environ)).text.split()


def again(compare: Callable[[Iterable[str]], tuple[Verdicts, Verdicts]], ours: Verdicts, theirs: Verdicts) -> None:
    """Equal, if not at once then the second time: some measure time, on a machine that does other things, too."""
    differing = [name for name in theirs if ours[name] != theirs[name]]
    if differing:
        ours, theirs = compare(differing)
    assert ours == theirs


def run(image: Image, programs: Sequence[Program], options: RunOptions) -> Verdicts:
    ended = sections(boot(image, [*programs, shell("dmesg", "dmesg")], options))
    log = ended["dmesg"].output
    assert not re.search(r"\bBUG\b|\bOops\b|WARNING|Call Trace", log), log
    return {one.label: (ended[one.label].status, tuple(VERDICT.findall(ended[one.label].output))) for one in programs}
