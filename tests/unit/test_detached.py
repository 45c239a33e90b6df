"""Guests that run by themselves, without any: records, folders, policies, logs, frames."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from uklimg.cli.guests import age, health_of
from uklimg.cli.main import parser
from uklimg.cli.ps import state
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.guest import commands
from uklimg.guest.commands import Command, Frame, Frames, decode_exit, encode_frame, encode_start
from uklimg.guest.protocol import Status as Ending
from uklimg.oci.health import SECOND, HealthCheck, decode_health, encode_health
from uklimg.runner.machine import MachineConfig
from uklimg.running import channels, client, logs, policy
from uklimg.running.channels import Ports
from uklimg.running.folder import Guests, check_name, connect, listen, new_id
from uklimg.running.policy import HEALTHY, STARTING, UNHEALTHY, Health, Restart, parse_restart
from uklimg.running.record import Identity, Record, Status, decode, encode
from uklimg.running.supervisor import held

pytestmark = pytest.mark.unit


def record(name: str = "one", **changes: object) -> Record:
    made = Record(
        id=new_id(),
        name=name,
        image="redis:8",
        digest="sha256:00",
        command=("redis-server", "ü\n"),
        hypervisor="qemu",
        memory=1 << 28,
        cpus=1,
        created=1.5,
        supervisor=Identity.own(),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def dead_identity() -> Identity:
    """Of this process, as if it had begun at another time: its number is there, it is not."""
    return dataclasses.replace(Identity.own(), start=1)


# ---- records


def test_a_record_survives_json() -> None:
    for one in (record(), record(machine=Identity.own(), status=Status.EXITED, exit=7, ports=("a", "b"))):
        assert decode(encode(one), "x") == one


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"status": "flying"},
        {"exit": "0"},
        {"remove": 1},
        {"ports": "x"},
        {"ports": [1]},
        {"supervisor": None},
        {"machine": []},
        {"supervisor": {"pid": 1}},
    ],
)
def test_what_is_no_record(change: dict[str, object]) -> None:
    value = {**json.loads(encode(record())), **change}
    with pytest.raises(CorruptError):
        decode(json.dumps(value).encode(), "x")
    for text in (b"", b"{", b"[]", encode(record())[:100]):
        with pytest.raises(CorruptError):
            decode(text, "x")


def test_a_process_is_not_another_one_with_its_number() -> None:
    assert Identity.own().alive
    assert not dead_identity().alive
    assert not dataclasses.replace(Identity.own(), boot="another").alive
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        identity = Identity.of(child.pid)
        assert identity is not None and identity.alive
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not identity.alive, "a zombie is not alive"
    assert Identity.of(child.pid) is None


def test_states_in_words() -> None:
    assert state(record(), 9.0) == "starting"
    running = record(status=Status.RUNNING, started=1.0)
    assert state(running, 61.0) == "up 1 minute"
    assert state(dataclasses.replace(running, health="healthy"), 7400.0) == "up 2 hours (healthy)"
    assert state(record(status=Status.EXITED, exit=3, finished=1.0), 5.0) == "exited (3) 4 s ago"
    assert state(record(status=Status.RUNNING, supervisor=dead_identity()), 1.0).startswith("dead")
    assert state(record(status=Status.RESTARTING, exit=3), 1.0) == "restarting (ended with 3)"
    assert [age(seconds) for seconds in (-1, 0.5, 59, 60, 86400 * 2)] == ["0 s", "0 s", "59 s", "1 minute", "2 days"]


# ---- folders


def test_names_and_finding(tmp_path: Path) -> None:
    guests = Guests(tmp_path / "deep" / "guests")
    assert guests.all() == []
    one = record()
    folder = guests.create(one)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "what a program prints is nobody else's"
    with pytest.raises(UserError, match="there is a guest one already"):
        guests.create(record())
    with pytest.raises(UserError, match="already"):
        guests.create(record(one.id))
    two = record("two", id="f" * 12)
    guests.create(two)
    assert guests.find("one") == guests.find(one.id) == guests.find(one.id[:8]) == one
    guests.create(record("three", id="f" * 11 + "0"))
    with pytest.raises(UserError, match="several"):
        guests.find("fff")
    with pytest.raises(ToolError, match="no guest four") as caught:
        guests.find("four")
    assert caught.value.exit_code is ExitCode.NOT_FOUND
    for bad in ("", "-x", ".x", "a b", "a/b", "../x", "x" * 64, "ü"):
        with pytest.raises(UserError):
            check_name(bad)


def test_remove_and_what_was_left(tmp_path: Path) -> None:
    root = tmp_path / "guests"
    guests = Guests(root)
    live = record("live", status=Status.RUNNING)
    folder = guests.create(live)
    with pytest.raises(UserError, match="live runs"):
        guests.remove(live)
    assert folder.is_dir()
    lost = record("lost", status=Status.RUNNING, supervisor=dead_identity())
    guests.create(lost)
    guests.remove(lost)
    guests.remove(lost)  # twice: somebody was faster
    assert [one.name for one in guests.all()] == ["live"]
    (root / ".part-killed").mkdir()
    (root / "broken").mkdir()
    (root / "broken/state.json").write_text("{")
    guests.create(record("next", created=2.5))
    assert not (root / ".part-killed").exists(), "of somebody killed while making one"
    assert {one.name for one in guests.all()} == {"live", "next"}  # made in the same second
    assert guests.damaged() == [root / "broken"]


def test_an_orphaned_machine_is_found_by_what_was_written_down(tmp_path: Path) -> None:
    """A reused number is not: `rm` of a guest whose machine's number belongs to this process leaves it alone."""
    guests = Guests(tmp_path)
    with subprocess.Popen(["sleep", "600"]) as orphan:
        identity = Identity.of(orphan.pid)
        assert identity is not None
        reused = dataclasses.replace(identity, start=identity.start + 1)
        guests.create(record("reused", status=Status.RUNNING, supervisor=dead_identity(), machine=reused))
        guests.remove(guests.find("reused"))
        assert identity.alive
        guests.create(record("lost", status=Status.RUNNING, supervisor=dead_identity(), machine=identity))
        guests.remove(guests.find("lost"))
        assert orphan.wait() == -9


def test_a_socket_in_a_deep_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    with listen(deep) as server, connect(deep) as client:
        other, _ = server.accept()
        with other:
            client.sendall(b"x")
            assert other.recv(1) == b"x"


# ---- policies


def test_restart_policies() -> None:
    assert parse_restart("on-failure:3") == Restart("on-failure", 3)
    assert str(parse_restart("on-failure:3")) == "on-failure:3"
    for bad in ("", "never", "always:3", "on-failure:0", "on-failure:x", "on-failure:", "no:1"):
        with pytest.raises(UserError):
            parse_restart(bad)
    assert not Restart().wanted(1, 0)
    assert Restart("always").wanted(0, 99)
    assert [Restart("on-failure", 2).wanted(1, restarts) for restarts in (0, 1, 2)] == [True, True, False]
    assert not Restart("on-failure").wanted(0, 0)
    pauses = [0.0]
    for _ in range(12):
        pauses.append(policy.pause(pauses[-1], 1.0))
    assert pauses[1:4] == [0.1, 0.2, 0.4]
    assert pauses[-1] == 60.0
    assert policy.pause(60.0, 11.0) == 0.1, "it had worked for a while"


def test_health_needs_several_failures_and_one_success() -> None:
    check = HealthCheck(("x",), start_period=10 * SECOND, retries=2)
    health = Health()
    assert health.delay(check, 0) == 5
    health = health.after(check, False, 1)
    assert health == Health(STARTING, 0), "within the start period a failure does not count"
    assert health.after(check, False, 11) == Health(STARTING, 1)
    assert health.after(check, False, 11).after(check, False, 12) == Health(UNHEALTHY, 2)
    health = health.after(check, True, 2)
    assert health == Health(HEALTHY)
    assert health.delay(check, 3) == 30
    assert health.after(check, False, 3) == Health(HEALTHY, 1), "once healthy, the start is over"
    assert Health(UNHEALTHY, 7).after(check, True, 99) == Health(HEALTHY)


def test_the_label_of_a_health_check() -> None:
    for check in (HealthCheck(("a b",), True), HealthCheck(("a", "b"), retries=1, interval=5, start_period=7)):
        assert decode_health(encode_health(check)) == check
    assert encode_health(HealthCheck(("a",))) == '{"Test":["CMD","a"]}'
    assert decode_health("") is None
    for bad in ("x", "[]", "{}", '{"Test":[]}', '{"Test":["CMD"]}', '{"Test":["NONE","x"]}', '{"Test":["CMD",1]}',
                '{"Test":["CMD-SHELL","a","b"]}', '{"Test":["CMD","a"],"Retries":-1}'):  # fmt: skip
        with pytest.raises(CorruptError):
            decode_health(bad)


def health(*options: str, image: HealthCheck | None = None) -> HealthCheck | None:
    return health_of(parser(["run"]).parse_args(["run", *options, "x"]), image)


def test_health_options() -> None:
    assert health() is None
    image = HealthCheck(("/check",), interval=1)
    assert health(image=image) == image
    assert health("--health-interval", "2m", image=image) == dataclasses.replace(image, interval=120 * SECOND)
    assert health("--health-cmd", "a b") == HealthCheck(("a b",), shell=True)
    assert health("--health-cmd", '["a", "b"]', "--health-retries", "7") == HealthCheck(("a", "b"), retries=7)
    assert health("--no-healthcheck", image=image) is None
    for bad in (
        ("--health-interval", "2m"),
        ("--health-cmd", "x", "--health-interval", "soon"),
        ("--health-cmd", "[1]"),
        ("--health-cmd", "["),
        ("--health-cmd", "x", "--no-healthcheck"),
        ("--health-cmd", "x", "--health-retries", "-1"),
    ):
        with pytest.raises(UserError):
            health(*bad)
    assert isinstance(parser(["ps"]).parse_args(["ps"]), argparse.Namespace)


# ---- logs


def printed(folder: Path, tail: int = -1) -> bytes:
    return b"".join(logs.read(folder, tail=tail))


def test_logs_and_their_ends(tmp_path: Path) -> None:
    assert printed(tmp_path) == printed(tmp_path, 3) == b""
    log = logs.Log(tmp_path)
    log.write(b"one\ntwo\nthr")
    assert printed(tmp_path) == b"one\ntwo\nthr"
    assert [printed(tmp_path, tail) for tail in (0, 1, 2, 3, 9)] == [
        b"",
        b"thr",
        b"two\nthr",
        b"one\ntwo\nthr",
        b"one\ntwo\nthr",
    ]
    log.write(b"ee\n")
    assert printed(tmp_path, 1) == b"three\n"
    log.close()
    again = logs.Log(tmp_path)  # the next supervisor's would go on in it
    again.write(b"four\n")
    again.close()
    assert printed(tmp_path, 2) == b"three\nfour\n"
    assert stat.S_IMODE((tmp_path / logs.LOG).stat().st_mode) == 0o600


def test_a_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    log = logs.Log(tmp_path, limit=100)
    lines = [b"%030d\n" % number for number in range(20)]
    for line in lines:
        log.write(line)
    log.close()
    kept = printed(tmp_path).splitlines(keepends=True)
    assert kept == lines[-len(kept) :]
    assert 3 <= len(kept) <= 6
    assert printed(tmp_path, 4) == b"".join(lines[-4:]), "over the border of both files"


def test_following_a_log_over_its_rotation(tmp_path: Path) -> None:
    log = logs.Log(tmp_path, limit=1000)
    lines = [b"%09d\n" % number for number in range(500)]
    over = threading.Event()

    def write() -> None:
        for line in lines:
            log.write(line)
            threading.Event().wait(0.001)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    followed = b"".join(logs.read(tmp_path, ended=over.is_set))
    writer.join()
    assert followed.splitlines(keepends=True)[-50:] == lines[-50:]


# ---- frames and ports


def test_frames_in_any_pieces() -> None:
    data = encode_frame(b"O", b"abc") + encode_frame(b"X", b"\0\3") + encode_frame(b"D")
    for size in (1, 4, 7, 100):
        frames = Frames()
        found = [frame for at in range(0, len(data), size) for frame in frames.feed(data[at : at + size])]
        assert found == [Frame(b"O", b"abc"), Frame(b"X", b"\0\3"), Frame(b"D")]
    with pytest.raises(CorruptError):
        list(Frames().feed(struct.pack("<cI", b"O", 1 << 30)))


def test_the_start_of_a_command() -> None:
    command = Command(("ls", "a b"), {"B": "2", "A": "1"}, "/w", terminal=True, rows=10, columns=20)
    assert encode_start(command)[5:].split(b"\0") == [
        *(b"arg=ls", b"arg=a b", b"env=A=1", b"env=B=2", b"workdir=/w", b"tty=1", b"rows=10", b"columns=20"),
        *(b"", b""),
    ]
    for bad in (Command(()), Command(("a\0",)), Command(("a",), {"": "x"}), Command(("x" * (1 << 20),))):
        with pytest.raises(UserError):
            encode_start(bad)
    assert (decode_exit(b"\0\7"), decode_exit(b"\1\11")) == (Ending(exit=7), Ending(signal=9))
    for payload in (b"", b"\0", b"\2\0", b"\0\0\0"):
        with pytest.raises(CorruptError):
            decode_exit(payload)


class FakeGuest:
    """The guest's end of a port: answers each frame as told."""

    def __init__(self, ports: Ports, answers: dict[bytes, bytes], number: int = 0) -> None:
        self.seen: list[bytes] = []
        self._end = ports.theirs[number]
        self._answers = answers
        ports.served = 1
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        frames = Frames()
        try:
            while data := self._end.recv(4096):
                for frame in frames.feed(data):
                    self.seen.append(frame.kind)
                    self._end.sendall(self._answers.get(frame.kind, b""))
        except OSError:
            return


def test_a_command_to_its_end_and_the_port_is_free_again() -> None:
    ports = Ports(1)
    ending = encode_frame(commands.OUTPUT, b"out") + encode_frame(commands.EXIT, b"\0\1")
    guest = FakeGuest(ports, {commands.START: ending, commands.BYE: encode_frame(commands.DONE)})
    for _ in range(2):
        ran = channels.run_command(ports, Command(("x",)), 60)
        assert (ran.status, ran.output, ran.problem) == (Ending(exit=1), "out", "")
    assert guest.seen == [commands.START, commands.INPUT, commands.BYE] * 2
    ports.close()


def test_a_check_that_the_image_lacks_is_named() -> None:
    ports = Ports(1)
    failed = encode_frame(commands.FAILED, os.strerror(2).encode())
    FakeGuest(ports, {commands.START: failed, commands.BYE: encode_frame(commands.DONE)})
    ran = channels.run_command(ports, Command(("well",)), 60)
    assert (ran.status, ran.problem) == (None, "the image cannot run well: No such file or directory")
    ports.close()


def test_a_command_that_takes_too_long_is_ended() -> None:
    ports = Ports(1)
    ended = encode_frame(commands.EXIT, b"\1\11")
    guest = FakeGuest(ports, {commands.QUIT: ended, commands.BYE: encode_frame(commands.DONE)})
    ran = channels.run_command(ports, Command(("x",)), 0.05)
    assert (ran.status, ran.problem) == (None, "not done within 0.05 seconds")
    assert guest.seen == [commands.START, commands.INPUT, commands.QUIT, commands.BYE]
    with ports.port(health=True):
        pass
    ports.close()


def test_a_guest_that_talks_nonsense_loses_its_port() -> None:
    ports = Ports(1)
    FakeGuest(ports, {commands.START: struct.pack("<cI", b"O", 1 << 30)})
    with pytest.raises(CorruptError):
        channels.run_command(ports, Command(("x",)), 60)
    with pytest.raises(ToolError, match="already"), ports.port(health=True, patience=0):
        pass
    ports.close()


def test_no_more_commands_than_there_are_ports_and_health_has_its_own() -> None:
    ports = Ports(3)
    ports.served = 3
    with ExitStack() as stack:
        for health in (False, False, True):
            stack.enter_context(ports.port(health=health))
        with pytest.raises(ToolError, match="2 commands run in the guest already"), ports.port(patience=0):
            pass
    with ports.port():
        waiting = threading.Thread(target=lambda: ports.port().__enter__())
        with ports.port():
            waiting.start()
        waiting.join()  # it got the port that the other one left
    ports.close()


def test_a_guest_keeps_its_files(tmp_path: Path) -> None:
    """Each start finds them, though `uklimg prune` has removed them."""
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_text(name)
    config = held(MachineConfig(tmp_path / "kernel", tmp_path / "initrd"))
    for name in ("kernel", "initrd"):
        (tmp_path / name).unlink()
    assert config.initrd is not None
    assert (config.kernel.read_text(), config.initrd.read_text()) == ("kernel", "initrd")
    assert config.kernel.is_file()


def test_a_hypervisor_without_ports_says_so() -> None:
    with pytest.raises(ToolError, match="hypervisor has no port for commands"), Ports(0).port():
        pass


def test_an_older_init_says_so() -> None:
    ports = Ports(1)
    with pytest.raises(ToolError, match="PID 1 runs no commands"), ports.port():
        pass
    ports.close()


def test_a_client_that_sends_nonsense_or_goes_away() -> None:
    ports = Ports(2)
    answers = {commands.QUIT: encode_frame(commands.EXIT, b"\1\1"), commands.BYE: encode_frame(commands.DONE)}
    guest = FakeGuest(ports, answers, 1)
    for data in (encode_start(Command(("x",))) + b"O\xff\xff\xff\xff", encode_start(Command(("x",)))[:7], b""):
        ours, theirs = socket.socketpair()
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        channels.serve_client(ports, theirs, lambda: False)
        theirs.close()
        assert ours.recv(3) == b"{}\n"
        ours.close()
    assert guest.seen == [commands.START, commands.QUIT, commands.BYE], "what never began need not be ended"
    with ports.port():
        pass
    ports.close()


# ---- a command's client


@pytest.mark.parametrize("stdin", [None, "file"])
@pytest.mark.parametrize(
    ("last", "code"),
    [
        (commands.encode_frame(commands.EXIT, b"\0\7"), 7),
        (commands.encode_frame(commands.FAILED, os.strerror(2).encode()), None),
    ],
    ids=["ended", "failed"],
)
def test_a_command_that_is_over_before_its_input_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdin: str | None, last: bytes, code: int | None
) -> None:
    """The supervisor has answered and hung up: its answer counts, and not that nobody takes the input."""
    ours, theirs = socket.socketpair()
    theirs.sendall(last)
    theirs.close()
    monkeypatch.setattr(client, "_ask", lambda *_: ours)
    (tmp_path / "input").write_bytes(b"x" * 100)
    with (tmp_path / "input").open() as file:
        number = None if stdin is None else file.fileno()

        def run() -> int:
            guests, command = Guests(tmp_path / "guests"), Command(("nosuch",))
            return client.execute(guests, record(), command, stdin=number, out=print, err=print).code

        if code is None:
            with pytest.raises(ToolError, match="the image cannot run nosuch"):
                run()
        else:
            assert run() == code
