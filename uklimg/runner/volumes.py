"""Volumes as users write them: folders over 9p or virtiofs, disk images, block devices. Looks at what they name."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from uklimg.errors import UserError
from uklimg.guest.protocol import Mount
from uklimg.runner.machine import Disk, Sharing, Volume

# msize: fewer and larger messages; cache=mmap: shared writable mappings work.
_9P = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap"
_QCOW2 = b"QFI\xfb"
_FORMATS = ("raw", "qcow2")
# What the guest needs as it is.
_RESERVED = ("/", "//", "/proc", "/sys", "/dev", "/ukl")
_EXT_MAGIC, _EXT_MAGIC_AT = b"\x53\xef", 1080  # of ext2, ext3 and ext4
MAX_DISKS = 24


class Kind(Enum):
    NINE_P = "9p"
    VIRTIOFS = "virtiofs"
    BLOCK = "block"


@dataclass(frozen=True)
class Bind:
    """``-v`` and ``--mount``: something of this machine, absolute, at ``target`` in the guest. ``format`` and
    ``filesystem`` are a disk's; one with ``target`` "" is there and not mounted."""

    path: str
    target: str
    read_only: bool = False
    kind: Kind = Kind.NINE_P
    format: str = "raw"
    filesystem: str = "ext4"
    options: str = ""


def parse_bind(text: str, base: Path) -> Bind:
    """``HOST:GUEST[:ro|rw|9p|virtiofs,…]``; a relative HOST is below ``base``, and a file is a disk. UserError for
    anything else."""
    host, colon, rest = text.partition(":")
    target, _, options = rest.partition(":")
    words = options.split(",") if options else []
    if not host or not colon or not target.startswith("/") or not set(words) <= {"ro", "rw", "9p", "virtiofs"}:
        raise UserError(f"{text!r} is not a volume", hint="HOST:GUEST[:ro], GUEST absolute, as in -v ./data:/data")
    if len({"ro", "rw"} & set(words)) > 1 or len({"9p", "virtiofs"} & set(words)) > 1:
        raise UserError(f"{text!r}: options that exclude one another")
    path = _host_path(host, base)
    kind = Kind.VIRTIOFS if "virtiofs" in words else Kind.NINE_P
    if not path.is_dir() and path.exists() and not {"9p", "virtiofs"} & set(words):
        kind = Kind.BLOCK
    return _checked(Bind(str(path), _target(target), "ro" in words, kind, _format(path)))


def parse_mount(text: str, base: Path) -> Bind:
    """``type=bind|virtiofs|block,source=…,target=…[,readonly][,format=raw|qcow2][,fs=ext4][,options=…]``. UserError
    for anything else. ``options`` go to mount(2) and come last, because they may hold commas."""
    words, options_given, options = text.partition(",options=")
    fields: dict[str, str] = {}
    for word in words.split(","):
        name, _, value = word.partition("=")
        name = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}.get(name, name)
        if name not in ("type", "source", "target", "readonly", "format", "fs") or name in fields:
            raise UserError(f"{text!r}: what is {word!r}?", hint="type=block,source=disk.img,target=/data")
        fields[name] = value
    kinds = {"bind": Kind.NINE_P, "9p": Kind.NINE_P, "virtiofs": Kind.VIRTIOFS, "block": Kind.BLOCK}
    kind = kinds.get(fields.get("type", "bind"))
    target, source = fields.get("target", ""), fields.get("source", "")
    if kind is None or not source or (not target and kind is not Kind.BLOCK) or (target and target[0] != "/"):
        hint = "type=bind|virtiofs|block,source=HOST,target=GUEST, GUEST absolute"
        raise UserError(f"{text!r} is not a mount", hint=hint)
    if kind is not Kind.BLOCK and {"format", "fs"} & set(fields):
        raise UserError(f"{text!r}: format and fs are for type=block")
    if fields.get("readonly", "") not in ("", "true", "1"):
        raise UserError(f"{text!r}: readonly takes no value")
    path = _host_path(source, base)
    form = fields.get("format", _format(path))
    if form not in _FORMATS:
        raise UserError(f"{text!r}: no format {form!r}", hint="raw or qcow2")
    return _checked(
        Bind(
            str(path),
            _target(target) if target else "",
            "readonly" in fields,
            kind,
            form,
            fields.get("fs", "ext4"),
            options if options_given else "",
        ),
        said="format" in fields,
    )


def _host_path(text: str, base: Path) -> Path:
    return (base / Path(text).expanduser()).resolve()


def _target(text: str) -> str:
    path = posixpath.normpath(text)
    if path in _RESERVED:
        raise UserError(f"a volume cannot be mounted on {path}")
    return path


def _format(path: Path) -> str:
    """By the name alone: a guest can write into a raw disk what looks like a qcow2 that shows it files of this
    machine."""
    return "qcow2" if path.suffix == ".qcow2" else "raw"


def _checked(bind: Bind, *, said: bool = False) -> Bind:
    path = Path(bind.path)
    if bind.kind is Kind.BLOCK:
        try:
            mode = path.stat().st_mode
            with path.open("rb") as file:
                qcow2 = file.read(4) == _QCOW2
        except OSError as error:
            raise UserError(f"no disk {path}: {error.strerror}", hint=f"truncate -s 1G {path}") from None
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise UserError(f"{path} is neither a file nor a block device")
        if qcow2 and bind.format == "raw" and not said:
            raise UserError(f"{path} looks like qcow2", hint="--mount type=block,…,format=qcow2, or raw if it is not")
        if bind.format == "qcow2" and not qcow2:
            raise UserError(f"{path} is not qcow2", hint="format=raw")
    return bind


def _check_filesystem(bind: Bind) -> None:
    """UserError for a disk that the guest would fail to mount: an empty one, or a file that is no disk at all."""
    if not bind.target or bind.filesystem != "ext4" or bind.format != "raw":
        return
    try:
        with Path(bind.path).open("rb") as file:
            file.seek(_EXT_MAGIC_AT)
            magic = file.read(len(_EXT_MAGIC))
    except OSError:
        return  # the hypervisor says why
    if magic != _EXT_MAGIC:
        hint = "mkfs.ext4 makes one on an empty disk; a single file comes with its folder, or by COPY"
        raise UserError(f"{bind.path} is no disk with ext4 on it", hint=hint)


def check_binds(binds: Sequence[Bind]) -> None:
    """UserError for a folder that is not there, a target named twice, a disk named twice, and too many disks."""
    targets: set[str] = set()
    disks: set[str] = set()
    for bind in binds:
        if bind.kind is not Kind.BLOCK and not Path(bind.path).is_dir():
            raise UserError(f"no folder {bind.path} for the volume {bind.target}", hint=f"mkdir -p {bind.path}")
        if bind.target in targets:
            raise UserError(f"two volumes for {bind.target}")
        if bind.target:
            targets.add(bind.target)
        if bind.kind is Kind.BLOCK:
            if bind.path in disks:
                raise UserError(f"the disk {bind.path} is named twice")
            disks.add(bind.path)
            _check_filesystem(bind)
    if len(disks) > MAX_DISKS:
        raise UserError(f"{len(disks)} disks are more than the {MAX_DISKS} that a guest can have")


@dataclass(frozen=True)
class Placed:
    """What the machine gets and what its guest mounts."""

    volumes: tuple[Volume, ...]
    disks: tuple[Disk, ...]
    mounts: tuple[Mount, ...]


def place(binds: Sequence[Bind]) -> Placed:
    """Tags and device names for ``binds``, in their order."""
    volumes: list[Volume] = []
    disks: list[Disk] = []
    mounts: list[Mount] = []
    for number, bind in enumerate(binds):
        if bind.kind is Kind.BLOCK:
            source, kind = f"/dev/vd{chr(ord('a') + len(disks))}", bind.filesystem
            disks.append(Disk(bind.path, bind.format, bind.read_only))
        else:
            source, kind = f"uklimg{number}", bind.kind.value
            volumes.append(Volume(bind.path, source, bind.read_only, _SHARING[bind.kind]))
        if bind.target:
            options = ",".join(part for part in (_9P if bind.kind is Kind.NINE_P else "", bind.options) if part)
            mounts.append(Mount(bind.target, source, kind, options, bind.read_only))
    return Placed(tuple(volumes), tuple(disks), tuple(mounts))


_SHARING: Mapping[Kind, Sharing] = {Kind.NINE_P: Sharing.NINE_P, Kind.VIRTIOFS: Sharing.VIRTIOFS}
