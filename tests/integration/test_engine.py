"""What every engine does: what a step sees, what it leaves, what happens when it fails or is killed.

Real containers of buildah (with runc, and without), Docker and Podman; the root file system is busybox alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from enginelib import BASE, Bench, Way, running, step_argv, wait_for

from uklimg import oci
from uklimg.digest import Digest
from uklimg.engine.base import FIXED_ENV, Job, Mount, Rootfs
from uklimg.engine.commands import CHROOT, OCI
from uklimg.errors import ExitCode, ToolError
from uklimg.store import Store

pytestmark = pytest.mark.integration
pytest_plugins = ("enginefixtures",)


# What a step sees


def test_environment_hostname_user_umask(bench: Bench) -> None:
    lines, _ = bench.tree(
        "env; echo ---; hostname; id -u; umask; pwd; ulimit -n; cat", env={"A": "b c"}, workdir="/tmp"
    )
    env, after = lines[: lines.index("---")], lines[lines.index("---") + 1 :]
    # SHLVL, PWD and OLDPWD are the shell's own.
    seen = {line.partition("=")[0]: line.partition("=")[2] for line in env}
    assert {name: value for name, value in seen.items() if name not in ("SHLVL", "PWD", "OLDPWD")} == {
        **FIXED_ENV,
        "A": "b c",
    }
    assert after == ["uklimg", "0", "0022", "/tmp", "1024"]


def test_another_user(bench: Bench) -> None:
    lines, _ = bench.tree("id -u; id -g; ! touch /etc/x", user="builder")
    assert lines[:2] == ["1000", "1000"]


def test_no_network(bench: Bench) -> None:
    lines, _ = bench.tree(
        "ls /sys/class/net 2>/dev/null || :; ip -o link | cut -d: -f2; ! wget -qO- http://127.0.0.1:1"
    )
    assert set(lines) <= {"lo", " lo", "wget: can't connect to remote host (127.0.0.1): Connection refused"} | {
        "wget: can't connect to remote host (127.0.0.1): Network is unreachable"
    }
    assert " lo" in lines


def test_nothing_of_the_host_is_visible(bench: Bench, tmp_path: Path) -> None:
    secret = tmp_path / "host-file"
    secret.write_text("secret")
    script = f"""
        test ! -e {secret}; test ! -e /home; test ! -e /work
        test ! -e /etc/resolv.conf; test ! -e /etc/hosts
        ls /dev; echo ---; ls /; echo ---; ps -o comm | grep -c sleep || :
        test ! -e /dev/kvm; test ! -b /dev/vda
    """
    outside = subprocess.Popen(["sleep", "1000"])
    lines, _ = bench.tree(script)
    outside.kill()
    outside.wait()
    devices = lines[: lines.index("---")]
    allowed = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero console"
    assert " ".join(name for name in devices if name not in allowed.split(" ")) == ""
    top = lines[lines.index("---") + 1 : -2]
    assert set(top) == {"bin", "dev", "etc", "out", "proc", "root", "run", "sys", "tmp", "usr"}
    assert lines[-1] == "0"


def test_mounts_are_read_only_and_output_is_not(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "with:colon"
    source.mkdir()
    (source / "file").write_text("input")
    one = tmp_path / "one"
    one.write_text("single")
    mounts = (Mount(source, "/in/tree"), Mount(one, "/in/file"))
    refused = "! touch /in/tree/x; ! (echo > /in/file)"
    written = "cat /in/tree/file /in/file > /out/both; mkdir /out/d; echo x > /out/d/f"
    _, files = bench.tree(f"{refused}; {written}", mounts=mounts)
    assert files == {"both": "inputsingle", "d/f": "x\n"}
    assert [path.name for path in source.iterdir()] == ["file"]


# What it leaves


def test_a_tree_step_leaves_the_base_alone(bench: Bench) -> None:
    bench.tree("rm /etc/passwd; echo x > /new")
    lines, _ = bench.tree("ls /etc/passwd; ! ls /new 2>/dev/null")
    assert lines == ["/etc/passwd"]


def test_changes_of_a_root_file_system(bench: Bench, tmp_path: Path) -> None:
    script = """
        rm /etc/passwd; echo new > /etc/new; chown 5:6 /etc/new; chmod 4755 /etc/new
        mkdir -p /opt/a; ln -s a /opt/link; ln /etc/new /etc/hard; mkfifo /opt/pipe; touch /tmp/t
    """
    (tmp_path / "in").mkdir()
    result = bench.rootfs(script, "changes", mounts=(Mount(tmp_path / "in", "/in/deep"),))
    assert (
        " ".join(bench.names(result)) == "etc etc/.wh.passwd etc/hard etc/new opt opt/a opt/link opt/pipe tmp tmp/t"
    )
    with tarfile.open(bench.store.blob_path(result.layer.digest)) as archive:
        found = {info.name: info for info in archive}
    assert (found["etc/hard"].mode, found["etc/hard"].uid, found["etc/hard"].gid) == (0o4755, 5, 6)
    assert found["etc/new"].linkname == "etc/hard"
    assert {info.mtime for info in found.values()} == {oci.EPOCH}
    assert result.layers[:-1] == bench.base.layers
    lines, _ = bench.tree("stat -c '%a %u %g %h %n' /etc/new; ls /etc; cat /opt/link/../../etc/new", base=result)
    assert lines == ["4755 5 6 2 /etc/new", "hard", "hostname", "new", "new"]


def test_steps_one_after_the_other(bench: Bench) -> None:
    one = bench.rootfs("echo 1 > /one", "one")
    two = bench.rootfs("cat /one; echo 2 > /two; rm /one", "two", one)
    three = bench.rootfs("true", "three", two)
    assert [bench.names(result) for result in (one, two, three)] == [["one"], [".wh.one", "two"], []]
    assert three.layers == (*bench.base.layers, one.layer, two.layer, three.layer)
    bench.rootfs("test ! -e /one; test -e /two", "four", three)
    bench.store.verify(three.root)


BUILD = """
    mkdir -p /src/x /var/cache/ldconfig; date > /var/cache/ldconfig/aux-cache
    for i in 3 1 2; do echo $i > /src/x/$i; done; ln /src/x/2 /src/a; env > /src/env; rm /etc/passwd
    chmod 600 /bin/busybox; chmod 755 /bin/busybox; rm -r /root; mkdir /root /empty; touch /root/x
    mknod /src/null c 1 3
    echo 127.0.0.1 here > /etc/hosts; ln -s /proc/mounts /etc/mtab; ln -s nowhere "/src/$(printf 'a\\nb')"
"""
VIEW = """
    cp -r /copy/x /copy/env /out; id > /out/id; umask > /out/umask; ulimit -a > /out/limits; cp -a /etc /out/etc
    rm /out/etc/mtab; ls -A / > /out/root; stat -c '%a %u %g %n' / /etc /run /out /tmp > /out/modes
    grep -E 'Cap|NoNewPrivs|Seccomp:|SigIgn|SigBlk' /proc/self/status > /out/status; ip -o addr > /out/net
    ls -l /proc/self/fd/0 | sed 's/.*-> //' > /out/stdin; mkdir /out/d; chmod 3750 /out/d; ln /out/id /out/d/hard
    cp /bin/busybox /out/setuid; chmod 4755 /out/setuid; ln -s ../id /out/d/link; chmod 555 /out/d
"""


def test_repeated_steps_are_identical_whatever_runs_them(tmp_path: Path, dockerd: Way, podman: Way) -> None:
    results = []
    for number, way in enumerate((Way(OCI), Way(OCI), Way(CHROOT), dockerd, podman)):
        bench = Bench(tmp_path / str(number), way)
        one = bench.rootfs(BUILD, "one")
        two = bench.rootfs("cp -a /src /copy", "two", one)
        with bench.store.session(), bench.store.scratch() as folder:
            (folder / "out").mkdir()
            bench.engine.run(bench.job(VIEW, folder / "out", two), lambda line: None)
            tree = bench.store.commit_tree(Digest.of(b"tree"), folder / "out", {})
        results.append((one.root.digest, two.root.digest, tree.root.digest, tree.layer.digest))
    assert set(results) == {results[0]}


def test_an_image_is_imported_once_and_forgotten_by_prune(way: Way, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", way)
    other = bench.rootfs("touch /x", "x")
    bench.tree("true")
    bench.tree("test -e /x", base=other)
    assert len(bench.images().split()) == 2
    stranger = Bench(tmp_path / "other", way)
    stranger.tree("true")
    bench.engine.prune({other.root.digest})
    assert len(bench.images().split()) == 1
    assert other.root.digest.hex in bench.images()
    assert len(stranger.images().split()) == 1
    bench.tree("test ! -e /x")


# Failures


def test_a_failing_command_shows_its_own_last_words(bench: Bench) -> None:
    with pytest.raises(ToolError) as caught:
        bench.tree("echo building; echo 'main.c:3: error: no such thing' >&2; exit 2")
    error = caught.value
    assert error.exit_code is ExitCode.STEP
    assert error.line().startswith("step: the command ended with status 2; the whole log is /")
    assert error.detail.splitlines() == ["building", "main.c:3: error: no such thing"]
    assert bench.leftovers() == [] and bench.containers() == []


def test_both_outputs_keep_their_order(bench: Bench) -> None:
    lines, _ = bench.tree("for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done")
    assert lines == [f"{where} {i}" for i in range(1, 6) for where in ("out", "err")]


def test_a_command_that_is_not_there(bench: Bench) -> None:
    with bench.store.scratch() as folder:
        (folder / "out").mkdir()
        rootfs = Rootfs(*bench.store.rootfs_layout(bench.base))
        with pytest.raises(ToolError) as caught:
            bench.engine.run(Job("x", rootfs, ("frobnicate",), folder / "out", folder / "log"), lambda line: None)
    assert caught.value.exit_code is ExitCode.STEP
    assert "frobnicate" in caught.value.detail


def test_a_base_with_a_corrupt_layer_is_not_imported(way: Way, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", way)
    path = bench.store.blob_path(bench.base.layer.digest)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(b"corrupt")
    with pytest.raises(ToolError):
        bench.tree("true")
    assert Store(bench.store.root).lookup(BASE) is None
    assert Bench(tmp_path / "store", way).tree("echo works")[0] == ["works"]


def test_cancelling_ends_everything(bench: Bench) -> None:
    mark = f"{1000 + os.getpid()}.25"
    cancel = threading.Event()
    with bench.store.scratch() as folder:
        (folder / "out").mkdir()
        job = bench.job(f"echo up; sleep {mark} & sleep {mark}", folder / "out")
        with pytest.raises(KeyboardInterrupt):
            bench.engine.run(job, lambda line: cancel.set(), cancel)
    assert running(mark) == []
    assert bench.leftovers() == [] and bench.containers() == []
    assert bench.tree("echo still works")[0] == ["still works"]


def test_a_daemon_does_not_outlive_its_step(bench: Bench) -> None:
    mark = f"{1000 + os.getpid()}.5"
    bench.tree(f"setsid sleep {mark} > /dev/null 2>&1 & sleep 0.2")
    wait_for(lambda: running(mark) == [])


# Processes


def test_kill_9_during_a_step_and_then_again(way: Way, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", way)
    mark = f"{2000 + os.getpid()}.75"
    script = f"echo x > /half; echo up; sleep {mark} & sleep {mark}"
    with subprocess.Popen(step_argv(bench, "k", script), stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None and victim.stdout.readline() == b"up\n"
        assert running(mark)
        victim.send_signal(signal.SIGKILL)
    wait_for(lambda: running(mark) == [])
    assert bench.leftovers() != [] and bench.containers() != []
    bundles = [path.name for path in (tmp_path / "store" / "engine" / "tmp").glob("buildah*")]
    again = Bench(tmp_path / "store", way)
    assert again.store.lookup(Digest.of(b"k")) is None
    assert again.tree("! ls /half 2>/dev/null; echo fine")[0] == ["fine"]
    assert again.leftovers() == [] and again.containers() == []
    groups = [path for name in bundles for path in Path("/sys/fs/cgroup").glob(f"**/buildah-{name}")]
    assert groups == []
    subprocess.run(step_argv(bench, "k", "echo x > /whole"), check=True)
    result = again.store.lookup(Digest.of(b"k"))
    assert result is not None and again.names(result) == ["whole"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_two_processes_with_the_same_step_run_it_once(way: Way, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", way)
    argv = step_argv(bench, "same", "echo ran; sleep 0.3; echo x > /x")
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(outputs) == [b"", b"ran\n"]
    assert bench.store.lookup(Digest.of(b"same")) is not None


def test_processes_with_different_steps_at_once(way: Way, tmp_path: Path) -> None:
    """The base is in nobody's storage yet, so that all want to import it."""
    bench = Bench(tmp_path / "store", way)
    children = [subprocess.Popen(step_argv(bench, f"s{n}", f"echo {n} > /f")) for n in range(3)]
    assert [child.wait(300) for child in children] == [0, 0, 0]
    assert all(bench.store.lookup(Digest.of(f"s{n}".encode())) for n in range(3))
    assert bench.leftovers() == []


# Network on request


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_network_when_a_step_asks_for_it(bench: Bench, port: int) -> None:
    fetch = f"wget -qO- http://127.0.0.1:{port}/ > /out/page"
    assert bench.tree(fetch, network=True)[1] == {"page": "hello"}
    with pytest.raises(ToolError, match="the command ended with status 1"):
        bench.tree(fetch)
