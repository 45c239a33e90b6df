"""Tars that do what a tar must not: headers by hand, since no library writes them."""

from __future__ import annotations

import tarfile
from collections.abc import Callable

END = bytes(1024)
BELOW_ZERO = b"\xff" * 12  # -1 in base 256


def header(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, *, link: str = "", raw_size: bytes = b""
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    if raw_size:
        block[124:136] = raw_size
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, *, link: str = "") -> bytes:
    return header(name, kind, len(content), link=link) + content + bytes(-len(content) % 512)


def pax(**records: str) -> bytes:
    """An extended header; ``__`` in a key is a dot."""
    body = b""
    for key, value in records.items():
        rest = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        body += str(length).encode() + rest
    return member("pax", body, tarfile.XHDTYPE)


EXABYTE = str(1 << 60)
SPARSE_MAP = f"1\n{(1 << 60) - 1}\n1\n".encode()

# What is wrong whoever reads it, before or in place of the member ``name`` with ``content``.
ODD: dict[str, Callable[[str, bytes], bytes]] = {
    "a size below zero": lambda name, content: header(name, raw_size=BELOW_ZERO) + content,
    "a size below zero in pax": lambda name, content: pax(size="-1024") + member(name, content),
    "back to the beginning": lambda name, content: member("a") + pax(size="-2048") + member(name, content),
    "a header larger than memory": lambda name, content: header("pax", tarfile.XHDTYPE, 8 << 30) + bytes(4096),
    "a name larger than memory": lambda name, content: header("L", tarfile.GNUTYPE_LONGNAME, 8 << 30) + bytes(4096),
    "headers within headers": lambda name, content: pax(path=name) * 2000 + member(name, content),
    "long names within long names": lambda name, content: (
        member("L", b"name\0", tarfile.GNUTYPE_LONGNAME) * 3000 + member(name, content)
    ),
    "an exabyte of holes": lambda name, content: (
        pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__name=name, GNU__sparse__realsize=EXABYTE)
        + member("sparse", SPARSE_MAP.ljust(1024, b"\0"))
    ),
    "an exabyte of holes, as of old": lambda name, content: (
        pax(GNU__sparse__size=EXABYTE, GNU__sparse__numblocks="1", GNU__sparse__map="0,0") + member(name, content)
    ),
    "more than there is": lambda name, content: header(name, size=1 << 40) + content,
}
