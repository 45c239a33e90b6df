"""Images with the guest programs, built by the product as a user would."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from debugfile import debug_file
from guestlib import SUITE, TOOLS, BuildImage, Image

from uklimg import oci, proc
from uklimg.cli.run import boot_file
from uklimg.mirror import find_mirror
from uklimg.runner.machine import MIB
from uklimg.runner.request import RunOptions
from uklimg.runner.volumes import Bind
from uklimg.settings import read_settings
from uklimg.store import Store

# Asked for by name: a test that is skipped would look like one that passed.
collect_ignore = [] if "UKLIMG_TEST_GLIBC" in os.environ else ["test_glibc_suite.py"]

HERE = Path(__file__).parent
BUSYBOX = Path("/bin/busybox")
PACKAGES = "gdb-minimal,strace,linux-perf,kexec-tools"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


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
    """Build (once) the suite with a kernel configuration, as in ``base`` or ``debug+kasan``; with UKL options as in
    ``base:BYP,RET``; linked with a libc of ours as in ``base@ukl``."""
    done: dict[str, Image] = {}

    def build(config: str) -> Image:
        if config not in done:
            done[config] = _build(context, config)
        return done[config]

    return build


def _build(context: Path, config: str) -> Image:
    return _built(
        context,
        context / "suite/Uklfile",
        f"uklimg-test/guest-suite:{re.sub(r'[^a-zA-Z0-9_]', '-', config)}",
        *_config_options(config),
    )


def _config_options(config: str) -> list[str]:
    """The options of a build that make the suite with ``config``."""
    chosen, _, libc = config.partition("@")
    kernel, _, options = chosen.partition(":")
    argv = [word for name in kernel.split("+") if name != "base" for word in ("--kernel-config", name)]
    argv += ["--build-arg", f"GLIBC={libc}"] if libc else []
    return [*argv, "--build-arg", f"UKL={options.replace(',', ' ')}"] if options else argv


@pytest.fixture(scope="session")
def suite_debug(context: Path, suite_image: BuildImage) -> Callable[[str], Path]:
    """The application's debug file: its ELF file with everything, for a configuration."""

    def debug(config: str) -> Path:
        suite_image(config)
        return debug_file(context / "suite/Uklfile", context, SUITE, _config_options(config))

    return debug


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


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian 13 with a debugger, strace, perf and kexec, for the guest to mount."""
    folder = tmp_path_factory.mktemp("tools") / "root"
    folder.mkdir()
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--keyring={KEYRING}"]
    argv += [f"--include={PACKAGES}", "trixie", str(folder), find_mirror(os.environ)]
    proc.run(argv, env=proc.host_env(os.environ), timeout=900)
    for name in ("bin", "lib", "lib64", "sbin"):
        if not (folder / name).exists():
            (folder / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys", "tmp", "dev", "ukl", "files"):
        (folder / name).mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tool_options(
    tools: Path, suite_image: BuildImage, suite_debug: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], RunOptions]:
    """Options for booting a configuration's suite with TOOLS and, there, /files: ``suite`` (the debug file),
    ``bzImage`` and ``initramfs``. The first program to run is PREPARE_TOOLS."""

    @cache
    def options(config: str) -> RunOptions:
        files, image = tmp_path_factory.mktemp("files"), suite_image(config)
        shutil.copy(suite_debug(config), files / "suite")
        shutil.copy(image.bzimage, files / "bzImage")
        shutil.copy(image.initramfs, files / "initramfs")
        binds = (Bind(str(tools), TOOLS, True), Bind(str(files), f"{TOOLS}/files", True))
        return RunOptions(cpus=2, memory=1024 * MIB, binds=binds)

    return options
