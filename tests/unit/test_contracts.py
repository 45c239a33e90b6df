"""What an image of ours is to others: the specification's schemas, and the readers of KraftKit, urunc and KubeVirt.

A reader here takes the fields that the runtime takes, in its order and with its failures, and nothing else of the
image. The rules are those of KraftKit's oci/ and urunc's pkg/unikontainers, as they were in 2025 and 2026; where
versions differ, an image must do for both.
"""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4
from test_oci import CONTENT, LAYERS, RUN

from uklimg import oci
from uklimg.digest import Digest
from uklimg.imagebuild import build_image
from uklimg.oci import layer

pytestmark = pytest.mark.unit

SCHEMAS = Path(__file__).parents[1] / "schemas" / "oci"
ENTRYPOINT = replace(RUN, entrypoint=("redis-server",), cmd=("/etc/redis.conf", "two words"))
BARE = oci.RunConfig(program="hello")
TWIN = replace(RUN, target="linux", ukl_options=())
RUNS = pytest.mark.parametrize("run", [RUN, ENTRYPOINT, BARE, TWIN], ids=["cmd", "entrypoint", "bare", "twin"])


# --- the specification


def validate(value: object, name: str) -> None:
    """Against a schema file of the specification. References between them are URLs, of which only the last part, the
    file's name, means something."""

    def find(uri: str) -> Resource[Any]:
        return DRAFT4.create_resource(json.loads((SCHEMAS / uri.rpartition("/")[2]).read_text()))

    schema = json.loads((SCHEMAS / name).read_text())
    registry: Registry[Any] = Registry(retrieve=find)  # type: ignore[call-arg]  # its own documented parameter
    checker = jsonschema.FormatChecker()
    jsonschema.Draft4Validator(schema, registry=registry, format_checker=checker).validate(value)


def blobs_of(run: oci.RunConfig) -> tuple[dict[Digest, bytes], oci.Descriptor]:
    assembled = oci.assemble(LAYERS, run)
    layers = {LAYERS[role].digest: layer.of_bytes(oci.PATHS[role], data) for role, data in CONTENT.items()}
    return layers | {blob.descriptor.digest: blob.data for blob in assembled.blobs}, assembled.index


@RUNS
def test_the_specifications_schemas(run: oci.RunConfig, tmp_path: Path) -> None:
    blobs, root = blobs_of(run)
    index = json.loads(blobs[root.digest])
    validate(index, "image-index-schema.json")
    for entry in index["manifests"]:
        validate(entry, "content-descriptor.json")
        manifest = json.loads(blobs[Digest.parse(entry["digest"])])
        validate(manifest, "image-manifest-schema.json")
        for descriptor in (manifest["config"], *manifest["layers"]):
            validate(descriptor, "content-descriptor.json")
            assert len(blobs[Digest.parse(descriptor["digest"])]) == descriptor["size"]
        validate(json.loads(blobs[Digest.parse(manifest["config"]["digest"])]), "config-schema.json")
        types = {
            entry["mediaType"],
            manifest["config"]["mediaType"],
            *(one["mediaType"] for one in manifest["layers"]),
        }
        assert types == {oci.MANIFEST, oci.CONFIG, oci.LAYER}
    inputs = {role: tmp_path / role for role in oci.PATHS}
    for role, path in inputs.items():
        path.write_bytes(CONTENT[role])
    assert build_image(inputs, tmp_path / "layout", run) == root
    validate(json.loads((tmp_path / "layout/oci-layout").read_text()), "image-layout-schema.json")
    validate(json.loads((tmp_path / "layout/index.json").read_text()), "image-index-schema.json")
    assert {path.name for path in (tmp_path / "layout/blobs/sha256").iterdir()} == {digest.hex for digest in blobs}


@pytest.mark.parametrize(
    ("change", "schema"),
    [
        ({"schemaVersion": 1}, "image-index-schema.json"),
        ({"manifests": [{"mediaType": "x"}]}, "image-index-schema.json"),
        ({"annotations": {"a": 1}}, "image-index-schema.json"),
        ({"config": {"mediaType": oci.CONFIG, "digest": "sha256:0", "size": "1"}}, "image-manifest-schema.json"),
        ({"imageLayoutVersion": "2.0.0"}, "image-layout-schema.json"),
        ({"os": 1}, "config-schema.json"),
    ],
)
def test_the_schemas_are_looked_at(change: dict[str, object], schema: str) -> None:
    blobs, root = blobs_of(RUN)
    index = json.loads(blobs[root.digest])
    manifest = json.loads(blobs[Digest.parse(index["manifests"][0]["digest"])])
    good = {
        "image-index-schema.json": index,
        "image-manifest-schema.json": manifest,
        "image-layout-schema.json": {"imageLayoutVersion": "1.0.0"},
        "config-schema.json": json.loads(blobs[Digest.parse(manifest["config"]["digest"])]),
    }[schema]
    with pytest.raises(jsonschema.ValidationError):
        validate({**good, **change}, schema)


# --- KraftKit


@dataclass(frozen=True)
class Kraft:
    """A package as `kraft run` sees it once it has pulled and unpacked an image."""

    kernel: bytes
    initrd: bytes
    args: tuple[str, ...]
    env: tuple[str, ...]
    version: str
    kconfig: Mapping[str, str]


def kraft(blobs: Mapping[Digest, bytes], root: oci.Descriptor, plat: str) -> Kraft:
    index = json.loads(blobs[root.digest])
    assert "sh.kraftkit.version" in index["annotations"]  # IsOCIIndexKraftKitCompatible, before April 2026
    found = [
        entry
        for entry in index["manifests"]
        if "sh.kraftkit.version" in entry.get("annotations", {})
        and (entry["platform"]["os"], entry["platform"]["architecture"]) == (plat, "x86_64")
    ]
    assert len(found) == 1
    manifest = json.loads(blobs[Digest.parse(found[0]["digest"])])
    # NewPackageFromOCIManifestDigest follows manifest.Config.Platform without looking whether there is one.
    platform = manifest["config"]["platform"]
    assert (platform["os"], platform["architecture"]) == (plat, "x86_64")
    # Pull finds the manifest again by a checksum over the JSON of the two platforms.
    assert platform == found[0]["platform"]
    config = json.loads(blobs[Digest.parse(manifest["config"]["digest"])])
    assert (config["os"], config["architecture"]) == (plat, "x86_64")
    # UnpackImage reads the layers by their diff IDs: only what is not packed has the same digest.
    files: dict[str, bytes] = {}
    for diff_id in config["rootfs"]["diff_ids"]:
        with tarfile.open(fileobj=io.BytesIO(blobs[Digest.parse(diff_id)]), mode="r:") as archive:
            for info in archive:
                content = archive.extractfile(info)
                assert content is not None and info.isreg()
                files["/" + info.name] = content.read()
    paths = {name: path for one in manifest["layers"] for name, path in one.get("annotations", {}).items()}
    assert files.keys() >= {paths["org.unikraft.kernel.image"], paths["org.unikraft.kernel.initrd"]}
    return Kraft(
        files["/unikraft/bin/kernel"],
        files["/unikraft/bin/initrd"],
        tuple(config["config"].get("Cmd", ())),
        tuple(config["config"].get("Env", ())),
        platform.get("os.version", ""),
        dict(line.split("=", 1) for line in platform.get("os.features", ())),
    )


@RUNS
@pytest.mark.parametrize("plat", ["qemu", "fc"])
def test_kraftkit(run: oci.RunConfig, plat: str) -> None:
    found = kraft(*blobs_of(run), plat)
    assert found.kernel == CONTENT[oci.VMLINUX]
    assert found.initrd == CONTENT[oci.INITRAMFS]
    # What follows "--" comes after the words that PID 1 keeps: argv[0], or the entry point.
    kept = run.argv[: max(1, len(run.entrypoint))]
    assert kept + found.args == run.argv
    assert found.env == tuple(f"{name}={value}" for name, value in sorted(run.env.items()))
    assert found.version == run.kernel_version
    assert found.kconfig == ({} if run.target == "linux" else {"CONFIG_UKL": "y"})


def test_kraftkits_two_platforms_share_everything_but_their_name() -> None:
    blobs, root = blobs_of(RUN)
    assert kraft(blobs, root, "qemu") == kraft(blobs, root, "fc")


# --- urunc

PATH = re.compile(r"[A-Za-z0-9._/-]+")  # allowedPathRe
PREFIX = "com.urunc.unikernel."
MANDATORY = ("unikernelType", "hypervisor", "binary")


@dataclass(frozen=True)
class Bundle:
    """What containerd or CRI-O leaves for a runtime: the root file system, the process, and what became of labels and
    annotations on the way."""

    rootfs: Mapping[str, bytes]
    argv: tuple[str, ...]
    env: tuple[str, ...]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def bundle(blobs: Mapping[Digest, bytes], root: oci.Descriptor) -> Bundle:
    index = json.loads(blobs[root.digest])
    (entry,) = (
        entry
        for entry in index["manifests"]
        if (entry["platform"]["os"], entry["platform"]["architecture"]) == ("linux", "amd64")
    )
    manifest = json.loads(blobs[Digest.parse(entry["digest"])])
    config = json.loads(blobs[Digest.parse(manifest["config"]["digest"])])
    files: dict[str, bytes] = {}
    for one in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(blobs[Digest.parse(one["digest"])])) as archive:
            for info in archive:
                content = archive.extractfile(info)
                assert content is not None
                files["/" + info.name] = content.read()
    said = config["config"]
    argv = (*said.get("Entrypoint", ()), *said.get("Cmd", ()))
    return Bundle(files, argv, tuple(said.get("Env", ())), said["Labels"], manifest["annotations"])


def urunc_fields(found: Bundle, lost: str) -> Mapping[str, str]:
    """GetUnikernelConfig: the annotations that arrived, filled up from labels by the shim; else the file."""
    known = {} if "labels" in lost else dict(found.labels)
    known |= {} if "annotations" in lost else found.annotations
    fields = {key.removeprefix(PREFIX): value for key, value in known.items() if key.startswith(PREFIX)}
    if all(fields.get(name) for name in MANDATORY):
        return fields
    raw = json.loads(found.rootfs["/urunc.json"])
    fields = {key.removeprefix(PREFIX): base64.b64decode(value, validate=True).decode() for key, value in raw.items()}
    assert all(fields.get(name) for name in MANDATORY)
    return fields


def urunc_command(argv: tuple[str, ...], env: tuple[str, ...], address: str = "") -> str:
    """Kernel parameters for a Linux guest with an initrd (unikernels/linux.go)."""
    words = ["panic=-1", "console=ttyS0", "root=/dev/ram0", "rw"]
    words += [f"ip={address}"] if address else []
    words += ["URUNIT_DEFROUTE=1", *env, f"rdinit={argv[0]}", "--"]
    words += [f"'{word.strip()}'" if " " in word.strip() else word for word in argv[1:]]
    return " ".join(words)


@RUNS
@pytest.mark.parametrize("lost", ["", "labels", "annotations", "labels and annotations"])
def test_urunc(run: oci.RunConfig, lost: str) -> None:
    found = bundle(*blobs_of(run))
    fields = urunc_fields(found, lost)
    assert (fields["unikernelType"], fields["hypervisor"]) == ("linux", "qemu")
    assert found.rootfs[fields["binary"]] == CONTENT[oci.VMLINUX]
    assert found.rootfs[fields["initrd"]] == CONTENT[oci.INITRAMFS]
    assert fields.get("unikernelVersion", "") == run.kernel_version
    for name in ("binary", "initrd"):
        assert PATH.fullmatch(fields[name]) and Path(fields[name]).as_posix() == fields[name]
    # Neither a block device nor the container's own files: the initrd is the guest's root.
    assert not fields.keys() & {"block", "blkMntPoint", "mountRootfs", "bootKernel", "bootInitrd"}
    assert all(len(value) <= 4096 for value in fields.values())
    assert urunc_command(found.argv, found.env).split("rdinit=")[1].startswith(f"/ukl/{run.program} --")
    # Versions that take the command from there split it at white space.
    assert fields["cmdline"].split()[0] == f"/ukl/{run.program}"


# --- oras


@RUNS
def test_oras_pull_writes_each_layer_as_a_tar(run: oci.RunConfig) -> None:
    """It takes layers with a title, and refuses two of one name."""
    blobs, root = blobs_of(run)
    for entry in json.loads(blobs[root.digest])["manifests"]:
        layers = json.loads(blobs[Digest.parse(entry["digest"])])["layers"]
        names = [one["annotations"]["org.opencontainers.image.title"] for one in layers]
        assert names == ["vmlinux.tar", "bzImage.tar", "initramfs.tar", "urunc.json.tar"][: len(layers)]


# --- KubeVirt


def test_kubevirt() -> None:
    """kernelBoot.container: two absolute paths of files in the image, whichever platform is pulled."""
    files = bundle(*blobs_of(RUN)).rootfs
    assert files["/boot/bzImage"] == CONTENT[oci.BZIMAGE]
    assert files["/unikraft/bin/kernel"] == CONTENT[oci.VMLINUX]
    assert files["/unikraft/bin/initrd"] == CONTENT[oci.INITRAMFS]
