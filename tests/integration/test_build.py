"""`uklimg build` for real: containers, copies, sources, failures, interruptions; up to the build stage.

The store is the machine's own, so that base image and kernel are made once for all tests. Each test's steps are its
own: their commands hold a number that no earlier run has used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest

from uklimg.errors import ExitCode
from uklimg.settings import read_settings
from uklimg.store import Store

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
LAST = "FROM ukl:6.12\nLINK --from=build /src/program\n"


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A build context with a Uklfile; ``nonce`` is new each time."""

    folder: Path
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def write(self, stages: str, last: str = LAST) -> None:
        (self.folder / "Uklfile").write_text(stages.replace("NONCE", self.nonce) + last)

    def argv(self, *argv: str) -> list[str]:
        return [sys.executable, "-m", "uklimg", *argv]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def uklimg(self, *argv: str, **environ: str) -> Result:
        done = subprocess.run(
            self.argv(*argv),
            cwd=self.folder,
            env={**self.env, **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def stage(self, *argv: str, **environ: str) -> Result:
        """Build the stage ``build``; shows why when it fails."""
        found = self.uklimg("build", "--target", "build", "--progress", "plain", *argv, **environ)
        if found.status:
            print(found.err)
        return found

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Begin a build of the stage with its events as JSON on standard output."""
        command = self.argv("build", "--target", "build", "--progress", "json", *argv)
        return subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )


def ran(result: Result) -> int:
    found = re.search(r"^(\d+) of \d+ steps ran\b", result.err, re.MULTILINE)
    assert found, result.err
    return int(found[1])


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lock with the base image and the kernel, made once."""
    project = Project(tmp_path_factory.mktemp("locked"))
    project.write("FROM debian:trixie AS build\nRUN true\n")
    found = project.uklimg("lock")
    assert found.status == 0, found.err
    return project.folder / "Uklfile.lock"


@pytest.fixture
def project(tmp_path: Path, locked: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(locked, folder)
    return Project(folder)


@pytest.fixture
def store() -> Store:
    return Store(read_settings(os.environ, Path.cwd()).store)


def test_a_program_is_built_and_the_second_build_runs_nothing(project: Project, tmp_path: Path) -> None:
    (project.folder / "main.c").write_text('#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n')
    project.write("FROM debian:trixie AS build\nWORKDIR /src\nCOPY main.c .\nRUN make main && ./main # NONCE\n")
    first = project.stage()
    assert first.status == 0
    assert "| hello" in first.err
    assert ran(first) >= 1
    lock = (project.folder / "Uklfile.lock").read_bytes()
    other = Project(tmp_path)  # other processes come between
    assert other.uklimg("images").status == 0
    again = project.stage("--locked", "--offline")
    assert ran(again) == 0
    assert again.out == first.out
    assert (project.folder / "Uklfile.lock").read_bytes() == lock
    steps = json.loads(project.uklimg("plan", "--target", "build", "--format", "json").out)
    assert all(step["hit"] and not step["runs"] for step in steps)


def test_a_changed_file_reruns_only_what_follows(project: Project) -> None:
    (project.folder / "a").write_text("1")
    project.write("FROM debian:trixie AS build\nRUN echo NONCE\nCOPY a /a\nRUN cat /a\n")
    assert project.stage().status == 0
    (project.folder / "a").write_text("2")
    assert ran(project.stage()) == 2
    (project.folder / "a").touch()
    assert ran(project.stage()) == 0


def test_plan_runs_nothing(project: Project) -> None:
    project.write("FROM debian:trixie AS build\nRUN echo NONCE\n")
    for command in (["plan"], ["build", "--plan"]):
        found = project.uklimg(*command, "--target", "build")
        assert found.status == 0
        assert re.search(r"^run +[0-9a-f]{12} +stage:build:1 +\[build 1/1\] RUN echo", found.out, re.MULTILINE)


def test_copy_and_add(project: Project) -> None:
    folder = project.folder
    (folder / "tree/deep").mkdir(parents=True)
    (folder / "tree/deep/file").write_text("deep")
    (folder / "tree/skip.o").write_text("object")
    (folder / "tree/link").symlink_to("deep/file")
    (folder / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "run.sh").chmod(0o755)
    for name in ("x1.txt", "x2.txt"):
        (folder / name).write_text(name)
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("inner/file")
        info.size = 6
        archive.addfile(info, BytesIO(b"packed"))
    project.write(
        """FROM debian:trixie AS first
RUN mkdir -p /made/bin && echo made NONCE >/made/file && ln -s /etc/hostname /made/absolute \\
 && ln -s file /made/relative && ln /made/file /made/hard && echo x >/made/bin/tool && chmod 4755 /made/bin/tool
FROM debian:trixie AS build
COPY tree /tree/
COPY --exclude=*.o tree /without/
COPY run.sh x*.txt /several/
COPY --chmod=600 --chown=7:8 x1.txt /renamed
COPY --parents tree/deep /parents/
ADD packed.tar.gz /unpacked/
COPY <<one <<two /notes/
first note
one
second note
two
COPY --from=first /made /made
COPY --from=first /made/relative /made/b*/tool /picked/
RUN set -ex; \\
  [ "$(cat /tree/deep/file)" = deep ]; [ "$(readlink /tree/link)" = deep/file ]; [ -e /tree/skip.o ]; \\
  [ ! -e /without/skip.o ]; [ -e /without/deep/file ]; \\
  [ "$(/several/run.sh)" = ran ]; [ "$(cat /several/x1.txt /several/x2.txt)" = x1.txtx2.txt ]; \\
  [ "$(stat -c %a:%u:%g /renamed)" = 600:7:8 ]; [ "$(stat -c %u:%g /tree/deep)" = 0:0 ]; \\
  [ -e /parents/tree/deep/file ]; \\
  [ "$(cat /unpacked/inner/file)" = packed ]; \\
  [ "$(cat /notes/one)" = "first note" ]; [ "$(cat /notes/two)" = "second note" ]; \\
  [ "$(cat /made/file)" = "made NONCE" ]; [ "$(readlink /made/absolute)" = /etc/hostname ]; \\
  [ "$(stat -c %i /made/hard)" = "$(stat -c %i /made/file)" ]; \\
  [ "$(stat -c %a /made/bin/tool)" = 4755 ]; [ "$(cat /picked/relative)" = "made NONCE" ]; \\
  [ ! -L /picked/relative ]; \\
  [ "$(cat /picked/tool)" = x ]; [ ! -e /var/lib/ukl/picked ]; [ ! -e /in ]
"""
    )
    assert project.stage().status == 0


def test_copy_of_something_that_is_not_in_the_stage(project: Project) -> None:
    project.write("FROM debian:trixie AS a\nRUN echo NONCE\nFROM debian:trixie AS build\nCOPY --from=a /gone /x\n")
    found = project.uklimg("build", "--target", "build")
    assert found.status == ExitCode.STEP
    assert "uklimg-copy: /gone is not there" in found.err
    assert "uklimg: Uklfile:4:1: take /gone from a" in found.err.splitlines()[-1]


def test_sources_of_the_context_are_fresh_writable_trees(project: Project) -> None:
    folder = project.folder
    (folder / "lib").mkdir()
    (folder / "lib/a.c").write_text("one\ntwo\n")
    (folder / "fixes").mkdir()
    (folder / "fixes/1.patch").write_text("--- a/a.c\n+++ b/a.c\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n")
    with tarfile.open(folder / "lib-1.0.tar.xz", "w:xz") as archive:
        archive.add(folder / "lib", "lib-1.0")
    project.write(
        """FROM debian:trixie AS build
SOURCE lib /lib-folder
SOURCE --patch=fixes lib /lib-fixed
SOURCE lib-1.0.tar.xz /lib-archive
SOURCE --strip=0 lib-1.0.tar.xz /lib-whole
RUN set -ex; : NONCE; [ "$(tail -n 1 /lib-folder/a.c)" = two ]; [ "$(tail -n 1 /lib-fixed/a.c)" = three ]; \\
  [ -e /lib-archive/a.c ]; [ -e /lib-whole/lib-1.0/a.c ]; echo new >>/lib-archive/a.c
"""
    )
    assert project.stage().status == 0
    assert (folder / "lib/a.c").read_text() == "one\ntwo\n"


def test_a_patch_that_does_not_apply(project: Project) -> None:
    (project.folder / "lib").mkdir()
    (project.folder / "lib/a.c").write_text(f"{project.nonce}\n")
    (project.folder / "fixes").mkdir()
    (project.folder / "fixes/1.patch").write_text("--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-two\n+three\n")
    project.write("FROM debian:trixie AS build\nSOURCE --patch=fixes lib /lib\n")
    found = project.uklimg("build", "--target", "build")
    assert found.status == ExitCode.STEP
    assert "uklimg-source: patch failed with status 1" in found.err


def test_users_folders_variables_and_scripts(project: Project) -> None:
    project.write(
        """FROM debian:trixie AS build
ARG WORD=NONCE
ENV GREETING="hello $WORD"
WORKDIR /made/by/us
RUN [ "$PWD" = /made/by/us ] && [ "$GREETING" = "hello NONCE" ] && [ "$CC" = ukl-gcc ] && [ "$(id -u)" = 0 ]
RUN <<EOF
#!/usr/bin/python3
import os
print("python", os.getpid() > 0)
#!/usr/bin/python3
import os
print("python", os.getpid() > 0)
EOF
USER nobody
WORKDIR theirs
RUN touch file && [ "$(stat -c %U file)" = nobody ] && ! touch /etc/file
"""
    )
    found = project.stage()
    assert found.status == 0
    assert "| python True" in found.err


def test_packages_are_locked_and_installed_offline(project: Project) -> None:
    project.write("FROM debian:trixie AS build\nPACKAGES hello\nRUN hello --greeting=NONCE\n")
    found = project.stage()
    assert found.status == 0
    assert f"| {project.nonce}" in found.err
    assert 'requested = ["hello"]' in (project.folder / "Uklfile.lock").read_text()


def test_a_compiler_error_is_shown_with_the_log(project: Project) -> None:
    (project.folder / "main.c").write_text("int main(void) { return undeclared; }\n")
    project.write("FROM debian:trixie AS build\nCOPY main.c /\nRUN $CC -c /main.c # NONCE\n")
    for _ in range(2):  # a failure is not remembered as a success
        found = project.uklimg("build", "--target", "build", "--progress", "json")
        assert found.status == ExitCode.STEP
        *said, last = (line for line in found.err.splitlines() if not line.startswith("{"))
        assert any("error: " in line and "undeclared" in line for line in said)
        assert last.startswith("uklimg: Uklfile:3:1: ")
        log = re.search(r"the whole log is (\S+)", last)
        assert log
        assert "undeclared" in Path(log[1]).read_text()


def test_steps_have_no_network(project: Project) -> None:
    script = "import socket; print([name for _, name in socket.if_nameindex()])"
    project.write(f"FROM debian:trixie AS build\nRUN : NONCE; python3 -c '{script}'\n")
    found = project.stage()
    assert found.status == 0
    assert "| ['lo']" in found.err


class _OtherBytes(BaseHTTPRequestHandler):
    """A mirror that has every file, with other bytes in it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"other bytes")

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def wrong_mirror() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _OtherBytes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_source_with_other_bytes_than_locked(project: Project, wrong_mirror: str) -> None:
    project.write("FROM debian:trixie AS build\nSOURCE debian:hello /src\nRUN echo NONCE\n")
    assert project.uklimg("lock").status == 0
    lock = project.folder / "Uklfile.lock"
    # As if the lock named a file that the store cannot have.
    text = lock.read_text()
    digest = re.search(r'\{name = "hello_[^"]*\.dsc".*?sha256 = "([0-9a-f]{64})"', text)
    assert digest, text[-2000:]
    changed = text.replace(digest[1], uuid.uuid4().hex * 2)
    lock.write_text(re.sub(r'(\{name = "hello_[^"]*\.dsc".*?size = )\d+', r"\g<1>11", changed))
    found = project.uklimg("build", "--target", "build", "--locked", UKLIMG_DEBIAN_MIRROR=wrong_mirror)
    assert found.status == ExitCode.CORRUPT
    assert re.search(r"hello_.*127\.0\.0\.1", found.err.splitlines()[-1])
    assert "Traceback" not in found.err


# --- ends that nobody planned


def started(process: subprocess.Popen[str]) -> Iterator[dict[str, object]]:
    """Events of a build until its last step has said that it runs."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{"):
            event = json.loads(line)
            yield event
            if event["event"] == "step-output" and event["line"].startswith("running "):
                return
    raise AssertionError("the build ended too early")


def seconds(project: Project) -> str:
    """How long its step sleeps: for ever, and no other process as long."""
    return f"7{int(project.nonce[:8], 16)}"


def sleepers(project: Project) -> list[str]:
    """Processes of the step that are left, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"sleep {seconds(project)}" in text:
            found.append(text)
    return found


def sleeping(project: Project) -> subprocess.Popen[str]:
    """A build whose last step sleeps for ever; returns when it does."""
    project.write(
        f"FROM debian:trixie AS build\nRUN echo NONCE >/first\nRUN echo running NONCE; sleep {seconds(project)}\n"
    )
    process = project.start()
    assert any(event["event"] == "step-started" for event in list(started(process)))
    return process


def finish(project: Project) -> None:
    """The build, with the sleep taken out; the finished step is not made again."""
    project.write("FROM debian:trixie AS build\nRUN echo NONCE >/first\nRUN grep NONCE /first\n")
    found = project.stage()
    assert found.status == 0
    assert ran(found) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_its_step_and_the_next_one_goes_on(
    project: Project, number: signal.Signals
) -> None:
    process = sleeping(project)
    assert sleepers(project)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert [line for line in err.splitlines() if not line.startswith("{")] == ["uklimg: interrupted"]
    assert sleepers(project) == []
    finish(project)


def test_a_killed_build_leaves_nothing_running_and_the_store_intact(project: Project, store: Store) -> None:
    process = sleeping(project)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while sleepers(project) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert sleepers(project) == []
    finish(project)
    for record in store.records():
        if record.step.startswith("stage:build"):
            assert store.lookup(record.key) is not None


def test_two_builds_at_once_make_a_step_once(project: Project, tmp_path: Path) -> None:
    project.write("FROM debian:trixie AS build\nRUN sleep 3; echo NONCE\n")
    twin = Project(tmp_path / "twin", project.nonce)
    shutil.copytree(project.folder, twin.folder)
    processes = [one.start("--format", "json") for one in (project, twin)]
    events = []
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0
        events += [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    finished = [event for event in events if event["event"] == "step-finished" and event["step"] == "stage:build:1"]
    assert len(finished) == 1


def test_a_corrupt_blob_of_the_store_is_noticed_and_made_again(project: Project, store: Store) -> None:
    project.write("FROM debian:trixie AS build\nRUN echo NONCE >/file\n")
    assert project.stage().status == 0
    steps = json.loads(project.uklimg("plan", "--target", "build", "--format", "json").out)
    key = next(step["key"] for step in steps if step["step"] == "stage:build:1")
    record = next(record for record in store.records() if str(record.key) == key)
    blob = store.blob_path(record.result.layer.digest)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(100)
        file.write(b"damage")
    found = project.stage()
    assert found.status == 0
    assert "warning: the stored result of stage:build:1 is of no use" in found.err
    assert ran(found) == 1
    assert store.verify(record.result.root)
