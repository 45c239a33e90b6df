"""What is attached to an image of a registry (distribution-spec 1.1, "Listing Referrers").

A registry that knows ``subject`` lists referrers itself. For one that does not, such as distribution 2.8, whoever
pushes one keeps the list: an index under the tag ``sha256-<digits of the subject>``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.events import Sink, discard
from uklimg.oci import INDEX, MANIFESTS, MAX_MANIFEST, Descriptor, Index, parse_index, parse_manifest
from uklimg.ref import Reference
from uklimg.remote.client import BlobStore, fetch, send
from uklimg.remote.transport import Transport
from uklimg.signing import UntrustedError

_MAX_TRIED = 10  # of several artifacts of one type


def fallback_tag(subject: Digest) -> str:
    return f"sha256-{subject.hex}"


def push_referrer(
    artifact: Descriptor, subject: Digest, store: BlobStore, transport: Transport, sink: Sink = discard
) -> None:
    """Send ``artifact``, a manifest whose subject is ``subject``, and see to it that ``pull_referrer`` finds it.

    ``artifact.artifact_type`` is what it will be listed as. Errors: as ``client.push``.
    """
    what = f"what is attached to {subject}"
    data = send(artifact, store, transport, sink)
    if transport.put_manifest(str(artifact.digest), artifact, data, what):
        return
    listed = [entry for entry in _listed_by_hand(subject, transport) if entry.digest != artifact.digest]
    index = Index((*listed, replace(artifact.bare(), artifact_type=artifact.artifact_type)))
    encoded = index.encode()
    if len(encoded) > MAX_MANIFEST:
        raise ToolError(f"{transport.ref.name} lists too much that is attached to {subject}")
    transport.put_manifest(fallback_tag(subject), Descriptor.of(INDEX, encoded), encoded, what)


def pull_referrer(
    ref: Reference,
    subject: Digest,
    artifact_type: str,
    store: BlobStore,
    transport: Transport,
    sink: Sink = discard,
    *,
    admit: Callable[[Descriptor], object] | None = None,
) -> Descriptor | None:
    """Bring the newest artifact of that type about ``subject`` into the store; None when there is none.

    ``admit`` may refuse an artifact with an UntrustedError before anything of it is fetched; when all are refused,
    the newest one's error leaves. Errors: CORRUPT when it is about something else or of another type, otherwise as
    ``client.pull``.
    """
    found = find_referrers(subject, artifact_type, transport)
    artifact = _admitted(found[::-1], admit)
    if artifact is None:
        return None
    fetch(ref, artifact.bare(), store, transport, sink)
    parsed = parse_manifest(store.read_blob(artifact.digest), f"manifest {artifact.digest}")
    if parsed.artifact_type != artifact_type or parsed.subject is None or parsed.subject.digest != subject:
        raise CorruptError(f"{transport.ref.host} lists {artifact.digest} as attached to {subject}, and it is not")
    return artifact


def find_referrers(subject: Digest, artifact_type: str, transport: Transport) -> tuple[Descriptor, ...]:
    """What the registry lists as being about ``subject`` and of that type, the newest last; not verified."""
    # Whoever keeps the list appends, we included; registries say nothing about their order.
    return tuple(
        entry
        for entry in _listed(subject, artifact_type, transport)
        if entry.artifact_type == artifact_type and entry.media_type in MANIFESTS
    )


def _admitted(found: Sequence[Descriptor], admit: Callable[[Descriptor], object] | None) -> Descriptor | None:
    """The first one that is not refused."""
    refused: UntrustedError | None = None
    for entry in found[:_MAX_TRIED]:
        try:
            if admit is not None:
                admit(entry)
            return entry
        except UntrustedError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return None


def _listed(subject: Digest, artifact_type: str, transport: Transport) -> tuple[Descriptor, ...]:
    data = transport.referrers(subject, artifact_type)
    if data is None:
        return _listed_by_hand(subject, transport)
    return parse_index(data, f"the list of what is attached to {subject}").manifests


def _listed_by_hand(subject: Digest, transport: Transport) -> tuple[Descriptor, ...]:
    tag = fallback_tag(subject)
    try:
        data, _ = transport.manifest(tag, f"tag {tag}")
    except ToolError as error:
        if error.exit_code == ExitCode.NOT_FOUND:
            return ()
        raise
    return parse_index(data, f"tag {tag}").manifests
