"""FROM and COPY --from an image of a registry, served by docker-registry on loopback."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from privatestore import private_store
from test_build import ROOT, Project, ran
from test_registry import Server, connect, registry

from uklimg import oci
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError
from uklimg.graph import Kind
from uklimg.lock import LockedImage, parse_lock
from uklimg.registryimage import pick, unpack_layers
from uklimg.remote.client import push
from uklimg.settings import read_settings
from uklimg.store import Layout, Store

pytestmark = pytest.mark.integration

GZIP = f"{oci.LAYER}+gzip"
Members = Sequence[tuple[str, bytes | str | None]]  # a file's content, a link's target, None for a folder


def tar(members: Members, hard: Sequence[tuple[str, str]] = ()) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
        for name, target in hard:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    return packed.getvalue()


LOWER = tar(
    [
        ("bin", "usr/bin"),
        ("usr", None),
        ("usr/bin", None),
        ("usr/bin/tool", b"a tool"),
        ("etc", None),
        ("etc/gone", b"1"),
        ("etc/kept", b"2"),
        ("etc/conf", b"old"),
        ("data", None),
        ("data/below", b"3"),
        ("absolute", "/etc/kept"),
    ],
    hard=[("usr/bin/twin", "usr/bin/tool")],
)
UPPER = tar(
    [
        ("etc/.wh.gone", b""),
        ("etc/conf", b"new"),
        ("data", None),
        ("data/.wh..wh..opq", b""),
        ("data/above", b"4"),
        ("var/lib/implied", b"5"),
    ]
)


def put_image(
    store: Layout, layers: Sequence[bytes], env: Sequence[str] = (), pack: Callable[[bytes], bytes] = gzip.compress
) -> oci.Descriptor:
    """An image of plain tars in the store; its manifest."""
    diff_ids = tuple(Digest.of(layer) for layer in layers)
    config = oci.ImageConfig(oci.Platform("linux", "amd64"), diff_ids, env=tuple(env))
    blobs = tuple(store.put_bytes(pack(layer), GZIP) for layer in layers)
    manifest = oci.Manifest(store.put_bytes(config.encode(), oci.CONFIG), blobs)
    return store.put_bytes(manifest.encode(), oci.MANIFEST)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry(tmp_path_factory.mktemp("registry") / "server") as running:
        yield running


@dataclass(frozen=True)
class World:
    server: Server
    project: Project
    images: Layout

    def push(self, name: str, root: oci.Descriptor) -> str:
        ref = self.server.ref(f"{name}-{uuid.uuid4().hex[:8]}")
        push(ref, root, self.images, connect(ref))
        return str(ref).removesuffix(":latest")

    def write(self, stages: str) -> None:
        self.project.write(stages)

    def locked(self, reference: str) -> LockedImage:
        entry = parse_lock((self.project.folder / "Uklfile.lock").read_text()).get(("image", reference))
        assert isinstance(entry, LockedImage)
        return entry


@pytest.fixture
def world(server: Server, tmp_path: Path) -> World:
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    shutil.copy(ROOT / "scripts/example.lock", project.folder / "Uklfile.lock")
    return World(server, project, Layout(tmp_path / "images"))


# --- layers and files, without containers


def layers_of(tmp_path: Path) -> list[Path]:
    paths = []
    for number, data in enumerate((LOWER, UPPER)):
        paths.append(tmp_path / f"{number:03}.tar")
        paths[-1].write_bytes(data)
    return paths


def picked(tmp_path: Path, *sources: str) -> dict[str, bytes | str | None]:
    out = tmp_path / f"{uuid.uuid4().hex}.tar"
    pick(layers_of(tmp_path), sources, "var/picked", out)
    found: dict[str, bytes | str | None] = {}
    with tarfile.open(out) as archive:
        for info in archive:
            assert info.uid == 0 and info.mtime == oci.EPOCH
            if not info.name.startswith("var/picked/"):
                assert info.isdir()
                continue
            name = info.name.removeprefix("var/picked/")
            content = archive.extractfile(info) if info.isreg() or info.islnk() else None
            found[name] = info.linkname if info.issym() else content.read() if content else None
    return found


def test_layers_make_one_file_system(tmp_path: Path) -> None:
    assert picked(tmp_path, "/") == {
        "absolute": "/etc/kept",
        "bin": "usr/bin",
        "data": None,
        "data/above": b"4",
        "etc": None,
        "etc/conf": b"new",
        "etc/kept": b"2",
        "usr": None,
        "usr/bin": None,
        "usr/bin/tool": b"a tool",
        "usr/bin/twin": b"a tool",
        "var": None,
        "var/lib": None,
        "var/lib/implied": b"5",
    }


def test_files_are_found_over_links_and_wildcards(tmp_path: Path) -> None:
    assert picked(tmp_path, "/bin/tool") == {
        "bin": "usr/bin",
        "usr": None,
        "usr/bin": None,
        "usr/bin/tool": b"a tool",
    }
    assert picked(tmp_path, "/absolute") == {"absolute": "/etc/kept", "etc": None, "etc/kept": b"2"}
    assert picked(tmp_path, "/etc/[ck]*") == {"etc": None, "etc/conf": b"new", "etc/kept": b"2"}
    for word in ("/etc/gone", "/data/below", "/nothing*", "/etc/kept/x"):
        with pytest.raises(ToolError, match="is not there") as caught:
            picked(tmp_path, word)
        assert caught.value.exit_code == ExitCode.STEP


@pytest.mark.parametrize("name", ["../x", "/etc/../../x"])
def test_names_that_leave_the_archive(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(tar([(name, b"x")]))
    with pytest.raises(CorruptError, match="leaves its archive"):
        pick([path], ["/"], "p", tmp_path / "out.tar")


def test_layers_are_what_the_configuration_says(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(oci.ImageConfig(oci.Platform("linux", "amd64"), (Digest.of(LOWER), Digest.of(UPPER))).encode())
    packed = [tmp_path / "a", tmp_path / "b"]
    packed[0].write_bytes(gzip.compress(LOWER))
    packed[1].write_bytes(UPPER)  # plain is allowed, too
    out = tmp_path / "out"
    out.mkdir()
    unpack_layers(config, packed, out)
    assert [path.read_bytes() for path in sorted(out.iterdir())] == [LOWER, UPPER]
    for content, problem in (
        (gzip.compress(LOWER)[:-9], "cannot be unpacked"),
        (gzip.compress(LOWER + b"more"), "layer 0 of the image unpacks to"),
        (LOWER, ""),
    ):
        packed[0].write_bytes(content)
        shutil.rmtree(out)
        out.mkdir()
        if problem:
            with pytest.raises(CorruptError, match=problem):
                unpack_layers(config, packed, out)
        else:
            unpack_layers(config, packed, out)
    with pytest.raises(CorruptError, match="has 1 layers, and its configuration 2"):
        unpack_layers(config, packed[:1], out)


def test_zstd_is_read_where_python_has_it(tmp_path: Path) -> None:
    config, packed, out = tmp_path / "config", tmp_path / "a", tmp_path / "out"
    config.write_bytes(oci.ImageConfig(oci.Platform("linux", "amd64"), (Digest.of(LOWER),)).encode())
    packed.write_bytes(subprocess.run(["zstd", "-c"], input=LOWER, capture_output=True, check=True).stdout)
    out.mkdir()
    if importlib.util.find_spec("zstandard") or sys.version_info >= (3, 14):
        unpack_layers(config, [packed], out)
        assert (out / "000.tar").read_bytes() == LOWER
    else:
        with pytest.raises(ToolError, match="packed with zstd, which this Python cannot read"):
            unpack_layers(config, [packed], out)


# --- builds


def test_copy_from_an_image_in_which_nothing_can_run(world: World) -> None:
    tiny = world.push("tiny", put_image(world.images, [LOWER, UPPER]))
    stages = (
        f"FROM {tiny} AS tiny\n"
        "FROM debian:trixie AS build\n"
        f"COPY --from={tiny} /bin/tool /etc/conf /NONCE/\n"
        "COPY --from=tiny /data /NONCE/data/\n"
        "RUN cat /NONCE/tool /NONCE/conf && ls /NONCE/data && echo end\n"
    )
    world.write(stages)
    found = world.project.stage()
    assert found.status == 0
    assert "a toolnewabove" in found.err and "below" not in found.err
    entry = world.locked(tiny)
    name = f"{tiny.rpartition('/')[2]}-{entry.manifest.short}"
    assert [file.name for file in entry.files] == [
        f"{name}-{what}" for what in ("config.json", "layer-000", "layer-001")
    ]
    assert entry.files[0].origin == f"oci:{tiny}"
    # The tag moves on; the lock does not, until it is told to.
    ref = world.server.ref(tiny.partition("/")[2])
    push(ref, put_image(world.images, [LOWER, UPPER, tar([("etc/conf", b"newer")])]), world.images, connect(ref))
    assert ran(world.project.stage("--locked")) == 0
    moved = world.project.uklimg("lock", "--update", tiny)
    assert f"  image {tiny} {entry.manifest.short} → " in moved.out, moved.err
    assert "a toolnewerabove" in world.project.stage().err


def test_what_runs_in_an_image_and_what_it_lacks(world: World) -> None:
    """A program links in an image with what our base image has; another image says what is missing."""
    user = Store(read_settings(os.environ, Path.cwd()).store)
    base = next(record for record in user.records() if record.step == "base:debian-trixie" and there(user, record))
    rootfs = user.verified_path(base.result.layers[0].digest).read_bytes()
    full = world.push(
        "full",
        put_image(
            world.images,
            [rootfs, tar([("opt", None), ("opt/word", b"from the image\n")])],
            env=("PATH=/opt/bin:/usr/bin:/bin", "WHO=image"),
            pack=lambda data: gzip.compress(data, 1),
        ),
    )
    world.write(
        f"FROM {full} AS build\nRUN echo $WHO $PATH $CC && cat /opt/word\n"
        "RUN echo 'int main(void) { return 0; }' >m.c && $CC -o /program m.c && ukl-find /program # NONCE\n"
    )
    last = "FROM ukl:6.12\nLINK --from=build /program\n"
    text = (world.project.folder / "Uklfile").read_text()
    (world.project.folder / "Uklfile").write_text(text[: text.index("FROM ukl")] + last)
    with private_store() as clone:
        argv = ("--store", str(clone), "build", "--progress", "plain")
        found = world.project.uklimg(*argv, "--target", "build")
        assert found.status == 0, found.err
        assert "image /opt/bin:/usr/bin:/bin ukl-gcc" in found.err and "from the image" in found.err
        # What was made there becomes part of a kernel, which is made in our own base image as ever.
        linked = world.project.uklimg(*argv, "-t", "from-registry")
        assert linked.status == 0, linked.err
        image = oci.read_image(
            lambda blob: Store(clone).read_blob(blob.digest), Store(clone).tags()["from-registry:latest"]
        )
        assert image.run.program == "program" and image.run.libc_version == ""
        assert "kernel-kit" not in json.loads(world.project.uklimg(*argv, "--format", "json").out)["ran"]
        record = next(r for r in Store(clone).records() if r.step == f"image:{full}")
        assert record.result.kind is Kind.ROOTFS and len(record.result.layers) == 2

        # busybox has a shell and nothing else.
        shell = shutil.which("busybox")
        assert shell
        small = world.push(
            "small",
            put_image(
                world.images,
                [
                    tar(
                        [
                            ("bin", None),
                            ("bin/busybox", Path(shell).read_bytes()),
                            ("bin/sh", "busybox"),
                            ("tmp", None),
                        ]
                    )
                ],
            ),
        )
        world.write(
            f"FROM {small} AS other\nRUN echo no compiler >/word\n"
            "FROM debian:trixie AS build\nCOPY --from=other /word /\nRUN cat /word\n"
        )
        found = world.project.uklimg(*argv, "--target", "build")
        assert found.status == 0 and "no compiler" in found.err, found.err
        world.write(f"FROM {small} AS build\nCOPY Uklfile /x\n")
        found = world.project.uklimg(*argv, "--target", "build")
        assert found.status == ExitCode.STEP
        assert f"uklimg: {small} lacks: /usr/bin/python3 gcc ld ar" in found.err
        assert "LINK needs them in its build stage" in found.err
        assert "Uklfile:4:1: " in found.err.splitlines()[-1]
        world.write(f"FROM {small} AS other\nCOPY Uklfile /x\nFROM debian:trixie AS build\nCOPY --from=other /x /\n")
        found = world.project.uklimg(*argv, "--target", "build")
        assert found.status == ExitCode.STEP and f"{small} lacks /usr/bin/python3" in found.err
        world.write(f"FROM {small} AS build\nPACKAGES make\n")
        found = world.project.uklimg("lock")
        assert found.status == ExitCode.USER and "nothing can be added to" in found.err


def there(store: Store, record: object) -> bool:
    result = getattr(record, "result")  # noqa: B009
    return all(store.has(layer.digest, layer.size) for layer in result.layers)


def test_images_that_are_not_there_or_not_for_us(world: World) -> None:
    gone = f"{world.server.host}/nobody/nothing:1"
    world.write(f"FROM {gone} AS build\nRUN true\n")
    found = world.project.uklimg("lock")
    assert found.status == ExitCode.NOT_FOUND and "nobody/nothing" in found.err.splitlines()[-1]
    config = oci.ImageConfig(oci.Platform("linux", "arm64"), (Digest.of(LOWER),))
    layer = world.images.put_bytes(LOWER, oci.LAYER)
    manifest = oci.Manifest(world.images.put_bytes(config.encode(), oci.CONFIG), (layer,))
    arm = world.push("arm", world.images.put_bytes(manifest.encode(), oci.MANIFEST))
    world.write(f"FROM {arm} AS build\nRUN true\n")
    found = world.project.uklimg("lock")
    assert found.status == ExitCode.USER and "is for linux/arm64, not for linux/amd64" in found.err
    tiny = world.push("tiny", put_image(world.images, [LOWER]))
    world.write(f"FROM {tiny}@sha256:{'0' * 64} AS build\nRUN true\n")
    found = world.project.uklimg("lock")
    assert found.status in (ExitCode.NOT_FOUND, ExitCode.CORRUPT)
