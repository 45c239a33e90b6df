"""uklimg sign: a signature for an image that a registry has."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from uklimg import attachments, oci
from uklimg.cli import options, trust
from uklimg.cli.host import Host
from uklimg.console import Console, console
from uklimg.errors import ExitCode, ToolError
from uklimg.ref import Reference
from uklimg.store import Store

if TYPE_CHECKING:
    from uklimg.remote.transport import Transport
    from uklimg.signing import PrivateKey

NAME = "sign"
HELP = "sign an image, and put the signature beside it in its registry"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key", metavar="FILE", required=True, help="the private key: `keygen`, cosign or openssl make one"
    )
    parser.add_argument("ref", metavar="REF", help="an image of the store, or HOST/NAME@DIGEST")
    parser.add_argument("to", metavar="TO", nargs="?", default="", help="HOST/NAME, when REF names no registry")
    options.add_plain_http(parser)
    options.add_progress(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    target = Reference.parse(args.to or args.ref).on_registry()
    key = trust.signing_key(args.key, host)
    with console(args.progress, host.stderr) as sink:
        store = host.store(sink)
        transport = host.connect(target)
        with store.session():
            root = _root(args.ref, target, store, transport)
            # What is attached here and there.
            parts = [e for e in attachments.entries(store, root.digest) if transport.has_manifest(e.digest)]
            count = sign_image(key, target, root, parts, store, transport, sink)
    host.print(f"{target.name}@{root.digest} {count} signatures with sha256:{key.public.fingerprint}")
    return 0


def _root(text: str, target: Reference, store: Store, transport: Transport) -> oci.Descriptor:
    """What is to be signed: an image that is here, or one that is named by its digest. What a tag means is the
    registry's word, and nobody should sign that."""
    from uklimg.remote import client

    if options.find_image(text, store) is None and not text.startswith("sha256:"):
        ref = Reference.parse(text)
        if ref.host and ref.digest is not None:
            return client.fetch_manifests(ref, store, transport)
    _, root = options.image_of(text, store)
    if not transport.has_manifest(root.digest):
        raise ToolError(
            f"{target.name} has no {root.digest}", hint="`uklimg push` it first", exit_code=ExitCode.NOT_FOUND
        )
    return root


def sign_image(
    key: PrivateKey,
    target: Reference,
    root: oci.Descriptor,
    parts: Sequence[oci.Descriptor],
    store: Store,
    transport: Transport,
    sink: Console,
) -> int:
    """Sign an index or manifest, the manifests in it, and ``parts``, which are attached to it; how many that was.

    Each is signed as an image of the repository, and the signature put beside it there. The caller holds a session.
    """
    from uklimg import signing
    from uklimg.remote.signatures import push_signature

    count = 0
    for subject in (root, *_below(store, root), *parts):
        signed = key.sign(signing.payload_of(signing.Claim(subject.digest, target.name)))
        push_signature(signed, subject, store, transport, sink, refer=subject == root)
        if subject == root:
            attachments.keep_signature(store, signed, root)
        count += 1
    return count


def _below(store: Store, root: oci.Descriptor) -> Iterator[oci.Descriptor]:
    """The manifests of an index: runtimes that choose one of them look for its own signature."""
    if root.media_type in oci.INDEXES:
        for entry in oci.parse_index(store.read_blob(root.digest), str(root.digest)).manifests:
            if entry.media_type in oci.MANIFESTS:
                yield entry.bare()
