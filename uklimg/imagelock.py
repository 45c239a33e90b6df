"""Images of a registry in a lock: what a reference means is found once, and later its blobs are fetched by digest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from uklimg import oci
from uklimg.errors import CorruptError, UserError
from uklimg.events import Sink, discard
from uklimg.graph import Blob
from uklimg.lock import LockedFile, LockedImage
from uklimg.ref import Reference
from uklimg.store import Layout

if TYPE_CHECKING:
    from uklimg.remote.transport import Transport

OCI = "oci:"
PLATFORM = oci.Platform("linux", "amd64")


def lock_image(
    reference: str, store: Layout, connect: Callable[[Reference], Transport], sink: Sink = discard
) -> LockedImage:
    """The image for linux/amd64 that ``reference`` means now; its configuration stays in the store.

    ToolError NETWORK, AUTH, NOT_FOUND; CorruptError for what is no image; UserError for one without layers.
    """
    from uklimg.remote import client

    ref = Reference.parse(reference)
    transport = connect(ref)
    root, manifest = client.find_manifest(ref, transport, PLATFORM)
    if not manifest.layers or "image" not in manifest.config.media_type:
        raise UserError(f"{reference} is no image of a file system")
    client.bring_blob(manifest.config, store, transport, sink)
    config = oci.parse_config(store.read_blob(manifest.config.digest), f"the configuration of {reference}")
    if (config.platform.os, config.platform.architecture) != (PLATFORM.os, PLATFORM.architecture):
        raise UserError(f"{reference} is for {config.platform}, not for {PLATFORM}")
    if len(config.diff_ids) != len(manifest.layers):
        raise CorruptError(f"{reference} has {len(manifest.layers)} layers and {len(config.diff_ids)} diff IDs")
    origin = f"{OCI}{ref.name}"
    # Names for people who look at vendored files; nothing depends on them.
    name = f"{ref.repository.rpartition('/')[2]}-{root.digest.short}"
    files = [LockedFile(f"{name}-config.json", manifest.config.digest, manifest.config.size, origin)]
    for number, layer in enumerate(manifest.layers):
        files.append(LockedFile(f"{name}-layer-{number:03}", layer.digest, layer.size, origin))
    return LockedImage(reference, root.digest, config.env, tuple(files))


def bring_layer(blob: Blob, store: Layout, connect: Callable[[Reference], Transport], sink: Sink = discard) -> None:
    """Put a blob whose first URL is ``oci:HOST/NAME`` into the store. Errors: as ``lock_image``."""
    from uklimg.remote import client

    ref = Reference.parse(blob.urls[0].removeprefix(OCI))
    client.bring_blob(oci.Descriptor("application/octet-stream", blob.digest, blob.size), store, connect(ref), sink)
