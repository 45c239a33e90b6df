"""OCI structures: bytes by the image specification 1.1, what an image of ours is, and hostile input."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uklimg import oci
from uklimg.digest import JSON, Digest
from uklimg.errors import CorruptError, ToolError, UserError
from uklimg.oci import image as ours
from uklimg.oci import layer
from uklimg.recipes.image import image_step, params, run_config_of

pytestmark = pytest.mark.unit

Schema: TypeAlias = dict[str, Any]

# The rules of the OCI image specification 1.1, stricter where ours leave no choice (no unknown fields).
STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}
TEXTS: Schema = {"type": "array", "items": {"type": "string"}, "minItems": 1}
EMPTY_OBJECTS: Schema = {
    "type": "object",
    "additionalProperties": {"type": "object", "maxProperties": 0},
    "minProperties": 1,
}
DATE: Schema = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
PLATFORM: Schema = {
    "type": "object",
    "properties": {
        "os": {"type": "string", "minLength": 1},
        "architecture": {"type": "string", "minLength": 1},
        "os.version": {"type": "string"},
        "os.features": {"type": "array", "items": {"type": "string", "pattern": "^CONFIG_[A-Z0-9_]+=.+$"}},
    },
    "required": ["os", "architecture"],
    "additionalProperties": False,
}


def descriptor_schema(*media_types: str, platform: bool = False) -> Schema:
    return {
        "type": "object",
        "properties": {
            "mediaType": {"enum": list(media_types)},
            "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
            "size": {"type": "integer", "minimum": 1},
            "annotations": STRINGS,
            **({"platform": PLATFORM} if platform else {}),
        },
        "required": ["mediaType", "digest", "size", *(["platform"] if platform else [])],
        "additionalProperties": False,
    }


INDEX_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "schemaVersion": {"const": 2},
        "mediaType": {"const": oci.INDEX},
        "manifests": {"type": "array", "items": descriptor_schema(oci.MANIFEST, platform=True)},
        "annotations": STRINGS,
    },
    "required": ["schemaVersion", "mediaType", "manifests"],
    "additionalProperties": False,
}
MANIFEST_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "schemaVersion": {"const": 2},
        "mediaType": {"const": oci.MANIFEST},
        "config": {"anyOf": [descriptor_schema(oci.CONFIG), descriptor_schema(oci.CONFIG, platform=True)]},
        "layers": {"type": "array", "items": descriptor_schema(oci.LAYER), "minItems": 1},
        "annotations": STRINGS,
    },
    "required": ["schemaVersion", "mediaType", "config", "layers"],
    "additionalProperties": False,
}
CONFIG_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        **PLATFORM["properties"],
        "created": DATE,
        "config": {
            "type": "object",
            "properties": {
                "Env": {"type": "array", "items": {"type": "string", "pattern": "^[^=]+="}},
                "Entrypoint": TEXTS,
                "Cmd": TEXTS,
                "ExposedPorts": {**EMPTY_OBJECTS, "propertyNames": {"pattern": "^[0-9]+(/(tcp|udp))?$"}},
                "Volumes": EMPTY_OBJECTS,
                "WorkingDir": {"type": "string", "pattern": "^/"},
                "Labels": STRINGS,
                "StopSignal": {"type": "string", "pattern": "^(SIG[A-Z0-9+-]+|[0-9]+)$"},
            },
            "additionalProperties": False,
        },
        "rootfs": {
            "type": "object",
            "properties": {
                "type": {"const": "layers"},
                "diff_ids": {"type": "array", "items": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}},
            },
            "required": ["type", "diff_ids"],
            "additionalProperties": False,
        },
        "history": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"created": DATE, "created_by": {"type": "string"}},
                "additionalProperties": False,
            },
        },
    },
    "required": ["os", "architecture", "rootfs", "config"],
    "additionalProperties": False,
}

RUN = oci.RunConfig(
    program="redis-server",
    cmd=("redis-server", "/etc/redis.conf"),
    env={"LANG": "C", "A": "b=c"},
    workdir="/data",
    exposed_ports=("6379/tcp",),
    volumes=("/data",),
    stop_signal="SIGINT",
    memory=256 << 20,
    cpus=2,
    cmdline="isolcpus=1 quiet",
    ukl_options=("BYP", "RET"),
    kernel_version="6.12.107",
    libc_version="2.41",
    labels={"org.opencontainers.image.title": "redis", "team": "x"},
)
CONTENT = {role: role.encode() * 700 for role in oci.PATHS}
LAYERS = {role: oci.Descriptor.of(oci.LAYER, layer.of_bytes(oci.PATHS[role], data)) for role, data in CONTENT.items()}
ASSEMBLED = oci.assemble(LAYERS, RUN)
BLOBS = {blob.descriptor.digest: blob.data for blob in ASSEMBLED.blobs}


def read(blob: oci.Descriptor) -> bytes:
    return BLOBS[blob.digest]


def loaded(digest: Digest) -> Schema:
    value = json.loads(BLOBS[digest])
    assert isinstance(value, dict)
    return value


IMAGE = oci.read_image(read, ASSEMBLED.index)


def test_bytes_follow_the_specification() -> None:
    jsonschema.validate(loaded(ASSEMBLED.index.digest), INDEX_SCHEMA)
    for entry, manifest in zip(IMAGE.index.manifests, IMAGE.manifests, strict=True):
        jsonschema.validate(loaded(entry.digest), MANIFEST_SCHEMA)
        config = loaded(manifest.config.digest)
        jsonschema.validate(config, CONFIG_SCHEMA)
        rootfs = config["rootfs"]
        # Uncompressed layers are their own diff ids.
        assert rootfs["diff_ids"] == [str(blob.digest) for blob in manifest.layers]
        assert entry.platform is not None
        assert (config["os"], config["architecture"]) == (entry.platform.os, entry.platform.architecture)


def test_equal_input_gives_equal_bytes_and_no_input_is_without_effect() -> None:
    assert oci.assemble(dict(reversed(LAYERS.items())), replace(RUN, env={"A": "b=c", "LANG": "C"})) == ASSEMBLED
    changed = [
        replace(RUN, memory=1 << 20),
        replace(RUN, cmdline="quiet"),
        replace(RUN, ukl_options=()),
        replace(RUN, cmd=("redis-server",)),
        replace(RUN, labels={}),
        replace(RUN, target="linux"),
    ]
    digests = {oci.assemble(LAYERS, run).index.digest for run in (RUN, *changed)}
    assert len(digests) == len(changed) + 1


def test_platforms_share_layers_and_each_reader_finds_its_own() -> None:
    entries = {str(entry.platform): entry for entry in IMAGE.index.manifests}
    assert list(entries) == ["linux/amd64", "qemu/x86_64", "fc/x86_64"]
    linux, qemu, fc = IMAGE.manifests
    assert linux.layers[:3] == qemu.layers == fc.layers
    # KraftKit
    for name in ("qemu/x86_64", "fc/x86_64"):
        platform = entries[name].platform
        assert platform is not None
        assert platform.os_version == "6.12.107"
        assert "sh.kraftkit.version" in entries[name].annotations
    paths = {key: value for blob in qemu.layers for key, value in blob.annotations.items()}
    assert paths["org.unikraft.kernel.image"] == "/unikraft/bin/kernel"
    assert paths["org.unikraft.kernel.initrd"] == "/unikraft/bin/initrd"
    # urunc: annotations, labels, and the file for those who lose both
    wanted = {
        "com.urunc.unikernel.unikernelType": "linux",
        "com.urunc.unikernel.hypervisor": "qemu",
        "com.urunc.unikernel.binary": "/unikraft/bin/kernel",
        "com.urunc.unikernel.initrd": "/unikraft/bin/initrd",
        "com.urunc.unikernel.cmdline": "/ukl/redis-server /etc/redis.conf",
        "com.urunc.unikernel.unikernelVersion": "6.12.107",
    }
    assert wanted.items() <= linux.annotations.items()
    assert wanted.items() <= IMAGE.config.labels.items()
    with tarfile.open(fileobj=io.BytesIO(BLOBS[linux.layers[3].digest])) as tar:
        (member,) = tar.getmembers()
        file = tar.extractfile(member)
        assert member.name == "urunc.json" and file is not None
        assert {k: base64.b64decode(v).decode() for k, v in json.load(file).items()} == wanted
    # it starts argv[0] as rdinit=
    assert IMAGE.config.cmd == ("/ukl/redis-server", "/etc/redis.conf")
    assert linux.annotations["org.opencontainers.image.title"] == "redis"


def test_run_config_survives_every_platform() -> None:
    assert IMAGE.run == RUN
    for manifest in IMAGE.manifests:
        assert oci.run_config(oci.parse_config(read(manifest.config))) == RUN


def test_an_image_whose_annotations_another_tool_lost() -> None:
    """A single manifest with the same configuration and layers, as podman writes it; of packed ones it is said."""
    linux = IMAGE.manifests[0]
    for suffix in ("", "+gzip"):
        bare = tuple(replace(one.bare(), media_type=f"{oci.LAYER}{suffix}") for one in linux.layers)
        data = oci.Manifest(linux.config, bare).encode()
        root = oci.Descriptor.of(oci.MANIFEST, data)
        image = oci.read_image(lambda blob, data=data: data if blob.digest not in BLOBS else read(blob), root)  # type: ignore[misc]
        assert image.run == RUN
        for role in oci.PATHS:
            if suffix:
                with pytest.raises(UserError, match="was packed by another tool"):
                    image.file(role)
            else:
                assert image.file(role).digest == LAYERS[role].digest
    with pytest.raises(UserError, match="holds no kernel"):
        image.file("kernel")


def test_argv() -> None:
    assert RUN.argv == ("redis-server", "/etc/redis.conf")
    assert RUN.argv_with(["other"]) == ("other",)
    entry = replace(RUN, entrypoint=("redis-server",), cmd=("--port", "1"))
    assert entry.argv == ("redis-server", "--port", "1")
    assert entry.argv_with(["--port", "2"]) == ("redis-server", "--port", "2")
    assert replace(RUN, cmd=()).argv == ("redis-server",)


_TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), max_size=4).map(tuple)


@settings(deadline=None)  # a loaded machine is no fault
@given(
    _TEXTS,
    _TEXTS,
    st.dictionaries(
        st.from_regex(r"\A[A-Z_]{1,8}\Z"), st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    ),
    st.integers(0, 1 << 40),
)
def test_run_config_round_trip(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], env: dict[str, str], memory: int
) -> None:
    run = replace(RUN, entrypoint=entrypoint, cmd=cmd, env=env, memory=memory)
    assert run_config_of(json.loads(json.dumps(params(run)))) == run
    assembled = oci.assemble(LAYERS, run)
    blobs = {blob.descriptor.digest: blob.data for blob in assembled.blobs}
    back = oci.read_image(lambda blob: blobs[blob.digest], assembled.index).run
    # A first argument that is the stub's path comes back as the name that stands for it.
    assert back.argv == tuple(run.program if n == 0 and a == run.stub else a for n, a in enumerate(run.argv))
    assert replace(back, cmd=(), entrypoint=()) == replace(run, cmd=(), entrypoint=())


@pytest.mark.parametrize("label", ["org.uklimg.memory", "com.urunc.unikernel.binary"])
def test_labels_of_ours_cannot_be_set(label: str) -> None:
    with pytest.raises(UserError, match="set by uklimg itself"):
        oci.assemble(LAYERS, replace(RUN, labels={label: "x"}))


def test_description() -> None:
    summary = oci.describe(IMAGE.index, IMAGE.manifests, IMAGE.config, ASSEMBLED.index.digest)
    assert summary.run == RUN
    assert [f.role for f in summary.files] == ["vmlinux", "bzImage", "initramfs"]
    assert summary.files[1].path == "/boot/bzImage"
    assert summary.files[0].size == LAYERS["vmlinux"].size
    small = sum(len(data) for data in BLOBS.values()) - len(BLOBS[ASSEMBLED.index.digest])
    assert summary.size == small + sum(blob.size for blob in LAYERS.values())
    assert [p.platform for p in summary.platforms] == ["linux/amd64", "qemu/x86_64", "fc/x86_64"]
    assert any("no KASLR" in note for note in summary.notes)
    weaker = oci.assemble(LAYERS, replace(RUN, ukl_options=("BYP", "SHORTCUT")))
    blobs = {blob.descriptor.digest: blob.data for blob in weaker.blobs}
    image = oci.read_image(lambda blob: blobs[blob.digest], weaker.index)
    weakens = oci.describe(image.index, image.manifests, image.config, weaker.index.digest).weakens
    assert [text.partition(":")[0] for text in weakens] == ["UKL", "BYP", "SHORTCUT"]
    assert "HARDENED_USERCOPY" in weakens[2]
    assert [text.partition(":")[0] for text in summary.weakens] == ["UKL", "BYP", "RET"]
    value = summary.as_json()
    assert isinstance(value, dict)
    assert value["memory"] == 256 << 20 and value["ukl"] == ["BYP", "RET"] and value["ports"] == ["6379/tcp"]
    json.dumps(value)


def test_image_step() -> None:
    step = image_step(app="app:redis", bzimage="bzimage", initramfs="initramfs", run=RUN)
    assert step.needs() == ("app:redis", "bzimage", "initramfs")
    keys = {name: Digest.of(name.encode()) for name in step.needs()}
    other = image_step(app="app:redis", bzimage="bzimage", initramfs="initramfs", run=replace(RUN, cpus=3))
    assert Digest.of_json(dict(step.key_fields(keys))) != Digest.of_json(dict(other.key_fields(keys)))


def test_finding_files() -> None:
    assert IMAGE.file(oci.VMLINUX).digest == LAYERS[oci.VMLINUX].digest
    with pytest.raises(UserError, match="no floppy"):
        IMAGE.file("floppy")


def test_an_ordinary_image_is_not_ours() -> None:
    config = replace(IMAGE.config, labels={"maintainer": "x"})
    with pytest.raises(UserError, match="ordinary image"):
        oci.run_config(config)


# Layers of one file


@settings(deadline=None)  # a loaded machine is no fault
@given(st.integers(0, 5000))
def test_layer_is_a_tar_with_one_file(size: int) -> None:
    data = layer.of_bytes("/a/b", b"x" * size)
    assert len(data) == layer.length(size) and len(data) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        (member,) = tar.getmembers()
    assert (member.name, member.size, member.mode, member.uid, member.gid) == ("a/b", size, 0o644, 0, 0)
    assert (member.mtime, member.uname, member.isreg()) == (oci.EPOCH, "", True)
    assert b"".join(layer.file_chunks(io.BytesIO(data), "/a/b", len(data))) == b"x" * size


def _tar_header(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    info = tarfile.TarInfo("a/b")
    info.size = 10
    change(info)
    return info.tobuf(tarfile.GNU_FORMAT)


def _set(**fields: object) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in fields.items():
            setattr(info, name, value)

    return change


@pytest.mark.parametrize(
    "block",
    [
        b"",
        bytes(512),
        b"x" * 512,
        _tar_header(_set(name="../a/b")),
        _tar_header(_set(name="/etc/passwd")),
        _tar_header(_set(type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        _tar_header(_set(type=tarfile.LNKTYPE, linkname="x")),
        _tar_header(_set(type=tarfile.CHRTYPE)),
        _tar_header(_set(type=tarfile.DIRTYPE)),
        _tar_header(_set(type=tarfile.GNUTYPE_SPARSE)),
        _tar_header(_set(size=1 << 40)),
        _tar_header(_set(size=-5)),
    ],
)
def test_layers_that_hold_anything_else_are_refused(block: bytes) -> None:
    assert layer.file_size(_tar_header(_set()), "/a/b", 2048) == 10
    with pytest.raises(CorruptError, match="the layer of /a/b"):
        layer.file_size(block, "/a/b", 2048)


def test_a_layer_cut_short_is_refused() -> None:
    data = layer.of_bytes("/a", b"x" * 2000)
    with pytest.raises(CorruptError, match="shorter"):
        list(layer.file_chunks(io.BytesIO(data[:1000]), "/a", len(data)))


# Hostile input

GOOD: Schema = loaded(IMAGE.index.manifests[0].digest)
CONFIG: Schema = {"mediaType": oci.CONFIG, "digest": "sha256:" + "0" * 64, "size": 2}
GOOD_INDEX: Schema = loaded(ASSEMBLED.index.digest)


def _bytes(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"schemaVersion": 2',
        _bytes({**GOOD, "schemaVersion": 1}),
        _bytes({**GOOD, "schemaVersion": "2"}),
        _bytes({**GOOD, "mediaType": oci.INDEX}),
        _bytes({**GOOD, "mediaType": "text/plain"}),
        _bytes({**GOOD, "config": None}),
        _bytes({**GOOD, "config": {**CONFIG, "digest": "sha256:../../../../etc/passwd"}}),
        _bytes({**GOOD, "config": {**CONFIG, "digest": "sha512:" + "0" * 128}}),
        _bytes({**GOOD, "config": {**CONFIG, "size": -1}}),
        _bytes({**GOOD, "config": {**CONFIG, "size": True}}),
        _bytes({**GOOD, "config": {**CONFIG, "size": 1.5}}),
        _bytes({**GOOD, "config": {**CONFIG, "size": 1 << 62}}),
        _bytes({**GOOD, "config": {**CONFIG, "mediaType": "x\r\ny/z"}}),
        _bytes({**GOOD, "layers": {}}),
        _bytes({**GOOD, "layers": [CONFIG] * 9000}),
        _bytes({**GOOD, "layers": ["x"]}),
        _bytes({**GOOD, "annotations": {"a": 1}}),
        _bytes({**GOOD, "annotations": ["a"]}),
        _bytes({**GOOD, "annotations": {"a": "\0"}}),
        _bytes({**GOOD, "manifests": []}),
        _bytes(GOOD)[:-1] + b', "layers": []}',
        _bytes(GOOD)[:-1] + b', "x": NaN}',
        _bytes(GOOD)[:-1] + b', "x": ' + b"9" * 5000 + b"}",
        _bytes(GOOD)[:-1] + b', "x": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"a":' * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        _bytes(GOOD) + b" " * (4 << 20),
    ],
)
def test_bad_manifests_are_corrupt(data: bytes) -> None:
    oci.parse_manifest(_bytes(GOOD))
    with pytest.raises(CorruptError):
        oci.parse_index_or_manifest(data)


@pytest.mark.parametrize(
    "change",
    [
        {"mediaType": oci.MANIFEST},
        {"manifests": [CONFIG, {"size": 1}]},
        {"manifests": "x"},
        {"layers": []},
    ],
)
def test_bad_indexes_are_corrupt(change: Schema) -> None:
    assert isinstance(oci.parse_index_or_manifest(_bytes(GOOD_INDEX)), oci.Index)
    with pytest.raises(CorruptError):
        oci.parse_index_or_manifest(_bytes({**GOOD_INDEX, **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"exposed_ports": ("6379/tcp;rm",)},
        {"exposed_ports": ("hostfwd=tcp::1-:2/tcp",)},
        {"volumes": ("data",)},
        {"volumes": ("/a/../../etc",)},
        {"workdir": ".."},
        {"workdir": "/a\nb"},
        {"stop_signal": "KILL -9"},
        {"env": ("no equals sign",)},
        {"labels": {"org.uklimg.program": "../../bin/sh"}},
        {"labels": {"org.uklimg.program": "x", "org.uklimg.memory": "-1"}},
        {"labels": {"org.uklimg.program": "x", "org.uklimg.memory": "9" * 16}},
        {"labels": {"org.uklimg.program": "x", "org.uklimg.cpus": "٣"}},
        {"labels": {"org.uklimg.program": "x", "org.uklimg.cmdline": "a\nb"}},
    ],
)
def test_bad_run_configurations_are_corrupt(change: Schema) -> None:
    oci.run_config(IMAGE.config)
    with pytest.raises(CorruptError):
        oci.run_config(replace(IMAGE.config, **change))


@settings(deadline=None)  # a loaded machine is no fault
@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_corrupt(data: bytes) -> None:
    for parse in (oci.parse_index_or_manifest, oci.parse_config):
        try:
            parse(data)
        except CorruptError as error:
            assert len(error.message) < 500


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(deadline=None)  # a loaded machine is no fault
@given(st.sampled_from(sorted(GOOD)), _JSON)
def test_any_field_parses_or_is_corrupt(field: str, value: JSON) -> None:
    try:
        oci.parse_manifest(_bytes({**GOOD, field: value}))
    except ToolError as error:
        assert isinstance(error, CorruptError)


def test_docker_types_are_read() -> None:
    config = {**CONFIG, "mediaType": "application/vnd.docker.container.image.v1+json"}
    manifest = {"schemaVersion": 2, "mediaType": oci.DOCKER_MANIFEST, "config": config, "layers": [CONFIG]}
    parsed = oci.parse_index_or_manifest(_bytes(manifest))
    assert isinstance(parsed, oci.Manifest) and parsed.media_type == oci.DOCKER_MANIFEST
    empty = oci.parse_config(b'{"os":"linux","architecture":"amd64","config":null,"rootfs":{"diff_ids":null}}')
    assert empty.platform == ours.LINUX and empty.diff_ids == ()
