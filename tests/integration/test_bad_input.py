"""What a user meets when something is wrong: one clear line, the exit code that the manual promises, a store that
nothing was done to. Through the command line, with a store that is a clone of the user's."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from privatestore import blobs, check_intact, damage, layer_of, private_store
from test_registry import registry

from uklimg import oci
from uklimg.digest import Digest
from uklimg.store.layout import UPLOAD

# The marker "boot" has the kernel built before the first test begins.
pytestmark = [pytest.mark.integration, pytest.mark.boot]

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "uklimg-test/example:base"
STAGE = "FROM debian:trixie AS build\n"
SOURCE = "SOURCE debian:redis"
EXAMPLE_LOCK = ROOT / "scripts/example.lock"
LAST = "FROM ukl:6.12\nLINK --from=build /src/app\n"
C = "#include <stdio.h>\nint main(void) { puts(NONCE); return 0; }\n"


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.err.splitlines()[-1]


@dataclass(frozen=True)
class User:
    """Somebody with a build context and a store."""

    folder: Path
    store: Path

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "UKLIMG_STORE": str(self.store)}

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "uklimg", *arguments]

    def __call__(self, *arguments: str, **environ: str) -> Ended:
        done = subprocess.run(
            self.argv(*arguments),
            cwd=self.folder,
            env={**self.env, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr and "uklimg: bug:" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """In the background, as the foreground job of a terminal: a process group of its own."""
        return subprocess.Popen(
            self.argv(*arguments),
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def write(self, text: str) -> None:
        (self.folder / "Uklfile").write_text(text)

    def refused(self, status: int, line: str, *arguments: str, **environ: str) -> None:
        """The command ends with ``status``, and all it writes is one line that matches ``line``."""
        before = blobs(self.store)
        ended = self(*arguments, **environ)
        assert (ended.status, ended.out) == (status, ""), ended.err
        assert re.fullmatch(f"uklimg: {line}\n", ended.err), ended.err
        assert blobs(self.store) == before, "nothing came into the store"


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    with private_store() as path:
        yield path


@pytest.fixture(scope="module")
def lock(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lock with the base image and the kernel; made with the network, once."""
    user = User(tmp_path_factory.mktemp("lock"), store)
    user.write(f"{STAGE}{LAST}")
    assert user("lock").status == 0
    return user.folder / "Uklfile.lock"


@pytest.fixture
def user(store: Path, lock: Path, tmp_path: Path) -> User:
    folder = tmp_path / "context"
    folder.mkdir()
    shutil.copy(lock, folder)
    return User(folder, store)


# --- the Uklfile and the command line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("FORM debian:trixie AS build\n", r"Uklfile:1:1: unknown directive 'FORM' \(did you mean FROM\?\)"),
        (f"{STAGE}EXEC x\n{LAST}", r"Uklfile:2:1: unknown directive 'EXEC' \(.*\)"),
        (f"{STAGE}SOURCE debian:redis\n{LAST}", r"Uklfile:2:1: SOURCE .*\(.*SOURCE.*\)"),
        (f"{STAGE}FROM ukl:6.12\nLINK\n", r"Uklfile:3:1: LINK .*\(.*LINK.*\)"),
        (f"{STAGE}FROM ukl:6.12\n", r"Uklfile:2:1: the image stage links no program \(LINK --from=.*\)"),
        (
            f"FROM debian:trixy AS build\n{LAST}",
            r"Uklfile:1:6: unknown .*'debian:trixy' \(did you mean debian:trixie\?\)",
        ),
        (f"FROM arch AS build\n{LAST}", r"Uklfile:1:6: unknown .*'arch' \(.*base images: debian:trixie.*\)"),
        (f"{STAGE}FROM ukl:5.4\nLINK /src/app\n", r"Uklfile:2:6: .*5\.4.* \(.*6\.12.*\)"),
        (f"{STAGE}{LAST}UKL BIP\n", r"Uklfile:4:5: kernel series 6.12 has no UKL option 'BIP' .*BYP.*"),
        (f"{STAGE}{LAST}COPY x /ukl/app\n", r"Uklfile:4:8: COPY to '/ukl/app', which uklimg makes itself \(.*\)"),
        (f"{STAGE}{LAST}COPY nothing /etc/\n", r"Uklfile:4:\d+: .*nothing.*"),
        (f"{STAGE}{LAST}RUN true\n", r"Uklfile:4:1: RUN in the image stage \(.*\)"),
        ("", r"Uklfile.*"),
    ],
)
def test_a_uklfile_that_is_wrong(user: User, text: str, line: str) -> None:
    user.write(text)
    user.refused(1, line, "build", "--locked")


def test_all_errors_of_a_uklfile_at_once(user: User) -> None:
    user.write(f"{STAGE}RUN --network=some true\nCOPY --from=nowhere a b\n{LAST}MEMORY much\nEXPOSE x\n")
    ended = user("build")
    assert (ended.status, ended.out) == (1, "")
    places = [re.match(r"uklimg: Uklfile:(\d+):\d+: \S", line) for line in ended.err.splitlines()]
    assert [place and place[1] for place in places] == ["2", "3", "6", "7"]


def test_no_uklfile(user: User) -> None:
    user.refused(1, r".*Uklfile.*", "build")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run"], r"uklimg run: the following arguments are required: REF \(uklimg run --help\)"),
        (["exec", "cache"], r"uklimg exec: the following arguments are required: COMMAND \(uklimg exec --help\)"),
        (["build", "--no-such"], r"uklimg build: unrecognized arguments: --no-such \(uklimg build --help\)"),
        (["du", "x"], r"uklimg du: unrecognized arguments: x \(uklimg du --help\)"),
        (["bild"], r"uklimg: there is no command 'bild', did you mean build\? \(uklimg --help\)"),
        (["fly"], r"uklimg: there is no command 'fly' \(uklimg --help\)"),
        (["push"], r"uklimg push: the following arguments are required: .* \(uklimg push --help\)"),
        (["inspect", "--sbom", "--lock", "x"], r"uklimg inspect: argument --lock: not allowed with .*"),
        (["export", "--format", "qcow3", "-o", "x", "x"], r"uklimg export: argument --format: invalid choice: .*"),
    ],
)
def test_a_command_line_that_is_wrong(user: User, arguments: list[str], line: str) -> None:
    ended = user(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert re.fullmatch(line, ended.err.removesuffix("\n"))


def test_help_has_several_names(user: User) -> None:
    asked = user("--help")
    assert asked.status == 0
    assert user("help") == asked
    assert user("help", "run") == user("run", "--help")
    nothing = user()
    assert (nothing.status, nothing.out, nothing.err) == (2, "", asked.out)


@pytest.mark.parametrize(
    ("status", "line", "arguments"),
    [
        (125, r"no image nobody/has:this in the store \(there is .*\)", ["run", "nobody/has:this"]),
        (6, r"no image nobody/has:this in the store \(there is .*\)", ["inspect", "nobody/has:this"]),
        (125, r"'x' in 'x:y' is not a port \(1 to 65535\)", ["run", "-p", "x:y", IMAGE]),
        (125, r"'data' is not a volume \(.*\)", ["run", "-v", "data", IMAGE]),
        (
            125,
            r"no folder /no/such for the volume /data \(mkdir -p .*\)",
            ["run", "-v", "/no/such:/data", IMAGE],
        ),
        (125, r"-m: 'much' is not a size \(.*\)", ["run", "-m", "much", IMAGE]),
        (125, r"the image does not fit into 17 MiB of memory \(give it at least \d+M\)", ["run", "-m", "17M", IMAGE]),
        (125, r"'=x' is not a variable \(-e NAME=VALUE\)", ["run", "-e", "=x", IMAGE]),
        (1, r"-t .*", ["build", "-t", "UPPER CASE"]),
        (1, r"--jobs wants .*", ["build", "--jobs", "-1"]),
        (1, r"--jobs wants .*", ["build", "--jobs", "0"]),
        (125, r"--cpus wants a number greater than 0", ["run", "--cpus", "0", IMAGE]),
        (125, r"--gdb 1234: not an address \(.*\)", ["run", "--gdb", "1234", IMAGE]),
        (125, r"--health-interval is for guests .* \(add -d\)", ["run", "--health-interval", "1s", IMAGE]),
    ],
)
def test_options_that_are_wrong(user: User, status: int, line: str, arguments: list[str]) -> None:
    user.write(f"{STAGE}{LAST}")
    user.refused(status, line.removeprefix("-t ") if "UPPER" in arguments[-1] else line, *arguments)


# --- what comes from outside


def test_a_mirror_that_cannot_be_reached(user: User) -> None:
    """First when the lock must be made, then when it is there and only the files are missing."""
    user.write(f"{STAGE}{SOURCE} /src/{uuid.uuid4().hex}\n{LAST}")
    mirror = f"http://127.0.0.1:{closed_port()}/debian"
    (user.folder / "Uklfile.lock").unlink()
    ended = user("build", UKLIMG_DEBIAN_MIRROR=mirror)
    assert ended.status == 4
    assert re.fullmatch(r"uklimg: .*127\.0\.0\.1.*", ended.last)
    assert len(re.findall("^uklimg: ", ended.err, re.MULTILINE)) == 1
    assert not (user.folder / "Uklfile.lock").exists()
    lock_without_files(user)
    ended = user("build", "--locked", "--target", "build", UKLIMG_DEBIAN_MIRROR=mirror)
    assert ended.status == 4
    assert re.fullmatch(r"uklimg: Uklfile:2:1: .*redis_.*127\.0\.0\.1.*", ended.last)
    ended = user("build", "--locked", "--offline", "--target", "build")
    assert ended.status == 4
    said = r"uklimg: Uklfile:2:1: redis_\S+ is neither in the store nor vendored, and --offline .*"
    assert re.fullmatch(said, ended.last)


def lock_without_files(user: User) -> dict[str, int]:
    """Make the lock, and take what it says of the source out of the store. Returns the files' sizes by name."""
    lock = user.folder / "Uklfile.lock"
    before = lock.read_text() if lock.exists() else "version = 1\n"
    # The newest of the index may be one that the mirror lacks.
    lock.write_text(f"{before}\n[[source]]{EXAMPLE_LOCK.read_text().partition('[[source]]')[2]}")
    assert user("lock").status == 0
    text = lock.read_text()
    found = re.findall(r'name = "(redis_[^"]+)".*?size = (\d+), sha256 = "(\w+)"', text)
    assert len(found) >= 3
    for _, _, digest in found:
        (user.store / "blobs/sha256" / digest).unlink(missing_ok=True)
    return {name: int(size) for name, size, _ in found}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_source_that_is_not_what_the_lock_says(user: User) -> None:
    """A mirror with files of the right names and sizes and other bytes; what it sends leaves no trace."""
    user.write(f"{STAGE}{SOURCE} /src/{uuid.uuid4().hex}\n{LAST}")
    sizes = lock_without_files(user)
    before = blobs(user.store)
    with wrong_mirror(sizes) as mirror:
        ended = user("build", "--locked", "--target", "build", UKLIMG_DEBIAN_MIRROR=mirror)
    assert ended.status == 7
    assert re.fullmatch(r"uklimg: Uklfile:2:1: .*redis_\S+.*", ended.last)
    assert len(re.findall("^uklimg: ", ended.err, re.MULTILINE)) == 1
    assert blobs(user.store) == before
    assert user("build", "--locked", "--target", "build").status == 0, "an honest mirror puts it right"


class wrong_mirror:
    """A server that has every file, with the size expected and other bytes."""

    def __init__(self, sizes: dict[str, int]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                size = sizes.get(self.path.rpartition("/")[2], 0)
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.write(bytes(size))

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/debian"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_registry_that_nobody_answers_at(user: User) -> None:
    ref = f"127.0.0.1:{closed_port()}/demo/redis:1"
    for status, command in ((4, "pull"), (125, "run")):
        ended = user(command, ref)
        assert ended.status == status
        assert re.fullmatch(rf"uklimg: .*{re.escape(ref.split('/')[0])}.*", ended.last)
        assert len(re.findall("^uklimg: ", ended.err, re.MULTILINE)) == 1


def test_a_registry_with_a_corrupt_blob(user: User, tmp_path: Path) -> None:
    with registry(tmp_path / "registry") as server:
        ref = f"{server.host}/demo/redis:1"
        assert user("tag", IMAGE, ref).status == 0
        assert user("push", ref).status == 0
        assert user("rmi", ref).status == 0
        layer = layer_of(user.store, IMAGE, oci.INITRAMFS)
        damage(server.blob(Digest(layer.name)))
        other = User(user.folder, tmp_path / "other")
        ended = other("pull", ref)
        assert ended.status == 7
        assert re.fullmatch(r"uklimg: .*" + layer.name + r".*", ended.last)
        assert len(re.findall("^uklimg: ", ended.err, re.MULTILINE)) == 1
        assert ref not in other("images").out
        assert not (other.store / "blobs/sha256" / layer.name).exists()
        check_intact(other.store, frozenset())
        assert user("pull", ref).status == 0, "where the blob is known nothing is downloaded"
        user("rmi", ref)


# --- the program


def test_an_error_of_the_compiler(user: User) -> None:
    user.write(f"{STAGE}COPY app.c /src/\nRUN $CC -o /src/app /src/app.c\n{LAST}")
    (user.folder / "app.c").write_text(f"int main(void)\n{{\n    return missing_{uuid.uuid4().hex};\n}}\n")
    for _ in range(2):
        ended = user("build", "--locked")
        assert (ended.status, ended.out) == (3, "")
        found = re.fullmatch(
            r"uklimg: Uklfile:3:1: \[build 2/2\] RUN .*: the command ended with status 1; the whole log is (\S+)",
            ended.last,
        )
        assert found
        said = Path(found[1]).read_text()
        assert "/src/app.c:3:12: error: " in said
        assert ended.err.endswith(f"{said.rstrip()}\n{ended.last}\n"), "the compiler has the last word before us"
    check_intact(user.store, frozenset())


def test_an_application_that_does_not_fit(user: User) -> None:
    user.write(f"{STAGE}COPY app.s /src/\nRUN $CC -o /src/app /src/app.s\n{LAST}")
    program = ".text\n.globl main\nmain: xorl %eax, %eax\nret\n.fill 257 << 20, 1, 0x90\n"
    (user.folder / "app.s").write_text(f"{program}.section .note.GNU-stack\n")
    ended = user("build", "--locked")
    assert (ended.status, ended.out) == (3, "")
    *_, words, last = ended.err.splitlines()
    assert re.search(r"ukl-link: app: the application has 258 MiB of code, the kernel has .* for 256 MiB", words)
    assert re.fullmatch(r"uklimg: Uklfile:5:1: LINK /src/app: .*; the whole log is \S+", last)


# --- this machine


def test_qemu_is_missing(user: User, tmp_path: Path) -> None:
    line = r"qemu-system-x86_64 is not installed \(apt-get install qemu-system-x86\)"
    user.refused(125, line, "run", IMAGE, PATH=str(tmp_path))


def test_buildah_is_missing(user: User, tmp_path: Path) -> None:
    user.write(f"{STAGE}RUN echo {uuid.uuid4().hex}\n{LAST}")
    ended = user("build", "--locked", "--target", "build", "--engine", "buildah", PATH=str(tmp_path))
    assert ended.status == 8
    assert re.fullmatch(r"uklimg: Uklfile:2:1: buildah is not installed \(apt-get install buildah\)", ended.last)


def test_a_port_in_use(user: User) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = rf"tcp port {port} of 127\.0\.0\.1 is in use \(choose another: -p HOST:6379\)"
        user.refused(125, line, "run", "-p", f"{port}:6379", IMAGE)


def test_a_store_that_cannot_be_written(user: User, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = user("--store", str(tmp_path / "file"), "images")
    assert ended.status == 8
    assert re.fullmatch(r"uklimg: cannot make the store: .*", ended.last)


# --- the store


def test_corrupt_blobs_of_the_store(user: User, tmp_path: Path) -> None:
    """Each is noticed by whoever needs it, and a build makes it again from what is left."""
    tag = "uklimg-test/corrupt:1"
    user.write(f"{STAGE}COPY app.c /src/\nRUN $CC -o /src/app /src/app.c\n{LAST}")
    (user.folder / "app.c").write_text(C.replace("NONCE", f'"{uuid.uuid4().hex}"'))
    built = user("build", "--locked", "-t", tag)
    assert built.status == 0, built.err
    initramfs, vmlinux = (layer_of(user.store, tag, role) for role in (oci.INITRAMFS, oci.VMLINUX))
    expected = vmlinux.read_bytes()
    with registry(tmp_path / "registry") as server:
        damage(vmlinux, -5)
        for status, arguments in ((7, ["push", tag, f"{server.host}/x/y:1"]), (125, ["run", tag])):
            ended = user(*arguments)
            assert ended.status == status, ended.err
            assert re.fullmatch(rf"uklimg: .*{vmlinux.name}.*", ended.last)
            assert len(re.findall("^uklimg: ", ended.err, re.MULTILINE)) == 1
    damage(initramfs)
    again = user("build", "--locked", "-t", tag)
    assert (again.status, again.out) == (0, built.out)
    assert "warning: the stored result of image is of no use: " in again.err
    assert vmlinux.read_bytes() == expected
    check_intact(user.store, frozenset())
    run = user("run", tag)
    assert (run.status, len(run.out)) == (0, 33)


def slow(user: User) -> None:
    """A project with a step that takes a while, and that says when it has begun."""
    nonce = uuid.uuid4().hex
    (user.folder / "app.c").write_text(C.replace("NONCE", f'"{nonce}"'))
    command = "echo half >/src/half && echo begun && sleep 10 && $CC -o /src/app /src/app.c"
    user.write(f"{STAGE}COPY app.c /src/\nRUN {command}\n{LAST}")


def until(process: subprocess.Popen[str], event: str, **fields: str) -> None:
    """Until a build that prints JSON says so."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("{"):
            found = json.loads(line)
            if found["event"] == event and all(found[name] == value for name, value in fields.items()):
                return
    raise AssertionError(f"no {event}: {''.join(said[-20:])}")


def processes_of(store: Path) -> list[str]:
    """Command lines that name the store: engines, runtimes, and what they run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(store) in text:
            found.append(text)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_build_in_a_step_and_the_next_build(user: User, number: signal.Signals) -> None:
    slow(user)
    tag = f"uklimg-test/ended:{number}"
    before = blobs(user.store)
    process = user.start("build", "--locked", "--progress", "json", "-t", tag)
    until(process, "step-output", step="stage:build:2", line="begun")
    os.killpg(process.pid, number)
    _, err = process.communicate()
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert [line for line in err.splitlines() if not line.startswith("{")] == ["uklimg: interrupted"]
        assert processes_of(user.store) == []
    assert tag not in user("images").out
    check_intact(user.store, before)
    built = user("build", "--locked", "-t", tag)
    assert built.status == 0, built.err
    assert "CACHED [build 1/2] COPY" in built.err, "what was finished stays"
    assert processes_of(user.store) == []
    check_intact(user.store, before)
    # What says where a push that was cut off can go on is another command's.
    assert [path.name for path in (user.store / "tmp").iterdir() if path.suffix != UPLOAD] == []
    assert mounts_of(user.store) == []
    second = user("build", "--locked")
    assert "0 of " in second.err


def mounts_of(store: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(store) in line]


def test_killed_again_and_again(user: User) -> None:
    """SIGKILL at the beginning of each later step; the image is the one that an undisturbed build makes."""
    slow(user)
    before = blobs(user.store)
    for step in ("stage:build:1", "app:app", "bzimage", "image"):
        process = user.start("build", "--locked", "--progress", "json")
        until(process, "step-started", step=step)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        check_intact(user.store, before)
    disturbed = user("build", "--locked", "-t", "uklimg-test/killed:1")
    assert disturbed.status == 0, disturbed.err
    check_intact(user.store, before)
    for record in json.loads(user("plan", "--locked", "--format", "json").out):
        if record["step"] not in ("kernel-kit", "base:debian-trixie"):
            (user.store / "cache" / f"{record['key'].removeprefix('sha256:')}.json").unlink()
    undisturbed = user("build", "--locked", "-t", "uklimg-test/killed:1")
    assert (undisturbed.status, undisturbed.out) == (0, disturbed.out)
