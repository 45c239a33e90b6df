"""Bills of materials, provenance, licences, symbols, and what of them is attached to images of the store."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from test_cli import Command, add_image
from test_signing import uklimg as uklimg  # a fixture

from uklimg import attached, attachments, blueprint, blueprints, cpio, oci, symbols
from uklimg.blueprint import Blueprint, StepRecord
from uklimg.data import Data, find_data
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode
from uklimg.evidence import copyrights
from uklimg.evidence.gather import Evidence
from uklimg.evidence.parts import Part, Recipe, Scope, parts_of
from uklimg.evidence.provenance import provenance
from uklimg.evidence.sbom import NOASSERTION, sbom
from uklimg.graph import Kind as ResultKind
from uklimg.imagebuild import build_image
from uklimg.link import embed
from uklimg.lock import (
    ComponentKind,
    Lock,
    LockedBase,
    LockedComponent,
    LockedFile,
    LockedImage,
    LockedPackage,
    LockedPackages,
    LockedSource,
    SourceKind,
    format_lock,
)
from uklimg.store import Store
from uklimg.store.cache import Record, StepResult

pytestmark = pytest.mark.unit

DATA = Data(find_data())
IMAGE = Digest.of(b"image")
RUN = oci.RunConfig(
    program="redis-server",
    kernel_version="6.12.107",
    ukl_options=("BYP",),
    labels={"org.opencontainers.image.title": "redis", "org.opencontainers.image.licenses": "MIT"},
)


def file(name: str, origin: str = "") -> LockedFile:
    return LockedFile(name, Digest.of(name.encode()), 10, origin or f"debian:pool/main/{name}")


def package(name: str, version: str = "1.0-1") -> LockedPackage:
    return LockedPackage(name, version, "amd64", file(f"{name}_{version.partition(':')[2] or version}_amd64.deb"))


def component(kind: ComponentKind, name: str) -> LockedComponent:
    """As it is in the data folders."""
    folder = {ComponentKind.KERNEL: DATA.kernel, ComponentKind.LIBC: DATA.libc, ComponentKind.LIBRARY: DATA.library}
    found = folder[kind](name)
    return LockedComponent(kind, name, found.definition.version, found.definition.file, found.patches.digest)


KERNEL = component(ComponentKind.KERNEL, "6.12")
LOCK = Lock(
    (
        LockedBase("debian-trixie", IMAGE, (package("gcc"), package("libc6-dev", "2.41-12"), package("zlib1g-dev"))),
        LockedPackages("debian-trixie", (), ("libfoo-dev",), (package("libfoo-dev", "2:3.0~rc1+ds-1"),)),
        LockedSource("debian:redis", SourceKind.DEBIAN, "5:8.0.2-3", (file("redis.dsc"), file("redis.tar.gz"))),
        LockedSource(
            "https://example.org/a.tar.gz#x", SourceKind.ARCHIVE, "", (file("a.tar.gz", "https://e.org/a"),)
        ),
        LockedSource("git+https://example.org/b.git#v1", SourceKind.GIT, "0" * 40, (file("b.tar", "git+https://b"),)),
        LockedImage("host.example/base:1", IMAGE, (), (file("config", "oci:h.e/b"), file("layer", "oci:h.e/b"))),
        KERNEL,
        component(ComponentKind.LIBRARY, "zlib"),
        component(ComponentKind.LIBRARY, "sqlite3"),
    )
)
FILES = {
    blueprint.UKLFILE: oci.Descriptor.of("text/plain", b"FROM ukl:6.12\n"),
    blueprint.CONTEXT: oci.Descriptor.of("text/plain", b"context"),
    blueprint.LOCK: oci.Descriptor.of("text/plain", format_lock(LOCK).encode()),
}
STEPS = (StepRecord("image", "put the image together", "image", 1, Digest.of(b"key"), IMAGE),)
PLAN = Blueprint("0.1.0", STEPS, {"VERSION": "7"})


def recipe(entry: LockedComponent) -> Recipe | None:
    return Evidence(Store.__new__(Store), DATA).recipe(entry)


def parts(lock: Lock = LOCK, run: oci.RunConfig = RUN) -> tuple[Part, ...]:
    return parts_of(
        run, PLAN, FILES, lock, recipe, lambda entry: ("MIT", "GPL-2.0-only") if "redis" in repr(entry) else ()
    )


def document(made: tuple[Part, ...] | None = None) -> dict[str, object]:
    return dict(json.loads(sbom(IMAGE, RUN, made or parts(), "0.1.0")))


def components(found: Mapping[str, object]) -> dict[str, dict[str, object]]:
    listed = found["components"]
    assert isinstance(listed, list)
    return {entry["bom-ref"]: entry for entry in listed}


# --- the bill of materials


def test_the_bill_of_materials_is_what_cyclonedx_says_it_is() -> None:
    data = sbom(IMAGE, RUN, parts(), "0.1.0")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode()) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(data.decode().replace('"version"', '"wersion"'))


def test_it_is_the_same_for_the_same_image() -> None:
    data = sbom(IMAGE, RUN, parts(), "0.1.0")
    assert sbom(IMAGE, RUN, parts()[::-1], "0.1.0") == data
    assert "timestamp" not in json.loads(data)["metadata"]
    other = json.loads(sbom(Digest.of(b"other"), RUN, parts(), "0.1.0"))
    assert other["serialNumber"] != json.loads(data)["serialNumber"]


def test_it_has_every_source_library_and_patch() -> None:
    found = components(document())
    for entry in LOCK.entries:
        if isinstance(entry, LockedBase | LockedPackages):
            refs = [f"package:{p.name}@{p.version}" for p in entry.packages]
        elif isinstance(entry, LockedComponent):
            refs = [f"{entry.kind.value}:{entry.name}"]
        else:
            refs = [f"{'image' if isinstance(entry, LockedImage) else 'source'}:{entry.reference}"]
        assert set(refs) <= set(found)
    for made, folder in ((KERNEL, DATA.kernel("6.12")), (LOCK.get(("library", "sqlite3")), DATA.library("sqlite3"))):
        assert isinstance(made, LockedComponent)
        assert folder.patches.patches
        ref = f"{made.kind.value}:{made.name}"
        for patch in folder.patches.patches:
            listed = found[f"patch:{ref}/{patch.name}"]
            assert listed["hashes"] == [{"alg": "SHA-256", "content": patch.digest.hex}]
            assert listed["version"] == made.version
            assert listed["licenses"] == found[ref]["licenses"]
    assert found["kernel:6.12"]["name"] == "linux"
    assert found["kernel:6.12"]["licenses"] == [{"expression": "GPL-2.0-only WITH Linux-syscall-note"}]
    assert found["library:zlib"]["licenses"] == [{"license": {"id": "Zlib"}}]
    assert found["library:zlib"]["version"] == DATA.library("zlib").definition.version
    assert found["init"]["version"] == "0.1.0"
    for ref, said in found.items():
        assert said["version"], ref
        assert said["licenses"], ref


def test_what_nobody_knows_is_said() -> None:
    found = components(document())
    unknown = [{"license": {"name": NOASSERTION}}]
    assert found["source:https://example.org/a.tar.gz#x"]["licenses"] == unknown
    assert found["package:gcc@1.0-1"]["licenses"] == unknown
    assert found["source:debian:redis"]["licenses"] == [
        {"license": {"id": "GPL-2.0-only"}},
        {"license": {"id": "MIT"}},
    ]
    assert found["file:context.tar"]["licenses"] == [{"license": {"id": "MIT"}}], "the image's own label"
    # Patches that this uklimg does not have, a kernel from the build context.
    other = Lock((replace(KERNEL, patches=IMAGE),))
    listed = components(document(parts(other, replace(RUN, kernel_version="6.12.117"))))
    assert not [ref for ref in listed if ref.startswith("patch:")]
    assert (listed["kernel:6.12"]["name"], listed["kernel:6.12"]["version"]) == ("linux", "6.12.117")
    assert listed["kernel:6.12"]["licenses"] == unknown
    assert "externalReferences" not in listed["kernel:6.12"]


def test_scopes() -> None:
    made = {part.ref: part.scope for part in parts()}
    assert made["package:gcc@1.0-1"] is Scope.EXCLUDED
    assert made["package:zlib1g-dev@1.0-1"] is Scope.OPTIONAL
    assert made["package:libc6-dev@2.41-12"] is Scope.REQUIRED
    with_libc = Lock((*LOCK.entries, component(ComponentKind.LIBC, "2.41")))
    assert {p.ref: p.scope for p in parts(with_libc)}["package:libc6-dev@2.41-12"] is Scope.OPTIONAL


@pytest.mark.parametrize("name", [*(f"kernel/{n}" for n in DATA.kernels()), *(f"libs/{n}" for n in DATA.libraries())])
def test_every_recipe_has_a_licence_that_spdx_knows(name: str) -> None:
    kind, _, folder = name.partition("/")
    found = DATA.kernel(folder) if kind == "kernel" else DATA.library(folder)
    LicenseFactory().make_with_expression(found.definition.license)


def test_every_glibc_has_a_licence() -> None:
    assert all(DATA.libc(version).definition.license for version in DATA.libcs())


# --- licences

HEAD = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: x\n\n"


@pytest.mark.parametrize(
    ("short", "expected"),
    [
        ("GPL-2+", ["GPL-2.0-or-later"]),
        ("GPL-2", ["GPL-2.0-only"]),
        ("LGPL-2.1+", ["LGPL-2.1-or-later"]),
        ("GPL-3.0", ["GPL-3.0-only"]),
        ("Expat", ["MIT"]),
        ("GPL-2+ or Expat", ["GPL-2.0-or-later OR MIT"]),
        ("GPL-2+ and BSD-3-clause", ["BSD-3-Clause", "GPL-2.0-or-later"]),
        ("GPL-2+ with OpenSSL exception", ["GPL-2+ with OpenSSL exception"]),
        ("public-domain", ["public-domain"]),
        ("x" * 300, []),
    ],
)
def test_debians_words_for_licences(short: str, expected: list[str]) -> None:
    text = f"{HEAD}Files: *\nCopyright: someone\nLicense: {short}\n the text\n\nLicense: Unused\n text\n"
    assert list(copyrights.licences(text)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "This package was debianized by hand.\nLicense: GPL\n", "Format: something else\n\nLicense: GPL\n", "\0"],
)
def test_a_copyright_file_for_people_says_nothing_to_machines(text: str) -> None:
    assert copyrights.licences(text) == ()


# --- provenance


def test_provenance_is_what_in_toto_and_slsa_say_it_is() -> None:
    subjects = [("redis-server", IMAGE), ("redis-server linux/amd64", Digest.of(b"below"))]
    data = provenance(subjects, RUN, PLAN, FILES, "FROM ukl:6.12\n", LOCK, "https://ci.example/1")
    statement = json_format.Parse(data.decode(), statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    top = json.loads(data)
    assert top["predicateType"] == "https://slsa.dev/provenance/v1"
    # Fields that SLSA does not know are an error here.
    predicate = json_format.Parse(json.dumps(top["predicate"]), provenance_pb2.Provenance())
    assert predicate.run_details.builder.id == "https://ci.example/1"
    assert predicate.build_definition.build_type
    parameters = top["predicate"]["buildDefinition"]["externalParameters"]
    assert parameters == {
        "uklfile": "FROM ukl:6.12\n",
        "buildArgs": {"VERSION": "7"},
        "kernelConfigs": [],
        "target": "ukl",
    }
    materials = {entry["digest"]["sha256"] for entry in top["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert materials == {f.digest.hex for f in LOCK.files()} | {blob.digest.hex for blob in FILES.values()}
    assert provenance(subjects, RUN, PLAN, FILES, "FROM ukl:6.12\n", LOCK, "https://ci.example/1") == data
    assert "2026" not in data.decode()


# --- attached to images of the store


def with_blueprint(store: Store, root: oci.Descriptor, *, built_here: bool = True) -> None:
    """Give an image a blueprint as if it had been built (here)."""
    config = b"CONFIG_UKL=y\nCONFIG_NET=y\n"
    contents = {blueprint.UKLFILE: b"FROM ukl:6.12\n", blueprint.LOCK: format_lock(LOCK).encode()}
    contents[blueprint.KERNEL_CONFIG] = config
    files = {name: store.put_bytes(data, blueprint.FILES[name]) for name, data in contents.items()}
    steps = (replace(STEPS[0], result=root.digest, key=Digest.of(root.digest.hex.encode())),)
    made = store.put_bytes(Blueprint("0.1.0", steps).encode(), blueprint.CONFIG)
    artifact = store.put_bytes(blueprint.manifest(made, files, root).encode(), oci.MANIFEST)
    blueprints.put_entry(store, blueprint.entry(artifact, root.digest))
    if built_here:
        store.adopt_result(Record(StepResult(steps[0].key, ResultKind.TREE, root.bare()), "image", {}))


def test_what_is_attached_is_made_once_and_again_when_something_else_would_come_out(
    uklimg: Command, tmp_path: Path
) -> None:
    store = uklimg.store
    root = add_image(store, tmp_path, "redis:1")
    evidence = Evidence(store, DATA)
    kinds = attached.KINDS.values()
    assert evidence.attach(root, kinds) == (), "there is nothing to make them from"
    with_blueprint(store, root)
    first = evidence.attach(root, kinds)
    types = [entry.artifact_type for entry in first]
    assert types == [kind.artifact_type for kind in kinds if kind != attached.DEBUG], "no step left symbols"
    assert evidence.attach(root, kinds) == first
    assert list(attachments.entries(store, root.digest))[1:] == list(first)
    named = replace(evidence, builder="https://ci.example/2")
    second = named.attach(root, kinds)
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, True, True, False]
    for entry, kind in zip(second, kinds, strict=False):
        parsed = oci.parse_manifest(store.read_blob(entry.digest))
        assert parsed.subject is not None
        assert parsed.subject.digest == root.digest
        assert parsed.artifact_type == kind.artifact_type
    # `prune` takes them with the image.
    store.untag("redis:1")
    (store.root / "cache").joinpath(f"{Digest.of(root.digest.hex.encode()).hex}.json").unlink()
    store.prune()
    assert not store.index().manifests


def test_what_somebody_else_says_of_an_image_that_was_built_here_does_not_count(
    uklimg: Command, tmp_path: Path
) -> None:
    """Else a loaded archive could put a forged document into what `push --sign` signs."""
    store = uklimg.store
    for name, built_here in (("here:1", True), ("there:1", False)):
        root = add_image(store, tmp_path, name, labels={"name": name})
        with_blueprint(store, root, built_here=built_here)
        store.put_bytes(attached.NO_CONFIG)
        forged = {"provenance.json": store.put_bytes(b"{}")}
        manifest = attached.manifest(attached.PROVENANCE, forged, root).encode()
        entry = attached.entry(store.put_bytes(manifest), attached.PROVENANCE.artifact_type, root.digest)
        attachments.put(store, entry)
        found = Evidence(store, DATA).one(root, attached.PROVENANCE)
        assert found is not None
        assert (found.digest == entry.digest) != built_here


def test_who_did_not_build_an_image_cannot_say_how_it_was_built(uklimg: Command, tmp_path: Path) -> None:
    store = uklimg.store
    root = add_image(store, tmp_path, "redis:1")
    with_blueprint(store, root, built_here=False)
    assert Evidence(store, DATA).one(root, attached.PROVENANCE) is None
    assert Evidence(store, DATA).one(root, attached.SBOM) is not None
    found = uklimg("inspect", "--provenance", "redis:1")
    assert found.status == ExitCode.NOT_FOUND
    assert len(found.err.splitlines()) == 1


def test_inspect_says_what_an_image_is_made_of(uklimg: Command, tmp_path: Path) -> None:
    store = uklimg.store
    root = add_image(store, tmp_path, "redis:1", ukl_options=("BYP",))
    with_blueprint(store, root)
    shown = {name: uklimg("inspect", f"--{name}", "redis:1").out for name in ("sbom", "config", "lock", "provenance")}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(shown["sbom"]) is None
    assert "CONFIG_UKL=y" in shown["config"]
    assert shown["lock"] == format_lock(LOCK)
    assert json.loads(shown["provenance"])["subject"][0]["digest"]["sha256"] == root.digest.hex
    said = json.loads(uklimg("inspect", "redis:1", "--format", "json").out)
    assert {"name": "zlib", "version": DATA.library("zlib").definition.version} in said["libraries"]
    assert {"name": "debian:redis", "version": "5:8.0.2-3"} in said["sources"]
    assert {entry["kind"] for entry in said["attached"]} == {"blueprint", "lock", "config", "sbom", "provenance"}
    assert said["signatures"] == []
    assert any(text.startswith("BYP") for text in said["weakens"])
    text = uklimg("inspect", "redis:1").out
    for line in (
        "Library:      zlib",
        "Source:       debian:redis",
        "Weakened:     BYP",
        "Signature:    none",
        "Attached: ",
    ):
        assert line in text
    # A single manifest's are those of its index.
    below = oci.parse_index(store.read_blob(root.digest)).manifests[0]
    assert uklimg("inspect", "--config", str(below.digest)).out == shown["config"]
    assert uklimg("history", str(below.digest)).status == 0


def test_artifacts_are_listed_and_written(uklimg: Command, tmp_path: Path) -> None:
    root = add_image(uklimg.store, tmp_path, "redis:1")
    with_blueprint(uklimg.store, root)
    for _ in range(2):  # the folder is made, and may be there
        found = uklimg("artifacts", "redis:1", "config", "lock", "-o", str(tmp_path / "out"))
        assert found.status == 0, found.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Uklfile.lock", "kernel.config"]
    listed = json.loads(uklimg("artifacts", "redis:1", "--format", "json").out)
    assert [entry["kind"] for entry in listed] == ["blueprint", "lock", "config"]
    for argv, status in (
        (("redis:1", "nothing"), ExitCode.USER),
        (("redis:1", "debug"), ExitCode.NOT_FOUND),
        (("redis:2",), ExitCode.NOT_FOUND),
    ):
        done = uklimg("artifacts", *argv)
        assert done.status == status
        assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("builder", ["no uri", "nothing", "https://a b"])
def test_a_builder_is_a_uri(uklimg: Command, tmp_path: Path, builder: str) -> None:
    root = add_image(uklimg.store, tmp_path, "localhost:1/redis:1")
    with_blueprint(uklimg.store, root)
    found = uklimg("push", "--builder", builder, "localhost:1/redis:1")
    assert found.status == ExitCode.USER
    assert "is no URI" in found.err


@pytest.mark.parametrize("changes", [{"artifact_type": "x"}, {"subject": oci.Descriptor.of(oci.INDEX, b"x")}])
def test_an_artifact_of_another_kind_or_image_is_refused(changes: dict[str, object]) -> None:
    subject = oci.Descriptor.of(oci.INDEX, b"image")
    made = attached.manifest(attached.LOCK, {"a": oci.Descriptor.of("text/plain", b"")}, subject)
    assert list(attached.files_of(made, attached.LOCK, subject.digest)) == ["a"]
    with pytest.raises(CorruptError):
        attached.files_of(replace(made, **changes), attached.LOCK, subject.digest)  # type: ignore[arg-type]


def test_names_of_files_that_somebody_else_attached_stay_in_their_folder() -> None:
    subject = oci.Descriptor.of(oci.INDEX, b"image")
    blob = oci.Descriptor.of("text/plain", b"")
    for name in ("../x", "/etc/passwd", "..", ".", "", "a\nb"):
        made = attached.manifest(attached.LOCK, {name: blob}, subject)
        assert list(attached.files_of(made, attached.LOCK, subject.digest)) == ["lock-0"]
    with pytest.raises(CorruptError, match="empty"):
        attached.files_of(attached.manifest(attached.LOCK, {}, subject), attached.LOCK, subject.digest)


# --- symbols


def vmlinux(path: Path, content: bytes) -> Path:
    """A kernel of one segment, no sections: as an image's, but small."""
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 120, 0, 0, len(content), len(content), 4096)
    path.write_bytes(header + segment + content)
    return path


def test_functions_that_an_image_tells_its_kernel_about(tmp_path: Path) -> None:
    code = b"\x90" * 100
    table = embed.symbol_table(
        [(0x1000, "main"), (0x1010, "alias"), (0x1010, "helper"), (0x1040, "last")], 0x1000, 100
    )
    content = embed.blob("x", (code, b"rest"), (code, b"rest"), 1 << 20, table)
    found = symbols.embedded_functions(vmlinux(tmp_path / "vmlinux", content))
    assert found == {"main": 16, "helper": 48, "last": 36}
    assert symbols.embedded_functions(vmlinux(tmp_path / "other", b"no application")) == {}
    for damaged in (content[:300], content.replace(b"helper\0", b"helper!").replace(b"last\0", b"last!")):
        with pytest.raises(CorruptError):
            symbols.embedded_functions(vmlinux(tmp_path / "damaged", damaged))
    (tmp_path / "none").write_bytes(b"no ELF file")
    for read in (symbols.embedded_functions, symbols.elf_symbols):
        with pytest.raises(CorruptError):
            read(tmp_path / "none")
    assert symbols.elf_symbols(tmp_path / "vmlinux") == {}


def image_of(store: Store, folder: Path, name: str, functions: list[tuple[int, str]], initramfs: bytes) -> None:
    """An image whose kernel has an application with ``functions``."""
    code = b"\x90" * 0x100
    folder.mkdir()
    content = embed.blob("x", (code, b"rest"), (code, b"rest"), 1 << 20, embed.symbol_table(functions, 0x1000, 0x100))
    paths = {role: folder / role for role in oci.PATHS}
    vmlinux(paths[oci.VMLINUX], content)
    paths[oci.BZIMAGE].write_bytes(b"bzImage")
    paths[oci.INITRAMFS].write_bytes(initramfs)
    root = build_image(paths, folder / "layout", oci.RunConfig(program="x", cmdline=f"named={name}"))
    for blob in (folder / "layout/blobs/sha256").iterdir():
        store.put_file(blob)
    store.tag(f"{name}:latest", root)


def initramfs_of(permissions: int, **contents: str) -> bytes:
    made = io.BytesIO()
    cpio.write([cpio.regular(name, text.encode(), permissions) for name, text in contents.items()], made, mtime=0)
    return made.getvalue()


def test_diff_compares_sizes_of_functions(uklimg: Command, tmp_path: Path) -> None:
    """Of the image itself, since there are no files with symbols; and what else differs."""
    small, large = [(0x1000, "main"), (0x1040, "gone"), (0x1050, "same")], [(0x1000, "main"), (0x1060, "same")]
    image_of(uklimg.store, tmp_path / "a", "a", [*small, (0x10B0, "end")], initramfs_of(0o644, a="x", b="y"))
    other = initramfs_of(0o600, a="xx", c="z")
    image_of(uklimg.store, tmp_path / "b", "b", [*large, (0x10C0, "end")], other)
    said = json.loads(uklimg("diff", "a", "b", "--format", "json").out)
    assert said["application_symbols"] == [
        {"name": "main", "before": "64", "after": "96"},
        {"name": "end", "before": "80", "after": "64"},
        {"name": "gone", "before": "16", "after": ""},
    ]
    assert said["kernel_symbols"] is None
    assert {"name": "cmdline", "before": "named=a", "after": "named=b"} in said["configuration"]
    files = {entry["path"]: entry for entry in said["files"]}
    assert {"initrd/a", "initrd/b", "initrd/c"} <= set(files)
    assert (files["initrd/a"]["before"]["size"], files["initrd/a"]["after"]["size"]) == (1, 2)
    assert [files["initrd/a"][side]["about"][:10] for side in ("before", "after")] == ["-rw-r--r--", "-rw-------"]
    assert (files["initrd/b"]["after"], files["initrd/c"]["before"]) == (None, None)
    text = uklimg("diff", "a", "b").out
    assert "application symbols:\n  main: 64 -> 96\n" in text
    assert "kernel symbols: not known" in text
