"""A repository of a registry as a place. Imported only when one is named: its library takes long to load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from uklimg import oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.events import Sink, TransferFinished, TransferStarted
from uklimg.remote.transport import Transport
from uklimg.remote.uploads import BlobSource, BytesSource, upload
from uklimg.sharedcache.entry import RECORD
from uklimg.store import Layout


class Repository:
    """A Source and a Target. ``connect`` makes a connection; several are open when several threads ask at once."""

    def __init__(self, connect: Callable[[], Transport]) -> None:
        self._connect = connect
        self._idle: SimpleQueue[Transport] = SimpleQueue()

    @contextmanager
    def _transport(self) -> Iterator[Transport]:
        try:
            transport = self._idle.get_nowait()
        except Empty:
            transport = self._connect()
        try:
            yield transport
        finally:
            self._idle.put(transport)

    def manifest(self, key: Digest) -> bytes | None:
        with self._transport() as transport:
            try:
                return transport.manifest(key.hex, f"the entry of {key}")[0]
            except ToolError as error:
                if error.exit_code == ExitCode.NOT_FOUND:
                    return None
                raise

    def chunks(self, blob: oci.Descriptor) -> Iterator[bytes]:
        with self._transport() as transport:
            try:
                yield from transport.blob_chunks(blob)
            except ToolError as error:
                if error.exit_code == ExitCode.NOT_FOUND:
                    raise CorruptError(error.message) from None  # the entry promises it
                raise

    def has_entry(self, key: Digest) -> bool:
        with self._transport() as transport:
            return transport.has_tag(key.hex)

    def put_blob(self, blob: oci.Descriptor, store: Layout, name: str, sink: Sink, *, doubt: bool = False) -> None:
        """A blob that the registry says it has cannot be sent again: ``doubt`` is in vain."""
        label = str(blob.digest)
        with self._transport() as transport:
            sink(TransferStarted(label, "export", name, blob.size))
            there = transport.has_blob(blob.digest)
            if not there:
                upload(transport, blob, BlobSource(store, blob, sink))
            sink(TransferFinished(label, skipped=there))

    def put_entry(self, key: Digest, record: bytes, manifest: bytes) -> None:
        with self._transport() as transport:
            config = oci.Descriptor.of(RECORD, record)
            if not transport.has_blob(config.digest):
                upload(transport, config, BytesSource(record))
            transport.put_manifest(key.hex, oci.Descriptor.of(oci.MANIFEST, manifest), manifest, f"entry {key}")
