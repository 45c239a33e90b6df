"""Content-addressed storage: an OCI image layout, the results of steps by key, unpacked trees."""

from uklimg.store.cache import Record, StepResult, decode_record, encode_record, manifest_of
from uklimg.store.gc import BusyError, Pruned
from uklimg.store.layout import BlobWriter, Layout
from uklimg.store.sessions import Session
from uklimg.store.store import Store
from uklimg.store.usage import ResultUsage, Usage

__all__ = [
    "BlobWriter",
    "BusyError",
    "Layout",
    "Pruned",
    "Record",
    "ResultUsage",
    "Session",
    "StepResult",
    "Store",
    "Usage",
    "decode_record",
    "encode_record",
    "manifest_of",
]
