"""uklimg login: credentials for a registry, kept where Podman and Docker keep them."""

from __future__ import annotations

import argparse
import getpass
import sys

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.errors import ExitCode, ToolError, UserError

NAME = "login"
HELP = "check a password with a registry, and keep it for push and pull"
_MAX_PASSWORD = 64 << 10


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-u", "--username", metavar="USER", default="", help="who logs in (asked for)")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    options.add_plain_http(parser)
    parser.add_argument("host", metavar="HOST", help="the registry, HOST[:PORT]")


def run(args: argparse.Namespace, host: Host) -> int:
    registry = options.registry_of(args.host)
    user = args.username or _ask_user(args)
    secret = _read_password() if args.password_stdin else _ask_password()
    if not secret:
        raise UserError("the password is empty")
    if ":" in user or any(not char.isprintable() for char in user):
        raise UserError("a user name has no colon and no control characters")

    from uklimg.remote import login
    from uklimg.remote.auth import auth_files

    files = auth_files(host.environ, host.uid)
    where = login.login(registry, user, secret, files, host.environ, plain_http=args.plain_http)
    host.print(f"logged in to {registry.host} as {user} ({where})")
    return 0


def _ask_user(args: argparse.Namespace) -> str:
    if args.password_stdin or not sys.stdin.isatty():
        raise UserError("no user name", hint="--username USER")
    sys.stderr.write("Username: ")
    sys.stderr.flush()
    user = sys.stdin.readline().strip()
    if not user:
        raise UserError("no user name", hint="--username USER")
    return user


def _ask_password() -> str:
    if not sys.stdin.isatty():
        raise UserError("no terminal to ask for the password on", hint="--password-stdin reads a file")
    try:
        return getpass.getpass("Password: ", sys.stderr)
    except EOFError:
        raise ToolError("no password", exit_code=ExitCode.USER) from None


def _read_password() -> str:
    data = sys.stdin.buffer.read(_MAX_PASSWORD + 1)
    if len(data) > _MAX_PASSWORD:
        raise UserError("that is too long for a password")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UserError("the password is not UTF-8") from None
    # As `docker login` has it: the newline that echo or an editor leaves is not part of it.
    return text.removesuffix("\n").removesuffix("\r")
