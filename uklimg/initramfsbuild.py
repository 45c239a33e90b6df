"""The host function "initramfs": the inputs' files in, ``initramfs.cpio`` out.

Deterministic: entries are sorted, owned by root unless COPY says otherwise, stamped with one time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from uklimg import cpio
from uklimg.copyfiles import Place, copy_files
from uklimg.digest import JSON
from uklimg.errors import InternalError, UserError
from uklimg.guest.protocol import PROGRAMS, RUN_CONF, stub
from uklimg.oci import EPOCH
from uklimg.recipes.initramfs import OUTPUT, CopyParams, InitramfsParams, params_of
from uklimg.roottree import RootTree, entry_of

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
_GROUP = b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
_HOSTS = b"127.0.0.1 localhost uklimg\n::1 localhost ip6-localhost ip6-loopback\n"
_NSSWITCH = b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"
# Ours: what makes the image start. COPY must not replace it unseen.
_RESERVED = ("init", PROGRAMS.strip("/"), RUN_CONF.strip("/"), "dev/console")


def initramfs(inputs: Mapping[str, Path], out: Path, params: JSON) -> None:
    """``inputs`` and ``params`` as ``recipes.initramfs`` made them; writes below the empty folder ``out``."""
    wanted = params_of(params)
    with tempfile.TemporaryDirectory(prefix="uklimg-initramfs-") as scratch:
        tree = RootTree(minimal_root())
        for number in range(wanted.trees):
            _lay_over(tree, _input(inputs, f"tree:{number}"), f"tree:{number}", Path(scratch))
        for number, copy in enumerate(wanted.copies):
            _copy(tree, inputs, number, copy, Path(scratch) / str(number))
        _add_own(tree, inputs, wanted)
        with (out / OUTPUT).open("wb") as file:
            # Without an entry of its own the root is as the kernel makes it: everybody may write.
            cpio.write([cpio.directory("."), *tree.entries()], file, mtime=EPOCH)
        (out / OUTPUT).chmod(0o644)  # whatever the umask: a TREE's result holds the mode


def minimal_root() -> list[cpio.Entry]:
    """What every image has: mount points, a console for PID 1's first words, the files that libc asks for."""
    return [
        *(cpio.directory(name) for name in ("dev", "etc", "etc/uklimg", "proc", "run", "sys", "ukl", "var")),
        cpio.directory("root", 0o700),
        cpio.directory("tmp", 0o1777),
        cpio.directory("var/tmp", 0o1777),
        cpio.character_device("dev/console", 5, 1),
        cpio.regular("etc/passwd", _PASSWD),
        cpio.regular("etc/group", _GROUP),
        cpio.regular("etc/hosts", _HOSTS),
        cpio.regular("etc/nsswitch.conf", _NSSWITCH),
        # Empty: PID 1 writes what DHCP says, unless the image brings its own.
        cpio.regular("etc/resolv.conf", b""),
    ]


def _input(inputs: Mapping[str, Path], name: str) -> Path:
    if name not in inputs:
        raise InternalError(f"the initramfs step has no input {name!r}")
    return inputs[name]


def _lay_over(tree: RootTree, root: Path, links: str, scratch: Path) -> None:
    everything = CopyParams((".",), (), "/", False, "", None, False, (), None)
    copy_files(tree, everything, Place(root, links=links), None, scratch)


def _copy(tree: RootTree, inputs: Mapping[str, Path], number: int, copy: CopyParams, scratch: Path) -> None:
    root, files = inputs.get(f"copy:{number}"), inputs.get(f"files:{number}")
    # A context's hard links are an accident of its disk; a stage's belong to its contents.
    links = f"copy:{number}" if copy.paths is None else None
    place = Place(root, copy.paths, links) if root is not None else None
    before = {path: tree.get(path) for path in _RESERVED}
    copy_files(tree, copy, place, files, scratch)
    for path, entry in before.items():
        if tree.get(path) is not entry:
            raise _ours(path)
    for entry in tree.entries():
        if entry.path.startswith(f"{PROGRAMS.strip('/')}/"):
            raise _ours(entry.path)


def _ours(path: str) -> UserError:
    return UserError(f"COPY to /{path}, which uklimg makes itself", hint="choose another destination")


def _add_own(tree: RootTree, inputs: Mapping[str, Path], wanted: InitramfsParams) -> None:
    for name in wanted.programs:
        program = inputs.get(f"program:{name}")
        path = f"{PROGRAMS}/{name}".strip("/")
        if program is None:
            tree.put(cpio.regular(path, stub(name), 0o755))
        else:
            tree.put(_executable(program, path))
    tree.put(_executable(_input(inputs, "init"), "init"))
    config = _input(inputs, "config")
    tree.put(cpio.regular(RUN_CONF.strip("/"), (config / "run.conf").read_bytes()))
    for folder in wanted.folders:
        tree.make_folder(folder)


def _executable(path: Path, name: str) -> cpio.Entry:
    entry = entry_of(path.resolve(), name)
    if entry is None or entry.content is None:
        raise InternalError(f"{path} is not a file")
    return replace(entry, mode=0o100755)
