"""Where two layers differ, file by file; and what diffoscope says of it, for whoever has it.

A layer is a tar, and the initramfs in one is a cpio archive, which is looked into as well. Contents are read from
disk as they are needed.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from uklimg import cpio, oci, proc
from uklimg.digest import CHUNK, JSON, Digest
from uklimg.errors import CorruptError, ToolError

DIFFOSCOPE = "diffoscope"
_REPORT_LIMIT = 100_000  # bytes of diffoscope's text
_REPORT_TIME = 600.0  # seconds


@dataclass(frozen=True)
class Member:
    """A name in an archive: ``mode`` as in st_mode, ``offset`` of its content in the file that was read."""

    mode: int
    uid: int
    gid: int
    size: int
    target: str
    digest: Digest
    offset: int

    @property
    def about(self) -> str:
        """What is not the content."""
        return f"{stat.filemode(self.mode)} {self.uid}:{self.gid}{' -> ' + self.target if self.target else ''}"


@dataclass(frozen=True)
class Difference:
    """``before`` is None for what only the second layer has, ``after`` for what only the first one has. ``offset`` of
    the first byte that differs, None where the contents are equal or one is missing."""

    path: str
    before: Member | None
    after: Member | None
    offset: int | None = None

    def line(self) -> str:
        if self.before is None or self.after is None:
            there = self.before or self.after
            assert there is not None
            return f"{self.path}: only in the {'second' if self.before is None else 'first'} ({there.size} bytes)"
        parts = []
        if self.before.about != self.after.about:
            parts.append(f"{self.before.about} became {self.after.about}")
        if self.offset is not None:
            sizes = f"{self.before.size} bytes"
            if self.before.size != self.after.size:
                sizes = f"{self.before.size} and {self.after.size} bytes"
            parts.append(f"differs from byte {self.offset} on ({sizes})")
        return f"{self.path}: {', '.join(parts)}"

    def as_json(self) -> JSON:
        return {
            "path": self.path,
            "before": _json(self.before),
            "after": _json(self.after),
            "offset": self.offset,
        }


def _json(member: Member | None) -> JSON:
    if member is None:
        return None
    return {"about": member.about, "size": member.size, "digest": str(member.digest)}


def compare_layers(before: Path, after: Path) -> tuple[Difference, ...]:
    """What differs between two uncompressed layers, by path; an initramfs' files follow it as ``initrd/…``."""
    found: list[Difference] = []
    for difference in _compare(before, tar_members(before), after, tar_members(after)):
        found.append(difference)
        first, second = difference.before, difference.after
        if f"/{difference.path}" == oci.PATHS[oci.INITRAMFS] and first and second and difference.offset is not None:
            found += _compare(before, cpio_members(before, first), after, cpio_members(after, second), "initrd/")
    return tuple(found)


def _compare(
    before: Path, ours: Mapping[str, Member], after: Path, theirs: Mapping[str, Member], prefix: str = ""
) -> Iterator[Difference]:
    for name in sorted({*ours, *theirs}):
        first, second = ours.get(name), theirs.get(name)
        if first is None or second is None:
            yield Difference(prefix + name, first, second)
        elif first.digest != second.digest:
            yield Difference(prefix + name, first, second, _first_difference(before, first, after, second))
        elif first.about != second.about:
            yield Difference(prefix + name, first, second)


def _first_difference(before: Path, first: Member, after: Path, second: Member) -> int:
    with before.open("rb") as one, after.open("rb") as other:
        one.seek(first.offset)
        other.seek(second.offset)
        done, end = 0, min(first.size, second.size)
        while done < end:
            left, right = one.read(min(CHUNK, end - done)), other.read(min(CHUNK, end - done))
            if left != right:
                return done + next(place for place, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
            done += len(left)
    return end


def tar_members(path: Path) -> Mapping[str, Member]:
    """Of a tar that is not compressed; CorruptError when it is none."""
    found: dict[str, Member] = {}
    try:
        with path.open("rb") as file, tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            for info in archive:
                name = info.name.strip("/").removeprefix("./")
                size = info.size if info.isreg() else 0
                kind = _KINDS.get(info.type, stat.S_IFREG)
                found[name] = Member(
                    kind | info.mode & 0o7777,
                    info.uid,
                    info.gid,
                    size,
                    info.linkname,
                    _digest(file, info.offset_data, size),
                    info.offset_data,
                )
    except tarfile.TarError as error:
        raise CorruptError(f"{path.name} is not a tar archive: {error}") from error
    return found


_KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def cpio_members(path: Path, within: Member) -> Mapping[str, Member]:
    """Of the cpio archive (newc) that is the content of ``within`` in the file ``path``."""
    found: dict[str, Member] = {}
    with path.open("rb") as file:
        for entry in cpio.read(file, within.offset, within.size):
            link = stat.S_ISLNK(entry.mode)
            target = ""
            if link:
                file.seek(entry.offset)
                target = file.read(min(entry.size, cpio.PATH_MAX)).decode(errors="surrogateescape")
            size = 0 if link else entry.size
            content = _digest(file, entry.offset, size)
            found[entry.path] = Member(entry.mode, entry.uid, entry.gid, size, target, content, entry.offset)
    return found


def _digest(file: BinaryIO, offset: int, size: int) -> Digest:
    file.seek(offset)

    def chunks() -> Iterator[bytes]:
        left = size
        while left and (chunk := file.read(min(left, CHUNK))):
            left -= len(chunk)
            yield chunk

    return Digest.of_chunks(chunks())


# diffoscope


def diffoscope_cmd(before: Path, after: Path) -> list[str]:
    return [
        DIFFOSCOPE,
        "--no-progress",
        *("--text", "-"),
        *("--max-text-report-size", str(_REPORT_LIMIT)),
        str(before),
        str(after),
    ]


def diffoscope(before: Path, after: Path, env: Mapping[str, str]) -> str:
    """Its report on two files; "" when it is not installed. ToolError when it fails or takes too long."""
    argv = diffoscope_cmd(before, after)
    try:
        argv[0] = str(proc.find(DIFFOSCOPE, env))
    except ToolError:
        return ""
    done = proc.run(argv, env=env, check=False, timeout=_REPORT_TIME)
    if done.status not in (0, 1):
        raise ToolError(f"diffoscope failed with status {done.status}", detail=done.tail)
    return done.text
