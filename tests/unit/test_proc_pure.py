"""What ``proc`` decides before a process starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from uklimg import proc
from uklimg.errors import ExitCode, ToolError

pytestmark = pytest.mark.unit


def test_host_env_passes_only_what_tools_need() -> None:
    environ = {
        "PATH": "/opt/bin:/usr/bin",
        "HOME": "/home/u",
        "https_proxy": "http://proxy.invalid:3128",
        "SSL_CERT_FILE": "/ca.pem",
        "XDG_CACHE_HOME": "/cache",
        "LD_PRELOAD": "/evil.so",
        "PYTHONPATH": "/x",
        "LANG": "de_DE.UTF-8",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    env = proc.host_env(environ, EXTRA="1")
    assert env == {
        "PATH": "/opt/bin:/usr/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "HOME": "/home/u",
        "https_proxy": "http://proxy.invalid:3128",
        "SSL_CERT_FILE": "/ca.pem",
        "XDG_CACHE_HOME": "/cache",
        "LC_ALL": "C.UTF-8",
        "EXTRA": "1",
    }


def test_host_env_has_a_path_even_without_one() -> None:
    assert proc.host_env({})["PATH"].startswith("/usr/local/sbin:")


def test_pasteable_quotes_and_masks_passwords() -> None:
    line = proc.pasteable(["ls", "a b", "$HOME"], {"B": "x y", "A": "http://u:secret@h:1/"}, Path("/some dir"))
    assert line == "cd '/some dir' && env -i 'A=http://***@h:1/' 'B=x y' ls 'a b' '$HOME'"


@pytest.mark.parametrize(
    ("status", "text"),
    [(0, "ended with status 0"), (2, "ended with status 2"), (-9, "was ended by SIGKILL"), (-200, "by signal 200")],
)
def test_describe(status: int, text: str) -> None:
    assert text in proc.describe(status)


def test_missing_program_names_the_package() -> None:
    with pytest.raises(ToolError) as caught:
        proc.find("qemu-system-x86_64", {"PATH": "/nonexistent"})
    assert caught.value.line() == "qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)"
    assert caught.value.exit_code is ExitCode.HOST


def test_missing_program_without_known_package() -> None:
    with pytest.raises(ToolError, match="frobnicate is not installed"):
        proc.find("frobnicate", {"PATH": "/nonexistent"})
