"""Sends results to a shared cache that lacks them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from uklimg.digest import Digest
from uklimg.errors import CorruptError
from uklimg.events import Note, Sink
from uklimg.sharedcache.entry import entry_of
from uklimg.sharedcache.places import Target
from uklimg.store import Store


def export(
    store: Store, keys: Iterable[Digest], target: Target, sink: Sink, *, again: Collection[Digest] = ()
) -> int:
    """Send what ``store`` has of ``keys``, and return how many entries were written.

    Entries that are there stay as they are, but for those of ``again``. A result with damaged blobs is left out with
    a warning. Raises what the target raises; entries sent until then stay.
    """
    sent = 0
    for key in keys:
        record = store.record(key)
        if record is None or (key not in again and target.has_entry(key)):
            continue
        try:
            entry = entry_of(record, store.closure(record.result.root))
            for blob in entry.blobs:
                # Before any request: the other side is not to be blamed for it.
                store.verified_path(blob.digest)
        except CorruptError as error:
            sink(Note(f"the result of {record.step} is not exported: {error.message}", warning=True))
            continue
        for blob in entry.blobs:
            target.put_blob(blob, store, f"{record.step} {blob.digest.short}", sink, doubt=key in again)
        target.put_entry(key, entry.record_bytes, entry.manifest())
        sent += 1
    return sent
