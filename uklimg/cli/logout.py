"""uklimg logout: forget what `login` (or Podman's, or Docker's) kept for a registry."""

from __future__ import annotations

import argparse

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.errors import ExitCode, ToolError

NAME = "logout"
HELP = "forget the credentials for a registry"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="HOST", help="the registry, HOST[:PORT]")


def run(args: argparse.Namespace, host: Host) -> int:
    from uklimg.remote.auth import auth_files
    from uklimg.remote.authfile import AuthWriter

    registry = options.registry_of(args.host).host
    done = AuthWriter(auth_files(host.environ, host.uid), host.environ).erase(registry)
    if not done:
        raise ToolError(f"nobody is logged in to {registry}", exit_code=ExitCode.NOT_FOUND)
    host.print(f"logged out of {registry} ({', '.join(done)})")
    return 0
