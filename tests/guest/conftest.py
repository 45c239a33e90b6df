"""Images with the guest programs, built by the product as a user would."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from guestlib import BuildImage, Image

from uklimg import oci, proc
from uklimg.cli.run import boot_file
from uklimg.settings import read_settings
from uklimg.store import Store

HERE = Path(__file__).parent
BUSYBOX = Path("/bin/busybox")


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the guest programs and a static busybox, as a build context."""
    folder = tmp_path_factory.mktemp("guest") / "context"
    for name in ("programs", "attack", "suite"):
        shutil.copytree(HERE / name, folder / name, ignore=shutil.ignore_patterns("out"))
    shutil.copy(BUSYBOX, folder / "busybox")
    return folder


@pytest.fixture(scope="session")
def suite_image(context: Path) -> BuildImage:
    """Build (once) the suite with a kernel configuration, ``base`` or ``debug``."""
    done: dict[str, Image] = {}

    def build(config: str) -> Image:
        if config not in done:
            done[config] = _build(context, config)
        return done[config]

    return build


def _build(context: Path, config: str) -> Image:
    options = [] if config == "base" else ["--kernel-config", config]
    return _built(context, context / "suite/Uklfile", f"uklimg-test/guest-suite:{config}", *options)


@pytest.fixture(scope="session")
def build_image() -> Callable[[Path, str], Image]:
    """Build the Uklfile of a folder under a tag, with the ``base`` configuration."""
    return lambda folder, tag: _built(folder, folder / "Uklfile", tag)


def _built(context: Path, uklfile: Path, tag: str, *options: str) -> Image:
    argv = [sys.executable, "-m", "uklimg", "build", "-f", str(uklfile), "-t", tag, *options]
    proc.run([*argv, str(context)], env=dict(os.environ), timeout=3000)
    store = Store(read_settings(os.environ, Path.cwd()).store)
    image = oci.read_image(lambda d: store.read_blob(d.digest), store.tags()[tag])
    return Image(
        run=image.run,
        vmlinux=boot_file(store, image, oci.VMLINUX),
        bzimage=boot_file(store, image, oci.BZIMAGE),
        initramfs=boot_file(store, image, oci.INITRAMFS),
    )
