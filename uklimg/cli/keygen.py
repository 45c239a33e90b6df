"""uklimg keygen: a pair of keys for signing images."""

from __future__ import annotations

import argparse

from uklimg.cli import trust
from uklimg.cli.host import Host

NAME = "keygen"
HELP = "make a pair of keys for signing images"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", default="uklimg", help="the files are NAME.key and NAME.pub (uklimg)"
    )
    parser.add_argument("--no-password", action="store_true", help="do not encrypt the private key")


def run(args: argparse.Namespace, host: Host) -> int:
    from uklimg import signing

    private, public = host.path(f"{args.name}.key"), host.path(f"{args.name}.pub")
    trust.refuse_existing(private, public)
    secret = b"" if args.no_password else trust.password(host, "Password (none: not encrypted): ", twice=True)
    key = signing.new_key()
    trust.write_new(private, key.encrypted(secret) if secret else key.pkcs8(), 0o600)
    trust.write_new(public, key.public.pem(), 0o644)
    host.print(f"{private.name} {public.name} sha256:{key.public.fingerprint}")
    return 0
