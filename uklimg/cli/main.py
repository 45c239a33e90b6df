"""The entry point: reads the command line, runs a verb, prints errors, and is the only place that exits."""

from __future__ import annotations

import argparse
import difflib
import os
import select
import signal
import sys
import traceback
import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn, TextIO

from uklimg import __version__
from uklimg.cli import examples
from uklimg.cli.host import Host
from uklimg.console import clean
from uklimg.errors import ExitCode, UklimgError
from uklimg.settings import DEBUG_VARIABLE, NAME, read_settings

# Modules of this package, in the order in which --help lists them.
VERBS = (
    "init",
    "check",
    "build",
    "run",
    "ps",
    "logs",
    "exec",
    "stop",
    "wait",
    "rm",
    "test",
    "bench",
    "profile",
    "plan",
    "explain",
    "lock",
    "vendor",
    "images",
    "inspect",
    "history",
    "diff",
    "tag",
    "rmi",
    "push",
    "pull",
    "login",
    "logout",
    "artifacts",
    "keygen",
    "sign",
    "save",
    "load",
    "export",
    "verify",
    "du",
    "prune",
    "completion",
)


COMPLETION = "completion"
HELP = "help"
# Verbs that end as what they run does.
RUNNING = ("run", "exec")
STORE = "--store"


def entry() -> NoReturn:
    """The console script."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    sys.exit(main(sys.argv[1:], os.environ, Path.cwd(), os.getuid(), sys.stdout, sys.stderr))


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ended politely, whoever asks: steps are stopped and nothing half-made stays."""
    raise KeyboardInterrupt


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, as everything else does."""

    def error(self, message: str) -> NoReturn:
        self.exit(int(ExitCode.USAGE), f"{self.prog}: {message} ({self.prog} --help)\n")


def named_verb(argv: Sequence[str]) -> str:
    """The word in the place of a verb, "" when there is none."""
    words = iter(argv)
    for word in words:
        if word == STORE:
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


def verbs(argv: Sequence[str] = ()) -> tuple[ModuleType, ...]:
    """The modules of the verbs that ``argv`` may mean: where it names one, only that, because importing all takes
    longer than a build in which nothing changed."""
    named = named_verb(argv)
    # All are wanted for --help, for messages, and for completion.
    wanted = (named,) if named in VERBS and named != COMPLETION else VERBS
    return tuple(import_module(f"uklimg.cli.{name}") for name in wanted)


def parser(argv: Sequence[str] = ()) -> Parser:
    """For ``argv``, of which only a verb matters."""
    top = Parser(prog=NAME, description="Build, ship and run Linux unikernels from a Uklfile.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    top.add_argument(STORE, metavar="DIR", default="", help="the folder of images and cached steps")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="verb", required=True)
    for module in verbs(argv):
        verb = commands.add_parser(
            module.NAME,
            help=module.HELP,
            description=module.HELP,
            epilog=examples.epilog(module.NAME),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add(verb)
        verb.set_defaults(function=module.run, top=top, own=verb)
    return top


def read(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line says. SystemExit for --help, and for what is wrong, with the help of the verb at hand."""
    if argv[:1] == [HELP]:
        argv = [*argv[1:2], "--help"]
    named = named_verb(argv)
    top = parser(argv)
    if named and named not in VERBS:
        near = difflib.get_close_matches(named, VERBS, n=1)
        top.error(f"there is no command {named!r}{f', did you mean {near[0]}?' if near else ''}")
    args, left = top.parse_known_args(argv)
    if left:
        args.own.error(f"unrecognized arguments: {' '.join(left)}")
    return args


def main(argv: Sequence[str], environ: Mapping[str, str], cwd: Path, uid: int, stdout: TextIO, stderr: TextIO) -> int:
    """Run one command and return its exit status; raises SystemExit only for usage errors and --help."""
    if not argv:
        parser().print_help(stderr)
        return int(ExitCode.USAGE)
    args = read(argv)
    failed = ExitCode.RUN_FAILED if args.verb in RUNNING else None
    state = Path("/tmp")
    try:
        settings = read_settings(environ, cwd, store=args.store, engine=getattr(args, "engine", ""))
        state = settings.state
        plain_http = getattr(args, "plain_http", None)
        status = args.function(args, Host(environ, cwd, uid, stdout, stderr, settings, plain_http))
        stdout.flush()
        return int(status)
    except UklimgError as error:
        _print_error(error, stderr)
        interrupted = error.exit_code == ExitCode.INTERRUPTED
        return int(error.exit_code if failed is None or interrupted else failed)
    except KeyboardInterrupt:
        _say(stderr, f"{NAME}: interrupted")
        return int(ExitCode.INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _deserted(stdout):
            # Whoever read us is gone (`uklimg images | head`): end quietly, and keep Python from flushing again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
            return int(ExitCode.OK)
        if environ.get(DEBUG_VARIABLE):
            traceback.print_exc(file=stderr)
        _say(stderr, f"{NAME}: bug: {type(error).__name__}: {error} ({_keep_traceback(state)})".replace("\n", " "))
        return int(ExitCode.BUG if failed is None else failed)


def _deserted(stream: TextIO) -> bool:
    """Whether ``stream`` is a pipe that nobody reads any more. Other pipes break, too, and say nothing of success."""
    look = select.poll()
    try:
        look.register(stream.fileno(), 0)
    except OSError:  # no file
        return False
    return bool(look.poll(0))


def _print_error(error: UklimgError, stderr: TextIO) -> None:
    if error.detail:
        _say(stderr, error.detail)
    for line in error.line().splitlines():
        _say(stderr, f"{NAME}: {line}")


def _say(stderr: TextIO, text: str) -> None:
    try:
        for line in text.splitlines():
            stderr.write(f"{clean(line)}\n")
        stderr.flush()
    except (OSError, ValueError):
        return  # nobody listens; the exit status says it too


def _keep_traceback(state: Path) -> str:
    """Write the traceback to a file; says where it is."""
    path = state / f"traceback-{uuid.uuid4().hex[:8]}.txt"
    try:
        state.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return f"{DEBUG_VARIABLE}=1 shows where"
    return f"please report it with {path}"
