"""Guests that run by themselves, from `run -d` to `rm`: real boots, and what is killed with SIGKILL."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redislib import ROOT, Ended, uklimg, uklimg_cmd, uklimg_env

from uklimg.errors import ExitCode
from uklimg.runner.network import free_port
from uklimg.running.record import Identity

pytestmark = pytest.mark.boot

TAG = "uklimg-test/running:base"
UKLFILE = """FROM debian:trixie AS build
COPY guest.c /src/
RUN $CC -O1 -Wall -o /src/guest /src/guest.c
FROM ukl:6.12
LINK --from=build /src/guest
USERLAND busybox
MEMORY 192M
EXPOSE 7/tcp
ENTRYPOINT ["guest"]
ENV GREETING=image
HEALTHCHECK --interval=1s --retries=2 CMD test -e /tmp/well || { echo unwell; exit 1; }
"""
# Long enough for a loaded machine; nothing waits for it when all is well.
_LONG = 120.0


@dataclass
class Host:
    """Commands of a user whose guests are in ``state``."""

    state: Path

    @property
    def env(self) -> dict[str, str]:
        return {"XDG_STATE_HOME": str(self.state)}

    def __call__(self, *words: str, status: int = 0) -> str:
        """Standard output; fails unless it ends with ``status``."""
        ended = self.ended(*words)
        assert ended.status == status, f"uklimg {words}: {ended}"
        return ended.stdout

    def ended(self, *words: str) -> Ended:
        return uklimg(*words, env=self.env)

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(uklimg_cmd(*words), env=uklimg_env(self.env), cwd=ROOT, **options)

    def guests(self) -> dict[str, dict[str, Any]]:
        return {guest["name"]: guest for guest in json.loads(self("ps", "-a", "--format", "json"))}

    def until(self, name: str, **fields: object) -> dict[str, Any]:
        """Until the guest's state has these values."""

        def reached() -> bool:
            guest = self.guests()[name]
            return all(guest[field] == value for field, value in fields.items())

        wait_for(reached, f"{name}: {fields}, but {self.guests().get(name)}")
        return self.guests()[name]

    def shell(self, name: str, script: str, **options: Any) -> str:
        return self("exec", name, "sh", "-c", script, **options)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _LONG
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def identity(fields: dict[str, Any]) -> Identity:
    return Identity(**fields)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("running")
    (folder / "Uklfile").write_text(UKLFILE)
    shutil.copy(Path(__file__).parent / "programs/guest.c", folder)
    shutil.copy(ROOT / "scripts/example.lock", folder / "Uklfile.lock")
    built = uklimg("build", "-t", TAG, str(folder))
    assert built.status == 0, built.stderr
    return TAG


@pytest.fixture
def host(tmp_path: Path, image: str) -> Iterator[Host]:
    host = Host(tmp_path / "state")
    yield host
    left = host.guests()
    if left:
        host("rm", "-f", *left)
    assert not [path for path in (tmp_path / "state/uklimg/guests").glob("*") if not path.name.startswith(".")]


def echo(port: int, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(text)
        return connection.recv(100)


def test_a_life(host: Host) -> None:
    """Two guests beside one another, and all that one does with them until their end."""
    port, other = free_port(), free_port()
    ident = host("run", "-d", "--name", "one", "-p", f"{port}:7", TAG, "serve").strip()
    two = ("--name", "two", "-p", f"{other}:7", "-p", f"{free_port()}:9", "-e", "GREETING=2", "--no-healthcheck")
    host("run", "-d", *two, TAG, "serve")
    assert host("ps", "-q").split()[0] == ident
    assert [line.split()[0] for line in host("ps").splitlines()] == ["NAME", "one", "two"]
    wait_for(lambda: "listening" in host("logs", "one"), "it listens")
    wait_for(lambda: "listening" in host("logs", ident[:6]), "it listens")
    assert (echo(port, b"first"), echo(other, b"second")) == (b"first", b"second")
    assert (host("logs", "one"), host("logs", "two")) == ("listening image\n", "listening 2\n")

    # health, through the same channel as exec: what the image says
    host.until("one", health="unhealthy")
    assert host.guests()["one"]["checked"] == "unwell"
    assert ("(unhealthy)" in host("ps"), host.guests()["two"]["health"]) == (True, "")
    host.shell("one", "touch /tmp/well")
    host.until("one", health="healthy")

    # commands
    done = host.ended(
        "exec", "-e", "A=b c", "-w", "/tmp", "one", "sh", "-c", 'echo "$A $PWD $GREETING"; echo e >&2; exit 5'
    )
    assert (done.status, done.stdout, done.stderr) == (5, "b c /tmp image\n", "e\n")
    assert host.ended("exec", "one", "sh", "-c", "kill -9 $$").status == 137
    assert host("exec", "one", "stat", "-c", "%a %u %n", "/", "/tmp").split("\n")[:2] == ["755 0 /", "1777 0 /tmp"]
    missing = host.ended("exec", "one", "nosuch", "--option")
    assert missing.status == ExitCode.RUN_FAILED
    assert missing.stderr == (
        "uklimg: the image cannot run nosuch: No such file or directory (it holds what USERLAND and COPY bring)\n"
    )
    data = os.urandom(1 << 20)
    with host.popen("exec", "-i", "one", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.communicate(data)[0] == data
    assert host("exec", "one", "cat") == "", "without -i there is nothing to read"

    # a client that is killed takes its command along; there are as many ports as before
    clients = [host.popen("exec", "one", "sh", "-c", f"sleep 600 & echo $$ >/tmp/{n}; wait") for n in range(3)]
    wait_for(lambda: host.shell("one", "ls /tmp | grep -c '^[0-9]'; true").strip() == "3", "they run")
    for client in clients:
        client.kill()
        client.wait()
    wait_for(lambda: host.shell("one", "pgrep sleep; true") == "", "killed with its client")
    assert terminal(host, "one") == "24 80 /dev/pts/0"

    # names, rm, stop
    taken = host.ended("run", "-d", "--name", "one", TAG)
    assert (taken.status, "there is a guest one already" in taken.stderr) == (ExitCode.RUN_FAILED, True)
    assert "one runs" in host.ended("rm", "one").stderr
    with host.popen("logs", "-f", "--tail", "1", "one", stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"listening image\n"
        host("stop", "one")
        assert follower.communicate()[0] == b"stopped\n"
    assert host.guests()["one"]["exit"] == 7
    assert host("ps", "-q").split() == [host.guests()["two"]["id"]]
    assert "exited (7)" in host("ps", "-a")
    assert "one has ended" in host.ended("exec", "one", "true").stderr
    assert host("wait", "one") == "7\n"
    assert host("logs", "one") == "listening image\nstopped\n"
    host("stop", "one")
    host("rm", "one")
    assert host.ended("logs", "one").status == ExitCode.NOT_FOUND


def terminal(host: Host, name: str) -> str:
    """What a command with a terminal says of it; the client has one, too, and Ctrl-C in it is the command's."""
    main, side = pty.openpty()
    client = host.popen("exec", "-it", name, "sh", "-c", "stty size; tty; sleep 600", stdin=side, stdout=side)
    os.close(side)
    said = b""
    while b"/dev/pts/" not in said or not said.endswith(b"\n"):
        said += os.read(main, 1000)
    os.write(main, b"\x03")
    assert client.wait() == 130
    os.close(main)
    return " ".join(said.decode().split())


def test_a_guest_that_ends_at_once_leaves_all_it_printed(host: Host) -> None:
    host("run", "-d", "--name", "short", TAG, "end", "3")
    assert host("wait", "short") == "3\n"
    lines = [f"line {number}" for number in range(100)]
    assert host("logs", "short").splitlines() == lines
    assert host("logs", "--tail", "2", "-f", "short").splitlines() == lines[-2:]
    # As a service manager does, with nothing kept:
    host("run", "-d", "--rm", "--name", "gone", TAG, "end", "0")
    wait_for(lambda: "gone" not in host.guests(), "it is forgotten")


def test_a_killed_supervisor_takes_its_machine_along(host: Host) -> None:
    host("run", "-d", "--name", "victim", TAG, "serve")
    guest = host.guests()["victim"]
    supervisor, machine = identity(guest["supervisor"]), identity(guest["machine"])
    assert supervisor.alive and machine.alive
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_for(lambda: not machine.alive, "no orphan")
    assert host("ps", "-q") == ""
    assert "dead (its supervisor was killed)" in host("ps", "-a")
    assert host.ended("wait", "victim").status == ExitCode.RUN_FAILED
    assert "victim has ended" in host.ended("exec", "victim", "true").stderr
    host("stop", "victim")
    host("rm", "victim")
    assert host.guests() == {}


def test_a_guest_survives_the_command_that_started_it(host: Host) -> None:
    starter = host.popen("run", "-d", "--name", "child", TAG, "serve", start_new_session=True)
    wait_for(lambda: host.guests().get("child", {}).get("machine"), "the machine runs")
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    host.until("child", status="running")
    wait_for(lambda: "listening" in host("logs", "child"), "it listens")
    host("rm", "-f", "child")


def test_a_disk_keeps_its_data_over_two_boots(host: Host, tmp_path: Path) -> None:
    raw, qcow2 = tmp_path / "disk.img", tmp_path / "disk.qcow2"
    with raw.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", raw], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, qcow2], check=True)
    mounts = ("-v", f"{raw}:/data", "--mount", f"type=block,source={qcow2},target=/more")
    first = host("run", *mounts, TAG, "count", "/data/runs", "2", status=3)
    assert first == "run 1\n"
    host("run", "-d", "--name", "disks", *mounts, TAG, "count", "/data/runs", "2")
    wait_for(lambda: "listening" in host("logs", "disks"), "it listens")
    assert host("logs", "disks") == "run 2\nlistening image\n"
    assert host.shell("disks", "cut -d' ' -f1-3 /proc/mounts | grep vd") == (
        "/dev/vda /data ext4\n/dev/vdb /more ext4\n"
    )
    host("rm", "-f", "disks")


def test_a_folder_over_virtiofs(host: Host, tmp_path: Path) -> None:
    """What the guest writes is here, and there again at the next boot."""
    folder = tmp_path / "shared"
    folder.mkdir()
    volume = ("-v", f"{folder}:/data:virtiofs")
    assert host("run", *volume, TAG, "count", "/data/runs", "2", status=3) == "run 1\n"
    kept = [path.read_bytes() for path in folder.iterdir()]
    assert len(kept) == 1 and kept[0].strip()
    host("run", "-d", "--name", "fs", *volume, TAG, "count", "/data/runs", "2")
    wait_for(lambda: "listening" in host("logs", "fs"), "it listens")
    assert host.shell("fs", "grep -c '/data virtiofs' /proc/mounts") == "1\n"
    host("rm", "-f", "fs")


def test_restart_on_failure_and_always(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    volume = ("-v", f"{folder}:/data")
    host("run", "-d", "--name", "again", "--restart", "on-failure:5", *volume, TAG, "count", "/data/runs", "3")
    guest = host.until("again", restarts=2, status="running")
    assert guest["exit"] == -1
    wait_for(lambda: "listening" in host("logs", "again"), "it listens")
    assert host("logs", "again") == "run 1\nrun 2\nrun 3\nlistening image\n"
    host("stop", "-t", "20", "again")
    assert host.guests()["again"]["exit"] == 7, "stopped on request, it is not started again"

    # on-failure:1 gives up, and says with what
    (folder / "runs").unlink()
    host("run", "-d", "--name", "hopeless", "--restart", "on-failure:1", *volume, TAG, "count", "/data/runs", "9")
    assert host("wait", "hopeless") == "3\n"
    assert host.guests()["hopeless"]["restarts"] == 1
