"""The process that owns one guest: it boots it, keeps its log and state, serves commands, and starts it again.

It is started by ``client.start`` as ``python -m uklimg.running FOLDER`` in a session of its own, and gets its Task on
standard input: variables of the guest may be secrets, and are in no file and no argument list. The hypervisor is its
child and dies with it (``uklimg.proc``), so that nothing runs on when it is killed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from uklimg.errors import CorruptError, ExitCode, ToolError, UklimgError
from uklimg.guest.commands import Command
from uklimg.guest.protocol import GuestConfig, Report, ReportKind
from uklimg.oci.health import SECOND, HealthCheck
from uklimg.runner.launch import launch
from uklimg.runner.machine import Feature, Machine, MachineConfig
from uklimg.runner.stops import Stops
from uklimg.running import channels, folder, policy
from uklimg.running.channels import Ports
from uklimg.running.logs import Log
from uklimg.running.policy import Health, Restart
from uklimg.running.record import Identity, Record, Status

_LINE = 4096
_REQUEST = 10.0  # seconds that a client has to say what it wants


@dataclass(frozen=True)
class Task:
    """``env`` is for host tools."""

    record: Record
    machine: Machine
    config: MachineConfig
    guest: GuestConfig
    env: Mapping[str, str]
    restart: Restart
    health: HealthCheck | None = None


def main(path: Path, stdin: BinaryIO) -> None:
    """Until the guest has ended for good. Whatever happens is in the guest's state, or, for a bug, in TRACE."""
    # Our own parent wrote it: the same program, over an anonymous pipe, as multiprocessing does.
    task = pickle.load(stdin)
    assert isinstance(task, Task)
    supervisor = Supervisor(task, path)
    try:
        supervisor.run()
    except BaseException as error:
        supervisor.keep(status=Status.EXITED, exit=int(ExitCode.RUN_FAILED), error=f"{type(error).__name__}: {error}")
        raise


class Supervisor:
    def __init__(self, task: Task, path: Path) -> None:
        self._task = replace(task, config=held(task.config))
        self._path = path
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._stops_lock = threading.Lock()
        self._stops: Stops | None = None
        self._ports: Ports | None = None
        self._begun = 0.0
        self._record = replace(task.record, supervisor=Identity.own())
        self.keep()

    def keep(self, **changes: object) -> None:
        """Change the guest's state, here and on disk."""
        with self._lock:
            self._record = replace(self._record, **changes)  # type: ignore[arg-type]
            with suppress(FileNotFoundError):  # somebody removed it by force
                folder.write_state(self._path, self._record)

    def run(self) -> None:
        log = Log(self._path)
        server = folder.listen(self._path)
        threading.Thread(target=self._serve, args=(server,), name="clients", daemon=True).start()
        try:
            self._attempts(log)
        finally:
            log.close()
        if self._record.remove:
            shutil.rmtree(self._path, ignore_errors=True)

    def _attempts(self, log: Log) -> None:
        delay = 0.0
        while True:
            began = time.monotonic()
            code, error, ran = self._attempt(log)
            again = ran and not self._stopping.is_set() and self._task.restart.wanted(code, self._record.restarts)
            ending = {"exit": code, "error": error, "finished": time.time(), "machine": None}
            if not again:
                self.keep(status=Status.EXITED, **ending)
                return
            delay = policy.pause(delay, time.monotonic() - began)
            self.keep(status=Status.RESTARTING, health=self._first_health(), failing=0, **ending)
            if self._stopping.wait(delay):
                self.keep(status=Status.EXITED)
                return
            self.keep(restarts=self._record.restarts + 1)

    def _first_health(self) -> str:
        return policy.STARTING if self._task.health else ""

    def _attempt(self, log: Log) -> tuple[int, str, bool]:
        """One boot: the status, why there is none of the program's own, and whether starting again makes sense:
        what never ran will not."""
        over = threading.Event()
        ports = Ports() if Feature.COMMANDS in self._task.machine.features else Ports(0)
        self._begun = 0.0
        try:
            with self._stoppable() as stops:
                self._ports = ports
                outcome = launch(
                    self._task.machine,
                    self._task.config,
                    self._task.guest,
                    env=self._task.env,
                    show=log.write,
                    stops=stops,
                    on_report=lambda report: self._report(report, ports, over),
                    on_start=lambda pid: self.keep(machine=Identity.of(pid)),
                    channels=ports.theirs,
                    scratch=self._path,
                )
            return outcome.code, "", True
        except UklimgError as error:
            if error.exit_code == ExitCode.INTERRUPTED:
                self._stopping.set()
            return int(error.exit_code), error.line(), bool(self._begun) or self._record.restarts > 0
        finally:
            self._ports = None
            over.set()
            ports.close()

    @contextmanager
    def _stoppable(self) -> Iterator[Stops]:
        """Requests to stop reach what runs in the block, from clients and from signals to this process."""
        with Stops() as stops:
            with self._stops_lock:
                self._stops = stops
            if self._stopping.is_set():
                stops.request()
            try:
                yield stops
            finally:
                with self._stops_lock:
                    self._stops = None
                if stops.asked:
                    self._stopping.set()

    def _report(self, report: Report, ports: Ports, over: threading.Event) -> None:
        if report.kind is ReportKind.READY:
            ports.served = report.commands
        if report.kind is ReportKind.BEGIN and not self._begun:
            self._begun = time.monotonic()
            self.keep(
                status=Status.RUNNING,
                started=time.time(),
                health=self._first_health(),
                exit=-1,
                error="",
                finished=0.0,
            )
            if self._task.health is not None:
                watch = (self._task.health, ports, over, self._begun)
                threading.Thread(target=self._watch, args=watch, name="health", daemon=True).start()

    # ---- health

    def _watch(self, check: HealthCheck, ports: Ports, over: threading.Event, begun: float) -> None:
        health = Health()
        while not over.wait(health.delay(check, time.monotonic() - begun)):
            try:
                ran = channels.run_command(ports, Command(check.command), check.timeout / SECOND)
                passed, said = ran.status is not None and ran.status.code == 0, ran.problem or ran.output
            except (ToolError, CorruptError, OSError, ValueError) as error:
                passed, said = False, str(error)
            except EOFError:
                return
            if over.is_set():
                return
            health = health.after(check, passed, time.monotonic() - begun)
            self.keep(health=health.state, failing=health.failing, checked=said.strip()[-400:])

    # ---- clients

    def _serve(self, server: socket.socket) -> None:
        while True:
            client, _ = server.accept()
            threading.Thread(target=self._client, args=(client,), name="client", daemon=True).start()

    def _client(self, client: socket.socket) -> None:
        with client, suppress(OSError, ValueError):
            client.settimeout(_REQUEST)
            request = json.loads(read_line(client))
            client.settimeout(None)
            if request.get("do") == "stop":
                grace = request.get("grace")
                self._stop(grace if type(grace) is int and 0 <= grace <= 86400 else None)
                channels.answer(client)
            elif request.get("do") == "exec":
                ports = self._ports
                if ports is None or not self._begun or self._record.status is not Status.RUNNING:
                    message = f"{self._record.name} does not run at the moment"
                    channels.answer(client, ToolError(message))
                else:
                    channels.serve_client(ports, client, lambda: self._ports is not ports)

    def _stop(self, grace: int | None) -> None:
        with self._stops_lock:
            first = not self._stopping.is_set()
            self._stopping.set()
            if first and self._stops is not None:
                self._stops.grace = grace
                self._stops.request()


def held(config: MachineConfig) -> MachineConfig:
    """``config`` with the image's files as this process holds them open: each start finds them, also when `uklimg
    prune` or another build has taken them out of the store."""

    def hold(path: Path) -> Path:
        return Path(f"/proc/{os.getpid()}/fd/{os.open(path, os.O_RDONLY | os.O_CLOEXEC)}")

    return replace(config, kernel=hold(config.kernel), initrd=hold(config.initrd) if config.initrd else None)


def read_line(stream: socket.socket) -> bytes:
    """Up to a newline, which is not part of it; reads nothing beyond. ValueError for one that is too long."""
    line = b""
    while not line.endswith(b"\n"):
        byte = stream.recv(1)
        if not byte or len(line) > _LINE:
            raise ValueError("no request")
        line += byte
    return line[:-1]
