"""A build of seconds: a root file system of busybox alone, steps in real containers on it, an image at the end.

    python tinybuild.py STORE NUMBER [TAG]

Builds with near numbers share steps. Events go to standard output as JSON lines, the last line is ``{"ran": […]}``;
an error is one line on standard error and the exit status of uklimg.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import threading
from pathlib import Path

from uklimg.console import JsonConsole
from uklimg.engine.buildah import BuildahEngine
from uklimg.errors import UklimgError
from uklimg.execute import Executor
from uklimg.graph import Blob, Container, Graph, Host, Kind, Output, Step
from uklimg.hostfunctions import ROOTFS_TAR, HostJob
from uklimg.imagebuild import image
from uklimg.oci import RunConfig
from uklimg.recipes import image as image_recipe
from uklimg.store import Store

BUSYBOX = Path("/usr/bin/busybox")  # busybox-static
STEPS = 7


def graph(number: int) -> Graph:
    """Seven steps; of the builds ``number`` and ``number + 1`` some are the same."""

    def shell(name: str, rootfs: str, script: str, kind: Kind, nonce: int) -> Step:
        action = Container(rootfs, ("/bin/sh", "-ec", f"{script} # {nonce}"))
        return Step(name, name, "tiny", 1, action, kind=kind)

    fill = "dd if=/dev/urandom bs=1024 count=700 2>/dev/null"
    kits = [
        shell(name, "base", f"{fill} >/out/{file}; echo {name}", Kind.TREE, number // divisor)
        for name, file, divisor in (("kit", "vmlinux", 2), ("pack", "bzImage", 3))
    ]
    stages = [
        shell("stage:1", "base", f"{fill} >/one", Kind.ROOTFS, number // 4),
        shell("stage:2", "stage:1", "cat /one /one >/two", Kind.ROOTFS, number),
    ]
    disk = Step(
        "disk", "disk", "tiny", 1,
        Container("stage:2", ("/bin/sh", "-ec", "cat /two >/out/initramfs.cpio; cat /in/kit >>/out/initramfs.cpio")),
        {"/in/kit": Output("kit", "vmlinux")},
    )  # fmt: skip
    final = image_recipe.image_step(app="kit", bzimage="pack", initramfs="disk", run=RunConfig(program="tiny"))
    base = Step("base", "base", "tiny", 1, Host("busybox"), kind=Kind.ROOTFS)
    return Graph.of([base, *kits, *stages, disk, final], final.id)


def busybox(job: HostJob) -> None:
    with tarfile.open(job.out / ROOTFS_TAR, "w") as archive:
        for name in ("bin", "dev", "etc", "in", "out", "proc", "root", "sys", "tmp"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        archive.add(BUSYBOX, "bin/busybox", filter=_anonymous)
        for name in ("sh", "cat", "dd", "echo", "mount", "mkdir"):
            info = tarfile.TarInfo(f"bin/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(info)


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def no_fetch(blob: Blob, /, cancel: threading.Event | None = None) -> Path:
    raise AssertionError(f"nobody wants {blob.name}")


def build(root: Path, number: int, tag: str) -> int:
    sink = JsonConsole(sys.stdout)
    try:
        store = Store(root, sink)
        found = graph(number)
        functions = {"busybox": busybox, image_recipe.FUNCTION: lambda job: image(job.inputs, job.out, job.params)}
        with store.session() as session:
            session.declare(found.keys.values(), found.blobs())
            engine = BuildahEngine(root / "engine", os.environ)
            built = Executor(store, engine, no_fetch, functions, sink, at_once=2).run(found)
            if tag:
                store.tag(tag, built.result.root)
    except UklimgError as error:
        sys.stdout.write(json.dumps({"event": "detail", "text": error.detail}) + "\n")
        sys.stderr.write(f"{error.line()}\n")
        return int(error.exit_code)
    print(json.dumps({"ran": list(built.ran)}), flush=True)
    return 0


if __name__ == "__main__":
    assert shutil.which("buildah"), "this builds with buildah"
    sys.exit(build(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
