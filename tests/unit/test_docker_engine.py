"""The Docker engine where no daemon is needed: what it asks for, archives, and which engine is chosen."""

from __future__ import annotations

import gzip
import io
import json
import socket
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from uklimg import oci
from uklimg.digest import Digest
from uklimg.engine.archive import (
    Small,
    folder_archive,
    image_archive,
    lacking,
    mentioned,
    read_manifest,
    read_small,
    top_layer,
    unpack_output,
    without,
)
from uklimg.engine.base import LOG, Job, Mount, Rootfs
from uklimg.engine.buildah import BuildahEngine
from uklimg.engine.choose import NoEngine, choose_engine
from uklimg.engine.containers import (
    INTRUDERS,
    Wanted,
    docker_body,
    intruders,
    podman_body,
    prepare_cmd,
    processor_list,
)
from uklimg.engine.docker import DockerEngine, find_socket
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.settings import read_settings
from uklimg.store import StepResult, Store

pytestmark = pytest.mark.unit

Member = tuple[str, bytes, int, str, bytes]  # name, type, mode, link, content


def tar(*members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, mode, link, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname, info.size = kind, mode, link, len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def folder(name: str, mode: int = 0o755) -> Member:
    return name, tarfile.DIRTYPE, mode, "", b""


def file(name: str, content: bytes = b"", mode: int = 0o644) -> Member:
    return name, tarfile.REGTYPE, mode, "", content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    return name, kind, 0o777, target, b""


def image(tmp_path: Path, *layers: bytes) -> tuple[Store, StepResult]:
    """A ROOTFS of these layers in a store."""
    store = Store(tmp_path / "store")
    base: StepResult | None = None
    for number, data in enumerate(layers):
        (tmp_path / "layer.tar").write_bytes(data)
        base = store.commit_rootfs(Digest.of(f"{number}".encode()), tmp_path / "layer.tar", {}, base=base)
    assert base is not None
    return store, base


# What is asked of the engines

JOB = Job(
    "step", Rootfs(Path("/store"), Digest.of(b"m")), ("make", "-j2"), Path("/out"), Path("/log"), env={"A": "b c"}
)
MOUNTS = (Mount(Path("/a:b,c"), "/in"), Mount(Path("/log"), LOG, read_only=False))


def test_dockers_container() -> None:
    body = json.loads(json.dumps(docker_body(Wanted(JOB, "image", MOUNTS, "store", "0,2"))))
    assert body["Cmd"][-3:] == ["sh", "make", "-j2"] and body["Cmd"][:2] == ["/bin/sh", "-c"]
    assert "A=b c" in body["Env"] and "HOSTNAME=uklimg" in body["Env"]
    assert (body["User"], body["WorkingDir"], body["NetworkDisabled"]) == ("0:0", "/", True)
    assert body["OpenStdin"] and body["StdinOnce"]
    host = body["HostConfig"]
    assert host["Mounts"] == [
        {"Type": "bind", "Source": "/a:b,c", "Target": "/in", "ReadOnly": True},
        {"Type": "bind", "Source": "/log", "Target": LOG, "ReadOnly": False},
    ]
    assert host["CpusetCpus"] == "0,2" and "NetworkMode" not in host
    assert host["Ulimits"][0] == {"Name": "nofile", "Soft": 1024, "Hard": 4096}


def test_podmans_container() -> None:
    body = json.loads(json.dumps(podman_body(Wanted(JOB, "image", MOUNTS, "store"), "name")))
    assert body["command"][-3:] == ["sh", "make", "-j2"]
    assert body["env"]["A"] == "b c" and body["netns"] == {"nsmode": "none"}
    assert body["use_image_hosts"] and body["use_image_resolve_conf"]
    assert body["mounts"][0]["options"] == ["bind", "private", "ro"]
    assert "resource_limits" not in body and "CAP_CHOWN" in body["cap_add"]


def test_another_user_and_a_network() -> None:
    job = Job("step", JOB.rootfs, ("make",), Path("/out"), Path("/log"), network=True, user="builder")
    wanted = Wanted(job, "image", MOUNTS, "store")
    docker, podman = docker_body(wanted), podman_body(wanted, "name")
    assert docker["User"] == podman["user"] == "builder"
    assert docker["NetworkDisabled"] is False and podman["netns"] == {"nsmode": "host"}
    assert podman["use_image_resolve_conf"] is False
    assert "cap_add" not in podman
    assert intruders(network=True) == (".dockerenv", "etc/mtab")


def test_what_is_prepared() -> None:
    assert prepare_cmd(("etc/hosts", ".dockerenv"))[3:] == ["sh", "/etc/hosts", "/.dockerenv"]
    assert prepare_cmd(())[3:] == ["sh"]


def test_processors() -> None:
    assert processor_list({3, 1}, 4) == "1,3"
    assert processor_list({0, 1}, 2) == ""


# Archives


def test_an_image_as_an_archive(tmp_path: Path) -> None:
    store, result = image(tmp_path, tar(folder("etc")), tar(file("x", b"1")), tar(file("x", b"1")))
    layout, digest = store.rootfs_layout(result)
    manifest = read_manifest(layout, digest)
    with tarfile.open(fileobj=io.BytesIO(b"".join(image_archive(layout, manifest, "a/b:c")))) as archive:
        names = archive.getnames()
        entry = json.loads(content(archive, "manifest.json"))[0]
        config = json.loads(content(archive, entry["Config"]))
        assert entry["RepoTags"] == ["a/b:c"]
        assert config["rootfs"]["diff_ids"] == [str(layer.digest) for layer in result.layers]
        for name, layer in zip(entry["Layers"], result.layers, strict=True):
            assert Digest.of(content(archive, name)) == layer.digest
    assert len(names) == 4  # two layers are one file
    with tarfile.open(fileobj=io.BytesIO(b"".join(image_archive(layout, manifest, "a/b:c", 2)))) as archive:
        assert archive.getnames()[0] == f"{result.layers[-1].digest.hex}.tar"
        assert len(archive.getnames()) == 3


def content(archive: tarfile.TarFile, name: str) -> bytes:
    found = archive.extractfile(name)
    assert found is not None
    return found.read()


def test_a_corrupt_layer_is_found_while_it_is_read(tmp_path: Path) -> None:
    store, result = image(tmp_path, tar(file("x", b"1")))
    path = store.blob_path(result.layer.digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    layout, digest = store.rootfs_layout(result)
    with pytest.raises(CorruptError):
        list(image_archive(layout, read_manifest(layout, digest), "a:b"))


def saved(tmp_path: Path, layers: Iterable[bytes], diff_ids: Iterable[str]) -> Path:
    config = {"rootfs": {"diff_ids": list(diff_ids)}}
    files = [file(f"{number}.tar", data) for number, data in enumerate(layers)]
    manifest = [{"Config": "c.json", "Layers": [name for name, *_ in files]}]
    path = tmp_path / "saved.tar"
    path.write_bytes(
        tar(*files, file("c.json", json.dumps(config).encode()), file("manifest.json", json.dumps(manifest).encode()))
    )
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_the_layer_on_top(tmp_path: Path, packed: bool) -> None:
    below, top = tar(folder("etc")), tar(file("new", b"1"))
    descriptor = oci.Descriptor.of(oci.LAYER, below)
    base = oci.Manifest(oci.Descriptor.of(oci.CONFIG, b"{}"), (descriptor,), {})
    out = tmp_path / "out.tar"
    ids = [str(descriptor.digest), str(Digest.of(top))]
    top_layer(saved(tmp_path, (below, gzip.compress(top) if packed else top), ids), base, out)
    assert out.read_bytes() == top
    top_layer(saved(tmp_path, (below,), ids[:1]), base, out)
    with tarfile.open(out) as archive:
        assert archive.getnames() == []
    for wrong in (ids[1:], [*ids, ids[1]], [ids[1], ids[0]]):
        with pytest.raises(ToolError, match="other layers"):
            top_layer(saved(tmp_path, (below, top, top), wrong), base, out)
    (tmp_path / "saved.tar").write_bytes(b"nothing")
    with pytest.raises(ToolError, match="no image"):
        top_layer(tmp_path / "saved.tar", base, out)


def test_an_output_is_unpacked_as_it_was(tmp_path: Path) -> None:
    data = tar(
        folder("out/", 0o755),
        folder("out/d", 0o3550),
        file("out/d/f", b"content", 0o4755),
        link("out/d/l", "f"),
        link("out/h", "out/d/f", tarfile.LNKTYPE),
    )
    unpack_output((data[i : i + 100] for i in range(0, len(data), 100)), "out", tmp_path)
    assert (tmp_path / "d").stat().st_mode & 0o7777 == 0o3550
    assert (tmp_path / "h").stat().st_mode & 0o7777 == 0o4755
    assert (tmp_path / "h").samefile(tmp_path / "d/f") and (tmp_path / "h").read_bytes() == b"content"
    assert str((tmp_path / "d/l").readlink()) == "f"


@pytest.mark.parametrize(
    "member",
    [file("etc/x"), file("out/../x"), file("out/a/b"), link("out/h", "etc/passwd", tarfile.LNKTYPE)],
)
def test_an_output_that_leaves_its_folder_is_refused(tmp_path: Path, member: Member) -> None:
    with pytest.raises(ToolError):
        unpack_output([tar(folder("out"), member)], "out", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link_of_an_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ToolError, match="without its folder"):
        unpack_output([tar(folder("out"), link("out/l", ".."), file("out/l/x"))], "out", tmp_path / "out")
    assert not (tmp_path / "x").exists()


def test_a_folder_as_an_archive() -> None:
    with tarfile.open(fileobj=io.BytesIO(folder_archive("out"))) as archive:
        assert [(info.name, info.mode, info.isdir()) for info in archive] == [("out", 0o755, True)]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([[folder("etc")]], INTRUDERS),
        ([[folder("etc"), file("etc/hosts")]], (".dockerenv", "etc/mtab", "etc/resolv.conf")),
        ([[file("./etc/hosts")], [file("etc/.wh.hosts")]], INTRUDERS),
        ([[file("etc/hosts")], [file(".wh.etc")]], INTRUDERS),
        (
            [[file("etc/hosts")], [file("etc/.wh..wh..opq"), file("etc/mtab")]],
            (".dockerenv", "etc/hosts", "etc/resolv.conf"),
        ),
        ([[file("etc/.wh.hosts")], [file("etc/hosts"), file(".dockerenv")]], ("etc/mtab", "etc/resolv.conf")),
    ],
)
def test_what_an_image_lacks(tmp_path: Path, layers: list[list[Member]], expected: tuple[str, ...]) -> None:
    said = []
    for members in layers:
        (tmp_path / "layer.tar").write_bytes(tar(*members))
        said.append(mentioned(tmp_path / "layer.tar", INTRUDERS))
    assert lacking(said, INTRUDERS) == expected


def test_files_put_back_are_no_change_unless_changed(tmp_path: Path) -> None:
    low, high, out = (tmp_path / name for name in ("low", "high", "out"))
    low.write_bytes(tar(folder("etc"), file("etc/hosts", b"1"), link("etc/mtab", "../proc/mounts")))
    high.write_bytes(tar(file("./etc/hosts", b"2")))
    hosts, mtab = read_small((low, high), "etc/hosts"), read_small((low, high), "etc/mtab")
    assert hosts == Small("etc/hosts", tarfile.REGTYPE, 0o644, (0, 0), "", b"2")
    assert (mtab.kind, mtab.link) == (tarfile.SYMTYPE, "../proc/mounts")
    for changes, left in (
        (tar(folder("etc"), file("etc/hosts", b"2"), link("etc/mtab", "../proc/mounts")), ["etc"]),
        (tar(folder("etc"), file("etc/hosts", b"3"), link("etc/mtab", "/x")), ["etc", "etc/hosts", "etc/mtab"]),
        (
            tar(folder("etc"), file("etc/hosts", b"2", 0o600), file("etc/.wh.mtab")),
            ["etc", "etc/hosts", "etc/.wh.mtab"],
        ),
    ):
        high.write_bytes(changes)
        without(high, (hosts, mtab), out)
        with tarfile.open(out) as archive:
            assert archive.getnames() == left


# Which engine


def listening(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    return server


def test_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uklimg.engine.docker.SOCKETS", (str(tmp_path / "none"), str(tmp_path / "podman.sock")))
    assert find_socket({"DOCKER_HOST": "tcp://x:1"}) == "tcp://x:1"
    assert find_socket({}) == ""
    with listening(tmp_path / "podman.sock"):
        assert find_socket({}) == f"unix://{tmp_path}/podman.sock"
        with listening(tmp_path / "run/podman/podman.sock"):
            assert find_socket({"XDG_RUNTIME_DIR": f"{tmp_path}/run"}) == f"unix://{tmp_path}/run/podman/podman.sock"


def test_the_engine_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uklimg.engine.docker.SOCKETS", ())
    monkeypatch.setattr("uklimg.proc._SBIN", [])
    bare = {"PATH": str(tmp_path)}
    with_docker = {**bare, "DOCKER_HOST": "unix:///x"}
    assert isinstance(choose_engine("", tmp_path, bare), NoEngine)
    assert isinstance(choose_engine("", tmp_path, with_docker), DockerEngine)
    assert isinstance(choose_engine("buildah", tmp_path, with_docker), BuildahEngine)
    (tmp_path / "buildah").write_text("#!/bin/sh\n")
    (tmp_path / "buildah").chmod(0o755)
    assert isinstance(choose_engine("", tmp_path, with_docker), BuildahEngine)
    assert isinstance(choose_engine("docker", tmp_path, bare), DockerEngine)


def test_without_any_engine_a_step_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ToolError) as caught:
        NoEngine().run(JOB, lambda line: None)
    assert caught.value.exit_code is ExitCode.HOST
    assert "buildah" in caught.value.line() and "docker.io" in caught.value.line()


def test_who_chooses_the_engine(tmp_path: Path) -> None:
    config = tmp_path / "uklimg.toml"
    environ = {"UKLIMG_CONFIG": str(config)}
    assert read_settings(environ, tmp_path).chosen_engine() == ""
    config.write_text('[engine]\nname = "docker"\n')
    assert read_settings(environ, tmp_path).chosen_engine() == "docker"
    variable = {**environ, "UKLIMG_ENGINE": "buildah"}
    assert read_settings(variable, tmp_path).chosen_engine() == "buildah"
    assert read_settings(variable, tmp_path, engine="docker").chosen_engine() == "docker"
    with pytest.raises(UserError, match="UKLIMG_ENGINE is 'crun', not buildah or docker"):
        read_settings({"UKLIMG_ENGINE": "crun"}, tmp_path)
    for wrong in ("lxc", 3):
        config.write_text(f"[engine]\nname = {wrong!r}\n")
        with pytest.raises(UserError, match=r"\[engine\] name is") as caught:
            read_settings(environ, tmp_path).chosen_engine()
        assert caught.value.location is not None and caught.value.location.file == str(config)
