"""Signatures in a registry, where cosign and containers/image look for them.

Those of the manifest or index with the digest D are the layers of the manifest with the tag ``sha256-<digits of
D>.sig``, and manifests of their own among the referrers of D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from uklimg import signing
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.events import Sink, discard
from uklimg.oci import MANIFEST, Descriptor, Manifest, parse_index_or_manifest
from uklimg.ref import Reference
from uklimg.remote import client
from uklimg.remote.referrers import find_referrers, push_referrer
from uklimg.remote.transport import Transport
from uklimg.signing import Signed

_MAX_REFERRERS = 20


def signature_tag(digest: Digest) -> str:
    return f"sha256-{digest.hex}.sig"


def find_signatures(digest: Digest, transport: Transport) -> Iterator[Signed]:
    """Every signature that the registry has of ``digest``, none of them checked; asked for as they are taken.

    Errors: as ``client.pull``.
    """
    tagged = _tagged(digest, transport)
    yield from _signed(tagged, transport) if tagged else ()
    for entry in find_referrers(digest, signing.ARTIFACT, transport)[-_MAX_REFERRERS:]:
        what = f"signature {entry.digest}"
        data, _ = transport.manifest(str(entry.digest), what)
        if Digest.of(data) != entry.digest:
            raise CorruptError(f"{what}: the registry sends {Digest.of(data)}")
        parsed = parse_index_or_manifest(data, what)
        if isinstance(parsed, Manifest):
            yield from _signed(parsed, transport)


def push_signature(
    signed: Signed,
    subject: Descriptor,
    store: client.BlobStore,
    transport: Transport,
    sink: Sink = discard,
    *,
    refer: bool = False,
) -> None:
    """Add a signature of ``subject`` to those that the registry has; one that is there is not added again.

    ``refer``: among the referrers, too. The caller holds a session. Errors: as ``client.push``.
    """
    layer = signing.layer_of(signed)
    store.put_bytes(signed.payload)
    tagged = _tagged(subject.digest, transport)
    before: Sequence[Descriptor] = tagged.layers if tagged else ()
    if layer not in before:
        manifest, config = signing.tag_manifest((*before, layer))
        ref = Reference(transport.ref.host, transport.ref.repository, signature_tag(subject.digest))
        client.push(ref, _kept(manifest, config, store), store, transport, sink)
    if refer:
        manifest, config = signing.referrer_manifest(layer, subject)
        kept = _kept(manifest, config, store)
        artifact = Descriptor(kept.media_type, kept.digest, kept.size, artifact_type=signing.ARTIFACT)
        push_referrer(artifact, subject.digest, store, transport, sink)


def _kept(manifest: Manifest, config: bytes, store: client.BlobStore) -> Descriptor:
    store.put_bytes(config)
    return store.put_bytes(manifest.encode(), MANIFEST)


def _tagged(digest: Digest, transport: Transport) -> Manifest | None:
    tag = signature_tag(digest)
    try:
        data, _ = transport.manifest(tag, f"tag {tag}")
    except ToolError as error:
        if error.exit_code == ExitCode.NOT_FOUND:
            return None
        raise
    parsed = parse_index_or_manifest(data, f"tag {tag}")
    if not isinstance(parsed, Manifest):
        raise CorruptError(f"tag {tag} of {transport.ref.name} holds no signatures")
    return parsed


def _signed(manifest: Manifest, transport: Transport) -> Iterator[Signed]:
    for layer in signing.layers_of(manifest):
        payload = b"".join(transport.blob_chunks(layer))
        if Digest.of(payload) != layer.digest:
            raise CorruptError(f"the payload of a signature is damaged: it should be {layer.digest}")
        yield Signed(payload, layer.annotations[signing.SIGNATURE])
