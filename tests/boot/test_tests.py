"""`uklimg test` and USERLAND with real boots: a small server in the kernel, its tests, and a shell beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from bootlib import shell
from redislib import ROOT, Ended, uklimg

from uklimg import oci
from uklimg.cli.run import boot_file
from uklimg.errors import ExitCode
from uklimg.guest.config import guest_config
from uklimg.guest.protocol import GuestConfig, Helper, Program, Status
from uklimg.runner.launch import Outcome, launch
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure
from uklimg.settings import read_settings
from uklimg.store import Store

pytestmark = pytest.mark.boot

TAG = "uklimg-test/tests:base"
UKLFILE = r"""FROM debian:trixie AS build
COPY <<EOF /src/echo.c
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static volatile sig_atomic_t stopped;
static void stop(int number) { stopped = number; }

int main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(7)};
    struct sigaction action = {.sa_handler = stop};
    char text[64];
    int server = socket(AF_INET, SOCK_STREAM, 0), client;

    sigaction(SIGTERM, &action, NULL);
    sleep(2);  /* whoever does not wait for the port finds nobody */
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 5))
        return 1;
    puts("listening");
    fflush(stdout);
    while (!stopped && (client = accept(server, NULL, NULL)) >= 0) {
        ssize_t size = read(client, text, sizeof text);
        if (size > 0)
            write(client, text, size);
        close(client);
    }
    puts(stopped == SIGTERM ? "stopped" : "failed");
    return stopped == SIGTERM ? 7 : 1;
}
EOF
WORKDIR /src
ENV GREETING=hello
RUN $CC -O2 -o echo echo.c
FROM debian:trixie AS other
RUN echo elsewhere > /where

FROM ukl:6.12
LINK --from=build /src/echo
EXPOSE 7/tcp
USERLAND busybox
TEST --when=ended end [ "$UKLIMG_STATUS" = 7 ] && [ "$(tail -n 1 $UKLIMG_CONSOLE)" = stopped ]
TEST echo <<EOF
#!/usr/bin/python3
import os, socket
with socket.create_connection((os.environ["UKLIMG_HOST"], int(os.environ["UKLIMG_PORT_7"])), 30) as connection:
    connection.sendall(os.environ["GREETING"].encode())
    assert connection.recv(100) == b"hello"
assert os.getcwd() == "/src"
EOF
TEST --from=other stage ["grep", "elsewhere", "/where"]
TEST wrong echo this is wrong; exit 9
TEST --timeout=1s late exec sleep 60
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tests")
    (folder / "Uklfile").write_text(UKLFILE)
    shutil.copy(ROOT / "scripts/example.lock", folder / "Uklfile.lock")
    return folder


def test_every_test_is_told_and_one_that_fails_is_the_exit_status(folder: Path) -> None:
    done = uklimg("test", str(folder))
    assert done.status == ExitCode.STEP, done.stderr
    verdicts = [line.partition(" (")[0] for line in done.stdout.splitlines()]
    assert verdicts == [
        "pass echo",
        "pass stage",
        "FAIL wrong",
        "FAIL late",
        "pass end",
        "3 passed, 2 failed; exit status 7",
    ]
    assert "the command ended with status 9" in done.stdout
    assert "not done within 1 seconds" in done.stdout
    assert "   | this is wrong\n" in done.stderr
    assert "   | listening\n" in done.stderr


def test_some_tests_alone_as_json(folder: Path) -> None:
    done = uklimg("test", "--format", "json", str(folder), "end", "echo")
    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["passed"] is True
    assert told["ending"] == "exit status 7"
    assert [(test["name"], test["passed"], test["problem"]) for test in told["tests"]] == [
        ("echo", True, ""),
        ("end", True, ""),
    ]


def test_a_test_that_is_not_there(folder: Path) -> None:
    assert uklimg("test", str(folder), "ecco") == Ended(
        ExitCode.USER, "", "uklimg: the Uklfile has no test 'ecco' (did you mean echo?)\n"
    )


@pytest.fixture(scope="module")
def image(folder: Path) -> tuple[Store, oci.Image]:
    done = uklimg("build", "-t", TAG, str(folder))
    assert done.status == 0, done.stderr
    store = Store(read_settings(os.environ, Path.cwd()).store)
    return store, oci.read_image(lambda blob: store.read_blob(blob.digest), store.tags()[TAG])


def boot(image: tuple[Store, oci.Image], env: Mapping[str, str], guest: GuestConfig) -> tuple[Outcome, str]:
    """How the image ended with ``guest`` for its programs, and what they printed."""
    store, found = image
    kernel, initrd = (boot_file(store, found, role) for role in (oci.VMLINUX, oci.INITRAMFS))
    machine, _ = configure(found.run, kernel, initrd, RunOptions())
    printed = bytearray()
    outcome = launch(Qemu(), machine, guest, env=env, show=printed.extend)
    return outcome, printed.decode()


def test_a_userland_is_ordinary_programs(image: tuple[Store, oci.Image], env: Mapping[str, str]) -> None:
    script = """set -e
    readlink /proc/self/exe
    for name in /bin/ls /sbin/ip /usr/bin/env /usr/sbin/chroot; do [ -x $name ]; done
    grep -q GNU /usr/share/doc/busybox/copyright
    printf '#!/usr/bin/env sh\\nls / | sort | tr "\\n" " "\\n' > /tmp/script
    chmod +x /tmp/script
    /tmp/script
    exit 5
    """
    programs = (shell(script),)
    outcome, printed = boot(image, env, GuestConfig(programs, env={"PATH": "/bin"}, raw_console=True))
    assert outcome.status == Status(exit=5), printed
    assert printed == "/bin/busybox\nbin dev etc init proc root run sbin sys tmp ukl usr var "


def test_a_shell_talks_to_the_program_in_the_kernel(image: tuple[Store, oci.Image], env: Mapping[str, str]) -> None:
    script = """until [ "$(echo from ring 3 | nc -w 5 127.0.0.1 7 2>/dev/null)" = 'from ring 3' ]; do sleep 0.2; done
    echo answered
    """
    beside = Helper(Program("/bin/sh", ("sh", "-c", script)), wait=True, stop=True)
    own = guest_config(image[1].run, raw_console=True)
    guest = GuestConfig(own.programs, (beside,), env={"PATH": "/bin"}, raw_console=True)
    outcome, printed = boot(image, env, guest)
    assert printed.splitlines() == ["listening", "answered", "stopped"]
    assert outcome.status == Status(exit=7)
