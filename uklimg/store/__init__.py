"""Content-addressed storage: an OCI image layout, the results of steps by key, unpacked trees."""

from uklimg.store.cache import Record, StepResult, decode_record, encode_record, manifest_of
from uklimg.store.gc import Pruned, Usage
from uklimg.store.layout import BlobWriter, Layout
from uklimg.store.store import Store

__all__ = [
    "BlobWriter",
    "Layout",
    "Pruned",
    "Record",
    "StepResult",
    "Store",
    "Usage",
    "decode_record",
    "encode_record",
    "manifest_of",
]
