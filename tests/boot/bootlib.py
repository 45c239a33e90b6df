"""Helpers of the boot tests that are not fixtures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uklimg import oci
from uklimg.graph import Host, Inline, InlineFile
from uklimg.guest.protocol import GuestConfig, Program, encode
from uklimg.initramfsbuild import initramfs
from uklimg.recipes.initramfs import initramfs_step
from uklimg.store import Store


@dataclass(frozen=True)
class Example:
    """What `uklimg build` made of Uklfile.example: ``tag`` names the image ``root`` of ``store``, ``debug`` is the
    linked program with its symbols."""

    tag: str
    store: Store
    root: oci.Descriptor
    image: oci.Image
    debug: Path


def shell(script: str, *, label: str = "", timeout: int = 0, workdir: str = "") -> Program:
    """A busybox shell that runs ``script``."""
    return Program("/bin/sh", ("sh", "-c", script), label=label, timeout=timeout, workdir=workdir)


def build_initramfs(folder: Path, init: Path, tree: Path, config: GuestConfig) -> Path:
    """An initramfs of the host function with ``tree`` laid over the minimal root, its busybox also /ukl/shell."""
    there = Inline((InlineFile("elsewhere", b""),))  # the inputs are given as paths, below
    step = initramfs_step(init="init", programs={"shell": there}, config=config, trees=(there,), folders=("/work",))
    assert isinstance(step.action, Host)
    (folder / "config").mkdir()
    (folder / "config" / "run.conf").write_bytes(encode(config))
    out = folder / "out"
    out.mkdir()
    inputs = {
        "init": init,
        "config": folder / "config",
        "tree:0": tree,
        "program:shell": tree / "bin/busybox",
    }
    initramfs(inputs, out, step.action.params)
    return out / "initramfs.cpio"
