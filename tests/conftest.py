"""What all tests share: the images that boot and guest tests need are built before the first of them runs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from uklimg import oci, proc
from uklimg.cli.run import ACCEL, boot_file
from uklimg.runner.accel import find_accel
from uklimg.runner.qemu import Qemu
from uklimg.settings import read_settings
from uklimg.store import Store

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the kernels here: it takes many minutes the first time, and a test's time limit is not about that."""
    if session.config.option.collectonly or session.testsfailed:
        return
    boot = any(item.get_closest_marker("boot") for item in session.items)
    guest = any(item.get_closest_marker("guest") for item in session.items)
    twin = any(item.get_closest_marker("twin") for item in session.items)
    if boot or guest:
        vmlinux = _example(session, "base")
        # The first `uklimg run` on a machine with KVM says that it tries it; tests look for what the program writes.
        state = read_settings(os.environ, Path.cwd()).state / ACCEL
        find_accel(Qemu(), vmlinux, state=state, env=proc.host_env(os.environ))
    if guest:
        _example(session, "debug")
    if twin:
        _example(session, "base", "--target=linux")


def _example(session: pytest.Session, config: str, *options: str) -> Path:
    """Build Uklfile.example with a configuration of the kernel, as a user would; its vmlinux.

    In a folder of its own, because a Uklfile.lock beside the file may be about an earlier state of the patches.
    """
    tag = f"uklimg-test/example:{config}{'-linux' if options else ''}"
    with tempfile.TemporaryDirectory(prefix="uklimg-test-") as folder:
        shutil.copy(ROOT / "Uklfile.example", folder)
        shutil.copy(ROOT / "scripts/example.lock", f"{folder}/Uklfile.lock")
        argv = [sys.executable, "-m", "uklimg", "build", "-f", f"{folder}/Uklfile.example", "-t", tag, folder]
        argv[4:4] = [*options, *(("--kernel-config", config) if config != "base" else ())]
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():  # standard error: a worker's standard output is not for people
            print(f"\nbuilding {tag} (the first time this takes long)", file=sys.stderr, flush=True)
        done = proc.run(argv, env=dict(os.environ), cwd=ROOT, check=False)
    if done.status != 0:
        pytest.exit(f"the image for boot tests cannot be built:\n{done.tail}", returncode=3)
    store = Store(read_settings(os.environ, Path.cwd()).store)
    image = oci.read_image(lambda blob: store.read_blob(blob.digest), store.tags()[tag])
    return boot_file(store, image, oci.VMLINUX)
