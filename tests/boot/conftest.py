"""What boot tests share: Uklfile.example as the product builds it, its kernel, PID 1 compiled here, and initramfs
archives with a busybox shell inside."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from bootlib import Example, build_initramfs, shell
from debugfile import debug_file
from redislib import ROOT, uklimg_cmd, uklimg_env

import uklimg as package
from uklimg import oci, proc
from uklimg.cli.run import boot_file
from uklimg.guest.protocol import GuestConfig
from uklimg.recipes import init as init_recipe
from uklimg.settings import read_settings
from uklimg.store import Store

TAG = "uklimg-test/example:base"
BUSYBOX = Path("/bin/busybox")


@pytest.fixture(scope="session")
def env() -> Mapping[str, str]:
    return proc.host_env(os.environ)


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Uklfile.example, built by the command line into the user's store. The first build takes many minutes: that is
    why the tests' topmost conftest.py makes it before any test's time begins."""
    folder = tmp_path_factory.mktemp("example")
    uklfile = folder / "Uklfile.example"
    # A lock beside the original may be about an earlier state of the patches.
    shutil.copy(ROOT / uklfile.name, uklfile)
    shutil.copy(ROOT / "scripts/example.lock", folder / "Uklfile.lock")
    subprocess.run(uklimg_cmd("build", "-f", str(uklfile), "-t", TAG, str(folder)), env=uklimg_env(), check=True)
    store = Store(read_settings(os.environ, Path.cwd()).store)
    root = store.tags()[TAG]
    image = oci.read_image(lambda blob: store.read_blob(blob.digest), root)
    return Example(TAG, store, root, image, debug_file(uklfile, folder, image.run.program))


@pytest.fixture(scope="session")
def boot_kernel(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's vmlinux, with its bzImage beside it."""
    folder = tmp_path_factory.mktemp("kernel")
    for name, role in (("vmlinux", oci.VMLINUX), ("bzImage", oci.BZIMAGE)):
        (folder / name).symlink_to(boot_file(example.store, example.image, role))
    return folder / "vmlinux"


@pytest.fixture(scope="session")
def init_binary(tmp_path_factory: pytest.TempPathFactory, env: Mapping[str, str]) -> Path:
    """PID 1, by the product's own compiler arguments, with this machine's gcc."""
    source = Path(package.__file__).parent / init_recipe.FOLDER
    output = tmp_path_factory.mktemp("init") / "init"
    proc.run(init_recipe.compile_cmd(str(source), str(output)), env=env)
    return output


@pytest.fixture(scope="session")
def shell_initramfs(tmp_path_factory: pytest.TempPathFactory, init_binary: Path, env: Mapping[str, str]) -> Path:
    """An initramfs made by the host function, with a static busybox as /bin/sh (and all its other names)."""
    folder = tmp_path_factory.mktemp("initramfs")
    tree = folder / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    for name in proc.run([str(BUSYBOX), "--list"], env=env).text.split():
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    return build_initramfs(folder, init_binary, tree, GuestConfig((shell("echo from the file; exit 9"),)))
