"""`uklimg run` as a user starts it, with Redis inside; and what is needed to talk to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from uklimg.runner.network import free_port

ROOT = Path(__file__).resolve().parents[2]
PORT = 6379  # what Redis listens on in the guest
# Seconds after which one try of a client ends: QEMU takes connections before the guest does.
_TRY = 15


@dataclass(frozen=True)
class Ended:
    """How a command ended; the texts are what it wrote."""

    status: int
    stdout: str
    stderr: str


def uklimg_cmd(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "uklimg", *arguments]


def uklimg_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tests' own environment, in which this checkout's package is found whatever the current folder is."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(extra or {})}


def uklimg(*arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Ended:
    """Run the command line to its end."""
    done = subprocess.run(
        uklimg_cmd(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=cwd,
        env=uklimg_env(env),
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Server:
    """A running `uklimg run`; ``port`` of this machine leads to Redis."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, stdout: Path, stderr: Path) -> None:
        self.process = process
        self.port = port
        self._stdout = stdout
        self._stderr = stderr

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def client_cmd(self, *words: str) -> list[str]:
        return ["redis-cli", "-e", "-h", "127.0.0.1", "-p", str(self.port), *words]

    def __call__(self, *words: str, stdin: bytes = b"") -> str:
        """One command through redis-cli; fails for an error reply."""
        done = subprocess.run(self.client_cmd(*words), input=stdin, capture_output=True, check=False)
        output = done.stdout.decode(errors="replace").rstrip("\n")
        assert done.returncode == 0, f"redis-cli {words}: {output}{done.stderr.decode(errors='replace')}"
        return output

    def wait_ready(self) -> None:
        """Until Redis answers; fails when the run ends instead."""
        while not self._answers():
            assert self.process.poll() is None, f"it ended: {self.stdout}\n{self.stderr}"
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            done = subprocess.run(self.client_cmd("PING"), capture_output=True, timeout=_TRY, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.stdout == b"PONG\n"

    def info(self, section: str) -> Mapping[str, str]:
        pairs = (line.partition(":") for line in self("INFO", section).splitlines())
        return {name: value.strip() for name, _, value in pairs if value}

    def wait_info(self, section: str, name: str, value: str) -> None:
        """Until a field of INFO has a value."""
        while self.info(section)[name] != value:
            time.sleep(0.1)

    def interrupt(self) -> None:
        """Ctrl-C in a terminal: SIGINT for the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, *words: str) -> Ended:
        """Send ``words`` (SHUTDOWN as a rule), if any, and wait for the run's end."""
        if words:
            subprocess.run(self.client_cmd(*words), capture_output=True, check=False)
        status = self.process.wait()
        return Ended(status, self.stdout, self.stderr)


@contextmanager
def serving(
    argv: Sequence[str], port: int, out: Path, err: Path, *, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run ``argv``, which writes to ``out`` and ``err``, until Redis answers. Ends it if nobody else did."""
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, start_new_session=True
        )
    try:
        server = Server(process, port, out, err)
        server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            process.kill()  # its virtual machine dies with it
        process.wait()


@contextmanager
def redis(
    ref: str,
    folder: Path,
    *options: str,
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Boot ``ref`` with ``options`` of `uklimg run` and wait until Redis answers. Ends the run if nobody else did.

    ``folder`` gets the files with what it writes.
    """
    port = free_port()
    number = len(list(folder.glob("run-*.out")))
    out, err = folder / f"run-{number}.out", folder / f"run-{number}.err"
    argv = uklimg_cmd("run", "-p", f"{port}:{PORT}", *options, ref, *command)
    with serving(argv, port, out, err, env=uklimg_env(env)) as server:
        yield server
