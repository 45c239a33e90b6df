"""uklimg push: an image of the store to a registry."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from uklimg import blueprints, oci
from uklimg.cli import options, sign, trust
from uklimg.cli.host import Host
from uklimg.console import Console, console
from uklimg.ref import Reference
from uklimg.store import Store

if TYPE_CHECKING:
    from uklimg.signing import PrivateKey

NAME = "push"
HELP = "send an image to a registry"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="an image of the store")
    parser.add_argument("to", metavar="TO", nargs="?", default="", help="HOST/NAME[:TAG], when REF names no registry")
    parser.add_argument("--no-blueprint", action="store_true", help="leave out what the image could be rebuilt from")
    parser.add_argument("--sign", metavar="KEY", default="", help="sign it with this private key, as `sign` does")
    options.add_plain_http(parser)
    options.add_progress(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    target = Reference.parse(args.to or args.ref).on_registry()
    key = trust.signing_key(args.sign, host) if args.sign else None
    with console(args.progress, host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            _, root = options.image_of(args.ref, store)
            pushed(target, root, host, store, sink, key=key, blueprint=not args.no_blueprint)
    host.print(f"{target.name}@{root.digest}")
    return 0


def pushed(
    target: Reference,
    root: oci.Descriptor,
    host: Host,
    store: Store,
    sink: Console,
    *,
    key: PrivateKey | None = None,
    blueprint: bool = True,
) -> None:
    """Send an image of the store to ``target``, signed with ``key``, and its blueprint, if it has one and that is
    wanted. The caller holds a session."""
    from uklimg.remote import client, referrers  # imports much that only few commands need

    transport = host.connect(target)
    if key is not None:
        # Before the name: whoever verifies never finds it unsigned.
        sign.sign_image(key, target, root, store, transport, sink)
    client.push(target, root, store, transport, sink)
    attached = blueprints.entry_of(store, root.digest)
    if attached is not None and blueprint:
        referrers.push_referrer(attached, root.digest, store, transport, sink)
