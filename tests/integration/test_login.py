"""login, logout, and what push and pull make of them: docker-registry with users, TLS and client certificates."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from test_registry import HTPASSWD, Server, Stored, registry, skopeo, stored
from test_registry_hostile import Answer, Starter, start
from test_registry_hostile import Server as Played

from uklimg.errors import ExitCode

__all__ = ["start", "stored"]
pytestmark = pytest.mark.integration

PASSWORD = "correct horse"
ROOT = Path(__file__).parents[2]
HELPER = """#!/bin/sh
# Keeps one secret in a file, and notes what anybody could see with ps.
tr '\\0' ' ' </proc/$PPID/cmdline >>"$HOME/seen"
echo "$0 $*" >>"$HOME/seen"
case $1 in
store) cat >"$HOME/secret" ;;
get) [ -s "$HOME/secret" ] && cat "$HOME/secret" || exit 1 ;;
erase) : >"$HOME/secret" ;;
esac
"""

Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def environment(home: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": f"{home}:{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        **more,
    }


@pytest.fixture
def cli(home: Path, stored: Stored) -> Cli:
    """uklimg as its user starts it, with the store that has ``hello:latest``."""

    def run(*argv: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "uklimg", "--store", str(stored.store.root), *argv],
            input=stdin, capture_output=True, text=True, cwd=ROOT, env=environment(home, **more), check=False,
        )  # fmt: skip
        for secret in (PASSWORD, "battery staple", base64.b64encode(f"ada:{PASSWORD}".encode()).decode()):
            assert secret not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Server]:
    users = tmp_path / "htpasswd"
    users.write_text(HTPASSWD + "\n")
    with registry(tmp_path / "closed", f"auth: {{htpasswd: {{realm: test, path: {users}}}}}\n") as running:
        yield running


def login(cli: Cli, host: str, password: str = PASSWORD, user: str = "ada") -> subprocess.CompletedProcess[str]:
    return cli("login", "--username", user, "--password-stdin", host, stdin=password + "\n")


def test_login_push_pull_logout(closed: Server, cli: Cli, home: Path) -> None:
    name = f"{closed.host}/team/hello:1"
    refused = cli("push", "hello", name)
    assert refused.returncode == ExitCode.AUTH
    assert f"`uklimg login {closed.host}`" in refused.stderr

    for password, user in (("battery staple", "ada"), (PASSWORD, "eve")):
        wrong = login(cli, closed.host, password, user)
        assert wrong.returncode == ExitCode.AUTH
        assert f"{closed.host} does not accept the credentials of '{user}'" in wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1
    assert list(home.iterdir()) == []

    done = login(cli, closed.host)
    assert done.returncode == 0, done.stderr
    file = home / "run/containers/auth.json"
    assert done.stdout == f"logged in to {closed.host} as ada ({file})\n"
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o077 == 0
    assert cli("push", "hello", name).returncode == 0
    assert cli("pull", name).returncode == 0
    # Others find it there, too.
    inspected = skopeo("inspect", "--tls-verify=false", "--authfile", str(file), f"docker://{name}")
    assert json.loads(inspected)["Os"] == "linux"

    out = cli("logout", closed.host)
    assert out.returncode == 0 and str(file) in out.stdout
    assert json.loads(file.read_text()) == {"auths": {}}
    assert cli("pull", name).returncode == ExitCode.AUTH
    assert cli("logout", closed.host).returncode == ExitCode.NOT_FOUND


def test_files_of_docker_keep_what_else_is_in_them(closed: Server, cli: Cli, home: Path) -> None:
    file = home / ".docker/config.json"
    file.parent.mkdir()
    before = {"auths": {f"https://{closed.host}/v2/": {"auth": "b2xkOm9sZA=="}, "o.example": {}}, "psFormat": "table"}
    real = home / "real.json"
    real.write_text(json.dumps(before))
    file.symlink_to(real)
    assert login(cli, closed.host).returncode == 0
    assert file.is_symlink()
    content = json.loads(file.read_text())
    assert content["psFormat"] == "table" and set(content["auths"]) == {closed.host, "o.example"}
    assert cli("push", "hello", f"{closed.host}/hello").returncode == 0
    assert cli("logout", closed.host).returncode == 0
    assert json.loads(file.read_text())["auths"] == {"o.example": {}}


@pytest.mark.parametrize("section", [{"credsStore": "test"}, {"credHelpers": {"HOST": "test"}}])
def test_a_credential_helper(closed: Server, cli: Cli, home: Path, section: dict[str, object]) -> None:
    helper = home / "docker-credential-test"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    file = home / ".docker/config.json"
    file.parent.mkdir()
    text = json.dumps(section).replace("HOST", closed.host)
    file.write_text(text)
    done = login(cli, closed.host)
    assert done.returncode == 0 and "(docker-credential-test)" in done.stdout, done.stderr
    assert json.loads((home / "secret").read_text()) == {
        "ServerURL": closed.host,
        "Username": "ada",
        "Secret": PASSWORD,
    }
    assert file.read_text() == text
    assert cli("push", "hello", f"{closed.host}/hello").returncode == 0
    assert cli("logout", closed.host).returncode == 0
    assert (home / "secret").read_text() == ""
    seen = (home / "seen").read_text()
    assert "login --username ada" in seen and "docker-credential-test store" in seen
    assert PASSWORD not in seen


def test_a_helper_that_fails_keeps_nothing(closed: Server, cli: Cli, home: Path) -> None:
    helper = home / "docker-credential-test"
    helper.write_text("#!/bin/sh\ncat; exit 3\n")  # prints the secret: it must not come through
    helper.chmod(0o755)
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text('{"credsStore": "test"}')
    done = login(cli, closed.host)
    assert done.returncode == ExitCode.HOST and "docker-credential-test store failed with status 3" in done.stderr
    assert (home / ".docker/config.json").read_text() == '{"credsStore": "test"}'


def test_the_password_is_asked_for_unseen(closed: Server, home: Path) -> None:
    controller, terminal = pty.openpty()
    argv = [sys.executable, "-m", "uklimg", "login", "--username", "ada", closed.host]
    process = subprocess.Popen(
        argv,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        env=environment(home),
        start_new_session=True,
    )
    os.close(terminal)
    shown, answered = b"", False
    while True:
        try:
            shown += os.read(controller, 1000)
        except OSError:
            break  # the other end is closed
        if not answered and b"Password: " in shown:
            os.write(controller, f"{PASSWORD}\n".encode())
            answered = True
    assert process.wait() == 0, shown
    os.close(controller)
    assert b"logged in" in shown and PASSWORD.encode() not in shown


@pytest.mark.parametrize(
    ("argv", "stdin", "said"),
    [
        (("--username", "ada", "HOST"), "", "--password-stdin"),
        (("--password-stdin", "HOST"), "x", "--username"),
        (("--username", "ada", "--password-stdin", "HOST"), "\n", "empty"),
        (("--username", "a:b", "--password-stdin", "HOST"), "x", "colon"),
        (("--username", "ada", "--password-stdin", "https://HOST/v2"), "x", "is no registry"),
        (("--username", "ada", "--password-stdin", "HOST/name"), "x", "is no registry"),
    ],
)
def test_bad_logins(cli: Cli, argv: tuple[str, ...], stdin: str, said: str) -> None:
    done = cli("login", *(word.replace("HOST", "127.0.0.1:1") for word in argv), stdin=stdin)
    assert done.returncode == ExitCode.USER and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_password_on_the_command_line(cli: Cli) -> None:
    assert cli("login", "--username", "ada", "--password", "x", "127.0.0.1:1").returncode == ExitCode.USAGE


def test_nothing_to_log_in_to(tmp_path: Path, cli: Cli, home: Path) -> None:
    with registry(tmp_path / "open") as running:
        done = login(cli, running.host)
        assert done.returncode == ExitCode.AUTH and "lets everybody in" in done.stderr
    down = login(cli, running.host)
    assert down.returncode == ExitCode.NETWORK and "cannot reach" in down.stderr
    assert list(home.iterdir()) == []


def token_server(start: Starter, *, careless: bool = False) -> Played:
    """A registry with a token server; a ``careless`` one gives everybody a token."""
    good = "Basic " + base64.b64encode(f"ada:{PASSWORD}".encode()).decode()

    def issue(request: object) -> Answer:
        headers, body = getattr(request, "headers"), getattr(request, "body")  # noqa: B009
        if headers.get("Authorization") == good or b"refresh_token=refreshing" in body:
            return Answer(body=b'{"token":"good"}')
        return Answer(body=b'{"token":"bad"}') if careless else Answer(401)

    issuer = start(issue)
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{issuer.host}/token",service="s"'}
    return start(
        lambda r: Answer() if r.headers.get("Authorization") == "Bearer good" else Answer(401, b"", challenge)
    )


@pytest.mark.parametrize("careless", [False, True])
def test_tokens(start: Starter, cli: Cli, home: Path, careless: bool) -> None:
    server = token_server(start, careless=careless)
    assert login(cli, server.host, "battery staple").returncode == ExitCode.AUTH
    assert list(home.iterdir()) == []
    assert login(cli, server.host).returncode == 0
    assert login(cli, server.host, "refreshing", "<token>").returncode == 0
    entry = json.loads((home / "run/containers/auth.json").read_text())["auths"][server.host]
    assert entry["identitytoken"] == "refreshing"
    assert base64.b64decode(entry["auth"]) == b"<token>:"


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A folder with ca.crt, server.crt, server.key, client.cert and client.key."""
    folder = tmp_path / "pki"
    folder.mkdir()

    def openssl(*argv: str) -> None:
        subprocess.run(["openssl", *argv], check=True, capture_output=True, cwd=folder)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout")
    openssl(*new, "ca.key", "-x509", "-out", "ca.crt", "-days", "2", "-subj", "/CN=authority")
    for name, extra in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")):
        openssl(*new, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "extra").write_text(extra)
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", "extra", "-out", f"{name}.cert"),
        )
    return folder


def test_authorities_and_certificates_of_ours(tmp_path: Path, authority: Path, cli: Cli, home: Path) -> None:
    users = tmp_path / "htpasswd"
    users.write_text(HTPASSWD + "\n")
    tls = (
        f", tls: {{certificate: {authority}/server.cert, key: {authority}/server.key,"
        f" clientcas: [{authority}/ca.crt]}}"
    )
    auth = f"auth: {{htpasswd: {{realm: test, path: {users}}}}}\n"
    with registry(tmp_path / "tls", auth, tls) as running:
        unsaid = login(cli, running.host)
        assert unsaid.returncode == ExitCode.NETWORK
        assert f"{running.host} speaks TLS (say --no-plain-http, or put its authority into certs.d)" in unsaid.stderr
        strict = cli("login", "--no-plain-http", "-u", "ada", "--password-stdin", running.host, stdin=PASSWORD)
        assert strict.returncode == ExitCode.NETWORK and "its certificate: " in strict.stderr

        trusted = home / ".config/containers/certs.d" / running.host
        trusted.mkdir(parents=True)
        (trusted / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
        unknown = login(cli, running.host)
        # Most often its alert is read; now and then the connection is gone before.
        assert unknown.returncode == ExitCode.NETWORK and len(unknown.stderr.splitlines()) == 1

        for name in ("client.cert", "client.key"):
            (trusted / name).write_bytes((authority / name).read_bytes())
        assert login(cli, running.host).returncode == 0
        assert cli("push", "hello", f"{running.host}/hello:1").returncode == 0
        assert cli("pull", f"{running.host}/hello:1").returncode == 0

        # The authority may be named by the environment, too.
        (trusted / "ca.crt").unlink()
        name = f"{running.host}/hello:1"
        assert cli("pull", name).returncode == ExitCode.NETWORK
        assert cli("pull", name, SSL_CERT_FILE=str(authority / "ca.crt")).returncode == 0


def test_build_push_wants_a_registry(cli: Cli, tmp_path: Path) -> None:
    for names in ((), ("-t", "hello:1")):
        done = cli("build", "--push", *names, str(tmp_path))
        assert done.returncode == ExitCode.USER and "--push without a name" in done.stderr
