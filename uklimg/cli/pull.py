"""uklimg pull: an image of a registry into the store."""

from __future__ import annotations

import argparse

from uklimg import blueprint, oci
from uklimg.cli import options, trust
from uklimg.cli.host import Host
from uklimg.console import Console, console
from uklimg.errors import ToolError
from uklimg.events import Note
from uklimg.ref import Reference
from uklimg.store import Store

NAME = "pull"
HELP = "bring an image of a registry into the store"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="HOST/NAME[:TAG][@DIGEST]")
    trust.add_verify(parser)
    options.add_plain_http(parser)
    options.add_progress(parser)


def pulled(
    ref: Reference, store: Store, host: Host, sink: Console, check: trust.Check | None = None
) -> oci.Descriptor:
    """The image with its blueprint, if it has one. The caller holds a session.

    A blueprint that cannot be brought is a warning: the image is complete without. With ``check`` both must be
    signed; what is not is refused before anything of it is kept.
    """
    from uklimg.remote import client, referrers  # imports much that only few commands need

    transport = host.connect(ref)
    root = client.pull(ref, store, transport, sink, admit=check.at(ref, transport) if check else None)
    if check is not None:
        from uklimg import attachments

        attachments.keep_signature(store, check.seen[root.digest], root)
    try:
        admit = check.at(ref, transport, "its blueprint") if check else None
        found = referrers.pull_referrer(ref, root.digest, blueprint.ARTIFACT, store, transport, sink, admit=admit)
        if found is not None:
            from uklimg import blueprints  # takes as long to import as to ask the registry

            blueprints.read_artifact(store, found, root.digest)
            blueprints.put_entry(store, blueprint.entry(found, root.digest))
    except ToolError as error:
        sink(Note(f"{ref} comes without its blueprint: {error.line()}", warning=True))
    return root


def find_or_pull(
    text: str, host: Host, store: Store, sink: Console, check: trust.Check | None = None
) -> tuple[str, oci.Descriptor]:
    """The store's image; one that it lacks and that names a registry is pulled first. The caller holds a session.

    With ``check`` it must be signed, whether it was here or not."""
    found = options.find_image(text, store)
    if found is not None and check is not None:
        check.local(*found, store, host)
    if found is None and Reference.parse(text).host:
        ref = Reference.parse(text)
        sink(Note(f"{ref} is not in the store: pulling it"))
        return str(ref), pulled(ref, store, host, sink, check)
    return found if found is not None else options.image_of(text, store)


def run(args: argparse.Namespace, host: Host) -> int:
    ref = Reference.parse(args.ref).on_registry()
    check = trust.check_of(args, host)
    with console(args.progress, host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            root = pulled(ref, store, host, sink, check)
    host.print(f"{ref} {root.digest}")
    return 0
