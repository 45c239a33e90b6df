"""Real containers: what a step sees, what it leaves, what happens when it fails or is killed.

The root file system is busybox alone, made here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from uklimg import oci
from uklimg.digest import Digest
from uklimg.engine.base import FIXED_ENV, Job, Mount, Rootfs
from uklimg.engine.buildah import BuildahEngine
from uklimg.engine.commands import CHROOT, OCI
from uklimg.errors import ExitCode, ToolError
from uklimg.graph import Kind
from uklimg.store import StepResult, Store

pytestmark = pytest.mark.integration

BUSYBOX = Path("/bin/busybox")
BASE = Digest.of(b"busybox base")
ENVIRON = {"PATH": os.environ["PATH"], "SECRET_OF_THE_HOST": "1", "http_proxy": "http://proxy.invalid"}


def write_base(path: Path) -> None:
    """A tar with busybox, its applets, and a few files that any system has."""
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, check=True, text=True).stdout.split()
    with tarfile.open(path, "w") as archive:

        def add(name: str, kind: bytes, mode: int, link: str = "", content: Path | None = None) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname, info.mtime = kind, mode, link, oci.EPOCH
            if content is None:
                archive.addfile(info)
            else:
                info.size = content.stat().st_size
                with content.open("rb") as file:
                    archive.addfile(info, file)

        for folder in ("bin", "etc", "root", "usr"):
            add(folder, tarfile.DIRTYPE, 0o755)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        passwd = path.with_name("passwd")
        passwd.write_text("root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1000::/:/bin/sh\n")
        add("etc/passwd", tarfile.REGTYPE, 0o644, content=passwd)
        add("bin/busybox", tarfile.REGTYPE, 0o755, content=BUSYBOX)
        for applet in applets:
            if applet != "busybox":
                add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, "busybox")


class Bench:
    """A store with the base in it, and an engine."""

    def __init__(self, root: Path, isolation: str | None = None) -> None:
        self.store = Store(root)
        self.engine = BuildahEngine(self.store.root / "engine", ENVIRON, isolation=isolation)
        base = self.store.lookup(BASE)
        if base is None:
            write_base(root / "base.tar")
            base = self.store.commit_rootfs(BASE, root / "base.tar", {})
        self.base = base

    def job(self, script: str, output: Path, base: StepResult | None = None, **more: Any) -> Job:
        rootfs = Rootfs(*self.store.rootfs_layout(base or self.base))
        return Job("step", rootfs, ("sh", "-euc", script), output, output.with_name("log"), **more)

    def tree(self, script: str, **more: Any) -> tuple[list[str], dict[str, str]]:
        """Run a TREE step; its output lines, and the files it left."""
        lines: list[str] = []
        with self.store.session(), self.store.scratch() as folder:
            (folder / "out").mkdir()
            self.engine.run(self.job(script, folder / "out", **more), lines.append)
            assert (folder / "log").read_text() == "".join(f"{line}\n" for line in lines)
            made = {p.relative_to(folder / "out").as_posix(): p for p in (folder / "out").rglob("*") if p.is_file()}
            return lines, {name: path.read_text() for name, path in made.items()}

    def rootfs(self, script: str, name: str, base: StepResult | None = None, **more: Any) -> StepResult:
        """Run a ROOTFS step and store its result."""
        base = base or self.base
        with self.store.session(), self.store.scratch() as folder:
            (folder / "out").mkdir()
            job = self.job(script, folder / "out", base, kind=Kind.ROOTFS, **more)
            result = self.engine.run(job, lambda line: None)
            assert result.layer is not None
            key = Digest.of(name.encode())
            return self.store.commit_rootfs(key, result.layer, {}, base=base, drop=result.drop)

    def names(self, result: StepResult) -> list[str]:
        with tarfile.open(self.store.blob_path(result.layer.digest)) as archive:
            return archive.getnames()

    def containers(self) -> str:
        folder = self.store.root / "engine" / "overlay"
        argv = ["buildah", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "containers", "--quiet"]
        done = subprocess.run(argv, capture_output=True, check=True, encoding="utf-8")
        return done.stdout.strip()

    def leftovers(self) -> list[Path]:
        return list((self.store.root / "engine" / "live").iterdir())


@pytest.fixture(scope="module", params=[OCI, CHROOT])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp(request.param) / "a Store", request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """With whatever isolation the engine finds."""
    return Bench(tmp_path_factory.mktemp("plain") / "store")


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(1200):
        if condition():
            return
        pause.wait(0.05)
    pytest.fail("it did not happen within a minute")


def running(mark: str) -> list[int]:
    """Processes with ``mark`` as an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


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
"""


def test_repeated_steps_are_identical_whatever_isolates_them(tmp_path: Path) -> None:
    results = []
    for name, isolation in (("a", OCI), ("b", OCI), ("c", CHROOT)):
        bench = Bench(tmp_path / name, isolation)
        one = bench.rootfs(BUILD, "one")
        two = bench.rootfs("cp -a /src /copy", "two", one)
        with bench.store.session(), bench.store.scratch() as folder:
            (folder / "out").mkdir()
            bench.engine.run(bench.job("cp -r /copy/. /out", folder / "out", two), lambda line: None)
            tree = bench.store.commit_tree(Digest.of(b"tree"), folder / "out", {})
        results.append((one.root.digest, two.root.digest, tree.root.digest, tree.layer.digest))
    assert results[0] == results[1] == results[2]


def test_an_image_is_imported_once_and_forgotten_by_prune(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store")
    other = bench.rootfs("touch /x", "x")
    bench.tree("true")
    bench.tree("test -e /x", base=other)
    images = tmp_path / "store" / "engine" / "overlay" / "root" / "overlay-images" / "images.json"
    assert images.read_text().count('"id"') == 2
    bench.engine.prune({other.root.digest})
    assert images.read_text().count('"id"') == 1
    assert other.root.digest.hex in images.read_text()
    bench.tree("test ! -e /x")


# Failures


def test_a_failing_command_shows_its_own_last_words(bench: Bench) -> None:
    with pytest.raises(ToolError) as caught:
        bench.tree("echo building; echo 'main.c:3: error: no such thing' >&2; exit 2")
    error = caught.value
    assert error.exit_code is ExitCode.STEP
    assert error.line().startswith("step: the command ended with status 2; the whole log is /")
    assert error.detail.splitlines() == ["building", "main.c:3: error: no such thing"]
    assert bench.leftovers() == [] and bench.containers() == ""


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


def test_a_base_with_a_corrupt_layer_is_not_imported(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store")
    path = bench.store.blob_path(bench.base.layer.digest)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(b"corrupt")
    with pytest.raises(ToolError):
        bench.tree("true")
    assert Store(bench.store.root).lookup(BASE) is None
    assert Bench(tmp_path / "store").tree("echo works")[0] == ["works"]


def test_without_buildah(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for program in ("unshare", "env"):
        (bin_ / program).symlink_to(f"/usr/bin/{program}")
    engine = BuildahEngine(tmp_path / "engine", {"PATH": str(bin_)})
    with pytest.raises(ToolError, match="buildah is not installed"), bench.store.scratch() as folder:
        engine.run(bench.job("true", folder), lambda line: None)


def test_where_runc_cannot_run_a_chroot_does(tmp_path: Path) -> None:
    """A runc that always fails stands for a host on which it does."""
    broken = tmp_path / "bin" / "runc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no cgroups here >&2\nexit 1\n")
    broken.chmod(0o755)
    bench = Bench(tmp_path / "store")
    bench.engine = BuildahEngine(tmp_path / "store" / "engine", {"PATH": f"{broken.parent}:{os.environ['PATH']}"})
    assert bench.tree("hostname; ls / | grep -c home || :")[0] == ["uklimg", "0"]
    assert bench.engine.isolation == CHROOT


def test_here_runc_runs(plain: Bench) -> None:
    assert plain.tree("echo hello")[0] == ["hello"]
    assert plain.engine.isolation == OCI


def test_cancelling_ends_everything(bench: Bench) -> None:
    mark = f"{1000 + os.getpid()}.25"
    cancel = threading.Event()
    with bench.store.scratch() as folder:
        (folder / "out").mkdir()
        job = bench.job(f"echo up; sleep {mark} & sleep {mark}", folder / "out")
        with pytest.raises(KeyboardInterrupt):
            bench.engine.run(job, lambda line: cancel.set(), cancel)
    assert running(mark) == []
    assert bench.leftovers() == [] and bench.containers() == ""
    assert bench.tree("echo still works")[0] == ["still works"]


def test_a_daemon_does_not_outlive_its_step(bench: Bench) -> None:
    mark = f"{1000 + os.getpid()}.5"
    bench.tree(f"setsid sleep {mark} > /dev/null 2>&1 & sleep 0.2")
    wait_for(lambda: running(mark) == [])


# Processes

STEP = """
import os, sys
from pathlib import Path
from typing import Any
from uklimg.digest import Digest
from uklimg.engine.base import Job, Rootfs
from uklimg.engine.buildah import BuildahEngine
from uklimg.graph import Kind
from uklimg.store import Store
store = Store(Path(sys.argv[1]))
key, script = Digest.of(sys.argv[2].encode()), sys.argv[3]
engine = BuildahEngine(store.root / "engine", os.environ, isolation=sys.argv[4])
with store.session(), store.key_lock(key):
    if store.lookup(key) is None:
        base = store.lookup(Digest(sys.argv[5]))
        with store.scratch() as folder:
            (folder / "out").mkdir()
            rootfs = Rootfs(*store.rootfs_layout(base))
            job = Job("step", rootfs, ("sh", "-euc", script), folder / "out", folder / "log", Kind.ROOTFS)
            result = engine.run(job, lambda line: print(line, flush=True))
            store.commit_rootfs(key, result.layer, {}, base=base, drop=result.drop)
"""


def step_argv(bench: Bench, name: str, script: str, isolation: str) -> list[str]:
    return [sys.executable, "-c", STEP, str(bench.store.root), name, script, isolation, BASE.hex]


@pytest.mark.parametrize("isolation", [OCI, CHROOT])
def test_kill_9_during_a_step_and_then_again(tmp_path: Path, isolation: str) -> None:
    bench = Bench(tmp_path / "store", isolation)
    mark = f"{2000 + os.getpid()}.75"
    script = f"echo x > /half; echo up; sleep {mark} & sleep {mark}"
    with subprocess.Popen(step_argv(bench, "k", script, isolation), stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None and victim.stdout.readline() == b"up\n"
        assert running(mark)
        victim.send_signal(signal.SIGKILL)
    wait_for(lambda: running(mark) == [])
    assert bench.leftovers() != [] and bench.containers() != ""
    bundles = [path.name for path in (tmp_path / "store" / "engine" / "tmp").glob("buildah*")]
    assert bundles
    again = Bench(tmp_path / "store", isolation)
    assert again.store.lookup(Digest.of(b"k")) is None
    assert again.tree("! ls /half 2>/dev/null; echo fine")[0] == ["fine"]
    assert again.leftovers() == [] and again.containers() == ""
    groups = [path for name in bundles for path in Path("/sys/fs/cgroup").glob(f"**/buildah-{name}")]
    assert groups == []
    subprocess.run(step_argv(bench, "k", "echo x > /whole", isolation), check=True)
    result = again.store.lookup(Digest.of(b"k"))
    assert result is not None and again.names(result) == ["whole"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_two_processes_with_the_same_step_run_it_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store")
    argv = step_argv(bench, "same", "echo ran; sleep 0.3; echo x > /x", OCI)
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(outputs) == [b"", b"ran\n"]
    assert bench.store.lookup(Digest.of(b"same")) is not None


def test_processes_with_different_steps_at_once(tmp_path: Path) -> None:
    """The base is in nobody's storage yet, so that all want to import it."""
    bench = Bench(tmp_path / "store")
    children = [subprocess.Popen(step_argv(bench, f"s{n}", f"echo {n} > /f", OCI)) for n in range(3)]
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
