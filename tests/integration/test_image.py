"""A small program from its source to a booted image, a registry and back: everything that `uklimg` does, for real.

The kernel comes from the machine's own store (tests/conftest.py has it built before the first test runs).
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_build import Project, Result, ran
from test_registry import Server, registry

from uklimg import oci
from uklimg.errors import ExitCode
from uklimg.settings import read_settings
from uklimg.store import Store

pytestmark = [pytest.mark.integration, pytest.mark.boot]

TAG = "uklimg-test/hello"
MAIN = r"""
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    unsigned short cs;
    __asm__("mov %%cs, %0" : "=r"(cs));
    printf("cpl %d main %s\n", cs & 3, (long)&main < 0 ? "kernel" : "user");
    for (int i = 0; i < argc; i++)
        printf("arg %s\n", argv[i]);
    printf("word %s\n", getenv("WORD"));
    char line[100] = "";
    FILE *file = fopen("/etc/note", "r");
    if (file && fgets(line, sizeof line, file))
        printf("note %s", line);
    file = fopen("/data/out", "w");
    if (file)
        fputs("written by the guest\n", file);
    fflush(NULL);
    if (argc > 1 && !strcmp(argv[1], "abort"))
        abort();
    return argc > 1 && !strcmp(argv[1], "seven") ? 7 : 0;
}
"""
UKLFILE = """FROM debian:trixie AS build
COPY main.c /src/
RUN $CC -O2 -o /src/hello /src/main.c && /src/hello
FROM ukl:6.12
LINK --from=build /src/hello
COPY <<note /etc/note
from the Uklfile
note
VOLUME /data
ENV WORD=image
MEMORY 128M
"""


def make(folder: Path, uklfile: str = UKLFILE, main: str = MAIN) -> Project:
    folder.mkdir(exist_ok=True)
    (folder / "main.c").write_text(main)
    (folder / "Uklfile").write_text(uklfile)
    return Project(folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = make(tmp_path_factory.mktemp("image") / "context")
    found = made.uklimg("build", "-t", TAG)
    assert found.status == 0, found.err
    yield made
    made.uklimg("rmi", TAG)


@pytest.fixture
def store() -> Store:
    return Store(read_settings(os.environ, Path.cwd()).store)


def lines(result: Result) -> list[str]:
    return [line for line in result.out.splitlines() if line.split(" ")[0] in ("cpl", "arg", "word", "note")]


def test_the_program_runs_as_part_of_the_kernel(project: Project) -> None:
    found = project.uklimg("run", TAG)
    assert found.status == 0, found.err + found.out
    assert lines(found) == ["cpl 0 main kernel", "arg hello", "word image", "note from the Uklfile"]


def test_a_bzimage_runs_as_well_and_arguments_and_variables_are_the_runners(project: Project) -> None:
    found = project.uklimg("run", "--boot", "bzimage", "-e", "WORD=runner", TAG, "hello", "a b", "")
    assert found.status == 0, found.err + found.out
    assert lines(found)[:5] == ["cpl 0 main kernel", "arg hello", "arg a b", "arg ", "word runner"]


@pytest.mark.parametrize(("word", "status"), [("seven", 7), ("abort", 128 + 6)])
def test_the_programs_status_is_ours(project: Project, word: str, status: int) -> None:
    assert project.uklimg("run", TAG, "hello", word).status == status


def test_what_the_program_writes_to_a_volume_stays(project: Project, tmp_path: Path) -> None:
    assert project.uklimg("run", "-v", f"{tmp_path}:/data", TAG).status == 0
    assert (tmp_path / "out").read_text() == "written by the guest\n"


def test_a_port_that_is_taken(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = project.uklimg("run", "-p", f"{taken.getsockname()[1]}:80", TAG)
    assert found.status == ExitCode.RUN_FAILED
    assert "is in use (choose another: -p HOST:80)" in found.err


def test_memory_that_does_not_suffice_is_said_before_the_boot(project: Project) -> None:
    found = project.uklimg("run", "-m", "32M", TAG)
    assert found.status == ExitCode.RUN_FAILED
    assert "does not fit" in found.err


def test_the_second_build_runs_no_step_and_a_new_build_makes_the_same_bytes(project: Project, store: Store) -> None:
    first = project.uklimg("build", "-t", TAG)
    assert ran(first) == 0
    steps = json.loads(project.uklimg("plan", "--format", "json").out)
    for step in steps:
        if step["step"] not in ("kernel-kit", "base:debian-trixie"):
            (store.root / "cache" / f"{step['key'].removeprefix('sha256:')}.json").unlink()
    again = project.uklimg("build", "-t", TAG)
    assert again.status == 0, again.err
    assert ran(again) == len(steps) - 2
    assert again.out == first.out


def test_a_changed_program_keeps_the_kernel(project: Project, tmp_path: Path) -> None:
    changed = make(tmp_path / "changed", main=MAIN.replace("word ", "Word "))
    (changed.folder / "Uklfile.lock").write_bytes((project.folder / "Uklfile.lock").read_bytes())
    steps = json.loads(changed.uklimg("plan", "--format", "json").out)
    assert {step["step"] for step in steps if step["runs"]} == {
        "stage:build:1",
        "stage:build:2",
        "app:hello",
        "bzimage",
        "image",
    }


def test_an_image_survives_a_registry(project: Project, store: Store, tmp_path: Path) -> None:
    digest = store.tags()[f"{TAG}:latest"].digest
    with registry(tmp_path / "registry") as server:
        name = f"{server.host}/hello:1"
        pushed = project.uklimg("push", TAG, name)
        assert pushed.status == 0, pushed.err
        environ = {"UKLIMG_STORE": str(tmp_path / "other")}
        pulled = project.uklimg("pull", name, **environ)
        assert pulled.status == 0, pulled.err
        assert pulled.out == f"{name} {digest}\n"
        found = project.uklimg("run", name, **environ)
        assert lines(found)[0] == "cpl 0 main kernel"
        damage(server, store, digest)
        damaged = project.uklimg("pull", name, UKLIMG_STORE=str(tmp_path / "third"))
    assert damaged.status == ExitCode.CORRUPT
    assert Store(tmp_path / "third").tags() == {}


def damage(server: Server, store: Store, digest: object) -> None:
    """Change a byte of the vmlinux that the registry holds."""
    root = store.tags()[f"{TAG}:latest"]
    layer = oci.read_image(lambda blob: store.read_blob(blob.digest), root).file(oci.VMLINUX)
    with server.blob(layer.digest).open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)
        file.seek(100_000)
        file.write(bytes([byte[0] ^ 1]))


def test_inspect_says_what_it_is(project: Project) -> None:
    value = json.loads(project.uklimg("inspect", TAG, "--format", "json").out)
    assert value["program"] == "hello"
    assert value["volumes"] == ["/data"]
    assert re.fullmatch(r"6\.12\.\d+", value["kernel"])
    assert [file["role"] for file in value["files"]] == ["vmlinux", "bzImage", "initramfs"]


def test_control_c_ends_the_guest(project: Project, tmp_path: Path) -> None:
    sleeper = make(
        tmp_path / "sleeper", main='#include <unistd.h>\nint main(void) { write(1, "up\\n", 3); pause(); }'
    )
    uklfile = UKLFILE.replace(" && /src/hello", "")
    (sleeper.folder / "Uklfile").write_text(uklfile)
    built = sleeper.uklimg("build", "-t", "uklimg-test/sleeper")
    assert built.status == 0, built.err
    process = subprocess.Popen(
        sleeper.argv("run", "uklimg-test/sleeper"), stdout=subprocess.PIPE, env=sleeper.env, cwd=sleeper.folder
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == b"up":
            break
    process.send_signal(2)
    process.communicate(timeout=120)
    assert process.returncode == 128 + 15  # its stop signal
    assert sleeper.uklimg("rmi", "uklimg-test/sleeper").status == 0


def test_a_program_that_was_not_linked_by_the_wrapper(tmp_path: Path) -> None:
    foreign = make(tmp_path / "foreign", UKLFILE.replace("$CC", "gcc").replace(" && /src/hello", ""))
    found = foreign.uklimg("build")
    assert found.status == ExitCode.STEP
    assert "was not linked by ukl-gcc" in found.err
    assert "uklimg: Uklfile:5:1: LINK /src/hello" in found.err.splitlines()[-1]
    assert "RUN make CC=ukl-gcc" in found.err.splitlines()[-1]


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    missing = make(
        tmp_path / "missing", UKLFILE.replace("LINK --from=build /src/hello", "LINK --from=build /src/hullo")
    )
    found = missing.uklimg("build")
    assert found.status == ExitCode.STEP
    assert "/src/hullo is not there" in found.err


def test_a_large_application_needs_no_other_kernel(tmp_path: Path) -> None:
    """64 MiB of code, of which the end is used, and 40 MiB of data, in the kernel that small ones have."""
    code = r"""
        #include <stdio.h>
        __asm__(".text; .skip 64 << 20, 0x90; .globl last; last: leal 1(%rdi), %eax; ret");
        int last(int);
        static char data[40 << 20] = {1, [(40 << 20) - 1] = 2};
        int main(void)
        {
            char *volatile bytes = data;
            printf("large %d\n", last(bytes[0] + bytes[sizeof data - 1]));
            return 0;
        }
    """
    large = make(tmp_path / "large", UKLFILE.replace(" && /src/hello", "").replace("128M", "512M"), code)
    assert large.uklimg("build", "-t", "uklimg-test/large").status == 0
    for kernel in ("vmlinux", "bzimage"):
        found = large.uklimg("run", "--boot", kernel, "uklimg-test/large")
        assert (found.status, found.out) == (0, "large 4\n"), found.err


def test_a_kernel_option_that_cannot_be(tmp_path: Path) -> None:
    odd = make(tmp_path / "odd", UKLFILE + "KCONFIG NO_SUCH_OPTION=y\n")
    found = odd.uklimg("build")
    assert found.status == ExitCode.STEP
    assert "the kernel configuration cannot have CONFIG_NO_SUCH_OPTION=y" in found.err


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "uklimg", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"uklimg \d+\.\d+\.\d+\n", done.stdout)
