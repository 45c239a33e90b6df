"""uklimg inspect: what is in an image."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from uklimg import attached, attachments, blueprint, blueprints, oci, signing
from uklimg.cli import artifacts, guests, options, trust
from uklimg.cli.host import Host
from uklimg.console import console, size
from uklimg.digest import JSON
from uklimg.errors import ToolError, UklimgError
from uklimg.lock import ComponentKind, Entry, LockedComponent, LockedImage, LockedPackages, LockedSource, parse_lock
from uklimg.signing import PublicKey
from uklimg.store import Store

NAME = "inspect"
HELP = "say what an image is and what a runner needs to know of it"
_LIBRARY = ComponentKind.LIBRARY
SHOWN = (attached.SBOM, attached.PROVENANCE, attached.CONFIG, attached.LOCK)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="name or digest of an image of the store, or of a manifest in it")
    group = parser.add_mutually_exclusive_group()
    for kind in SHOWN:
        group.add_argument(
            f"--{kind.name}", action="store_const", dest="show", const=kind.name, help=f"print {kind.about}"
        )
    trust.add_verify(parser)
    options.add_plain_http(parser)
    options.add_format(parser)


@dataclass(frozen=True)
class _Origin:
    """What an image was made of and what speaks for it. ``signatures``: name, and the key if one of --verify."""

    sources: Sequence[tuple[str, str]]
    libraries: Sequence[tuple[str, str]]
    attached: Sequence[tuple[str, oci.Descriptor, int]]
    signatures: Sequence[tuple[str, PublicKey | None]]
    checked: bool

    def as_json(self) -> dict[str, JSON]:
        return {
            "sources": [{"name": name, "version": version} for name, version in self.sources],
            "libraries": [{"name": name, "version": version} for name, version in self.libraries],
            "attached": [{"kind": k, "digest": str(e.digest), "size": amount} for k, e, amount in self.attached],
            "signatures": [
                {"name": name, "key": f"sha256:{key.fingerprint}" if key else None, "verified": self._state(key)}
                for name, key in self.signatures
            ],
        }

    def _state(self, key: PublicKey | None) -> bool | None:
        return key is not None if self.checked else None

    def lines(self) -> list[tuple[str, str]]:
        return [
            *(("Source", f"{name} {version}") for name, version in self.sources),
            *(("Library", f"{name} {version}") for name, version in self.libraries),
            *(("Attached", f"{k}  {size(n)}  {e.digest}") for k, e, n in self.attached if k != "signature"),
            *(("Signature", f"as {name}, {self._words(key)}") for name, key in self.signatures),
            *(() if self.signatures else (("Signature", "none in the store"),)),
        ]

    def _words(self, key: PublicKey | None) -> str:
        if not self.checked:
            return "not checked (--verify KEY)"
        return f"good: {key.name}" if key else "by another key"


def run(args: argparse.Namespace, host: Host) -> int:
    check = trust.check_of(args, host)
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        # Only what may add to the store has to keep `prune` waiting.
        with store.session() if args.show or check is not None else nullcontext():
            name, root = _image(args.ref, host, store)
            subject = attachments.subject_of(store, root)
            if check is not None:
                check.local(name, root, store, host)
            if args.show:
                kind = attached.KINDS[args.show]
                entry = artifacts.find(name, subject, kind, store, host, sink, check)
                host.stdout.write(artifacts.text(store, entry, kind, subject))
                return 0
            image = options.read_image(store, root)
            origin = _origin(store, root, subject, check)
    summary = oci.describe(image.index, image.manifests, image.config, root.digest)
    if args.format == "json":
        value = summary.as_json()
        assert isinstance(value, dict)
        options.print_json(host, {"name": name, **value, **origin.as_json()})
        return 0
    for label, text in (*_lines(name, summary), *origin.lines()):
        if text:
            host.print(f"{label + ':':13} {text}")
    return 0


def _image(text: str, host: Host, store: Store) -> tuple[str, oci.Descriptor]:
    try:
        return options.image_of(text, store)
    except ToolError as error:
        if any(text in (guest.name, guest.id) for guest in guests.guests_of(host).all()):
            error.hint = f"{text} is a guest: uklimg ps -a --format json says what is known of it"
        raise


def _origin(store: Store, root: oci.Descriptor, subject: oci.Descriptor, check: trust.Check | None) -> _Origin:
    keys = check.keys if check else ()
    signatures: list[tuple[str, PublicKey | None]] = []
    for signed in attachments.signatures(store, root.digest):
        try:
            claim = signing.claim_of(signed.payload)
        except UklimgError:
            continue
        if claim.digest == root.digest:
            signatures.append((claim.name, next((key for key in keys if key.made(signed)), None)))
    carried = blueprints.read(store, subject.digest)
    entries: Sequence[Entry] = ()
    if carried is not None:
        entries = parse_lock(blueprints.text(store, carried, blueprint.LOCK)).entries
    return _Origin(
        sources=[pair for entry in entries for pair in _source(entry)],
        libraries=[(e.name, e.version) for e in entries if isinstance(e, LockedComponent) and e.kind is _LIBRARY],
        attached=artifacts.listed(store, subject),
        signatures=signatures,
        checked=check is not None,
    )


def _source(entry: Entry) -> list[tuple[str, str]]:
    """What of a lock's entry somebody would call a source, and its version."""
    if isinstance(entry, LockedSource):
        return [(entry.reference, entry.version or str(entry.files[0].digest))]
    if isinstance(entry, LockedImage):
        return [(entry.reference, str(entry.manifest))]
    if isinstance(entry, LockedComponent) and entry.kind is not _LIBRARY:
        return [(f"{entry.kind.value} {entry.file.name}", entry.version)]
    if isinstance(entry, LockedPackages):
        versions: Mapping[str, str] = {package.name: package.version for package in entry.packages}
        return [(f"package {name}", versions.get(name, "")) for name in entry.requested]
    return []


def _lines(name: str, summary: oci.Summary) -> list[tuple[str, str]]:
    run = summary.run
    twin = run.target == oci.TARGET_LINUX
    return [
        ("Name", name),
        ("Digest", str(summary.digest)),
        ("Size", size(summary.size)),
        ("Program", run.program),
        ("Kernel", run.kernel_version),
        ("Libc", run.libc_version),
        ("Target", "plain Linux" if twin else ""),
        ("UKL options", "" if twin else " ".join(run.ukl_options) or "none (base model)"),
        ("Command", shlex.join(run.argv)),
        ("Environment", " ".join(f"{key}={value}" for key, value in sorted(run.env.items()))),
        ("Folder", run.workdir),
        ("Ports", " ".join(run.exposed_ports)),
        ("Volumes", " ".join(run.volumes)),
        ("Memory", f"{run.memory >> 20}M" if run.memory else ""),
        ("CPUs", str(run.cpus or "")),
        ("Stop signal", run.stop_signal),
        ("Health check", shlex.join(run.healthcheck.command) if run.healthcheck else ""),
        ("Parameters", run.cmdline),
        *(("Weakened", text) for text in summary.weakens),
        *(("Label", f"{key}={value}") for key, value in sorted(run.labels.items())),
        *(("File", f"{file.path}  {size(file.size)}  {file.digest}") for file in summary.files),
        *(("Platform", f"{entry.platform}  {entry.manifest}") for entry in summary.platforms),
        *(("Note", text) for text in summary.notes),
    ]
