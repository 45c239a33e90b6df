"""Mirrors, apt's configuration and output, source indexes, and the pure parts of making a base image."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from uklimg.baseimage import BaseParams, freeze_pyc, mmdebstrap_cmd, pack_rootfs, scrub
from uklimg.debian import (
    apt_conf,
    apt_source,
    find_source,
    forwarded_options,
    install_cmd,
    parse_uris,
    update_error,
)
from uklimg.definitions import BaseDefinition
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, InternalError, ToolError, UserError
from uklimg.mirror import apt_sources, choose_mirror, display, find_mirror, parse_deb822, parse_one_line

pytestmark = pytest.mark.unit

BASE = BaseDefinition("debian-trixie", "trixie", ("main",), "amd64", ("required",), ("gcc",))
MIRROR = "https://mirror.example.org/debian"
HEX = Digest.of(b"x").hex

DEB822 = """Types: deb deb-src
URIs: https://security.example.org/debian-security
Suites: trixie-security
Components: main

Types: deb
# a comment within
URIs: https://old.example.org/debian
Suites: trixie
Components: main
Enabled: no

Types: deb
URIs: https://mirror.example.org/debian/
Suites: trixie trixie-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb-src
URIs: https://source.example.org/debian
Suites: trixie
Components: main
"""

ONE_LINE = """# deb https://commented.example.org/debian trixie main
deb cdrom:[Debian 13]/ trixie main
deb mirror+file:/etc/apt/mirrors/debian.list trixie main
deb [arch=amd64 signed-by=/etc/apt/keyrings/x.asc] https://third.example.org/12/prod bookworm main
deb https://third.example.org/linux/debian bookworm stable
deb https://security.example.org/debian-security bookworm-security main
deb [ arch=amd64 ] https://mirror.example.org/debian bookworm main contrib # the mirror
deb https://second.example.org/debian bookworm-updates main
"""


# --- mirrors


def test_both_formats_give_the_main_archive() -> None:
    assert choose_mirror(parse_deb822(DEB822)) == MIRROR
    assert choose_mirror(parse_one_line(ONE_LINE)) == MIRROR
    assert choose_mirror(parse_one_line("deb https://third.example.org/apt nodistro main\n")) is None


def test_a_third_party_first_in_the_list_does_not_win() -> None:
    text = "deb https://third.example.org/prod bookworm main\ndeb https://mirror.example.org/debian bookworm main\n"
    assert choose_mirror(parse_one_line(text)) == MIRROR


def test_where_a_mirror_is_looked_for(tmp_path: Path) -> None:
    apt = tmp_path / "apt"
    (apt / "sources.list.d").mkdir(parents=True)
    config = tmp_path / "uklimg.toml"
    with pytest.raises(ToolError, match="names no Debian mirror") as caught:
        find_mirror({}, config, apt)
    assert caught.value.exit_code is ExitCode.HOST
    (apt / "sources.list").write_text("deb https://third.example.org/debian-ports sid main\n")
    (apt / "sources.list.d" / "a.sources").write_text(DEB822)
    (apt / "sources.list.d" / "b.sources.save").write_text(DEB822.replace("mirror.", "saved."))
    assert find_mirror({}, config, apt) == MIRROR
    assert any(source.uri.endswith("-ports") for source in apt_sources(apt))
    config.write_text('[mirrors]\ndebian = "https://configured.example.org/debian/"\n')
    assert find_mirror({}, config, apt) == "https://configured.example.org/debian"
    variable = {"UKLIMG_DEBIAN_MIRROR": "http://127.0.0.1:8/d/"}
    assert find_mirror(variable, config, apt) == "http://127.0.0.1:8/d"


@pytest.mark.parametrize("slashes", ["", "//"])
def test_a_list_of_mirrors_as_in_debians_cloud_images(tmp_path: Path, slashes: str) -> None:
    mirrors = tmp_path / "debian.list"
    mirrors.write_text(f"# nearest first\n{MIRROR}/\tpriority:1\nhttps://second.example.org/debian\n")
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    text = "Types: deb deb-src\nURIs: mirror+file:SLASHES{file}\nSuites: trixie trixie-updates\nComponents: main\n"
    (folder / "debian.sources").write_text(text.replace("SLASHES", slashes).format(file=mirrors))
    assert find_mirror({}, None, tmp_path) == MIRROR
    assert {source.uri for source in apt_sources(tmp_path)} == {f"{MIRROR}/", "https://second.example.org/debian"}
    mirrors.unlink()
    with pytest.raises(ToolError, match="names no Debian mirror"):
        find_mirror({}, None, tmp_path)


@pytest.mark.parametrize("url", ["mirror.example.org", "ftp://mirror.example.org/debian", "https://", "https://a b/"])
def test_what_is_no_mirror(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="UKLIMG_DEBIAN_MIRROR is not an http or https URL"):
        find_mirror({"UKLIMG_DEBIAN_MIRROR": url})
    config = tmp_path / "uklimg.toml"
    config.write_text(f'[mirrors]\ndebian = "{url}"\n')
    with pytest.raises(UserError) as caught:
        find_mirror({}, config, tmp_path)
    assert caught.value.line().startswith(str(config))
    config.write_text("[mirrors]\ndebian = \n")
    with pytest.raises(UserError, match="not TOML") as caught:
        find_mirror({}, config, tmp_path)
    assert caught.value.location is not None and caught.value.location.line == 2


def test_messages_show_no_password() -> None:
    assert display("https://me:secret@mirror.example.org:8443/debian") == "https://mirror.example.org:8443/debian"


# --- apt


def test_apt_is_kept_away_from_the_host() -> None:
    dump = (
        'Acquire::http::Proxy "http://p:1";\nAPT::Update::Post-Invoke:: "rm -f /x";\nAcquire::Check-Date "false";\n'
    )
    forwarded = forwarded_options(dump)
    assert forwarded == ('Acquire::http::Proxy "http://p:1";', 'Acquire::Check-Date "false";')
    conf = apt_conf("/t", "amd64", forwarded)
    assert 'Dir::State::status "/t/status";' in conf and 'Dir::Etc::parts "/t/empty";' in conf
    assert "Post-Invoke" not in conf and conf.splitlines()[-2:] == list(forwarded)
    source = apt_source(MIRROR, BASE, "deb-src", "/k.gpg")
    assert f"Types: deb-src\nURIs: {MIRROR}\nSuites: trixie\n" in source and "Signed-By: /k.gpg\n" in source


def test_names_cannot_become_options() -> None:
    argv = install_cmd(["-o=x"])
    assert argv.index("--") < argv.index("-o=x")


def test_uris_become_locked_packages() -> None:
    text = (
        "Reading package lists...\n"
        f"'{MIRROR}/pool/main/g/gcc/g%2b%2b_14.2.0-1_amd64.deb' g++_4%3a14.2.0-1_amd64.deb 1344 SHA256:{HEX}\n"
        f"'{MIRROR}/pool/main/a/a_1_all.deb' a_1_all.deb 10 SHA256:{HEX} \n"
    )
    first, second = parse_uris(text, MIRROR)
    assert (first.name, first.version, first.architecture, first.file.size) == ("a", "1", "all", 10)
    assert (second.name, second.version) == ("g++", "4:14.2.0-1")
    assert second.file.origin == "debian:pool/main/g/gcc/g++_14.2.0-1_amd64.deb"
    assert second.file.name == "g++_14.2.0-1_amd64.deb"
    for line in (text.replace("SHA256", "MD5Sum"), text.replace("mirror.example", "other.example")):
        with pytest.raises(InternalError):
            parse_uris(line, MIRROR)


@pytest.mark.parametrize(
    ("tail", "code", "message"),
    [
        ("Err:1 x trixie InRelease\n  Could not connect to 127.0.0.1:9", ExitCode.NETWORK, "cannot reach"),
        ("E: Failed to fetch x  Temporary failure resolving 'x'", ExitCode.NETWORK, "cannot reach"),
        (
            "Err:2 x Release\n  404  Not Found [IP: 1 80]\nE: The repository 'x trixie Release' does not have a "
            "Release file.",
            ExitCode.NOT_FOUND,
            "has no suite trixie",
        ),
        ("W: GPG error: x: NO_PUBKEY 123\nE: The repository is not signed.", ExitCode.CORRUPT, "not signed by"),
        ("E: Failed to fetch x  Hash Sum mismatch", ExitCode.CORRUPT, "not what its Release file says"),
    ],
)
def test_why_an_update_failed(tail: str, code: ExitCode, message: str) -> None:
    error = update_error(tail, MIRROR, "trixie")
    assert error.exit_code is code and isinstance(error, CorruptError) == (code is ExitCode.CORRUPT)
    assert message in error.line() and "\n" not in error.line() and error.detail == tail


def stanza(name: str, version: str, extra: str = "") -> str:
    return (
        f"Package: {name}\nBinary: {name}-bin\nVersion: {version}\n{extra}Directory: pool/main/r/{name}\n"
        f"Checksums-Sha256:\n {HEX} 20 {name}.orig.tar.gz\n {HEX} 10 {name}.dsc\n\n"
    )


INDEX = (
    stanza("redis-tools", "1")
    + stanza("redis", "5:8.0.10-1")
    + stanza("redis", "5:8.0.9-1")
    + stanza("redis", "6:1-1", "Extra-Source-Only: yes\n")
    + stanza("zlib", "1:1.3")
)


def test_sources_are_found() -> None:
    found = find_source(INDEX, "redis", "5:8.0.9-1", "trixie")
    assert [(file.name, file.size, file.origin) for file in found.files] == [
        ("redis.dsc", 10, "debian:pool/main/r/redis/redis.dsc"),
        ("redis.orig.tar.gz", 20, "debian:pool/main/r/redis/redis.orig.tar.gz"),
    ]
    # Newest by Debian's order, not the alphabet's, and not one kept only because something was built from it.
    assert find_source(INDEX, "redis", "", "trixie").version == "5:8.0.10-1"
    assert find_source(INDEX, "redis", "6:1-1", "trixie").version == "6:1-1"
    assert find_source(INDEX.rstrip("\n"), "zlib", "", "trixie").version == "1:1.3"


@pytest.mark.parametrize(
    ("name", "version", "line"),
    [
        ("redsi", "", "Debian trixie has no source package 'redsi' (did you mean redis?)"),
        ("r.dis", "", "Debian trixie has no source package 'r.dis' (did you mean redis?)"),
        ("qqqqqq", "", "Debian trixie has no source package 'qqqqqq'"),
        ("redis", "7", "Debian trixie has no redis 7 (there is 6:1-1, 5:8.0.10-1, 5:8.0.9-1)"),
    ],
)
def test_sources_that_are_not_there(name: str, version: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        find_source(INDEX, name, version, "trixie")
    assert (caught.value.line(), caught.value.exit_code) == (line, ExitCode.NOT_FOUND)


# --- base image


PARAMS = BaseParams("trixie", "amd64", ("/usr/share/man/*",), ("/usr/share/man/x",))


def test_mmdebstrap_gets_no_network_and_our_repository_only() -> None:
    argv = mmdebstrap_cmd(PARAMS, ("bash", "g++"), Path("/r"), Path("/o"))
    assert argv[0] == "unshare" and {"--net", "--pid", "--kill-child"} < set(argv[: argv.index("--")])
    assert argv[argv.index("--") + 1] == "mmdebstrap"
    assert argv[-3:] == ("trixie", "/o", "deb [trusted=yes] copy:/r ./")
    assert "--include=bash,g++" in argv
    # dpkg takes the last pattern that matches.
    assert argv.index("--dpkgopt=path-exclude=/usr/share/man/*") < argv.index(
        "--dpkgopt=path-include=/usr/share/man/x"
    )


def test_compiled_python_does_not_look_at_dates(tmp_path: Path) -> None:
    import importlib.util
    import py_compile

    source = tmp_path / "module.py"
    source.write_text("X = 1\n")
    compiled = Path(py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP) or "")
    before = compiled.read_bytes()
    freeze_pyc(compiled)
    after = compiled.read_bytes()
    assert after[:4] == importlib.util.MAGIC_NUMBER and after[4] == 1 and after[16:] == before[16:]
    source.write_text("X = 2  # not looked at: the compiled file is taken as it is\n")
    spec = importlib.util.spec_from_file_location("module", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.X == 1
    freeze_pyc(compiled)
    assert compiled.read_bytes() == after
    compiled.write_bytes(b"short")
    with pytest.raises(CorruptError):
        freeze_pyc(compiled)


def make_root(root: Path, times: int) -> None:
    (root / "etc/apt").mkdir(parents=True)
    for name in ("dev", "run/lock", "var/log/apt", "var/lib/apt/lists", "usr/bin"):
        (root / name).mkdir(parents=True)
    for name in ("etc/hostname", "etc/resolv.conf", "etc/machine-id", "etc/apt/sources.list", "var/log/dpkg.log"):
        (root / name).write_text(f"of this run: {times}\n")
    (root / "usr/bin/tool").write_text("tool\n")
    (root / "usr/bin/tool").chmod(0o4755)
    os.link(root / "usr/bin/tool", root / "usr/bin/another")
    (root / "bin").symlink_to("usr/bin")
    for path in root.rglob("*"):
        os.utime(path, (times, times), follow_symlinks=False)


def test_what_depends_on_run_or_host_goes(tmp_path: Path) -> None:
    digests = set()
    for times in (1_000_000, 2_000_000):
        root, out = tmp_path / f"root{times}", tmp_path / f"{times}.tar"
        make_root(root, times)
        scrub(root)
        pack_rootfs(root, out, 1735689600)
        digests.add(Digest.of(out.read_bytes()))
    assert len(digests) == 1
    with tarfile.open(out) as archive:
        members = {member.name: member for member in archive}
    assert not {"etc/hostname", "etc/resolv.conf", "etc/apt/sources.list", "var/log/apt", "run/lock"} & set(members)
    assert members["etc/machine-id"].size == 0 and "var/lib/apt/lists/partial" in members
    assert members["usr/bin/another"].mode == 0o4755 and members["usr/bin/tool"].linkname == "usr/bin/another"
    assert members["bin"].linkname == "usr/bin"
    assert {member.mtime for member in members.values()} == {1735689600}


def test_a_pipe_in_the_base_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    os.mkfifo(tmp_path / "root" / "pipe")
    with pytest.raises(ToolError, match="pipe"):
        pack_rootfs(tmp_path / "root", tmp_path / "out.tar", 0)
