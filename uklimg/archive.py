"""Images as one file: an OCI image layout in a tar, as skopeo's oci-archive and `podman load` read it.

Written the same for the same images. What is read is not trusted: a blob gets its name by its bytes, and nothing gets
a tag before all of its image is there and was hashed.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import IO

from uklimg import blueprints, oci
from uklimg.blueprint import ARTIFACT, entry
from uklimg.digest import CHUNK, Digest
from uklimg.errors import CorruptError, UserError
from uklimg.ref import Reference
from uklimg.store import Store
from uklimg.store.layout import LAYOUT

_BLOB = re.compile(r"(?:\./)?blobs/sha256/([0-9a-f]{64})")


@dataclass(frozen=True)
class Loaded:
    """An image that an archive had; ``name`` is "" when it had none."""

    name: str
    root: oci.Descriptor


def save(store: Store, images: Mapping[str, oci.Descriptor], out: IO[bytes]) -> int:
    """Write the images, by name ("" and a digest for one without), with their blueprints; how many blobs they have.

    CorruptError before anything is written when a blob is missing or damaged.
    """
    entries: list[oci.Descriptor] = []
    blobs: dict[Digest, oci.Descriptor] = {}
    for name, root in images.items():
        is_name = not name.startswith("sha256:")
        entries.append(root.bare().annotated({oci.REF_NAME: name} if is_name else {}))
        carried = blueprints.entry_of(store, root.digest)
        parts = [root]
        if carried is not None:
            parts.append(carried)
            bare = entry(carried, root.digest)
            entries += [bare] if bare not in entries else []
        blobs |= {blob.digest: blob for part in parts for blob in store.verify(part)}
    entries.sort(key=lambda found: (found.annotations.get(oci.REF_NAME, ""), found.digest))
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=CHUNK) as archive:
        _add(archive, "oci-layout", len(LAYOUT), BytesIO(LAYOUT))
        index = oci.Index(tuple(entries)).encode()
        _add(archive, "index.json", len(index), BytesIO(index))
        for digest in sorted(blobs):
            with store.open_blob(digest) as blob:
                _add(archive, f"blobs/sha256/{digest.hex}", blobs[digest].size, blob)
    return len(blobs)


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, oci.EPOCH, 0o644
    archive.addfile(info, content)


def load(store: Store, source: IO[bytes]) -> Sequence[Loaded]:
    """Bring the images of an archive into the store and name them as they are named there. The caller holds a
    session. UserError when it is no such archive, CorruptError when something of an image is missing or damaged."""
    index: bytes | None = None
    foreign = False
    try:
        with tarfile.open(fileobj=source, mode="r|*", bufsize=CHUNK) as archive:
            for info in archive:
                blob = _BLOB.fullmatch(info.name)
                if info.isreg() and blob:
                    _keep(store, archive, info, Digest(blob[1]))
                elif info.isreg() and info.name.removeprefix("./") == "index.json":
                    index = _content(archive, info)
                foreign = foreign or info.name == "manifest.json"
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"this is no archive of images: {error}", hint="`uklimg save` writes one") from error
    if index is None:
        hint = "it is docker-archive; `skopeo copy` turns it into oci-archive" if foreign else "it has no index.json"
        raise UserError("this is no OCI archive", hint=hint)
    return _name(store, oci.parse_index(index, "index.json of the archive"))


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if info.size > oci.MAX_MANIFEST:
        raise CorruptError(f"index.json of the archive has {info.size} bytes")
    file = archive.extractfile(info)
    assert file is not None
    return file.read()


def _keep(store: Store, archive: tarfile.TarFile, info: tarfile.TarInfo, digest: Digest) -> None:
    if store.has(digest, info.size):
        return
    content = archive.extractfile(info)
    assert content is not None
    with store.writer() as writer:
        while chunk := content.read(CHUNK):
            writer.write(chunk)
        writer.commit(digest)


def _name(store: Store, index: oci.Index) -> list[Loaded]:
    images = [found for found in index.manifests if not found.artifact_type]
    if not images:
        raise UserError("the archive has no image")
    loaded: list[Loaded] = []
    for found in images:
        if found.media_type not in oci.INDEXES | oci.MANIFESTS:
            raise CorruptError(f"the archive lists a {found.media_type!r} as an image")
        name = found.annotations.get(oci.REF_NAME, "")
        if name:
            ref = Reference.parse(name)
            if ref.digest is not None:
                raise CorruptError(f"the archive names an image {name[:200]!r}")
            name = str(ref)
        store.verify(found)
        loaded.append(Loaded(name, found.bare()))
    about = {found.root.digest for found in loaded}
    for found in index.manifests:
        if found.artifact_type == ARTIFACT:
            parsed = oci.parse_manifest(store.read_blob(found.digest), "a blueprint of the archive")
            if parsed.subject is not None and parsed.subject.digest in about:
                store.verify(found)
                blueprints.read_artifact(store, found, parsed.subject.digest)
                blueprints.put_entry(store, entry(found, parsed.subject.digest))
    for one in loaded:
        if one.name:
            store.tag(one.name, one.root)
    return loaded
