"""Images as one file: an OCI image layout in a tar, as skopeo's oci-archive and (of one image) `podman load` read it.

Written the same for the same images. What is read is not trusted: a blob gets its name by its bytes, and nothing gets
a tag before all of its image is there and was hashed.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO

from uklimg import attached, attachments, blueprints, oci, signing, tarread
from uklimg.blueprint import ARTIFACT, SUBJECT, entry
from uklimg.digest import CHUNK, Digest
from uklimg.errors import CorruptError, ToolError, UserError
from uklimg.ref import Reference
from uklimg.store import Store
from uklimg.store.layout import LAYOUT
from uklimg.store.trees import check_name

_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
MAX_MEMBERS = 100_000
ATTACHED = "org.uklimg.attached"
"""Annotation of an image's entry in an archive: the digest of an index of what is attached to it. Not entries beside
it: `podman load` takes an archive only if its index.json has just one."""


@dataclass(frozen=True)
class Loaded:
    """An image that an archive had; ``name`` is "" when it had none."""

    name: str
    root: oci.Descriptor


def save(store: Store, images: Mapping[str, oci.Descriptor], out: IO[bytes]) -> int:
    """Write the images, by name (a digest for one without), with what is attached to them; how many blobs they have.

    CorruptError before anything is written when a blob is missing or damaged.
    """
    entries: list[oci.Descriptor] = []
    blobs: dict[Digest, oci.Descriptor] = {}
    small: dict[Digest, bytes] = {}
    for name, root in images.items():
        notes = {} if name.startswith("sha256:") else {oci.REF_NAME: name}
        artifacts = _attached(store, root.digest)
        if artifacts:
            beside = oci.Index(artifacts).encode()
            notes[ATTACHED] = str(Digest.of(beside))
            small[Digest.of(beside)] = beside
        entries.append(root.bare().annotated(notes))
        blobs |= {blob.digest: blob for part in (root, *artifacts) for blob in store.verify(part)}
    entries.sort(key=lambda found: (found.annotations.get(oci.REF_NAME, ""), found.digest))
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=CHUNK) as archive:
        _add(archive, "oci-layout", len(LAYOUT), BytesIO(LAYOUT))
        index = oci.Index(tuple(entries)).encode()
        _add(archive, "index.json", len(index), BytesIO(index))
        for digest in sorted({*blobs, *small}):
            name = f"blobs/sha256/{digest.hex}"
            if digest in small:
                _add(archive, name, len(small[digest]), BytesIO(small[digest]))
                continue
            with store.open_blob(digest) as blob:
                _add(archive, name, blobs[digest].size, blob)
    return len(blobs)


def _attached(store: Store, image: Digest) -> tuple[oci.Descriptor, ...]:
    """Entries of what goes along with an image: all that is attached to it and there, but not its debug symbols,
    which are larger than it."""
    found = []
    for one in store.index().manifests:
        subject = one.annotations.get(SUBJECT) or one.annotations.get(attached.SUBJECT)
        is_debug = one.artifact_type == attached.DEBUG.artifact_type
        if one.artifact_type and not is_debug and subject == str(image) and attachments.is_there(store, one):
            found.append(_entry(one, image))
    return tuple(sorted(found, key=lambda one: (one.artifact_type, one.digest)))


def _entry(one: oci.Descriptor, image: Digest) -> oci.Descriptor:
    """The same wherever it was made: without the identity that only its own store knows."""
    if one.artifact_type == ARTIFACT:
        return entry(one, image)
    return attached.entry(one, one.artifact_type, image)


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, oci.EPOCH, 0o644
    archive.addfile(info, content)


def load(store: Store, source: IO[bytes]) -> Sequence[Loaded]:
    """Bring the images of an archive into the store and name them as they are named there. The caller holds a
    session. UserError when it is no such archive, CorruptError when something of it is missing, damaged or out of
    place; no name is given then."""
    found = _Contents()
    try:
        with tarread.opened(source, "r|*") as archive:
            for info in tarread.members(archive, MAX_MEMBERS):
                found.take(store, archive, info)
    except (tarfile.TarError, EOFError) as error:
        if not found.names:
            raise UserError(f"this is no archive of images: {error}", hint="`uklimg save` writes one") from error
        raise CorruptError(f"the archive of images is damaged: {error}") from error
    if found.index is None:
        foreign = "manifest.json" in found.names
        hint = "it is docker-archive; `skopeo copy` turns it into oci-archive" if foreign else "it has no index.json"
        raise UserError("this is no OCI archive", hint=hint)
    index = oci.parse_index(found.index, "index.json of the archive")
    try:
        return _name(store, index)
    except CorruptError as error:  # without the store's hint: no build would help
        raise CorruptError(f"the archive is not whole: {error.message}") from error


@dataclass
class _Contents:
    """What was seen of an archive; its blobs are in the store."""

    names: set[str] = field(default_factory=set)
    index: bytes | None = None

    def take(self, store: Store, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        """The next member. CorruptError for what does not belong in an archive; other files are passed over, since
        Docker's archives are OCI's with a few more."""
        name = check_name(info.name, CorruptError)
        if not info.isreg() and not info.isdir():
            raise CorruptError(f"the archive has {name[:200]!r}, which is no file or folder")
        if info.isdir():
            return
        if name in self.names:
            raise CorruptError(f"the archive has {name[:200]!r} twice")
        self.names.add(name)
        if blob := _BLOB.fullmatch(name):
            _keep(store, archive, info, Digest(blob[1]))
        elif name in ("index.json", "oci-layout"):
            content = _content(archive, info, name)
            if name == "index.json":
                self.index = content
            elif oci.parse_json(content, "oci-layout of the archive").get("imageLayoutVersion") != "1.0.0":
                raise CorruptError("the archive's oci-layout has another version than 1.0.0")


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo, name: str) -> bytes:
    if info.size > oci.MAX_MANIFEST:
        raise CorruptError(f"{name} of the archive has {info.size} bytes, more than {oci.MAX_MANIFEST}")
    file = archive.extractfile(info)
    assert file is not None
    return file.read()


def _keep(store: Store, archive: tarfile.TarFile, info: tarfile.TarInfo, digest: Digest) -> None:
    if store.keep_blob(digest, info.size):
        try:
            store.verified_path(digest)
            return
        except CorruptError:
            pass  # it was moved aside, and here is a good one
    free = shutil.disk_usage(store.root).free
    if info.size > free:
        raise ToolError(f"blob {digest} of the archive has {info.size} bytes, and the store has room for {free}")
    content = archive.extractfile(info)
    assert content is not None
    with store.writer() as writer:
        while chunk := content.read(CHUNK):
            writer.write(chunk)
        try:
            writer.commit(digest)
        except CorruptError as error:
            raise CorruptError(f"a blob of the archive is damaged: {error.message}") from error


def _name(store: Store, index: oci.Index) -> list[Loaded]:
    images = [found for found in index.manifests if not found.artifact_type]
    if not images:
        raise UserError("the archive has no image")
    loaded: list[Loaded] = []
    blobs: dict[Digest, oci.Descriptor] = {}
    for found in images:
        if found.media_type not in oci.INDEXES | oci.MANIFESTS:
            raise CorruptError(f"the archive lists a {found.media_type!r} as an image")
        name = found.annotations.get(oci.REF_NAME, "")
        if name:
            ref = Reference.parse(name)
            if ref.digest is not None:
                raise CorruptError(f"the archive names an image {name[:200]!r}")
            name = str(ref)
            if any(name == other.name for other in loaded):
                raise CorruptError(f"the archive has two images of the name {name}")
        # Hashed once each, however many images share them.
        blobs |= {blob.digest: blob for blob in store.closure(found)}
        loaded.append(Loaded(name, found.bare()))
    for blob in blobs.values():
        store.verify_blob(blob)
    listed = [*index.manifests]
    for found in images:
        beside = found.annotations.get(ATTACHED)
        if beside is not None:
            listed += _beside(store, beside)
    for found in listed:
        if found.artifact_type:
            _take_artifact(store, found, {one.root.digest for one in loaded})
    for one in loaded:
        if one.name:
            store.tag(one.name, one.root)
    return loaded


def _beside(store: Store, digest: str) -> Sequence[oci.Descriptor]:
    try:
        return oci.parse_index(store.read_blob(Digest.parse(digest)), "the list of what is attached").manifests
    except ValueError as error:
        raise CorruptError(f"{digest[:100]!r} is no digest") from error


def _take_artifact(store: Store, found: oci.Descriptor, about: Collection[Digest]) -> None:
    """Attach what an archive has beside its images; what is about others, or unknown, is passed over."""
    known = {kind.artifact_type: kind for kind in attached.KINDS.values()}
    if found.artifact_type not in {ARTIFACT, signing.ARTIFACT, *known}:
        return
    parsed = oci.parse_manifest(store.read_blob(found.digest), "what is attached to an image")
    if parsed.subject is None or parsed.subject.digest not in about:
        return
    image = parsed.subject.digest
    if parsed.artifact_type != found.artifact_type:
        raise CorruptError(f"{found.digest} is attached to an image as something else than it is")
    store.verify(found)
    if found.artifact_type == ARTIFACT:
        blueprints.read_artifact(store, found, image)
        blueprints.put_entry(store, _entry(found, image))
    elif found.artifact_type == signing.ARTIFACT:
        signing.layers_of(parsed)
        store.attach(_entry(found, image))
    else:
        attached.files_of(parsed, known[found.artifact_type], image)
        attachments.put(store, _entry(found, image))
