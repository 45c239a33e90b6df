"""uklimg artifacts: what is attached to an image, and its files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from uklimg import attached, attachments, blueprint, oci, signing
from uklimg.attached import Kind
from uklimg.cli import options, trust
from uklimg.cli.host import Host
from uklimg.console import Console, console, size
from uklimg.digest import CHUNK
from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.events import Note
from uklimg.mirror import read_section
from uklimg.ref import Reference
from uklimg.store import Store

if TYPE_CHECKING:
    from uklimg.evidence.gather import Evidence

NAME = "artifacts"
HELP = "list what is attached to an image, or fetch some of it"
PUSHED = ("lock", "config", "sbom", "provenance")
"""What `push` attaches unless told otherwise."""


def add(parser: argparse.ArgumentParser) -> None:
    kinds = ", ".join(f"{kind.name}: {kind.about}" for kind in attached.KINDS.values())
    parser.add_argument("ref", metavar="REF", help="an image of the store")
    parser.add_argument("kinds", metavar="KIND", nargs="*", help=f"write the files of these ({kinds})")
    parser.add_argument("-o", "--output", metavar="DIR", default=".", help="where to (.)")
    trust.add_verify(parser)
    options.add_plain_http(parser)
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    check = trust.check_of(args, host)
    kinds = parse_kinds(args.kinds)
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            name, root = options.image_of(args.ref, store)
            subject = attachments.subject_of(store, root)
            if check is not None:
                check.local(name, root, store, host)
            if not kinds:
                _list(args, host, store, subject)
                return 0
            for kind in kinds:
                entry = find(name, subject, kind, store, host, sink, check)
                for path in _write(store, entry, kind, subject, host.path(args.output)):
                    host.print(str(path))
    return 0


def parse_kinds(words: list[str]) -> tuple[Kind, ...]:
    """UserError for one that does not exist."""
    for word in words:
        if word not in attached.KINDS:
            raise UserError(f"nothing called {word!r} is attached to images", hint=", ".join(attached.KINDS))
    return tuple(attached.KINDS[word] for word in dict.fromkeys(words))


def evidence_of(host: Host, store: Store, builder: str = "") -> Evidence:
    """What makes artifacts here; the builder is the given one, else that of uklimg.toml."""
    from uklimg.evidence.gather import Evidence

    builder = builder or str(read_section(host.settings.config, "provenance").get("builder") or "")
    if builder and (":" not in builder or not builder.isprintable() or " " in builder):
        raise UserError(f"{builder!r} is no URI of a builder", hint="as in https://ci.example.com/builders/1")
    return Evidence(store, host.data(), builder)


def find(
    name: str,
    root: oci.Descriptor,
    kind: Kind,
    store: Store,
    host: Host,
    sink: Console,
    check: trust.Check | None = None,
) -> oci.Descriptor:
    """The entry of an artifact: the store's; else, of an image that was not built here, the one of the registry that
    the name says; else one that is made from the image's blueprint. ToolError NOT_FOUND when there is none.

    With ``check`` what is from elsewhere must be signed. The caller holds a session.
    """
    evidence = evidence_of(host, store)
    ref = None if name.startswith("sha256:") else Reference.parse(name)
    remote = ref if ref is not None and ref.host else None
    there = attachments.entry_of(store, root.digest, kind)
    built_here = evidence.built_here(root)
    foreign = there is not None and not built_here and not there.annotations.get(attached.IDENTITY)
    if there is not None and foreign and attachments.is_there(store, there):
        if check is not None:
            if remote is None:
                raise UserError(f"{name} names no registry that has a signature of its {kind.name}")
            check.at(remote, host.connect(remote), f"its {kind.name}")(there)
        return there
    if remote is not None and not built_here:
        try:
            if found := _fetch(remote, root, kind, store, host, sink, check):
                return found
        except ToolError as error:
            if error.exit_code != ExitCode.NETWORK:
                raise
            sink(Note(f"made here from the image's blueprint: {error.line()}", warning=True))
    made = evidence.one(root, kind)
    if made is None:
        hint = "`uklimg build` says how an image was built; `push` attaches it"
        raise ToolError(f"{name} has no {kind.name}", hint=hint, exit_code=ExitCode.NOT_FOUND)
    return made


def _fetch(
    ref: Reference,
    root: oci.Descriptor,
    kind: Kind,
    store: Store,
    host: Host,
    sink: Console,
    check: trust.Check | None,
) -> oci.Descriptor | None:
    from uklimg.remote import referrers

    transport = host.connect(ref)
    admit = check.at(ref, transport, f"its {kind.name}") if check else None
    found = referrers.pull_referrer(ref, root.digest, kind.artifact_type, store, transport, sink, admit=admit)
    if found is None:
        return None
    attachments.files(store, found, kind, root.digest)
    entry = attached.entry(found, kind.artifact_type, root.digest)
    attachments.put(store, entry)
    return entry


def text(store: Store, entry: oci.Descriptor, kind: Kind, root: oci.Descriptor) -> str:
    """The content of an artifact of one text file."""
    blob = next(iter(attachments.files(store, entry, kind, root.digest).values()))
    if blob.size > attachments.MAX_TEXT:
        raise ToolError(f"the image's {kind.name} has {blob.size} bytes", hint="`uklimg artifacts` writes files")
    return store.read_blob(blob.digest).decode("utf-8", "replace")


def _write(store: Store, entry: oci.Descriptor, kind: Kind, root: oci.Descriptor, folder: Path) -> list[Path]:
    written = []
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ToolError(f"cannot make {folder}: {error.strerror}") from error
    for name, blob in attachments.files(store, entry, kind, root.digest).items():
        path = folder / name
        try:
            with store.open_blob(blob.digest) as source, path.open("wb") as file:
                while chunk := source.read(CHUNK):
                    file.write(chunk)
        except OSError as error:
            raise ToolError(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written


def _list(args: argparse.Namespace, host: Host, store: Store, root: oci.Descriptor) -> None:
    rows = listed(store, root)
    if args.format == "json":
        options.print_json(
            host,
            [
                {"kind": kind, "type": e.artifact_type, "digest": str(e.digest), "size": amount}
                for kind, e, amount in rows
            ],
        )
        return
    host.print(f"{'KIND':12}  {'DIGEST':12}  {'SIZE':>9}  TYPE")
    for kind, entry, amount in rows:
        host.print(f"{kind:12}  {entry.digest.short}  {size(amount):>9}  {entry.artifact_type}")


def listed(store: Store, root: oci.Descriptor) -> list[tuple[str, oci.Descriptor, int]]:
    """Kind, entry and bytes of what is attached to an image in the store, signatures last."""
    kinds = {kind.artifact_type: kind.name for kind in attached.KINDS.values()}
    kinds[blueprint.ARTIFACT] = "blueprint"
    found = [*attachments.entries(store, root.digest), *attachments.signature_entries(store, root.digest)]
    kinds[signing.ARTIFACT] = "signature"
    return [(kinds[e.artifact_type], e, sum(blob.size for blob in store.closure(e))) for e in found]
