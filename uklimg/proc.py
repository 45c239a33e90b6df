"""The only place that starts a process, built on the ``sh`` package.

Contract: an argument list, never a shell's command line; an environment that is exactly what the caller passes;
standard input is /dev/null unless given; each process leads its own session, dies with the thread that started
it (PR_SET_PDEATHSIG), and takes its group with it: when waiting ends, for whatever reason, nothing of the group
is left running. A failure is a ToolError whose ``detail`` starts with a command one can paste.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import shlex
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from uklimg.errors import ExitCode, ToolError

Line: TypeAlias = Callable[[str], None]

# How long a process may take to end after SIGTERM, in seconds.
GRACE = 5.0
# Lines of output that an error shows.
TAIL_LINES = 40
_POLL = 0.2
_LINE_LIMIT = 1 << 16  # bytes after which a line is sent though it goes on
_PR_SET_PDEATHSIG = 1
_PASSWORD = re.compile(r"://[^/@\s]*@")  # a proxy's, in its URL
_libc = ctypes.CDLL(None, use_errno=True)

# Debian's package of each program that we start.
PACKAGES: Mapping[str, str] = {
    "buildah": "buildah",
    "diffoscope": "diffoscope-minimal",
    "docker": "docker.io",
    "docker-registry": "docker-registry",
    "gdb": "gdb",
    "gpg": "gnupg",
    "gpgv": "gpgv",
    "apt-get": "apt",
    "ip": "iproute2",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mkfs.ext4": "e2fsprogs",
    "mmd": "mtools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "redis-benchmark": "redis-tools",
    "redis-cli": "redis-tools",
    "runc": "runc",
    "sfdisk": "fdisk",
    "skopeo": "skopeo",
    "unshare": "util-linux",
    "xorriso": "xorriso",
}

_HOST_VARIABLES = (
    *("HOME", "USER", "LOGNAME", "TMPDIR"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
_SBIN = ["/usr/local/sbin", "/usr/sbin", "/sbin"]
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def host_env(environ: Mapping[str, str], **extra: str) -> dict[str, str]:
    """The smallest environment in which a host tool works: PATH, HOME, XDG folders, proxies, CA files.

    ``environ`` is the caller's (``cli`` passes ``os.environ``); ``extra`` is added last. The system's sbin folders
    are part of PATH even when the user's lacks them.
    """
    env = {name: environ[name] for name in _HOST_VARIABLES if name in environ}
    folders = environ.get("PATH", "").split(":") + _SBIN if environ.get("PATH") else [_SYSTEM_PATH]
    env["PATH"] = ":".join(dict.fromkeys(folder for folder in folders if folder))
    env["LC_ALL"] = "C.UTF-8"
    env.update(extra)
    return env


@dataclass(frozen=True)
class Completed:
    """How a process ended. ``status`` is 0-255, or minus the signal's number; ``stdout`` the exact bytes (empty
    when output was merged or sent elsewhere); ``tail`` the last lines of both outputs."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    tail: str

    @property
    def text(self) -> str:
        """Standard output as text, without white space at its end."""
        return self.stdout.decode("utf-8", "replace").rstrip()


def find(program: str, env: Mapping[str, str]) -> Path:
    """Where ``program`` is on ``env``'s PATH; ToolError HOST naming the package when it is nowhere."""
    found = shutil.which(program, path=env.get("PATH", _SYSTEM_PATH))
    if found is None:
        name = Path(program).name
        raise ToolError(f"{name} is not installed", hint=f"apt-get install {PACKAGES.get(name, name)}")
    return Path(found).absolute()


def pasteable(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> str:
    """The command line that starts the same process from a shell; passwords inside URLs are masked."""
    variables = [f"{name}={_PASSWORD.sub('://***@', value)}" for name, value in sorted(env.items())]
    command = shlex.join(["env", "-i", *variables, *argv])
    return f"cd {shlex.quote(str(cwd))} && {command}" if cwd else command


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    on_line: Line | None = None,
    stdin: bytes | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    merge: bool = False,
    check: bool = True,
    timeout: float | None = None,
    cancel: threading.Event | None = None,
    grace: float = GRACE,
) -> Completed:
    """Start ``argv``, wait for its end and return how it ended.

    ``on_line`` gets every line of both outputs, without its newline, from one thread at a time. ``stdout`` sends
    standard output to an open file instead; ``merge`` sends standard error where standard output goes. With
    ``check`` a status other than 0 is a ToolError (exit code HOST; callers who know better raise their own).
    ``timeout`` in seconds and ``cancel`` end the process; the first is a ToolError, the second KeyboardInterrupt.
    """
    process = spawn(argv, env=env, cwd=cwd, on_line=on_line, stdin=stdin, stdout=stdout, merge=merge, keep=True)
    try:
        waited = 0.0
        while not process.ended(_POLL):
            waited += _POLL
            if cancel is not None and cancel.is_set():
                raise KeyboardInterrupt
            if timeout is not None and waited >= timeout:
                raise process.error(f"{process.name} did not end within {timeout:g} seconds")
    finally:
        process.terminate(grace)
    result = process.completed()
    if check and result.status != 0:
        raise process.error(f"{process.name} {describe(result.status)}")
    return result


def describe(status: int) -> str:
    """ "ended with status 2", "was ended by SIGKILL"."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


class _Output:
    """Collects both outputs of a process; ``sh`` calls from one thread a process, the lock is for our readers."""

    def __init__(self, on_line: Line | None, keep: bool) -> None:
        self._on_line = on_line
        self._keep = keep
        self._lock = threading.Lock()
        self._chunks: list[bytes] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.failure: BaseException | None = None

    def line(self, text: str) -> None:
        with self._lock:
            self._tail.append(text)
        if self._on_line is not None and self.failure is None:
            try:
                self._on_line(text)
            except BaseException as error:  # raised again by the waiting thread
                self.failure = error

    def keep(self, chunk: bytes) -> None:
        if self._keep:
            self._chunks.append(chunk)

    @property
    def stdout(self) -> bytes:
        return b"".join(self._chunks)

    @property
    def tail(self) -> str:
        with self._lock:
            return "\n".join(self._tail)


class _Pipe:
    """What ``sh`` writes the bytes of one output to; cuts them into lines."""

    def __init__(self, output: _Output, keep: bool) -> None:
        self._output = output
        self._keep = keep
        self._rest = b""

    def write(self, chunk: bytes) -> None:
        if self._keep:
            self._output.keep(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._send(line)
        if len(self._rest) > _LINE_LIMIT:
            self.flush_rest()

    def flush_rest(self) -> None:
        if self._rest:
            self._send(self._rest)
            self._rest = b""

    def _send(self, line: bytes) -> None:
        self._output.line(line.decode("utf-8", "replace").rstrip("\r"))


def _prepare_child(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        os.umask(0o022)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        die_with(parent)

    return prepare


def die_with(parent: int) -> None:
    """From now on this process gets SIGKILL when its parent, the process ``parent``, ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


class Process:
    """A running process; made by ``spawn``. Use it as a context manager, or call ``terminate``."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, output: _Output, pipes: Sequence[_Pipe]
    ) -> None:
        self.argv = tuple(argv)
        self._env = dict(env)
        self._cwd = cwd
        self._output = output
        self._pipes = pipes
        self._pidfd = -1
        self._done = False
        self._command: Any = None

    @property
    def name(self) -> str:
        return Path(self.argv[0]).name

    @property
    def pid(self) -> int:
        """Its process id, which is its group's and session's id too."""
        return int(self._command.pid)

    @property
    def tail(self) -> str:
        """The last lines that it has printed so far."""
        return self._output.tail

    def _start(self, options: Mapping[str, Any]) -> None:
        import sh  # not free to import, and a build in which nothing changed starts no process

        program = find(self.argv[0], self._env)
        if self._cwd is not None and not self._cwd.is_dir():
            raise ToolError(f"no folder {self._cwd} to run {self.name} in")
        try:
            command: Any = sh.Command(str(program))  # untyped: ``sh`` types only literal options
            self._command = command(
                *self.argv[1:],
                _env=self._env,
                _cwd=str(self._cwd) if self._cwd else None,
                _bg=True,
                _bg_exc=False,
                _new_session=True,
                _tty_out=False,
                _ok_code=list(range(-255, 256)),
                _preexec_fn=_prepare_child(os.getpid()),
                **options,
            )
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # it has ended and ``sh`` has reaped it
            return
        except (sh.ForkException, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise self.error(f"{self.name} cannot be started: {reason}") from error

    def _over(self, timeout: float | None) -> bool:
        """Wait for its end without reaping it. ``sh`` itself waits for the end of output, which a daemon that the
        process left behind can put off for ever."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def ended(self, timeout: float | None = 0) -> bool:
        """Whether it has ended; waits up to ``timeout`` seconds. Raises what ``on_line`` raised."""
        over = self._over(timeout)
        if self._output.failure is not None:
            raise self._output.failure
        return over

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit status (minus the signal's number), or None when ``timeout`` seconds did not suffice."""
        return self.completed().status if self._over(timeout) else None

    def signal(self, number: int) -> None:
        """Send a signal to the whole group; nothing happens when it is gone."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def terminate(self, grace: float = GRACE) -> int:
        """End the group (SIGTERM, and SIGKILL after ``grace`` seconds) and return the exit status."""
        if not self._over(0):
            self.signal(signal.SIGTERM)
            self._over(grace)
        return self.completed().status

    def completed(self) -> Completed:
        """How it ended. Ends it and what it left behind, should they still run."""
        if not self._done:
            self.signal(signal.SIGKILL)
            self._command.wait()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
            for pipe in self._pipes:
                pipe.flush_rest()
            self._done = True
        if self._output.failure is not None:
            raise self._output.failure
        return Completed(self.argv, int(self._command.exit_code), self._output.stdout, self._output.tail)

    def error(self, message: str, *, exit_code: ExitCode = ExitCode.HOST, hint: str = "") -> ToolError:
        """A ToolError about this process, with the command to paste and the last lines it printed."""
        detail = f"$ {pasteable(self.argv, self._env, self._cwd)}"
        if self.tail:
            detail += f"\n{self.tail}"
        return ToolError(message, hint=hint, exit_code=exit_code, detail=detail)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    on_line: Line | None = None,
    stdin: bytes | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    merge: bool = False,
    keep: bool = False,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start ``argv`` and return at once. Parameters as for ``run``; ``keep`` collects standard output for
    ``completed``; ``pass_fds`` stay open in it.

    The process gets SIGKILL when the *thread* that called this ends, so start it from one that lives as long.
    """
    output = _Output(on_line, keep and not merge)
    out, err = _Pipe(output, keep=True), _Pipe(output, keep=False)
    process = Process(argv, env, cwd, output, (out, err))
    with Path(os.devnull).open("rb") as null:
        options: dict[str, Any] = {
            "in": null if stdin is None else stdin,
            "out": out if stdout is None else stdout,
        }
        if merge:
            options["err_to_out"] = True
        else:
            options["err"] = err
        if pass_fds:
            options["pass_fds"] = set(pass_fds)
        process._start({f"_{name}": value for name, value in options.items()})
    return process


class Detached:
    """A process that goes on without us; made by ``detach``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """Its exit status (minus the signal's number) once it has ended; None while it runs."""
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = self.pid, 0
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status


def detach(argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes, log: Path) -> Detached:
    """Start ``argv`` in a session of its own, where it outlives us: in ``/``, with nothing of ours open but ``stdin``
    (which it reads to its end) and the file ``log`` for what it prints."""
    import subprocess  # `sh` ends its processes with us

    program = find(argv[0], env)
    # Memory, not a file: it may hold secrets, and a pipe would keep us until it is read.
    with log.open("ab") as output, os.fdopen(os.memfd_create("stdin"), "w+b") as given:
        given.write(stdin)
        given.flush()
        given.seek(0)
        process = subprocess.Popen(
            [str(program), *argv[1:]],
            env=dict(env),
            cwd="/",
            stdin=given,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process.returncode = 0  # it is not for the module to wait for
    return Detached(process.pid)
