"""Credentials out of files and helpers, challenges, retries, error texts: what needs no network."""

from __future__ import annotations

import base64
import io
import json
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.remote.auth import AuthFiles, Credential, auth_files, process_helper
from uklimg.remote.authenticator import with_query
from uklimg.remote.certificates import Trust, find_trust
from uklimg.remote.challenge import Challenge, parse_challenges
from uklimg.remote.failures import Retry, TransientError, of_exception, of_response

pytestmark = pytest.mark.unit


def encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def no_helper(program: str, server: str) -> bytes | None:
    raise AssertionError(f"{program} asked about {server}")


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_places_of_files() -> None:
    home = {"HOME": "/h"}
    assert auth_files(home, 7) == (
        Path("/run/containers/7/auth.json"),
        Path("/h/.config/containers/auth.json"),
        Path("/h/.docker/config.json"),
    )
    everything = {
        **home,
        "REGISTRY_AUTH_FILE": "/x.json",
        "XDG_RUNTIME_DIR": "/run/user/7",
        "XDG_CONFIG_HOME": "/c",
        "DOCKER_CONFIG": "/d",
    }
    assert auth_files(everything, 7) == (
        Path("/x.json"),
        Path("/run/user/7/containers/auth.json"),
        Path("/c/containers/auth.json"),
        Path("/d/config.json"),
    )


def test_the_longest_name_and_the_first_file_win(tmp_path: Path) -> None:
    first = write(
        tmp_path / "first",
        {
            "auths": {
                "r.example": {"auth": encoded("host", "1")},
                "r.example/team": {"auth": encoded("team", "2")},
                "r.example/team/app": {"auth": encoded("app", "3:4")},
                "empty.example": {},
            }
        },
    )
    second = write(
        tmp_path / "second",
        {
            "auths": {
                "r.example": {"auth": encoded("other", "5")},
                "https://old.example/v1/": {"auth": encoded("old", "6\0\0")},
                "empty.example": {"username": "plain", "password": "7"},
                "token.example": {"auth": encoded("<token>", "x"), "identitytoken": "8"},
            }
        },
    )
    found = AuthFiles([tmp_path / "none", first, second], no_helper).find
    assert found("r.example", "a") == Credential("host", "1", origin=str(first))
    assert found("r.example", "team/other") == Credential("team", "2", origin=str(first))
    assert found("r.example", "team/app") == Credential("app", "3:4", origin=str(first))
    assert found("r.example", "team/app/below") == Credential("app", "3:4", origin=str(first))
    assert found("old.example", "a") == Credential("old", "6", origin=str(second))
    assert found("empty.example", "a") == Credential("plain", "7", origin=str(second))
    assert found("token.example", "a") == Credential("<token>", "8", True, str(second))
    assert found("unknown.example", "a") is None
    assert found("r.example:443", "a") is None
    assert found("r.example.evil", "a") is None


def test_helpers(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def helper(program: str, server: str) -> bytes | None:
        asked.append((program, server))
        if server == "none.example":
            return None
        if server == "broken.example":
            return b"no JSON: hunter2"
        if program == "docker-credential-gone":
            raise ToolError("docker-credential-gone is not installed")
        return json.dumps({"ServerURL": server, "Username": "<token>", "Secret": "s"}).encode()

    path = write(
        tmp_path / "config.json",
        {
            "auths": {"file.example": {"auth": encoded("file", "1")}, "none.example": {}},
            "credHelpers": {"h.example": "mine", "x.example": "gone", "evil.example": "../../bin/sh"},
            "credsStore": "gone",
        },
    )
    files = AuthFiles([path], helper)
    assert files.find("h.example", "a") == Credential("<token>", "s", True, "docker-credential-mine")
    assert files.find("file.example", "a") == Credential("file", "1", origin=str(path))
    assert asked == [("docker-credential-mine", "h.example")]
    # The general helper may be gone, that of the host may not.
    assert files.find("r.example", "a") is None
    with pytest.raises(ToolError, match="not installed"):
        files.find("x.example", "a")
    with pytest.raises(UserError, match="bad credential helper"):
        files.find("evil.example", "a")
    write(path, {"credsStore": "mine"})
    assert files.find("none.example", "a") is None
    write(path, {"credHelpers": {"broken.example": "mine"}})
    with pytest.raises(ToolError) as caught:
        files.find("broken.example", "a")
    assert "hunter2" not in caught.value.line() + caught.value.detail


def test_a_real_helper_process(tmp_path: Path) -> None:
    program = tmp_path / "docker-credential-here"
    program.write_text(
        '#!/bin/sh\nread server\ntest "$1 $server" = "get r.example" || { echo secret; exit 1; }\n'
        'echo "{\\"Username\\":\\"ada\\",\\"Secret\\":\\"$WORD\\"}"\n'
    )
    program.chmod(0o755)
    ask = process_helper({"PATH": f"{tmp_path}:/usr/bin:/bin", "WORD": "w"})
    files = AuthFiles([write(tmp_path / "c", {"credsStore": "here"})], ask)
    assert files.find("r.example", "a") == Credential("ada", "w", origin="docker-credential-here")
    assert files.find("other.example", "a") is None
    with pytest.raises(ToolError, match="not installed"):
        ask("docker-credential-absent", "r.example")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"auths": [1]}',
        '{"auths": {"r.example": {"auth": "not base64 hunter2"}}}',
        '{"auths": {"r.example": {"auth": "/////w=="}}}',
        '{"credHelpers": "x"}',
        '{"a":' * 100_000,
    ],
)
def test_bad_files_are_the_users_error_and_show_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        AuthFiles([path], no_helper).find("r.example", "a")
    assert str(path) in caught.value.message
    assert "hunter2" not in caught.value.line()


def test_secrets_have_no_repr() -> None:
    assert "hunter2" not in repr(Credential("ada", "hunter2"))
    assert Credential("ada", "hunter2").basic() == "Basic " + encoded("ada", "hunter2")


def test_certificates(tmp_path: Path) -> None:
    folder = tmp_path / "r.example:5000"
    folder.mkdir()
    folders = [tmp_path / "none", tmp_path]
    assert find_trust("r.example:5000", folders) == Trust()
    (folder / "b.crt").touch()
    (folder / "a.crt").touch()
    assert find_trust("r.example:5000", folders) == Trust((folder / "a.crt", folder / "b.crt"))
    assert find_trust("r.example", folders) == Trust()
    (folder / "client.cert").touch()
    with pytest.raises(UserError, match="has no key beside it"):
        find_trust("r.example:5000", folders)
    (folder / "client.key").touch()
    trust = find_trust("r.example:5000", folders)
    assert trust.client == (folder / "client.cert", folder / "client.key")
    with pytest.raises(UserError, match=r"cannot use the certificate or key .*a\.crt"):
        trust.context()


def test_authorities_of_the_environment(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.touch()
    environ = {"SSL_CERT_FILE": str(bundle), "REQUESTS_CA_BUNDLE": str(tmp_path / "missing")}
    assert Trust().beside(environ) == Trust((bundle,))
    assert Trust((Path("/a"),)).beside({}) == Trust((Path("/a"),))


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", ()),
        ("Basic", (Challenge("basic", {}),)),
        ('Basic realm="a b, c"', (Challenge("basic", {"realm": "a b, c"}),)),
        (
            'Bearer realm="https://t.example/token",service="r",scope="repository:a/b:pull,push"',
            (
                Challenge(
                    "bearer",
                    {"realm": "https://t.example/token", "service": "r", "scope": "repository:a/b:pull,push"},
                ),
            ),
        ),
        (
            'Basic realm="x", Bearer Realm = "y" , error=invalid_token',
            (Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y", "error": "invalid_token"})),
        ),
        (r'Basic realm="a\"b\\"', (Challenge("basic", {"realm": 'a"b\\'}),)),
    ],
)
def test_challenges(header: str, challenges: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header) == challenges


@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_any_header_parses(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme and challenge.scheme == challenge.scheme.lower()


def test_retries() -> None:
    waits: list[float] = []
    retry = Retry(attempts=4, first_delay=1.0, sleep=waits.append)
    results: list[TransientError | str] = [
        TransientError(ToolError("1")),
        TransientError(ToolError("2"), after=7.0),
        TransientError(ToolError("3"), after=9999.0),
        "done",
    ]

    def action() -> str:
        result = results.pop(0)
        if isinstance(result, TransientError):
            raise result
        return result

    assert retry.call(action) == "done"
    assert waits == [1.0, 7.0, 30.0]
    results[:] = [TransientError(ToolError(str(n))) for n in range(9)]
    with pytest.raises(ToolError, match="3"):
        retry.call(action)
    assert len(results) == 5


def response(status: int, body: bytes = b"", after: str = "") -> requests.Response:
    made = requests.Response()
    made.status_code = status
    made.raw = io.BytesIO(body)
    made.url = "https://r.example/v2/a/blobs/x?signature=hunter2"
    made.headers["Retry-After"] = after
    return made


def error_body(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


@pytest.mark.parametrize(
    ("answer", "exit_code", "transient", "said"),
    [
        (response(404), ExitCode.NOT_FOUND, False, "image x is not there"),
        (response(400, error_body("DIGEST_INVALID", "no")), ExitCode.CORRUPT, False, "refuses image x: no"),
        (response(400, error_body("OTHER", "a\x1b[2Jb\nc")), ExitCode.NETWORK, False, "400 for image x: a [2Jb c"),
        (response(413, b"<html>"), ExitCode.NETWORK, False, "answers 413"),
        (response(503), ExitCode.NETWORK, True, "answers 503"),
        (response(429, after="3"), ExitCode.NETWORK, True, "answers 429"),
        (response(500, b"[" * 100_000), ExitCode.NETWORK, True, "answers 500"),
    ],
)
def test_answers(answer: requests.Response, exit_code: ExitCode, transient: bool, said: str) -> None:
    failure = of_response(answer, "image x")
    error = failure.error if isinstance(failure, TransientError) else failure
    assert isinstance(failure, TransientError) is transient
    assert error.exit_code == exit_code
    assert said in error.line()
    assert "hunter2" not in error.line() and "\x1b" not in error.line()
    if isinstance(failure, TransientError) and answer.status_code == 429:
        assert failure.after == 3.0


def test_exceptions() -> None:
    url = "https://ada:hunter2@r.example:5000/v2/?token=hunter2"

    def message(error: Exception) -> str:
        failure = of_exception(error, url)
        found = failure.error if isinstance(failure, TransientError) else failure
        assert found.exit_code == ExitCode.NETWORK
        assert "hunter2" not in found.line()
        return found.message

    refused = requests.ConnectionError()
    refused.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert message(refused) == "cannot reach r.example:5000: Connection refused"
    assert message(requests.ReadTimeout()) == "cannot reach r.example:5000: no answer in time"
    assert message(requests.exceptions.ChunkedEncodingError()) == "cannot reach r.example:5000: the connection broke"
    bad = ssl.SSLCertVerificationError(1, "x")
    bad.verify_message = "certificate has expired"
    assert "certificate has expired" in message(requests.exceptions.SSLError(bad))
    assert not isinstance(of_exception(requests.exceptions.SSLError(bad), url), TransientError)
    # How a connection that breaks looks under TLS is no refusal; nobody's name stays nobody's.
    cut = of_exception(requests.exceptions.SSLError(ssl.SSLEOFError(8, "EOF occurred in violation of protocol")), url)
    assert isinstance(cut, TransientError) and "the connection broke" in cut.error.message
    for number, transient in ((socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)):
        unknown = requests.ConnectionError()
        unknown.__cause__ = socket.gaierror(number, "no such name")
        assert isinstance(of_exception(unknown, url), TransientError) is transient


def test_patience_that_a_registry_asks_for() -> None:
    for text, least, most in (
        ("3", 3, 3),
        ("99999999", 30, 30),
        (format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True), 10, 21),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0),
        ("soon", 0, 0),
        ("-1", 0, 0),
    ):
        failure = of_response(response(429, after=text), "image x")
        assert isinstance(failure, TransientError) and least <= failure.after <= most


def test_queries_keep_what_they_have() -> None:
    assert with_query("https://r/x?_state=a%2Bb&empty=", {"digest": "sha256:1"}) == (
        "https://r/x?_state=a%2Bb&empty=&digest=sha256%3A1"
    )
    assert with_query("/x", {"a": "b c"}) == "/x?a=b+c"
