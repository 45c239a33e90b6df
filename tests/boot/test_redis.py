"""Uklfile.example built by the command line, booted by `uklimg run`, and used as one uses Redis."""

from __future__ import annotations

import datetime
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bootlib import Example
from redislib import PORT, Ended, Server, redis, uklimg

from uklimg import oci, proc
from uklimg.cli.run import boot_file
from uklimg.runner.launch import launch
from uklimg.runner.network import TapPlan, free_port, inside_cmd, tap
from uklimg.runner.qemu import Qemu
from uklimg.runner.request import RunOptions, configure
from uklimg.runner.stops import Stops

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1800)]

KERNEL_HALF = 0xFFFF_8000_0000_0000
APPLICATION = range(0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_FF00_0000)
# A log line of Redis that says something is wrong: "<pid>:<role> <date> <time> # <text>".
WARNING = re.compile(r"^\d+:[XCSM] .* # (?!Redis is now ready to exit|User requested|Received SIG)", re.MULTILINE)
KERNEL_TROUBLE = re.compile(r"WARNING:|BUG:|Oops|Call Trace|general protection|unable to handle|rcu.*stall|lockup")


@pytest.fixture(scope="module")
def server(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One Redis for the tests that only talk to it; at its end it must shut down cleanly."""
    with redis(example.tag, tmp_path_factory.mktemp("server")) as running:
        yield running
        check_clean(running.end("SHUTDOWN", "NOSAVE"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A volume's folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def check_clean(ended: Ended) -> None:
    """Status 0, nothing from us beside what the program wrote, and no kernel message among that."""
    assert (ended.status, ended.stderr) == (0, "")
    assert "Redis is now ready to exit, bye bye..." in ended.stdout.splitlines()[-1]
    assert "\r" not in ended.stdout and "uklimg" not in ended.stdout
    assert KERNEL_TROUBLE.search(ended.stdout) is None


def check_dump(example: Example, folder: Path, keys: int) -> None:
    """Redis' own checker, by its name as the first argument: the same program in another role."""
    assert (folder / "dump.rdb").read_bytes().startswith(b"REDIS")
    ended = uklimg("run", "-v", f"{folder}:/data", example.tag, "redis-check-rdb", "/data/dump.rdb")
    assert ended.status == 0, ended.stdout
    assert "RDB looks OK!" in ended.stdout
    assert f"[info] {keys} keys read" in ended.stdout


# --- what Redis does


def test_set_get_incr(server: Server) -> None:
    assert server("PING") == "PONG"
    assert server("SET", "greeting", "hello") == "OK"
    assert server("GET", "greeting") == "hello"
    assert [server("INCR", "counter") for _ in range(3)] == ["1", "2", "3"]
    value = os.urandom(300_000)
    assert server("-x", "SET", "bytes", stdin=value) == "OK"
    assert server("STRLEN", "bytes") == "300000"
    got = subprocess.run(server.client_cmd("--raw", "GET", "bytes"), capture_output=True, check=True)
    assert got.stdout == value + b"\n"


def test_lists_hashes_sorted_sets_streams_and_expiry(server: Server) -> None:
    server("RPUSH", "list", "c", "a", "b")
    assert server("SORT", "list", "ALPHA").split() == ["a", "b", "c"]
    server("HSET", "hash", "pi", "3.14")
    assert server("HINCRBYFLOAT", "hash", "pi", "0.01") == "3.15", "floating point in the kernel"
    server("ZADD", "zset", "2", "two", "1", "one", "1.5", "between")
    assert server("ZRANGE", "zset", "0", "-1").split() == ["one", "between", "two"]
    server("XADD", "stream", "1-1", "field", "value")
    assert server("XRANGE", "stream", "-", "+").split() == ["1-1", "field", "value"]
    server("SET", "short", "lived", "PX", "1")
    while server("EXISTS", "short") == "1":
        time.sleep(0.05)
    assert server("PFADD", "hll", *map(str, range(100))) == "1"
    assert abs(int(server("PFCOUNT", "hll")) - 100) <= 3


def test_lua(server: Server) -> None:
    assert server("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", "1", "from-lua", "v") == "OK"
    assert server("GET", "from-lua") == "v"
    total = "local s = 0.5 for i = 1, 100000 do s = s + math.sqrt(i * i) end return tostring(s)"
    assert server("EVAL", total, "0") == "5000050000.5"
    assert server("EVAL", "return cjson.encode({1, {a = 'ü'}})", "0") == '[1,{"a":"ü"}]'
    caught = "local r = redis.pcall('INCR', KEYS[1]) return r.err or 'no error'"
    assert "not an integer" in server("EVAL", caught, "1", "from-lua")


def test_an_endless_script_can_be_killed(server: Server) -> None:
    server("CONFIG", "SET", "busy-reply-threshold", "50")
    argv = server.client_cmd("EVAL", "while true do end", "0")
    endless = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while "OK" not in killed(server):
        assert endless.poll() is None
        time.sleep(0.1)
    output, _ = endless.communicate()
    assert "Script killed by user" in output
    assert server("PING") == "PONG"


def killed(server: Server) -> str:
    done = subprocess.run(server.client_cmd("SCRIPT", "KILL"), capture_output=True, text=True, check=False)
    return done.stdout


def test_publish_and_subscribe(server: Server) -> None:
    subscribers = [
        subprocess.Popen(server.client_cmd("SUBSCRIBE", "news"), stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    try:
        while server("PUBSUB", "NUMSUB", "news").split()[1] != "3":
            time.sleep(0.05)
        for number in range(20):
            assert server("PUBLISH", "news", f"message {number}") == "3"
        for subscriber in subscribers:
            assert subscriber.stdout is not None
            for expected in ("subscribe", "news", "1"):
                assert subscriber.stdout.readline().rstrip("\n") == expected
            for number in range(20):
                lines = [subscriber.stdout.readline().rstrip("\n") for _ in range(3)]
                assert lines == ["message", "news", f"message {number}"]
    finally:
        for subscriber in subscribers:
            subscriber.terminate()
            subscriber.communicate()


def test_a_pipeline_of_many_commands(server: Server) -> None:
    commands = b"".join(b"SET many:%d %d\r\n" % (n, n * n) for n in range(20_000))
    output = server("--pipe", stdin=commands)
    assert "errors: 0, replies: 20000" in output
    assert server("GET", "many:19999") == str(19999**2)


# --- what stays: dumps, the append-only file


def test_background_save_keeps_the_moment_of_its_fork(example: Example, data: Path, tmp_path: Path) -> None:
    """A child that shares memory copy-on-write: what the parent writes while it saves is not in the dump."""
    keys = 400
    with redis(example.tag, tmp_path, "-v", f"{data}:/data") as server:
        fill = "for i = 1, tonumber(ARGV[1]) do redis.call('SET', 'key:' .. i, string.rep(ARGV[2], 1000)) end"
        server("EVAL", fill, "0", str(keys), "before ")
        server("CONFIG", "SET", "rdb-key-save-delay", "20000")  # microseconds: the child takes its time
        assert server("BGSAVE") == "Background saving started"
        assert server.info("persistence")["rdb_bgsave_in_progress"] == "1"
        server("EVAL", fill, "0", str(keys), "after ")
        assert server.info("persistence")["rdb_bgsave_in_progress"] == "1", "the child was to be slower"
        server.wait_info("persistence", "rdb_bgsave_in_progress", "0")
        found = server.info("persistence")
        assert (found["rdb_last_bgsave_status"], found["rdb_saves"]) == ("ok", "1")
        assert int(found["rdb_last_cow_size"]) > keys * 5000, "the parent's writes went to pages of its own"
        assert server("GET", f"key:{keys}") == "after " * 1000
        check_clean(server.end("SHUTDOWN", "NOSAVE"))
    check_dump(example, data, keys)
    with redis(example.tag, tmp_path, "-v", f"{data}:/data") as server:
        assert server("DBSIZE") == str(keys)
        assert {server("GET", f"key:{n}") for n in (1, keys // 2, keys)} == {"before " * 1000}
        check_clean(server.end("SHUTDOWN", "NOSAVE"))


def test_shutdown_leaves_a_valid_dump(example: Example, data: Path, tmp_path: Path) -> None:
    with redis(example.tag, tmp_path, "-v", f"{data}:/data") as server:
        server("MSET", "a", "1", "b", "2", "c", "3")
        check_clean(server.end("SHUTDOWN"))
    check_dump(example, data, 3)
    with redis(example.tag, tmp_path, "-v", f"{data}:/data") as server:
        assert server("MGET", "a", "b", "c").split() == ["1", "2", "3"]
        server.end("SHUTDOWN")


def test_append_only_file_survives_even_a_kill(example: Example, data: Path, tmp_path: Path) -> None:
    """Arguments after REF replace CMD."""
    aof = ("redis-server", "/etc/redis.conf", "--appendonly", "yes", "--appendfsync", "always", "--save", "")
    with redis(example.tag, tmp_path, "-v", f"{data}:/data", command=aof) as server:
        for number in range(50):
            server("RPUSH", "log", str(number))
        assert "started" in server("BGREWRITEAOF")
        server.wait_info("persistence", "aof_rewrite_in_progress", "0")
        assert server.info("persistence")["aof_last_bgrewrite_status"] == "ok"
        server("RPUSH", "log", "after the rewrite")
        check_clean(server.end("SHUTDOWN"))
    assert not (data / "dump.rdb").exists()
    assert (data / "appendonlydir").is_dir()
    with redis(example.tag, tmp_path, "-v", f"{data}:/data", command=aof) as server:
        assert server("LLEN", "log") == "51"
        server("RPUSH", "log", "before the kill")
        server.process.kill()
        server.process.wait()
    with redis(example.tag, tmp_path, "-v", f"{data}:/data", command=aof) as server:
        assert server("LRANGE", "log", "-2", "-1").splitlines() == ["after the rewrite", "before the kill"]
        check_clean(server.end("SHUTDOWN"))


# --- how it ends


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_guest_with_its_data_saved(
    example: Example, data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with redis(example.tag, tmp_path, "-v", f"{data}:/data") as server:
        server("SET", "kept", number.name)
        if number is signal.SIGINT:
            server.interrupt()
        else:
            server.process.terminate()
        ended = server.end()
    assert "Received SIGTERM scheduling shutdown..." in ended.stdout, "STOPSIGNAL"
    check_clean(ended)
    check_dump(example, data, 1)


def test_the_programs_exit_status_is_ours(example: Example, tmp_path: Path) -> None:
    ended = uklimg("run", example.tag, "redis-server", "--port", "nonsense")
    assert (ended.status, ended.stderr) == (1, "")
    assert "argument couldn't be parsed into an integer" in ended.stdout
    (tmp_path / "dump.rdb").write_bytes(b"REDIS0012 this is none")
    ended = uklimg("run", "-v", f"{tmp_path}:/data:ro", example.tag, "redis-check-rdb", "dump.rdb")
    assert ended.status == 1, "the working directory is /data"
    version = uklimg("run", "--no-network", example.tag, "redis-server", "--version")
    assert (version.status, version.stderr) == (0, "")
    assert re.fullmatch(r"Redis server v=8\.[^\n]*\n", version.stdout)


def test_a_crash_is_the_programs(example: Example, tmp_path: Path) -> None:
    """Redis' own handler of SIGSEGV, in the kernel's half too, writes its report; then the signal is the status.

    Without the memory test: it overwrites the area that glibc shares with the kernel (rseq) for a while, and whoever
    is preempted then gets another SIGSEGV, on any Linux.
    """
    command = ("redis-server", "/etc/redis.conf", "--enable-debug-command", "yes", "--crash-memcheck-enabled", "no")
    with redis(example.tag, tmp_path, command=command) as server:
        ended = server.end("DEBUG", "SEGFAULT")
    said = "uklimg: the program was ended by SIGSEGV (--verbose shows where)\n"
    assert (ended.status, ended.stderr) == (128 + signal.SIGSEGV, said)
    assert "crashed by signal: 11" in ended.stdout
    (at,) = re.findall(r"Crashed running the instruction at: (\w+)", ended.stdout)
    assert int(at, 16) in APPLICATION
    stack = re.search(r"^\d+ redis-server \*\n((?:\[\w+\]\n)+)", ended.stdout, re.MULTILINE)
    assert stack is not None and stack[1].count("\n") > 5, "unwound through the signal's frame"
    assert "REDIS BUG REPORT END" in ended.stdout


# --- options of run


def test_a_port_in_use(example: Example) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = uklimg("run", "-p", f"{port}:{PORT}", example.tag)
    assert (ended.status, ended.stdout) == (125, "")
    line = f"uklimg: tcp port {port} of 127.0.0.1 is in use (choose another: -p HOST:{PORT})\n"
    assert ended.stderr == line


def test_environment_memory_and_processors(example: Example, tmp_path: Path) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    options = ("-e", "TZ=FAR-24", "-m", "160M", "--cpus", "2", "--verbose")
    with redis(example.tag, tmp_path, *options) as server:
        memory = int(server.info("memory")["total_system_memory"])
        ended = server.end("SHUTDOWN", "NOSAVE")
    assert ended.status == 0
    assert 100 << 20 < memory < 160 << 20
    assert "Brought up 1 node, 2 CPUs" in ended.stdout
    stamps = set(re.findall(r"^\d+:M (\d\d \w{3} \d{4}) ", ended.stdout, re.MULTILINE))
    days = {(today + datetime.timedelta(days=n)).strftime("%d %b %Y") for n in (1, 2)}
    assert stamps and stamps <= days, "the log is a day ahead, as the variable says"


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_both_kernel_files_boot_on_both_machines(example: Example, tmp_path: Path, machine: str) -> None:
    boots = [("vmlinux", machine), ("bzimage", machine)]
    for boot, kind in boots:
        with redis(example.tag, tmp_path, "--boot", boot, "--machine", kind) as server:
            server("SET", "booted", boot)
            assert server("GET", "booted") == boot
            check_clean(server.end("SHUTDOWN", "NOSAVE"))


# --- load, and a look from outside


def test_fifty_clients_over_a_tap_lose_nothing(example: Example) -> None:
    """100,000 requests of each kind. The kernel's log, shown by ``verbose``, has nothing to complain of."""
    requests = 100_000
    plan = TapPlan(f"uklimg-load-{os.getpid()}")
    env = proc.host_env(os.environ)
    image = example.image
    options = RunOptions(network=plan.network, verbose=True, cpus=1)
    machine, guest = configure(
        image.run,
        boot_file(example.store, image, oci.VMLINUX),
        boot_file(example.store, image, oci.INITRAMFS),
        options,
    )
    console: list[bytes] = []
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            assert launch(Qemu(), machine, guest, env=env, show=console.append, stops=stops).code == 0
        except BaseException as error:
            failures.append(error)

    def client(program: str, *words: str) -> str:
        argv = inside_cmd(plan, [program, "-h", plan.guest, *words])
        done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    def ready() -> None:
        """Until it answers; the console does not tell for sure, kernel messages may stand in its lines."""
        end = time.monotonic() + 120
        ping = inside_cmd(plan, ["timeout", "3", "redis-cli", "-h", plan.guest, "PING"])
        while subprocess.run(ping, capture_output=True, text=True, env=env, check=False).stdout.strip() != "PONG":
            assert not failures and time.monotonic() < end, b"".join(console).decode(errors="replace")
            time.sleep(0.2)

    stops = Stops()
    with tap(plan, env):
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            ready()
            rows = client("redis-benchmark", "-c", "50", "-n", str(requests), "-t", "set,get", "--csv").splitlines()
            assert "rror" not in "".join(rows)
            assert [row.split(",")[0] for row in rows] == ['"test"', '"SET"', '"GET"']
            stats = client("redis-cli", "INFO", "stats")
            calls = client("redis-cli", "INFO", "commandstats")
        finally:
            stops.request()
            thread.join()
            stops.close()
    assert not failures
    assert "rejected_connections:0" in stats and "total_error_replies:0" in stats
    counts = dict(re.findall(r"cmdstat_(\w+):calls=(\d+),", calls))
    assert (counts["set"], counts["get"]) == (str(requests), str(requests))
    log = b"".join(console).decode(errors="replace")
    assert KERNEL_TROUBLE.search(log) is None
    assert WARNING.search(log) is None


def test_a_debugger_sees_redis_at_cpl_0(example: Example, tmp_path: Path) -> None:
    """QEMU's gdb stub, which the guest cannot influence: a breakpoint in a function of Redis, by its symbols."""
    stub = free_port()
    with redis(example.tag, tmp_path, "--gdb", f"tcp:127.0.0.1:{stub}") as server:
        with asking(server):
            where = debug(example, stub, ["break pingCommand", "continue", SHOW, "info symbol $rip", "backtrace 4"])
        (found,) = stopped(where)
        assert found["cs"] == 0x10, "the kernel's code segment"
        assert found["cs"] & 3 == 0, "CPL 0"
        assert found["rip"] in APPLICATION and found["main"] in APPLICATION
        assert re.search(r"^pingCommand( \+ \d+)? in section \.text", where, re.MULTILINE)
        assert re.search(r"#1 .* in call \(", where) and "in processCommand (" in where
        assert server("PING") == "PONG", "it went on"

        # And wherever it is stopped while a script keeps it busy: in Redis or in the kernel, and never in ring 3.
        argv = server.client_cmd("EVAL", "while true do end", "0")
        busy = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen = [stopped(debug(example, stub, [SHOW]))[0] for _ in range(8)]
        while "OK" not in killed(server):
            time.sleep(0.1)
        busy.wait()
        assert {stop["cs"] for stop in seen} == {0x10}
        assert all(stop["rip"] >= KERNEL_HALF for stop in seen)
        assert any(stop["rip"] in APPLICATION for stop in seen)
        check_clean(server.end("SHUTDOWN", "NOSAVE"))


@contextmanager
def asking(server: Server) -> Iterator[None]:
    """PING again and again meanwhile: a debugger may come too late for the first."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            server("PING")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


SHOW = r'printf "stopped cs=%#lx rip=%#lx main=%#lx\n", (long)$cs, (long)$rip, (long)&main'


def debug(example: Example, port: int, commands: list[str]) -> str:
    """What gdb prints for ``commands`` on the stopped guest, which goes on afterwards."""
    script = ["set pagination off", f"target remote 127.0.0.1:{port}", *commands, "delete", "detach"]
    argv = ["gdb", "-nx", "-batch", *(word for line in script for word in ("-ex", line)), str(example.debug)]
    return proc.run(argv, env=proc.host_env(os.environ)).text


def stopped(text: str) -> list[dict[str, int]]:
    found = re.findall(r"^stopped (.*)$", text, re.MULTILINE)
    assert found, text
    return [{name: int(value, 16) for name, value in re.findall(r"(\w+)=(\w+)", line)} for line in found]


# --- to a registry and back


def test_pushed_pulled_into_another_store_and_booted(example: Example, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    ref = f"127.0.0.1:{port}/demo/redis:8"
    other = {"UKLIMG_STORE": str(tmp_path / "store")}
    argv = ["docker-registry", "serve", str(tmp_path / "config.yml")]
    with proc.spawn(argv, env=proc.host_env(os.environ)) as registry:
        while not listens(port):
            assert not registry.ended(0.1), registry.tail
        assert uklimg("tag", example.tag, ref).status == 0
        try:
            pushed = uklimg("push", ref)
            assert pushed.status == 0, pushed.stderr
        finally:
            uklimg("rmi", ref)
        pulled = uklimg("pull", ref, env=other)
        assert pulled.status == 0, pulled.stderr
    assert str(example.root.digest) in pulled.stdout
    with redis(ref, tmp_path, env=other) as server:
        assert server("SET", "came", "back") == "OK"
        check_clean(server.end("SHUTDOWN", "NOSAVE"))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
