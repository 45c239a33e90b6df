"""uklimg exec: run a command in ring 3, beside a guest's program."""

from __future__ import annotations

import argparse
import os
import sys

from uklimg.cli import options
from uklimg.cli.guests import guests_of
from uklimg.cli.host import Host
from uklimg.cli.run import variables, writer
from uklimg.errors import UserError
from uklimg.guest.commands import Command
from uklimg.running import client

NAME = "exec"
HELP = "run a command of the image beside its program"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--interactive", action="store_true", help="connect standard input")
    parser.add_argument("-t", "--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("-e", "--env", metavar="NAME=VALUE", action="append", default=[], help="set a variable")
    parser.add_argument("-w", "--workdir", metavar="PATH", default="", help="where it starts (the program's folder)")
    parser.add_argument("guest", metavar="GUEST", help="name or id of a guest")
    parser.add_argument("command", metavar="COMMAND", help="a program of the image")
    options.add_arguments(parser, "its arguments")


def run(args: argparse.Namespace, host: Host) -> int:
    if args.workdir and not args.workdir.startswith("/"):
        raise UserError(f"-w {args.workdir}: not an absolute path")
    stdin = sys.stdin.fileno() if args.interactive else None
    if args.tty and stdin is not None and not os.isatty(stdin):
        raise UserError("-t needs a terminal as standard input", hint="-i alone is for pipes")
    rows, columns = client.window_size(stdin)
    env = variables(args.env, host)
    if args.tty:
        env.setdefault("TERM", host.environ.get("TERM", "xterm"))
    argv = (args.command, *args.arguments)
    command = Command(argv, env, args.workdir, terminal=args.tty, rows=rows, columns=columns)
    guests = guests_of(host)
    record = guests.find(args.guest)
    ending = client.execute(guests, record, command, stdin=stdin, out=writer(host), err=writer(host, host.stderr))
    return ending.code
