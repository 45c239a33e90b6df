"""The host function "image": files in, an OCI layout out.

The layout holds every blob of the image, written once, and an ``index.json`` whose only entry is the image's index;
the caller imports the blobs into the store. Nothing in it depends on time, machine, path or user.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from uklimg import oci
from uklimg.digest import CHUNK, JSON, Digest
from uklimg.errors import CorruptError, InternalError
from uklimg.oci import layer
from uklimg.recipes.image import run_config_of


def image(inputs: Mapping[str, Path], out: Path, params: JSON) -> None:
    """``inputs`` has the paths of ``vmlinux``, ``bzImage`` and ``initramfs``; the layout goes to ``out``."""
    build_image(inputs, out, run_config_of(params))


def build_image(inputs: Mapping[str, Path], out: Path, run: oci.RunConfig) -> oci.Descriptor:
    """Write the layout and return its image's index."""
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = {file.role: _write_layer(inputs[file.role], file.path, blobs) for file in oci.FILES}
    assembled = oci.assemble(layers, run)
    for blob in assembled.blobs:
        (blobs / blob.descriptor.digest.hex).write_bytes(blob.data)
    (out / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (out / "index.json").write_bytes(oci.Index((assembled.index,)).encode())
    return assembled.index


def layout_image(out: Path) -> oci.Descriptor:
    """The image's index in a layout that ``build_image`` wrote."""
    index = oci.parse_index((out / "index.json").read_bytes(), "index.json")
    if len(index.manifests) != 1:
        raise CorruptError(f"index.json of the built image has {len(index.manifests)} entries")
    return index.manifests[0]


def _write_layer(source: Path, path: str, blobs: Path) -> oci.Descriptor:
    """Write ``source`` as the one-file layer ``path``, in one pass."""
    hasher = hashlib.sha256()
    temporary = blobs / f".{source.name}.partial"
    with source.open("rb") as reader, temporary.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        copied = 0

        def put(data: bytes) -> None:
            hasher.update(data)
            writer.write(data)

        put(layer.header(path, size))
        while chunk := reader.read(CHUNK):
            put(chunk)
            copied += len(chunk)
        if copied != size:
            raise InternalError(f"{source} changed while it was read")
        put(layer.trailer(size))
    digest = Digest(hasher.hexdigest())
    temporary.rename(blobs / digest.hex)
    return oci.Descriptor(oci.LAYER, digest, layer.length(size))
