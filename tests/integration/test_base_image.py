"""The base image from a real mirror, twice, and apt against a small mirror of our own on loopback."""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ordinaryuser import PYTHON, ordinary_user
from privatestore import link_or_copy

from uklimg import proc
from uklimg.baseimage import BaseParams, build_base_image
from uklimg.data import Data, find_data
from uklimg.debian import Debian
from uklimg.definitions import BaseDefinition
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.fetch import Fetcher, Mirrors
from uklimg.graph import Blob, Host
from uklimg.lock import Lock, LockedBase, LockedFile, LockedImage, format_lock, parse_lock
from uklimg.mirror import find_mirror
from uklimg.oci import EPOCH
from uklimg.recipes.base_image import base_image_step
from uklimg.resolver import HostResolver, measure_url
from uklimg.settings import read_settings
from uklimg.store.store import Store

pytestmark = pytest.mark.integration

ENV = proc.host_env(os.environ)
BASE = BaseDefinition("test", "trixie", ("main",), "amd64", ("required",), ("tool",))


# --- a mirror of our own


def no_image(reference: str) -> LockedImage:
    raise AssertionError(f"{reference} is asked for")


def no_git(url: str, commit: str) -> tuple[str, LockedFile]:
    raise AssertionError(f"{url} {commit} is asked for")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tool(*argv: str, cwd: Path, **env: str) -> None:
    subprocess.run(argv, cwd=cwd, check=True, capture_output=True, env={**ENV, **env}, stdin=subprocess.DEVNULL)


@dataclass(frozen=True)
class Archive:
    """A signed Debian archive below ``root``, served at ``url``."""

    root: Path
    url: str
    keyring: Path
    gnupg: Path

    def add_deb(self, name: str, version: str, *fields: str) -> None:
        folder = self.root.parent / "debs" / name
        (folder / "DEBIAN").mkdir(parents=True, exist_ok=True)
        control = (f"Package: {name}", f"Version: {version}", "Architecture: all", "Maintainer: T <t@example.org>")
        (folder / "DEBIAN/control").write_text("\n".join((*control, *fields, "Description: test", "")))
        plain = version.rpartition(":")[2]
        tool("dpkg-deb", "-b", str(folder), str(self.root / f"pool/main/{name}_{plain}_all.deb"), cwd=self.root)

    def index(self) -> None:
        """Write Packages, Sources and a signed InRelease for what is in pool/."""
        dist = self.root / "dists/trixie"
        for name in ("main/binary-amd64", "main/source"):
            (dist / name).mkdir(parents=True, exist_ok=True)
        packages = subprocess.run(
            ["dpkg-scanpackages", "--multiversion", "pool"], cwd=self.root, check=True, capture_output=True, env=ENV
        ).stdout
        dsc = b"a source\n"
        (self.root / "pool/main/redis_1-1.dsc").write_bytes(dsc)
        sources = (
            "Package: redis\nBinary: redis\nVersion: 5:1-1\nArchitecture: any\nFormat: 3.0 (quilt)\n"
            f"Files:\n 0cc175b9c0f1b6a831c399e269772661 {len(dsc)} redis_1-1.dsc\n"
            f"Checksums-Sha256:\n {Digest.of(dsc).hex} {len(dsc)} redis_1-1.dsc\nDirectory: pool/main\n\n"
        ).encode()
        indexes = {"main/binary-amd64/Packages.xz": packages, "main/source/Sources.xz": sources}
        lines = ["Origin: Test", "Suite: stable", "Codename: trixie", "Date: Wed, 01 Jan 2025 00:00:00 UTC"]
        lines += ["Architectures: amd64", "Components: main", "SHA256:"]
        for name, content in indexes.items():
            packed = lzma.compress(content)
            (dist / name).write_bytes(packed)
            for path, data in ((name, packed), (name.removesuffix(".xz"), content)):
                lines.append(f" {Digest.of(data).hex} {len(data)} {path}")
        (dist / "Release").write_text("\n".join(lines) + "\n")
        argv = ("gpg", "--batch", "--yes", "--clearsign", "-o", "InRelease", "Release")
        tool(*argv, cwd=dist, GNUPGHOME=str(self.gnupg))

    def debian(self, folder: Path) -> Debian:
        return Debian(lambda: self.url, proc.run, ENV, folder, self.keyring)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    gnupg = tmp_path / "gnupg"
    gnupg.mkdir(mode=0o700)
    argv = ("gpg", "--batch", "--passphrase", "", "--quick-gen-key", "test@example.org", "rsa3072", "sign", "never")
    tool(*argv, cwd=tmp_path, GNUPGHOME=str(gnupg))
    tool("gpg", "--batch", "--export", "-o", str(tmp_path / "key.gpg"), cwd=tmp_path, GNUPGHOME=str(gnupg))
    root = tmp_path / "mirror"
    (root / "pool/main").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made = Archive(root, f"http://127.0.0.1:{server.server_port}", tmp_path / "key.gpg", gnupg)
    made.add_deb("base", "1.0", "Essential: yes", "Priority: required")
    made.add_deb("needed", "1:2.0", "Priority: optional")
    made.add_deb("also", "3.0", "Priority: required")
    made.add_deb("tool", "1.0", "Priority: optional", "Depends: needed", "Recommends: extra")
    made.add_deb("extra", "1.0", "Priority: optional", "Depends: needed")
    made.index()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()
    tool("gpgconf", "--kill", "all", cwd=tmp_path, GNUPGHOME=str(gnupg))


def test_packages_and_sources_are_resolved(archive: Archive, tmp_path: Path) -> None:
    debian = archive.debian(tmp_path / "apt")
    found = debian.base(BASE)
    # Essential, required, the list, and what it needs; no recommendations.
    assert [(p.name, p.version) for p in found] == [
        ("also", "3.0"),
        ("base", "1.0"),
        ("needed", "1:2.0"),
        ("tool", "1.0"),
    ]
    needed = found[2].file
    assert needed.origin == "debian:pool/main/needed_2.0_all.deb"
    assert Digest.of((archive.root / "pool/main/needed_2.0_all.deb").read_bytes()) == needed.digest
    assert [p.name for p in debian.packages(BASE, ["extra"], found)] == ["extra"]
    resolver = HostResolver(debian, measure_url, no_git, no_image)
    version, files = resolver.source(BASE, "redis", "")
    assert (version, files[0].origin) == ("5:1-1", "debian:pool/main/redis_1-1.dsc")
    # The host's own apt state is as it was, and nothing names the mirror.
    text = format_lock(Lock((LockedBase("test", BASE.digest, found),)))
    assert "127.0.0.1" not in text and parse_lock(text).files()


def test_packages_that_are_not_there(archive: Archive, tmp_path: Path) -> None:
    debian = archive.debian(tmp_path / "apt")
    with pytest.raises(UserError) as caught:
        debian.base(replace(BASE, packages=("toll",)))
    assert caught.value.line() == "Debian trixie has no package 'toll' (did you mean tool?)"
    assert caught.value.exit_code is ExitCode.NOT_FOUND
    found = debian.base(BASE)
    with pytest.raises(UserError) as caught:
        debian.packages(BASE, ["extra=9"], found)
    assert caught.value.line() == "Debian trixie has no extra 9 (there is 1.0)"
    with pytest.raises(UserError, match="is not a package name"):
        debian.packages(BASE, ["--reinstall"], found)
    with pytest.raises(UserError, match="no source package 'reddis'"):
        debian.source(BASE, "reddis")


def test_the_mirror_moved_on_and_the_base_image_did_not(archive: Archive, tmp_path: Path) -> None:
    found = archive.debian(tmp_path / "before").base(BASE)
    (archive.root / "pool/main/tool_1.0_all.deb").unlink()
    archive.add_deb("tool", "1.1", "Priority: optional")
    archive.index()
    with pytest.raises(UserError, match="no longer has tool in the version that the lock's test has") as caught:
        archive.debian(tmp_path / "after").packages(BASE, ["extra"], found)
    assert caught.value.hint == "uklimg lock --update test"


def test_an_unreachable_mirror_is_one_line(tmp_path: Path) -> None:
    keyring = tmp_path / "key.gpg"
    keyring.write_bytes(b"")
    url = f"http://user:secret@127.0.0.1:{free_port()}/debian"
    with pytest.raises(ToolError) as caught:
        Debian(lambda: url, proc.run, ENV, tmp_path / "apt", keyring).base(BASE)
    assert caught.value.exit_code is ExitCode.NETWORK
    assert re.match(r"cannot reach the Debian mirror http://127\.0\.0\.1:\d+/debian \(", caught.value.line())
    assert "\n" not in caught.value.line() and "secret" not in caught.value.line() + caught.value.detail


def test_an_index_that_debian_has_not_signed(archive: Archive, tmp_path: Path) -> None:
    in_release = archive.root / "dists/trixie/InRelease"
    good = in_release.read_text()
    in_release.write_text(good.replace("Origin: Test", "Origin: Evil"))
    with pytest.raises(CorruptError, match="is not signed by Debian's archive key"):
        archive.debian(tmp_path / "changed").base(BASE)
    in_release.write_text(good)
    empty = tmp_path / "other.gpg"
    shutil.copy("/usr/share/keyrings/debian-archive-keyring.gpg", empty)
    with pytest.raises(CorruptError, match="is not signed by Debian's archive key"):
        Debian(lambda: archive.url, proc.run, ENV, tmp_path / "unknown", empty).base(BASE)
    with pytest.raises(ToolError, match=r"no-such-keyring\.gpg is missing"):
        Debian(lambda: archive.url, proc.run, ENV, tmp_path / "none", tmp_path / "no-such-keyring.gpg").base(BASE)


def test_an_index_that_its_release_does_not_describe(archive: Archive, tmp_path: Path) -> None:
    packages = archive.root / "dists/trixie/main/binary-amd64/Packages.xz"
    packages.write_bytes(lzma.compress(lzma.decompress(packages.read_bytes()).replace(b"tool", b"evil")))
    with pytest.raises(CorruptError, match="is not what its Release file says"):
        archive.debian(tmp_path / "apt").base(BASE)


def test_a_suite_the_mirror_lacks(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="has no suite forky") as caught:
        archive.debian(tmp_path / "apt").base(replace(BASE, suite="forky"))
    assert caught.value.exit_code is ExitCode.NOT_FOUND


def test_an_archive_is_measured(archive: Archive) -> None:
    url = f"{archive.url}/pool/main/redis_1-1.dsc"
    assert measure_url(url) == (Digest.of(b"a source\n"), 9)
    with pytest.raises(ToolError, match="HTTP 404") as caught:
        measure_url(url + ".asc")
    assert caught.value.exit_code is ExitCode.NOT_FOUND
    with pytest.raises(ToolError) as caught:
        measure_url(f"http://127.0.0.1:{free_port()}/a.tar")
    assert caught.value.exit_code is ExitCode.NETWORK


def test_a_package_of_other_bytes_than_locked(archive: Archive, tmp_path: Path) -> None:
    locked = archive.debian(tmp_path / "apt").base(BASE)[0].file
    path = archive.root / locked.origin.removeprefix("debian:")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptError, match=r"checksum mismatch of also_3\.0_all\.deb"):
        Fetcher(Mirrors((archive.url,)), Store(tmp_path / "store")).fetch(locked.blob())


def test_what_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_bytes(b"no ar archive")
    (tmp_path / "work").mkdir()
    params = BaseParams("trixie", "amd64", (), ())
    with pytest.raises(CorruptError, match=r"a\.deb is not a Debian package"):
        build_base_image(
            params, [tmp_path / "a.deb"], tmp_path / "out", tmp_path / "work", run=proc.run, env=ENV, epoch=EPOCH
        )


# --- the real thing


@dataclass(frozen=True)
class Made:
    """debian-trixie, made twice from one lock, by root and by an ordinary user: the two tars, and the packages'
    names."""

    first: Path
    second: Path
    locked: LockedBase


AS_USER = """
import json, os, sys
from pathlib import Path
from uklimg import proc
from uklimg.basechild import build_as_user
from uklimg.baseimage import BaseParams
from uklimg.oci import EPOCH
request = json.loads(sys.argv[1])
home = Path(request["home"])
(home / "work").mkdir()
params, debs = BaseParams.of(request["params"]), [Path(deb) for deb in request["debs"]]
env = proc.host_env(os.environ)
build_as_user(params, debs, home / "out.tar", home / "work", run=proc.run, env=env, epoch=EPOCH)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("base")
    definition = Data(find_data()).base_image("debian-trixie")
    mirror = find_mirror(os.environ)
    debian = Debian(lambda: mirror, proc.run, ENV, folder / "apt")
    locked = LockedBase(definition.name, definition.digest, debian.base(definition))
    step = base_image_step(definition, locked)
    # The machine's own store, which has most packages already.
    store = Store(read_settings(os.environ, Path.cwd()).store)
    with store.session():
        fetcher = Fetcher(Mirrors((mirror,)), store)
        debs = [fetcher.fetch(blob) for blob in step.inputs.values() if isinstance(blob, Blob)]
    assert isinstance(step.action, Host)
    first, second = folder / "first.tar", folder / "second.tar"
    params = BaseParams.of(step.action.params)
    work = folder / "work"
    work.mkdir()
    build_base_image(params, debs, first, work, run=proc.run, env=ENV, epoch=EPOCH)
    assert not work.exists()
    with ordinary_user() as user:
        # Another order of inputs and another folder must not matter.
        copies = [str(user.home / deb.name) for deb in reversed(debs)]
        for copy, deb in zip(copies, reversed(debs), strict=True):
            link_or_copy(deb, Path(copy))
        request = json.dumps({"params": step.action.params, "debs": copies, "home": str(user.home)})
        done = user.run([PYTHON, "-c", AS_USER, request], user.home)
        assert done.returncode == 0, done.stderr
        assert not (user.home / "work").exists()
        shutil.move(user.home / "out.tar", second)
    return Made(first, second, locked)


def test_the_same_lock_gives_the_same_bits(made: Made) -> None:
    with made.first.open("rb") as first, made.second.open("rb") as second:
        assert Digest.of_stream(first) == Digest.of_stream(second)
    assert 250 << 20 < made.first.stat().st_size < 600 << 20


def test_nothing_of_host_or_run_is_in_it(made: Made) -> None:
    with tarfile.open(made.first) as archive:
        members = {member.name: member for member in archive}
        status = archive.extractfile("var/lib/dpkg/status")
        assert status is not None
        stanzas = [stanza for stanza in status.read().decode().split("\n\n") if stanza.strip()]
    assert all("\nStatus: install ok installed\n" in stanza for stanza in stanzas)
    installed = [re.findall(r"^Package: (\S+)$", stanza, re.M)[0] for stanza in stanzas]
    assert sorted(installed) == sorted(package.name for package in made.locked.packages)
    for folder in ("dev", "proc", "sys", "run", "tmp", "var/log"):
        assert members[folder].isdir()
        assert [name for name in members if name.startswith(f"{folder}/")] == []
    assert not {"etc/hostname", "etc/resolv.conf", "etc/apt/sources.list"} & set(members)
    assert not [member.name for member in members.values() if member.isdev()]
    assert {member.mtime for member in members.values()} == {EPOCH}
    assert "usr/lib/x86_64-linux-gnu/libc.a" in members


def test_its_tools_run(made: Made, tmp_path: Path) -> None:
    # tar, because extractall() has no filter before Python 3.11.4.
    unpack = ("tar", "--extract", "--numeric-owner", f"--file={made.first}", f"--directory={tmp_path}")
    proc.run(unpack, env={"PATH": "/usr/bin:/bin"})
    program = (
        "import argparse, json, shlex, shutil, struct, subprocess, tempfile; print(json.dumps(shlex.split('a b')))"
    )
    tools = "gcc g++ ld make bc bison flex cpio xz zstd lz4 kmod perl rsync dpkg-source patch pkg-config"
    script = f"""set -e
for tool in {tools}; do command -v $tool >/dev/null || echo missing $tool; done
for header in libelf.h openssl/evp.h linux/if.h; do
    echo "#include <$header>" | gcc -E - >/dev/null || echo missing $header
done
printf '#include <iostream>\\nint main() {{ std::cout << "built" << std::endl; }}\\n' > /tmp/a.cc
g++ -static -o /tmp/a /tmp/a.cc && /tmp/a
python3 -c "{program}"
"""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    done = proc.run(("chroot", str(tmp_path), "/bin/sh", "-c", script), env=env)
    assert done.text.splitlines() == ["built", '["a", "b"]']
