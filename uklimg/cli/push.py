"""uklimg push: an image of the store to a registry."""

from __future__ import annotations

import argparse

from uklimg import blueprints
from uklimg.cli import options, sign, trust
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.ref import Reference

NAME = "push"
HELP = "send an image to a registry"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="an image of the store")
    parser.add_argument("to", metavar="TO", nargs="?", default="", help="HOST/NAME[:TAG], when REF names no registry")
    parser.add_argument("--no-blueprint", action="store_true", help="leave out what the image could be rebuilt from")
    parser.add_argument("--sign", metavar="KEY", default="", help="sign it with this private key, as `sign` does")
    options.add_progress(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    from uklimg.remote import client, referrers  # imports much that only few commands need

    target = Reference.parse(args.to or args.ref).on_registry()
    key = trust.signing_key(args.sign, host) if args.sign else None
    with console(args.progress, host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            _, root = options.image_of(args.ref, store)
            transport = client.connect(target, host.environ, host.uid)
            if key is not None:
                # Before the name: whoever verifies never finds it unsigned.
                sign.sign_image(key, target, root, store, transport, sink)
            client.push(target, root, store, transport, sink)
            blueprint = blueprints.entry_of(store, root.digest)
            if blueprint is not None and not args.no_blueprint:
                referrers.push_referrer(blueprint, root.digest, store, transport, sink)
    host.print(f"{target.name}@{root.digest}")
    return 0
