"""Real processes through ``proc``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from uklimg import proc
from uklimg.errors import ExitCode, ToolError

pytestmark = pytest.mark.integration

ENV = proc.host_env({"PATH": os.environ["PATH"]})


def wait_for(condition: Callable[[], bool]) -> None:
    """Until ``condition`` holds; fails after half a minute."""
    pause = threading.Event()
    for _ in range(600):
        if condition():
            return
        pause.wait(0.05)
    pytest.fail("it did not happen within 30 seconds")


def gone(pid: int) -> bool:
    """Whether the process has ended (a zombie that init has not reaped yet has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_output_bytes_lines_and_empty_surroundings() -> None:
    lines: list[str] = []
    script = r"printf '\377x\0y\n'; echo error >&2; read line; echo \"[$line]\"; umask; env | cut -d= -f1 | sort"
    result = proc.run(
        ["sh", "-c", script.replace('\\"', '"')], env={"PATH": ENV["PATH"], "ONE": "1"}, on_line=lines.append
    )
    assert result.status == 0
    assert result.stdout == b"\xffx\0y\n[]\n0022\nONE\nPATH\nPWD\n"
    assert "error" in lines and "ONE" in lines
    assert "error" in result.tail


def test_stdin_bytes_and_files(tmp_path: Path) -> None:
    assert proc.run(["cat"], env=ENV, stdin=b"a\nb").stdout == b"a\nb"
    source, sink = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(300_000))
    with source.open("rb") as stdin, sink.open("wb") as stdout:
        proc.run(["cat"], env=ENV, stdin=stdin, stdout=stdout)
    assert sink.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(("merge", "written", "seen"), [(False, "out\n", "error"), (True, "out\nerror\n", "")])
def test_output_to_a_file_of_a_running_process(tmp_path: Path, merge: bool, written: str, seen: str) -> None:
    sink = tmp_path / "out"
    with sink.open("wb") as stdout:
        script = "echo out; echo error >&2"
        with proc.spawn(["sh", "-c", script], env=ENV, stdout=stdout, merge=merge, keep=True) as process:
            assert process.wait(60) == 0
        completed = process.completed()
    assert sink.read_text() == written
    assert (completed.stdout, completed.tail) == (b"", seen)


def test_much_binary_output_is_kept_exactly() -> None:
    assert proc.run(["head", "-c", "3000000", "/dev/zero"], env=ENV).stdout == bytes(3_000_000)


def test_merge_keeps_order() -> None:
    lines: list[str] = []
    proc.run(["sh", "-c", "echo 1; echo 2 >&2; echo 3"], env=ENV, merge=True, on_line=lines.append)
    assert lines == ["1", "2", "3"]


def test_failure_shows_command_and_tail() -> None:
    with pytest.raises(ToolError) as caught:
        proc.run(["sh", "-c", "echo 'it broke' >&2; exit 3"], env={"PATH": ENV["PATH"]})
    error = caught.value
    assert error.line() == "sh ended with status 3"
    assert error.exit_code is ExitCode.HOST
    command, *tail = error.detail.splitlines()
    assert tail == ["it broke"]
    again = subprocess.run(["bash", "-c", command.removeprefix("$ ")], capture_output=True, check=False)
    assert (again.returncode, again.stderr) == (3, b"it broke\n")


def test_status_without_check_and_signals() -> None:
    assert proc.run(["sh", "-c", "exit 9"], env=ENV, check=False).status == 9
    assert proc.run(["sh", "-c", "kill -9 $$"], env=ENV, check=False).status == -signal.SIGKILL


def test_a_file_that_cannot_be_executed(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    with pytest.raises(ToolError, match="program cannot be started"):
        proc.run([str(program)], env=ENV)
    with pytest.raises(ToolError, match="no folder"):
        proc.run(["true"], env=ENV, cwd=tmp_path / "missing")


def test_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 1000 & echo $! > child; sleep 1000"
    with pytest.raises(ToolError, match="did not end within"):
        proc.run(["sh", "-c", script], env=ENV, cwd=tmp_path, timeout=0.4, grace=0.2)
    wait_for(lambda: gone(int((tmp_path / "child").read_text())))


def test_what_a_process_leaves_behind_is_ended(tmp_path: Path) -> None:
    proc.run(["sh", "-c", "sleep 1000 & echo $! > child"], env=ENV, cwd=tmp_path)
    wait_for(lambda: gone(int((tmp_path / "child").read_text())))


def test_cancel_from_another_thread() -> None:
    cancel = threading.Event()

    def on_line(line: str) -> None:
        cancel.set()

    with pytest.raises(KeyboardInterrupt):
        proc.run(["sh", "-c", "echo up; exec sleep 1000"], env=ENV, cancel=cancel, on_line=on_line)


def test_an_exception_of_the_callback_ends_the_process_and_comes_out() -> None:
    pids: list[int] = []

    def on_line(line: str) -> None:
        pids.append(int(line))
        raise ValueError(line)

    with pytest.raises(ValueError, match=r"\d+"):
        proc.run(["sh", "-c", "echo $$; exec sleep 1000"], env=ENV, on_line=on_line)
    wait_for(lambda: gone(pids[0]))


def test_spawn_streams_and_terminates() -> None:
    seen = threading.Event()

    def on_line(line: str) -> None:
        if line == "ready":
            seen.set()

    with proc.spawn(["sh", "-c", "echo ready; exec sleep 1000"], env=ENV, on_line=on_line) as process:
        assert seen.wait(30)
        assert process.wait(0) is None
        assert not process.ended()
        pid = process.pid
        assert os.getsid(pid) == pid
    assert process.completed().status == -signal.SIGTERM
    assert gone(pid)


def test_spawn_returns_the_status() -> None:
    process = proc.spawn(["sh", "-c", "echo out; exit 5"], env=ENV, keep=True)
    assert process.wait() == 5
    assert process.completed().text == "out"
    assert process.terminate() == 5


PARENT = """
import sys
from pathlib import Path
from uklimg import proc
script = "echo $$ > child; exec sleep 1000"
proc.run(["sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, cwd=Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_us(tmp_path: Path, number: int) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.DEVNULL)
    child = tmp_path / "child"
    wait_for(lambda: child.exists() and child.read_text().endswith("\n"))
    parent.send_signal(number)
    assert parent.wait(60) != 0
    wait_for(lambda: gone(int(child.read_text())))
