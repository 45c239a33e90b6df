"""`uklimg vendor` and `--offline` for real: a folder, a registry, and builds in a network without interfaces."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from privatestore import private_store
from test_build import ROOT, Project, Result, ran
from test_registry import Server, connect, registry

from uklimg import oci
from uklimg.digest import Digest
from uklimg.errors import ExitCode
from uklimg.lock import LockedFile, parse_lock
from uklimg.settings import read_settings
from uklimg.store import Layout, Store
from uklimg.vendor import Repository

pytestmark = pytest.mark.integration

STAGES = """FROM debian:trixie AS build
SOURCE debian:redis /NONCE
RUN test -f /NONCE/src/Makefile
RUN echo 'int main(void) { return 0; }' >m.c && ukl-gcc -o program m.c && ./program
"""


def without_network(project: Project, *argv: str) -> Result:
    """A command of ours where there is no interface but a loopback that is down."""
    command = ["unshare", "-n", *project.argv(*argv)]
    done = subprocess.run(command, cwd=project.folder, env=project.env, capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with its lock."""
    made = Project(tmp_path_factory.mktemp("vendor"))
    made.write(STAGES)
    shutil.copy(ROOT / "scripts/example.lock", made.folder / "Uklfile.lock")
    found = made.uklimg("lock")
    assert found.status == 0, found.err
    return made


@pytest.fixture(scope="module")
def vendored(project: Project) -> Path:
    """All its files in a folder."""
    found = project.uklimg("vendor", "kept")
    assert found.status == 0, found.err
    return project.folder / "kept"


def build_without(project: Project, file: LockedFile, *argv: str, **environ: str) -> Result:
    """Build the stage anew in a clone of the store that lacks ``file``."""
    other = Project(project.folder / uuid.uuid4().hex)
    other.folder.mkdir()
    shutil.copy(project.folder / "Uklfile.lock", other.folder)
    other.write(STAGES)
    with private_store() as clone:
        Store(clone).blob_path(file.digest).unlink(missing_ok=True)
        found = other.uklimg(
            "--store", str(clone), "build", "--target", "build", "--progress", "plain", *argv, **environ
        )
        assert found.status == 0, found.err
        assert ran(found) == 3
        assert Store(clone).verified_path(file.digest)
    return found


def files_of(project: Project) -> set[Digest]:
    return {file.digest for file in parse_lock((project.folder / "Uklfile.lock").read_text()).files()}


def test_the_folder_has_every_locked_file(project: Project, vendored: Path) -> None:
    layout = Layout(vendored)
    (tag,) = layout.tags().values()
    layout.verify(tag)
    listed = {layer.digest for layer in oci.parse_manifest(layout.read_blob(tag.digest)).layers}
    assert listed == files_of(project) and len(listed) > 100
    text = (vendored / "files.txt").read_text()
    assert re.search(r"^ +\d+  redis_\S+\.dsc +[0-9a-f]{64}  debian:pool/main/r/redis/", text, re.MULTILINE)
    assert re.search(r"^ +\d+  linux_6\.12\.\S+ +[0-9a-f]{64}  ", text, re.MULTILINE)
    again = project.uklimg("vendor", "kept")
    assert again.out.endswith("; 0 of them new\n")
    done = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{vendored}:vendor"], capture_output=True, text=True, check=False
    )
    assert '"artifactType":"application/vnd.uklimg.vendor.v1"' in done.stdout, done.stderr


def test_a_build_from_nothing_but_vendored_files(project: Project, vendored: Path) -> None:
    """An empty store: the base image's packages and the source come from the folder, and every step runs."""
    place = read_settings(project.env, Path.cwd()).store.parent
    with tempfile.TemporaryDirectory(dir=place, prefix="test-store-") as folder:
        argv = ("--store", folder, "build", "--target", "build", "--progress", "plain", "--offline")
        missing = without_network(project, *argv)
        assert missing.status == ExitCode.NETWORK
        assert "neither in the store nor vendored, and --offline forbids" in missing.err.splitlines()[-1]
        first = without_network(project, *argv, "--vendor", str(vendored))
        assert first.status == 0, first.err
        assert ran(first) == 5
        second = without_network(project, *argv)
        assert ran(second) == 0
        store = Store(Path(folder))
        base = {package.digest for package in parse_lock((project.folder / "Uklfile.lock").read_text()).files()}
        assert sum(store.has(digest) for digest in base) > 100
    # The same bytes as from the archive.
    assert project.stage().out == first.out


def test_offline_with_a_warm_store_runs_nothing(project: Project) -> None:
    assert project.stage().status == 0
    found = without_network(project, "build", "--target", "build", "--progress", "plain", "--offline")
    assert found.status == 0, found.err
    assert ran(found) == 0
    # And it is the option, not only the missing network: nothing is looked up for a lock that lacks something.
    (project.folder / "other").mkdir(exist_ok=True)
    (project.folder / "other/Uklfile").write_text((project.folder / "Uklfile").read_text())
    bare = project.uklimg("build", "--target", "build", "--offline", "other")
    assert bare.status == ExitCode.USER and "Uklfile.lock lacks base image debian-trixie" in bare.err


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with registry(tmp_path / "registry") as running:
        yield running


def test_a_registry_keeps_them_too_and_damaged_copies_are_told(
    project: Project, vendored: Path, server: Server, tmp_path: Path
) -> None:
    lines = (project.folder / "Uklfile.lock").read_text()
    lock = parse_lock(lines)
    ref = server.ref("kept/sources:main")
    first = project.uklimg("vendor", str(ref))
    assert first.status == 0, first.err
    assert f"{ref}: {len(lock.files())} files" in first.out
    second = project.uklimg("vendor", str(ref))
    assert second.out.endswith("; 0 of them new\n"), second.err
    source = next(file for file in lock.files() if file.name.endswith(".dsc"))
    store = Store(tmp_path / "store")
    place = Repository(ref, connect)
    assert place.bring(source.blob(), store, lambda event: None)
    assert store.verified_path(source.digest).stat().st_size == source.size
    # By its digest the artifact cannot be replaced by another one.
    data, _ = connect(ref).manifest("main", "the artifact")
    pinned = Repository(ref.with_digest(Digest.of(data)), connect)
    assert pinned.bring(source.blob(), store, lambda event: None)

    # What disks change is noticed, in the registry and in a folder, and the mirror is asked in the end.
    blob = server.blob(source.digest)
    blob.write_bytes(blob.read_bytes()[::-1])
    damaged = tmp_path / "damaged"
    shutil.copytree(vendored, damaged, copy_function=os.link)
    path = damaged / "blobs/sha256" / source.digest.hex
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[::-1])
    config = tmp_path / "uklimg.toml"
    config.write_text(f'[vendor]\nplaces = ["{ref}"]\n')
    found = build_without(project, source, "--vendor", str(damaged), UKLIMG_CONFIG=str(config))
    in_folder, in_registry = (line for line in found.err.splitlines() if "looking elsewhere" in line)
    assert f"the vendored {source.name} is damaged ({path})" in in_folder
    assert f"{source.name} in {ref} is damaged" in in_registry


def test_bad_places_are_one_line(project: Project) -> None:
    found = project.uklimg("build", "--target", "build", "--vendor", "nowhere")
    assert found.status == ExitCode.USER
    assert "nowhere is no folder of vendored files" in found.err.splitlines()[-1]
    found = project.uklimg("vendor", ".")
    assert found.status == ExitCode.USER and "a folder with other things in it" in found.err
