"""Sending an image to a registry with all that belongs to it; for `push`, and whoever else ends with it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uklimg import attached, blueprints, oci
from uklimg.attached import Kind
from uklimg.cli import artifacts, sign, trust
from uklimg.cli.host import Host
from uklimg.console import Console
from uklimg.errors import UserError
from uklimg.ref import Reference
from uklimg.store import Store

if TYPE_CHECKING:
    from uklimg.signing import PrivateKey

ALL, NONE = "all", "none"
USUAL = artifacts.parse_kinds(list(artifacts.PUSHED))
"""What is attached unless somebody says otherwise."""


@dataclass(frozen=True)
class Publishing:
    """What goes along: ``kinds`` of artifacts beside the blueprint; a signature of ``key`` on everything."""

    blueprint: bool = True
    kinds: tuple[Kind, ...] = ()
    builder: str = ""
    key: PrivateKey | None = field(default=None, repr=False)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-blueprint", action="store_true", help="attach nothing of what it was made from")
    parser.add_argument(
        "--attach",
        metavar="KIND,…",
        default="",
        help=f"what else to attach: {', '.join(attached.KINDS)}, {ALL} or {NONE} ({','.join(artifacts.PUSHED)})",
    )
    parser.add_argument("--builder", metavar="URI", default="", help="who built it, for the provenance")
    parser.add_argument("--sign", metavar="KEY", default="", help="sign it with this private key, as `sign` does")


def publishing(args: argparse.Namespace, host: Host) -> Publishing:
    """What the command line says; UserError for what makes no sense, before anything is sent."""
    if args.attach in (ALL, NONE):
        kinds = tuple(attached.KINDS.values()) if args.attach == ALL else ()
    elif args.attach:
        kinds = artifacts.parse_kinds(args.attach.split(","))
    else:
        kinds = () if args.no_blueprint else USUAL
    if args.builder and attached.PROVENANCE not in kinds:
        raise UserError("--builder is for the provenance, which is not attached")
    key = trust.signing_key(args.sign, host) if args.sign else None
    return Publishing(not args.no_blueprint, kinds, args.builder, key)


def publish(
    target: Reference, root: oci.Descriptor, wanted: Publishing, store: Store, host: Host, sink: Console
) -> None:
    """Send an image and name it ``target``. Signatures come first, so that whoever verifies never finds the name
    without them. The caller holds a session. Errors: as ``client.push``."""
    from uklimg.remote import client, referrers  # imports much that only few commands need

    transport = host.connect(target)
    parts: list[oci.Descriptor] = []
    carried = blueprints.entry_of(store, root.digest)
    if carried is not None and wanted.blueprint:
        parts.append(carried)
    if wanted.kinds:
        parts += artifacts.evidence_of(host, store, wanted.builder).attach(root, wanted.kinds)
    if wanted.key is not None:
        sign.sign_image(wanted.key, target, root, parts, store, transport, sink)
    client.push(target, root, store, transport, sink)
    for part in parts:
        referrers.push_referrer(part, root.digest, store, transport, sink)
