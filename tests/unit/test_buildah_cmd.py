"""The commands that the buildah engine builds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from uklimg.digest import Digest
from uklimg.engine.base import FIXED_ENV, Job, Mount, Rootfs, step_env
from uklimg.engine.commands import CHROOT, OCI, Isolation, Storage, buildah_cmd, from_cmd, run_cmd
from uklimg.engine.output import Follower

pytestmark = pytest.mark.unit

ROOT = Storage(Path("/s"), "overlay")
JOB = Job(
    "kit",
    Rootfs(Path("/layout"), Digest.of(b"")),
    ("make", "-j2"),
    Path("/o"),
    Path("/l"),
    env={"V": "1", "HOME": "/build"},
    workdir="/src",
)
RUNC, JAIL = Isolation(OCI, "/usr/sbin/runc"), Isolation(CHROOT)
BUILDAH = ["buildah", "--root", "/s/overlay/root", "--runroot", "/s/overlay/run", "--storage-driver", "overlay"]


def after(argv: list[str], option: str) -> list[str]:
    """The values of a repeated option."""
    return [argv[i + 1] for i, word in enumerate(argv) if word == option]


def test_storage_is_our_own() -> None:
    assert buildah_cmd(ROOT, "images") == [*BUILDAH, "images"]


def test_an_ordinary_user_enters_his_namespace() -> None:
    assert buildah_cmd(replace(ROOT, rootless=True), "images") == [*BUILDAH, "unshare", "--", *BUILDAH, "images"]


def test_from_gives_neither_names_nor_proxies_of_the_host() -> None:
    argv = from_cmd(ROOT, "c", "localhost/uklimg:x", network=False)
    assert argv[-3:] == ["--name", "c", "localhost/uklimg:x"]
    assert {"--pull=never", "--http-proxy=false"} < set(argv)
    assert after(argv, "--dns") == ["none"]
    assert after(from_cmd(ROOT, "c", "i", network=True), "--dns") == []


def test_run_with_runc() -> None:
    mounts = (Mount(Path("/in"), "/src"), Mount(Path("/o"), "/out", read_only=False))
    argv = run_cmd(ROOT, "c", RUNC, JOB, mounts, Path("/dev.new"), Path("/live"))
    namespaces = argv[: argv.index("buildah")]
    assert namespaces[0] == "unshare" and {"--pid", "--kill-child", "--net", "--mount"} < set(namespaces)
    inner = argv[argv.index("buildah") :]
    assert inner[: len(BUILDAH)] == BUILDAH
    script = 'exec "$@" </dev/null >>/run/uklimg.log 2>&1'
    assert inner[-8:] == ["c", "--", "/bin/sh", "-c", script, "sh", "make", "-j2"]
    assert (after(inner, "--isolation"), after(inner, "--runtime"), after(inner, "--network")) == (
        ["oci"],
        ["/usr/sbin/runc"],
        ["none"],
    )
    assert after(inner, "--hostname") == ["uklimg"] and "--no-hosts" in inner
    assert after(inner, "--volume") == ["/in:/src:ro", "/o:/out:rw"]
    assert after(inner, "--user") == ["0:0"] and after(inner, "--workingdir") == ["/src"]
    assert dict(pair.split("=", 1) for pair in after(inner, "--env")) == {**FIXED_ENV, "V": "1", "HOME": "/build"}


def test_an_ordinary_users_step_ends_with_us() -> None:
    argv = run_cmd(replace(ROOT, rootless=True), "c", RUNC, JOB, (), Path("/d"), Path("/live"))
    at = argv.index("sh")
    assert argv[:at] == buildah_cmd(replace(ROOT, rootless=True), "unshare", "--")
    assert argv[at + 3 :] == ["sh", "/live", *run_cmd(ROOT, "c", RUNC, JOB, (), Path("/d"), Path("/live"))]


def test_run_in_a_chroot_hides_the_hosts_devices() -> None:
    argv = run_cmd(ROOT, "c", JAIL, JOB, (), Path("/dev.new"), Path("/live"))
    assert after(argv, "--isolation") == ["chroot"]
    assert "--network" not in argv and "--net" in argv
    script = argv[argv.index("-ec") + 1]
    assert 'mount --move "$new" /dev' in script and argv[argv.index("-ec") + 3] == "/dev.new"


@pytest.mark.parametrize("isolation", [RUNC, JAIL])
def test_network_only_when_asked_for(isolation: Isolation) -> None:
    argv = run_cmd(ROOT, "c", isolation, replace(JOB, network=True), (), Path("/d"), Path("/live"))
    assert "--net" not in argv
    assert after(argv, "--network") == (["host"] if isolation == RUNC else [])


def test_a_user_is_passed_on() -> None:
    argv = run_cmd(ROOT, "c", RUNC, replace(JOB, user="1000:100"), (), Path("/d"), Path("/live"))
    assert after(argv, "--user") == ["1000:100"]


def test_every_step_has_the_fixed_environment() -> None:
    env = step_env({"X": "1"})
    assert env["SOURCE_DATE_EPOCH"] == "1735689600"
    assert (env["TZ"], env["LC_ALL"], env["HOME"], env["X"]) == ("UTC", "C.UTF-8", "/root", "1")


def test_a_log_is_followed_line_by_line(tmp_path: Path) -> None:
    log, lines = tmp_path / "log", list[str]()
    log.write_bytes(b"")
    with Follower(log, lines.append) as output, log.open("ab", buffering=0) as writer:
        output.poll()
        writer.write(b"one\ntw")
        output.poll()
        assert lines == ["one"]
        writer.write(b"o\r\nb\xffd\nrest")
        output.poll()
        assert lines == ["one", "two", "b\ufffdd"]
        output.add(["more"])
        assert output.tail.splitlines() == ["one", "two", "b\ufffdd", "rest", "more"]
    assert lines == output.tail.splitlines()
    assert log.read_bytes().endswith(b"rest\nmore\n")


def test_a_log_ends_with_what_has_no_newline(tmp_path: Path) -> None:
    log, lines = tmp_path / "log", list[str]()
    log.write_bytes(b"x" * 200_000 + b"\nend")
    with Follower(log, lines.append) as output:
        output.poll()
    assert "".join(lines) == "x" * 200_000 + "end" and lines[-1] == "end"
