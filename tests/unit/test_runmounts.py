"""RUN's mounts on this machine: where caches lie, who waits for whom, what a secret becomes, links that lead out."""

from __future__ import annotations

import stat
import subprocess
import threading
from pathlib import Path

import pytest

from uklimg.cli.secrets import Secret, parse_secrets, read_secrets
from uklimg.errors import UserError
from uklimg.graph import RunMount
from uklimg.runmounts import Prepared, inside, prepared

pytestmark = pytest.mark.unit


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def cache(name: str, sharing: str = "shared", target: str = "/c") -> RunMount:
    return RunMount("cache", target, id=name, sharing=sharing)


def test_a_cache_is_the_same_folder_for_the_same_id(tmp_path: Path, work: Path) -> None:
    caches = tmp_path / "mounts"
    with prepared([cache("a"), cache("b", target="/b")], {}, work, caches, {}) as first:
        (first.mounts[1].source / "kept").touch()
        assert not any(mount.read_only for mount in first.mounts)
    with prepared([cache("a", "locked")], {}, work, caches, {}) as second:
        assert (second.mounts[0].source / "kept").exists()


def test_private_caches_in_use_at_once_are_different_folders(tmp_path: Path, work: Path) -> None:
    caches = tmp_path / "mounts"
    with (
        prepared([cache("a", "private")], {}, work, caches, {}) as first,
        prepared([cache("a", "private")], {}, work, caches, {}) as second,
    ):
        assert first.mounts[0].source != second.mounts[0].source
        (first.mounts[0].source / "kept").touch()
    with prepared([cache("a", "private")], {}, work, caches, {}) as third:
        assert (third.mounts[0].source / "kept").exists()


def test_a_locked_cache_waits_for_all_others(tmp_path: Path, work: Path) -> None:
    caches = tmp_path / "mounts"
    order: list[str] = []

    def wait() -> None:
        with prepared([cache("a", "locked"), cache("a", "shared", "/d")], {}, work, caches, {}):
            order.append("locked")

    with (
        prepared([cache("a")], {}, work, caches, {}),
        prepared([cache("a")], {}, work, caches, {}),  # these two share
    ):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.2)
        order.append("shared")
    thread.join()
    assert order == ["shared", "locked"]


def test_a_secret_is_a_file_for_its_owner_and_a_variable_when_asked_for(tmp_path: Path, work: Path) -> None:
    mounts = [
        RunMount("secret", "/run/secrets/a", id="a", mode=0o400, read_only=True),
        RunMount("secret", "", id="b", mode=0o400, read_only=True, variable="TOKEN"),
        RunMount("secret", "/run/secrets/none", id="none"),
    ]
    with prepared(mounts, {}, work, tmp_path / "mounts", {"a": b"first", "b": b"two\nlines\n\n"}) as found:
        targets = {mount.target: mount for mount in found.mounts}
        assert set(targets) == {"/run/secrets/a", "/run/uklimg-secrets/1"}
        assert all(mount.read_only for mount in found.mounts)
        secret = targets["/run/secrets/a"].source
        assert secret.read_bytes() == b"first"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o400
        assert found.variables == (("TOKEN", "/run/uklimg-secrets/1"),)
        assert found.argv(["make", "a b"])[:2] == ("/bin/sh", "-c")
        assert not any("two" in word for word in found.argv(["make"]))
    assert not (tmp_path / "mounts").exists()


def test_the_variable_has_the_secret_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("two\nlines\n\n")
    (tmp_path / "two").write_text("a 'b' \"c\" $d")
    made = Prepared((), (("A", str(tmp_path / "one")), ("B", str(tmp_path / "two"))))
    argv = made.argv(["sh", "-c", 'printf "%s|%s|%s|%s" "$A" "$B" "$1" "${value-unset}"', "x", "an argument"])
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "two\nlines\n\n|a 'b' \"c\" $d|an argument|unset"


def test_tmpfs_is_an_empty_folder_and_bind_a_part_of_an_input(tmp_path: Path, work: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_text("x")
    mounts = [RunMount("tmpfs", "/t", mode=0o1777), RunMount("bind", "/b", "mount 0", "sub/file", True)]
    with prepared(mounts, {"mount 0": tree}, work, tmp_path / "mounts", {}) as found:
        bind, tmpfs = found.mounts
        assert bind.source == tree / "sub/file"
        assert bind.read_only
        assert not any(tmpfs.source.iterdir())
        assert stat.S_IMODE(tmpfs.source.stat().st_mode) == 0o1777


def test_links_never_lead_out_of_what_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/own").write_text("own")
    for name, target in {"absolute": "/etc", "climbing": "../../../../etc", "chain": "absolute/own"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "loop").symlink_to("loop")
    assert inside(tmp_path, ".") == tmp_path
    assert inside(tmp_path, "absolute/own") == tmp_path / "etc/own"
    assert inside(tmp_path, "/climbing/../etc/own") == tmp_path / "etc/own"
    assert inside(tmp_path, "chain") == tmp_path / "etc/own"
    for bad in ("loop", "etc/passwd", "absolute/passwd"):
        with pytest.raises(UserError):
            inside(tmp_path, bad)


def test_secrets_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0\xff")
    words = ["id=a,src=file", "type=env,id=b,env=VAR", "id=VAR"]
    assert parse_secrets(words) == (Secret("a", "file"), Secret("b", variable="VAR"), Secret("VAR", variable="VAR"))
    assert read_secrets(words, {"VAR": "v"}, tmp_path) == {"a": b"\0\xff", "b": b"v", "VAR": b"v"}
    assert "file" not in repr(parse_secrets(["id=a,src=file"]))
    for bad in ("", "src=file", "id=a,src=x,env=y", "id=a,form=b", "id=", '"id=a'):
        with pytest.raises(UserError):
            parse_secrets([bad])
    with pytest.raises(UserError, match="twice"):
        parse_secrets(["id=a", "id=a"])
    for gone in ("id=a,src=gone", "id=a,env=GONE"):
        with pytest.raises(UserError):
            read_secrets([gone], {}, tmp_path)
    (tmp_path / "large").write_bytes(b"x" * (501 << 10))
    with pytest.raises(UserError, match="larger"):
        read_secrets(["id=a,src=large"], {}, tmp_path)
