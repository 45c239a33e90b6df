"""What boot tests share: a kernel, PID 1 compiled here, and initramfs archives with a busybox shell inside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from bootlib import build_initramfs, shell

import uklimg
from uklimg import proc
from uklimg.guest.protocol import GuestConfig
from uklimg.recipes import init as init_recipe

KERNEL_VARIABLE = "UKLIMG_TEST_KERNEL"
BUSYBOX = Path("/bin/busybox")


@pytest.fixture(scope="session")
def env() -> Mapping[str, str]:
    return proc.host_env(os.environ)


@pytest.fixture(scope="session")
def boot_kernel() -> Path:
    """A vmlinux with everything built in, as the product makes it; named by UKLIMG_TEST_KERNEL."""
    path = os.environ.get(KERNEL_VARIABLE, "")
    if not path or not Path(path).is_file():
        pytest.fail(f"{KERNEL_VARIABLE} must name a vmlinux of ours; it is {path!r}")
    return Path(path)


@pytest.fixture(scope="session")
def init_binary(tmp_path_factory: pytest.TempPathFactory, env: Mapping[str, str]) -> Path:
    """PID 1, by the product's own compiler arguments, with this machine's gcc."""
    source = Path(uklimg.__file__).parent / init_recipe.SOURCE
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
