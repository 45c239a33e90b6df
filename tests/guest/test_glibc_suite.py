"""glibc's own tests that link statically, with our glibc: as the application they find what they find in ring 3.

Not in every run: glibc is built a second time for it. UKLIMG_TEST_GLIBC=some runs a hundred of them; other words name
others, as glibc/build.py wants them, and ``all`` is all, which takes hours.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from guestlib import LINUX, UKL, Image, boot, sections, shell, trouble

from uklimg.data import Data, find_data
from uklimg.guest.protocol import Program
from uklimg.inside import glibc
from uklimg.runner.machine import MIB
from uklimg.runner.request import RunOptions
from uklimg.settings import read_settings
from uklimg.store import Store

pytestmark = [pytest.mark.guest, pytest.mark.boot, pytest.mark.timeout(12 * 3600)]

HERE = Path(__file__).with_name("glibc")
BUSYBOX = Path("/bin/busybox")
DATA = "/glibc/data"
CHOSEN = """
setjmp signal nptl/tst-cancel[0-9]* nptl/tst-once* posix/tst-spawn* stdlib/tst-*context* debug/tst-longjmp*
misc/tst-clone*
"""
# They make a stack that is written and executed, which is refused to the application (docs/kernel.md).
EXECUTABLE = {f"signal_tst_minsigstksz_{which}" for which in ("1", "2", "3", "3a", "4")} | {
    "io_tst_close__range",
    "support_tst_xsigstack",
}
# Seconds for one of them, on a slow, loaded, emulated machine; glibc's own limits are for another.
LIMIT = 120
FACTOR = "4"
# A shell for system(); where glibc's makefiles say that a test may write; and for each test a file of its own, since
# there are tests that write beside their program, and some that remove it.
SETUP = f"""
mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; ln -s busybox /bin/sh
while read name folder file rest; do
    mkdir -p {glibc.WORK}/build/$folder /t/linux/$folder /t/ukl/$folder
    for mode in linux ukl; do ln -s /$mode/suite /t/$mode/$folder/$file; done
done < /glibc/tests
cat /glibc/tests
"""
# By name: how it ended in ring 3 and as UKL.
Verdicts = Mapping[str, tuple[str, str]]


@pytest.fixture(scope="module", params=["PF_SS", "BYP"])
def image(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    build_image: Callable[[Path, str], Image],
) -> Image:
    """With the options: none, which every kernel has, and calls that bypass entry and exit work."""
    folder = tmp_path_factory.mktemp("glibc")
    libc = Data(find_data()).libc("2.41")
    source = Store(read_settings(os.environ, Path.cwd()).store).verified_path(libc.definition.file.digest)
    shutil.copy(source, folder / "glibc.tar.xz")
    (folder / "patches").mkdir()
    for patch in libc.patches.patches:
        (folder / "patches" / patch.name).write_bytes(patch.content)
    inside = Path(glibc.__file__).parent
    for file in (HERE / "build.py", HERE.with_name("suite") / "suite.c", inside / "glibc.py", inside / "source.py"):
        shutil.copy(file, folder)
    shutil.copy(BUSYBOX, folder)
    asked = os.environ["UKLIMG_TEST_GLIBC"]
    wanted = " ".join((CHOSEN if asked == "some" else asked).split())
    text = (HERE / "Uklfile").read_text()
    text = text.replace("ARG TESTS=", f'ARG TESTS="{wanted if wanted != "all" else ""}"')
    (folder / "Uklfile").write_text(text.replace("ARG UKL=PF_SS", f"ARG UKL={request.param}"))
    return build_image(folder, f"uklimg-test/guest-glibc:{request.param.lower()}")


def test_the_application_finds_what_ring_3_finds(image: Image) -> None:
    tests = [line.split("\t") for line in outputs(image, [])["setup"].splitlines() if line.count("\t") == 5]
    found = dict(verdicts(image, tests))
    refused = {name: found.pop(name) for name in EXECUTABLE & found.keys()}
    assert set(refused.values()) <= {("exit 0", "exit 1")}, refused
    tests = [test for test in tests if test[0] in found]
    differing = [test for test in tests if len(set(found[test[0]])) > 1]
    # Some measure time, on a machine that does other things, too.
    found = {**found, **(verdicts(image, differing) if differing else {})}
    assert {name: both for name, both in found.items() if len(set(both)) > 1} == {}
    well = sum(linux == "exit 0" for linux, _ in found.values())
    print(f"{len(found)} tests, {well} of them succeed")
    assert len(found) > 60 and well > len(found) * 0.7


def verdicts(image: Image, tests: Iterable[list[str]]) -> Verdicts:
    programs = [program(mode, test) for test in tests for mode in (LINUX, UKL)]
    ended = outputs(image, programs, status=True)
    log = ended.pop("dmesg")
    assert trouble(log) == [], log
    names = {label.partition(":")[2] for label in ended if ":" in label}
    assert len(programs) == 2 * len(names)
    return {name: (ended[f"{LINUX}:{name}"], ended[f"{UKL}:{name}"]) for name in names}


def outputs(image: Image, programs: list[Program], *, status: bool = False) -> dict[str, str]:
    """What each program wrote, or with ``status`` how it ended; beside what ``setup`` and ``dmesg`` write."""
    everything = [shell(SETUP, "setup"), *programs, shell("dmesg", "dmesg")]
    ended = sections(boot(image, everything, RunOptions(cpus=2, memory=1024 * MIB)))
    return {label: one.status if status and ":" in label else one.output for label, one in ended.items()}


def program(mode: str, test: Sequence[str]) -> Program:
    """A line of /glibc/tests. A test that starts itself again names its own file."""
    name, folder, file, given, environment, arguments = test
    path = f"/t/{mode}/{folder}/{file}"
    itself = f"{glibc.WORK}/build/{folder}/{file}"
    words = [path if word == itself else word for word in arguments.split() if arguments != "-"]
    pairs = [word.split("=", 1) for word in environment.split() if "=" in word]
    variables = {"PATH": "/bin", "HOME": "/root", "UKL_PROGRAM": name, "TIMEOUTFACTOR": FACTOR, "LC_ALL": "C"}
    argv, start = (path, *words), path
    if given != "-":
        argv, start = ("sh", "-c", 'exec "$@" < "$0"', given, path, *words), str(BUSYBOX)
    env, label = {**variables, **dict(pairs)}, f"{mode}:{name}"
    return Program(start, argv, env=env, workdir=f"{DATA}/{folder}", timeout=LIMIT, label=label)
