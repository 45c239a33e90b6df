"""`uklimg build --target=linux`: the same program and kernel as ordinary Linux, from source to verify."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from test_build import Project
from test_image import make

from uklimg import blueprint, blueprints, oci
from uklimg.digest import Digest
from uklimg.settings import read_settings
from uklimg.store import Store

# boot, twin: both kernels are made before the first of them.
pytestmark = [pytest.mark.integration, pytest.mark.boot, pytest.mark.twin]

UKL, LINUX = "uklimg-test/twin-ukl:latest", "uklimg-test/twin-linux:latest"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same Uklfile, built as both."""
    made = make(tmp_path_factory.mktemp("twin") / "context")
    assert made.uklimg("lock").status == 0
    for target, tag in (("ukl", UKL), ("linux", LINUX)):
        found = made.uklimg("build", "--target", target, "-t", tag)
        assert found.status == 0, found.err
    return made


def image(tag: str) -> tuple[Store, oci.Image]:
    store = Store(read_settings(os.environ, Path.cwd()).store)
    return store, oci.read_image(lambda blob: store.read_blob(blob.digest), store.tags()[tag])


def test_it_boots_the_same_way_and_runs_in_ring_3(project: Project) -> None:
    ukl, linux = (project.uklimg("run", "--no-network", tag, "hello", "seven", "two words") for tag in (UKL, LINUX))
    assert ukl.status == linux.status == 7, linux.err
    assert "cpl 0 main kernel" in ukl.out and "cpl 3 main user" in linux.out
    assert linux.out.replace("cpl 3 main user", "cpl 0 main kernel") == ukl.out
    packed = project.uklimg("run", "--no-network", "--boot", "bzimage", LINUX, "hello", "seven")
    assert packed.status == 7 and "cpl 3" in packed.out


def test_it_says_what_it_is(project: Project) -> None:
    text = project.uklimg("inspect", LINUX).out
    assert re.search(r"^Target: +plain Linux$", text, re.MULTILINE) and "UKL options" not in text
    value = json.loads(project.uklimg("inspect", LINUX, "--format", "json").out)
    assert value["target"] == "linux" and value["ukl"] == []
    _, found = image(LINUX)
    assert found.index.annotations["org.uklimg.target"] == "linux"
    assert all(manifest.annotations["org.uklimg.target"] == "linux" for manifest in found.manifests)
    assert json.loads(project.uklimg("inspect", UKL, "--format", "json").out)["target"] == "ukl"


def test_the_kernel_has_the_same_configuration_but_for_ukl(project: Project) -> None:
    lines = []
    for tag in (UKL, LINUX):
        store, found = image(tag)
        carried = blueprints.read(store, found.descriptor.digest)
        assert carried is not None
        lines.append(set(blueprints.text(store, carried, blueprint.KERNEL_CONFIG).splitlines()))
    ukl, linux = lines
    assert linux - ukl == {"# CONFIG_UKL is not set"}
    assert "CONFIG_UKL=y" in ukl - linux
    assert all(re.match(r"(# )?CONFIG_UKL", line) or line in ("#", "") for line in ukl - linux), ukl - linux


def test_plan_and_verify_know_the_target(project: Project) -> None:
    steps = json.loads(project.uklimg("plan", "--target", "linux", "--format", "json").out)
    assert all(step["hit"] for step in steps)
    assert {"program:hello", "kernel-kit"} <= {step["step"] for step in steps}
    found = project.uklimg("verify", "--reuse", "kernel-kit", "--reuse", "base:*", "--format", "json", LINUX)
    assert found.status == 0, found.err
    value = json.loads(found.out)
    assert value["same"] and value["planned_otherwise"] is None
    assert Digest.parse(value["digest"]) == image(LINUX)[1].descriptor.digest


def test_a_name_of_its_own(project: Project) -> None:
    """A build without a name does not take the unikernel's away."""
    names = [project.uklimg("build", "--target", target).out.split()[0] for target in ("ukl", "linux")]
    assert names[1] == names[0].replace(":latest", "-linux:latest")
    for name in names:
        assert project.uklimg("rmi", name).status == 0


def test_what_no_kernel_could_be_linked_with_is_refused_for_the_twin_too(project: Project) -> None:
    text = (project.folder / "Uklfile").read_text()
    try:
        (project.folder / "Uklfile").write_text(text.replace("$CC -O2", "/usr/bin/gcc -static -O2"))
        for target in ("ukl", "linux"):
            found = project.uklimg("build", "--target", target, "-t", "uklimg-test/never", "--progress", "plain")
            assert found.status != 0 and "ukl-gcc" in found.err, found.err
    finally:
        (project.folder / "Uklfile").write_text(text)
