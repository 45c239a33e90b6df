"""Images carry what they were made from, and `uklimg verify` makes them again from it; `history`, `diff`, `save`.

In a store of the module's own, which begins with the machine's kernel and base image.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from privatestore import kernel_keys, store_of
from test_build import ROOT, Project, Result
from test_image import make
from test_registry import registry, skopeo

from uklimg import attached, blueprint, blueprints, oci, symbols
from uklimg.cli.run import boot_file
from uklimg.digest import Digest
from uklimg.errors import ExitCode
from uklimg.lock import LockedBase, parse_lock
from uklimg.store import Store

pytestmark = [pytest.mark.integration, pytest.mark.boot]  # boot: the kernel is made before the first of them

TAG = "uklimg-test/verify"
REUSE = ("--reuse", "kernel-kit", "--reuse", "base:*")
UKLFILE = """# a remark that is kept
ARG VERSION=1
FROM debian:trixie AS build
ARG VERSION
COPY src /src/
RUN $CC -O2 -DVERSION=$VERSION -o /src/hello /src/main.c STAMP
FROM ukl:6.12
LINK --from=build /src/hello
COPY latest.conf /etc/app.conf
COPY --from=build /src/ /etc/built/
MEMORY 128M
"""
MAIN = '#include <stdio.h>\nint main(void) { return printf("%d\\n", VERSION) < 0; }\n'


def context(folder: Path, stamp: str = "", main: str = MAIN) -> Project:
    project = make(folder, UKLFILE.replace("STAMP", stamp))
    (folder / "main.c").unlink()
    (folder / "src").mkdir()
    (folder / "src/main.c").write_text(main)
    (folder / "src/ignored").write_text("not for anybody")
    (folder / "v1.conf").write_text("configuration\n")
    (folder / "latest.conf").symlink_to("v1.conf")
    (folder / "elsewhere").write_text("never used")
    (folder / ".uklignore").write_text("src/ignored\n")
    return project


@dataclass(frozen=True)
class Built:
    project: Project
    root: Path
    digest: Digest
    borrowed: list[Digest]

    @property
    def store(self) -> Store:
        return Store(self.root)

    def uklimg(self, *argv: str, **environ: str) -> Result:
        return self.project.uklimg("--store", str(self.root), *argv, **environ)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    project = context(tmp_path_factory.mktemp("verify") / "context")
    assert project.uklimg("lock").status == 0
    borrowed = kernel_keys(project)
    with store_of(borrowed) as root:
        arguments = ("VERSION=7", "OTHER", "http_proxy=http://ada:sesame@proxy.invalid")
        words = [word for argument in arguments for word in ("--build-arg", argument)]
        found = project.uklimg("--store", str(root), "build", "-t", TAG, *words, OTHER="sesame", TOKEN="sesame")
        assert found.status == 0, found.err
        yield Built(project, root, Digest.parse(found.out.split()[-1]), borrowed)


def carried(built: Built) -> blueprints.Carried:
    found = blueprints.read(built.store, built.digest)
    assert found is not None
    return found


def test_an_image_carries_what_it_was_made_from(built: Built, tmp_path: Path) -> None:
    store, found = built.store, carried(built)
    assert found.blueprint.build_args == {"VERSION": "7"}
    assert [step.id for step in found.blueprint.steps][-1] == "image"
    assert all(step.result is not None for step in found.blueprint.steps)
    assert found.blueprint.steps[-1].result == built.digest
    assert blueprints.text(store, found, blueprint.UKLFILE) == (built.project.folder / "Uklfile").read_text()
    assert "CONFIG_UKL=y" in blueprints.text(store, found, blueprint.KERNEL_CONFIG).splitlines()
    _, files = blueprints.unpack(store, found, tmp_path)
    assert {path.relative_to(files).as_posix() for path in files.rglob("*")} == {
        "latest.conf",
        "src",
        "src/main.c",
        "v1.conf",
    }


def test_nothing_secret_and_nothing_of_the_machine_gets_in(built: Built) -> None:
    store, found = built.store, carried(built)
    words = ("sesame", "not for anybody", "never used", str(built.project.folder), str(built.root))
    for blob in store.closure(found.artifact):
        data = store.read_blob(blob.digest)
        assert not [word for word in words if word.encode() in data], blob


def test_the_image_does_not_know_of_it_and_the_same_build_attaches_the_same(built: Built) -> None:
    before = blueprints.entry_of(built.store, built.digest)
    try:
        for mode, there in (("none", False), ("min", True), ("full", True)):
            argv = ("build", "-t", TAG, "--build-arg", "VERSION=7", "--blueprint", mode)
            found = built.uklimg(*argv)
            assert found.status == 0, found.err
            assert found.out.split()[-1] == str(built.digest)
            assert (blueprints.entry_of(built.store, built.digest) is not None) == there
            if mode == "min":
                assert blueprint.CONTEXT not in carried(built).files
    finally:
        after = blueprints.entry_of(built.store, built.digest)
    assert before is not None
    assert after is not None
    assert after.digest == before.digest


def test_an_image_from_a_shared_cache_knows_what_its_steps_left(built: Built, tmp_path: Path) -> None:
    argv = ("build", "-t", TAG, "--build-arg", "VERSION=7")
    assert built.uklimg(*argv, "--cache-to", f"dir:{tmp_path}/cache").status == 0
    environ = {"UKLIMG_STORE": str(tmp_path / "other")}
    found = built.project.uklimg(*argv, "--cache-from", f"dir:{tmp_path}/cache", **environ)
    assert found.status == 0, found.err
    store = Store(tmp_path / "other")
    other = blueprints.read(store, built.digest)
    assert other is not None
    assert other.blueprint == carried(built).blueprint
    assert [record.step for record in store.records()] == ["image"]


def test_an_image_of_a_registry_is_made_again_from_what_it_carries(built: Built, tmp_path: Path) -> None:
    """On another machine, as it were: a store without the image, and without the project's folder."""
    with registry(tmp_path / "registry") as server, store_of(built.borrowed) as root:
        name = f"{server.host}/team/hello:1"
        assert built.uklimg("push", TAG, name).status == 0
        assert built.uklimg("push", TAG, f"{server.host}/team/hello:2").status == 0
        elsewhere = Project(tmp_path)
        by_digest = f"{server.host}/team/hello@{built.digest}"
        found = elsewhere.uklimg("--store", str(root), "verify", *REUSE, "--format", "json", by_digest)
        assert found.status == 0, found.err
        value = json.loads(found.out)
        assert value["same"] and value["rebuilt"] == value["digest"] == str(built.digest)
        assert {step["step"] for step in value["steps"] if step["reused"]} == {"kernel-kit", "base:debian-trixie"}
        assert all(step["before"] == step["after"] for step in value["steps"])
        other = blueprints.read(Store(root), built.digest)
        assert other == carried(built)
        # As the files for CI do: what was verified gets its name.
        released = f"{server.host}/team/hello:released"
        assert elsewhere.uklimg("--store", str(root), "tag", by_digest, released).status == 0
        assert elsewhere.uklimg("--store", str(root), "push", released).out.endswith(f"@{built.digest}\n")
        # The list of a registry that keeps none itself; pushing twice made one entry.
        raw = skopeo(
            "inspect", "--raw", "--tls-verify=false", f"docker://{server.host}/team/hello:sha256-{built.digest.hex}"
        )
        listed = oci.parse_index(raw.encode()).manifests
        assert carried(built).artifact.digest in [entry.digest for entry in listed]
        # Bills of materials and the like from two machines are the same, and one that did not build it says nothing
        # about how it was built.
        kinds = (attached.LOCK, attached.CONFIG, attached.SBOM, attached.PROVENANCE)
        types = [blueprint.ARTIFACT, *(kind.artifact_type for kind in kinds)]
        assert sorted(entry.artifact_type for entry in listed) == sorted(types)
        # And a blueprint that is damaged there does not keep anybody from the image.
        victim = server.blob(carried(built).files[blueprint.UKLFILE].digest)
        victim.write_bytes(b"FROM something else")
        third = elsewhere.uklimg("--store", str(tmp_path / "third"), "pull", name)
        assert third.status == 0
        assert "comes without its blueprint" in third.err
        assert blueprints.entry_of(Store(tmp_path / "third"), built.digest) is None
    found = elsewhere.uklimg("--store", str(tmp_path / "third"), "verify", name)
    assert found.status == ExitCode.NOT_FOUND
    assert "carries nothing that it could be built from" in found.err


def test_what_is_attached_travels_with_an_image(built: Built, tmp_path: Path) -> None:
    """Symbols, bill of materials and provenance of a real build, signed, to a machine that has nothing."""
    with registry(tmp_path / "registry") as server:
        name = f"{server.host}/team/hello:1"
        key, public = tmp_path / "my.key", tmp_path / "my.pub"
        assert built.uklimg("keygen", "--no-password", str(tmp_path / "my")).status == 0
        options = ("--attach", "all", "--sign", str(key), "--builder", "https://ci.example/1")
        pushed = built.uklimg("push", *options, TAG, name)
        assert pushed.status == 0, pushed.err
        other = Project(tmp_path)
        store = ("--store", str(tmp_path / "other"))
        pulled = other.uklimg(*store, "pull", "--verify", str(public), name)
        assert pulled.status == 0, pulled.err
        assert "without" not in pulled.err
        out = tmp_path / "out"
        out.mkdir()
        argv = ("artifacts", "--verify", str(public), "-o", str(out), name, *attached.KINDS)
        found = other.uklimg(*store, *argv)
        assert found.status == 0, found.err
    files = {path.name: path for path in out.iterdir()}
    assert set(files) == {
        *("Uklfile.lock", "kernel.config", "sbom.cdx.json", "provenance.json", "vmlinux", "hello.debug")
    }
    assert symbols.elf_symbols(files["vmlinux"])["start_kernel"] > 0
    application = symbols.elf_symbols(files["hello.debug"])
    assert application["main"] > 0
    # What the image itself says of its application is the same functions.
    image = kernel_of(Store(tmp_path / "other"), name)
    told = symbols.embedded_functions(image)
    assert told["main"] >= application["main"]
    assert len(set(told) & set(application)) > 500, "of several names at one place it knows one"
    check_documents(files, built)


def kernel_of(store: Store, name: str) -> Path:
    """The kernel file of an image of the store."""
    image = oci.read_image(lambda blob: store.read_blob(blob.digest), store.tags()[name])
    return boot_file(store, image, oci.VMLINUX)


def check_documents(files: Mapping[str, Path], built: Built) -> None:
    text = files["sbom.cdx.json"].read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = {entry["bom-ref"]: entry for entry in json.loads(text)["components"]}
    lock = parse_lock(files["Uklfile.lock"].read_text())
    (base,) = (entry for entry in lock.entries if isinstance(entry, LockedBase))
    packages = {package.name: found[f"package:{package.name}@{package.version}"] for package in base.packages}
    assert packages["libc6-dev"]["scope"] == "required"
    # Out of the base image's copyright files; links between packages' folders are followed.
    assert {"license": {"id": "LGPL-2.1-or-later"}} in packages["libc6-dev"]["licenses"]
    assert packages["zlib1g-dev"]["licenses"] != packages["gcc"]["licenses"]
    assert len([ref for ref in found if ref.startswith("patch:kernel:")]) > 10
    statement = json.loads(files["provenance.json"].read_text())
    assert statement["subject"][0]["digest"]["sha256"] == built.digest.hex
    assert statement["predicate"]["runDetails"]["builder"]["id"] == "https://ci.example/1"
    assert statement["predicate"]["buildDefinition"]["externalParameters"]["buildArgs"] == {"VERSION": "7"}


def test_a_step_that_makes_other_bytes_each_time_is_named(built: Built, tmp_path: Path) -> None:
    project = context(tmp_path / "stamped", "&& date +%N >/src/stamp && head -c 3000 /dev/urandom >/src/noise")
    assert built.uklimg("build", "-t", f"{TAG}-stamped", str(project.folder)).status == 0
    found = built.uklimg("verify", *REUSE, "--reuse", "toolchain:*", "--reuse", "init", "--offline", f"{TAG}-stamped")
    assert found.status == ExitCode.CORRUPT
    assert "the first step that differs is stage:build:2" in found.err.splitlines()[-1]
    assert "first step that differs: stage:build:2  [build 2/2] RUN $CC" in found.out
    assert "  src/stamp: differs from byte" in found.out
    assert "  src/hello" not in found.out
    if shutil.which("diffoscope"):
        assert "├── src/stamp" in found.out


def test_the_context_can_be_given_and_a_changed_one_is_noticed(built: Built, tmp_path: Path) -> None:
    project = context(tmp_path / "min", main=MAIN.replace("%d", "min %d"))
    tag = f"{TAG}-min"
    assert built.uklimg("build", "-t", tag, "--blueprint", "min", str(project.folder)).status == 0
    alone = built.uklimg("verify", *REUSE, tag)
    assert alone.status == ExitCode.USER
    assert "--context DIR" in alone.err
    (project.folder / "v1.conf").write_text("changed\n")
    cheap = (
        "--reuse",
        "toolchain:*",
        "--reuse",
        "init",
        "--reuse",
        "stage:*",
        "--reuse",
        "pick:*",
        "--reuse",
        "app:*",
    )
    argv = ("verify", *REUSE, *cheap, "--reuse", "bzimage", "--format", "json", "--context", str(project.folder), tag)
    found = built.uklimg(*argv)
    assert found.status == ExitCode.CORRUPT
    value = json.loads(found.out)
    assert value["planned_otherwise"] == value["first_difference"] == "initramfs"
    assert [item["path"] for item in value["files"]["initramfs"]] == ["initramfs.cpio"]
    (project.folder / "v1.conf").write_text("configuration\n")
    assert built.uklimg(*argv).status == 0


def test_the_script_verifies_twice(built: Built) -> None:
    """With everything taken from the store: what is tried is the script."""
    environ = {**built.project.env, "PYTHON": sys.executable, "UKLIMG_STORE": str(built.root)}
    command = [str(ROOT / "scripts/reproduce.sh"), TAG, "--reuse", "*"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{TAG}:latest is what its Uklfile makes: {built.digest}") == 2
    assert done.stdout.count("\n== ") == 2


def test_history_and_diff(built: Built, tmp_path: Path) -> None:
    value = json.loads(built.uklimg("history", TAG, "--format", "json").out)
    assert value["digest"] == str(built.digest)
    assert value["build_args"] == {"VERSION": "7"}
    steps = {step["step"]: step for step in value["steps"]}
    assert steps["stage:build:2"]["needs"] == ["stage:build:1"]
    assert steps["kernel-kit"]["size"] > 1_000_000
    assert steps["stage:build:2"]["milliseconds"] > 0
    assert "LINK /src/hello" in built.uklimg("history", TAG).out

    project = context(tmp_path / "other", main=MAIN.replace("%d", "version %d"))
    (project.folder / "v1.conf").write_text("other configuration\n")
    text = (project.folder / "Uklfile").read_text()
    (project.folder / "Uklfile").write_text(text.replace("128M", "256M") + "ENV GREETING=hello\n")
    assert built.uklimg("build", "-t", f"{TAG}-other", str(project.folder)).status == 0
    found = json.loads(built.uklimg("diff", TAG, f"{TAG}-other", "--format", "json").out)
    assert not found["same"]
    changed = {item["name"]: item["after"] for item in found["configuration"]}
    assert changed == {"memory": str(256 << 20), "env": "GREETING=hello"}
    assert found["kernel_configuration"] == []
    paths = {item["path"] for item in found["files"]}
    assert {"unikraft/bin/kernel", "boot/bzImage", "initrd/etc/app.conf", "initrd/etc/built/main.c"} <= paths
    plain = built.uklimg("diff", TAG, f"{TAG}-other").out
    assert "  memory: 134217728 -> 268435456" in plain
    assert "initrd/etc/app.conf: differs from byte 0 on (14 and 20 bytes)" in plain
    assert "are the same image" in built.uklimg("diff", TAG, TAG).out


def test_an_image_as_a_file_for_others(built: Built, tmp_path: Path) -> None:
    file = tmp_path / "hello.tar"
    assert built.uklimg("save", "-o", str(file), TAG).status == 0
    command = built.project.argv("--store", str(built.root), "save", TAG)
    again = subprocess.run(command, env=built.project.env, capture_output=True, check=True)
    assert again.stdout == file.read_bytes()
    raw = skopeo("inspect", "--raw", f"oci-archive:{file}:{TAG}:latest")
    assert Digest.of(raw.encode()) == built.digest
    environ = {"UKLIMG_STORE": str(tmp_path / "other")}
    loaded = built.project.uklimg("load", "-i", str(file), **environ)
    assert (loaded.status, loaded.out) == (0, f"{TAG}:latest {built.digest}\n")
    assert blueprints.read(Store(tmp_path / "other"), built.digest) == carried(built)
    # And back through somebody else's hands.
    copied = tmp_path / "copied.tar"
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    skopeo(
        *("--policy", str(policy), "copy", "--all", "--preserve-digests"),
        *(f"oci-archive:{file}:{TAG}:latest", f"oci-archive:{copied}:theirs:2"),
    )
    found = built.project.uklimg("load", "-i", str(copied), "--format", "json", UKLIMG_STORE=str(tmp_path / "third"))
    assert json.loads(found.out) == [{"name": "theirs:2", "digest": str(built.digest)}]
