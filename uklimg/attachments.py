"""What is attached to images of the store: finding, keeping and reading it. What it is made of: ``evidence``."""

from __future__ import annotations

from collections.abc import Mapping

from uklimg import attached, blueprints, oci, signing
from uklimg.attached import Kind
from uklimg.digest import Digest
from uklimg.signing import Signed
from uklimg.store import Store

MAX_TEXT = 64 << 20


def subject_of(store: Store, root: oci.Descriptor) -> oci.Descriptor:
    """What artifacts are about: the image, or of a single manifest the index of the store that it is part of."""
    if root.media_type in oci.MANIFESTS:
        for entry in store.tags().values():
            if entry.media_type in oci.INDEXES and store.has(entry.digest):
                listed = oci.parse_index(store.read_blob(entry.digest), str(entry.digest)).manifests
                if any(below.digest == root.digest for below in listed):
                    return entry.bare()
    return root.bare()


def entry_of(store: Store, image: Digest, kind: Kind) -> oci.Descriptor | None:
    """The entry of what is attached to an image as ``kind``; the one that came last."""
    found = [
        entry
        for entry in store.index().manifests
        if entry.artifact_type == kind.artifact_type and entry.annotations.get(attached.SUBJECT) == str(image)
    ]
    return found[-1] if found else None


def entries(store: Store, image: Digest) -> tuple[oci.Descriptor, ...]:
    """Everything that is attached to an image, its blueprint first, but not its signatures."""
    first = blueprints.entry_of(store, image)
    others = (entry_of(store, image, kind) for kind in attached.KINDS.values())
    return tuple(entry for entry in (first, *others) if entry is not None)


def put(store: Store, new: oci.Descriptor) -> None:
    """In place of what its image had of that type."""
    subject = new.annotations[attached.SUBJECT]
    with store.editing() as there:
        there[:] = [
            *(
                entry
                for entry in there
                if entry.artifact_type != new.artifact_type or entry.annotations.get(attached.SUBJECT) != subject
            ),
            new,
        ]


def files(store: Store, entry: oci.Descriptor, kind: Kind, image: Digest) -> Mapping[str, oci.Descriptor]:
    """The files of an artifact, as blobs; CorruptError when it is about something else."""
    parsed = oci.parse_manifest(store.read_blob(entry.digest), f"the image's {kind.name}")
    return attached.files_of(parsed, kind, image)


# Signatures


def keep_signature(store: Store, signed: Signed, subject: oci.Descriptor) -> None:
    """Remember a signature of an image. The caller holds a session."""
    store.put_bytes(signed.payload, signing.PAYLOAD)
    manifest, config = signing.referrer_manifest(signing.layer_of(signed), subject)
    store.put_bytes(config)
    artifact = store.put_bytes(manifest.encode(), oci.MANIFEST)
    store.attach(attached.entry(artifact, signing.ARTIFACT, subject.digest))


def signature_entries(store: Store, image: Digest) -> tuple[oci.Descriptor, ...]:
    """The entries of an image's signatures."""
    return tuple(
        entry
        for entry in store.index().manifests
        if entry.artifact_type == signing.ARTIFACT and entry.annotations.get(attached.SUBJECT) == str(image)
    )


def signatures(store: Store, image: Digest) -> tuple[Signed, ...]:
    """Those that are remembered; nothing about them is checked."""
    found: list[Signed] = []
    for entry in signature_entries(store, image):
        parsed = oci.parse_manifest(store.read_blob(entry.digest), "a signature")
        found += [
            Signed(store.read_blob(layer.digest), layer.annotations[signing.SIGNATURE])
            for layer in signing.layers_of(parsed)
        ]
    return tuple(found)


def is_there(store: Store, entry: oci.Descriptor) -> bool:
    """Whether everything of it is in the store."""
    return all(store.has(blob.digest, blob.size) for blob in store.closure(entry))
