"""Image references: Docker's grammar, and short names that stay short."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uklimg.digest import Digest
from uklimg.errors import UserError
from uklimg.ref import Reference, is_loopback

pytestmark = pytest.mark.unit

HEX = "ab" * 32
DIGEST = Digest(HEX)


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("redis", "", "redis", "latest", None),
        ("redis:8", "", "redis", "8", None),
        ("team/redis:8", "", "team/redis", "8", None),
        (f"redis@sha256:{HEX}", "", "redis", "", DIGEST),
        (f"redis:8@sha256:{HEX}", "", "redis", "8", DIGEST),
        ("localhost/redis", "localhost", "redis", "latest", None),
        ("localhost:5000/redis:8", "localhost:5000", "redis", "8", None),
        ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000", "a/b/c", "x", None),
        ("[::1]:5000/redis", "[::1]:5000", "redis", "latest", None),
        ("r.example/a.b/c__d/e---f", "r.example", "a.b/c__d/e---f", "latest", None),
        ("registry:5000/redis", "registry:5000", "redis", "latest", None),
        ("R.Example/redis", "R.Example", "redis", "latest", None),
        ("redis:" + "t" * 128, "", "redis", "t" * 128, None),
    ],
)
def test_parse(text: str, host: str, repository: str, tag: str, digest: Digest | None) -> None:
    assert Reference.parse(text) == Reference(host, repository, tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8",
        "@sha256:" + HEX,
        "Redis",
        "redis:",
        "redis:.8",
        "redis:" + "t" * 129,
        "redis:8:9",
        "redis@sha256:abc",
        "redis@md5:" + HEX,
        f"redis@sha256:{HEX.upper()}",
        "a//b",
        "/a",
        "a/",
        "a..b",
        "a/../b",
        "a___b",
        "-a",
        "host.example:99999999/x",
        "ho st.example/x",
        "user:pass@r.example/x",
        "https://r.example/x",
        "r.example/x?y",
        "r.example/x\n",
        "r.example/x:tag\n",
        "r.example/" + "a" * 256,
        "a" * 256,
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(UserError, match="bad image reference"):
        Reference.parse(text)


_PART = st.from_regex(r"\A[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}\Z")
_REFERENCE = st.builds(
    Reference,
    st.sampled_from(["", "localhost", "localhost:5000", "r.example", "10.0.0.1:80", "[fe80::1]:443"]),
    st.lists(_PART, min_size=1, max_size=4).map("/".join),
    st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}\Z"),
    st.sampled_from([None, DIGEST]),
)


@settings(deadline=None)
@given(_REFERENCE)
def test_text_and_back(ref: Reference) -> None:
    if not ref.host and "/" in ref.repository and "." in ref.repository.split("/")[0]:
        ref = Reference("r.example", ref.repository, ref.tag, ref.digest)  # its first part would be a host
    assert Reference.parse(str(ref)) == ref


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_a_user_error(text: str) -> None:
    try:
        ref = Reference.parse(text)
    except UserError:
        return
    assert Reference.parse(str(ref)) == ref


def test_digest_wins_over_tag_at_the_registry() -> None:
    assert Reference.parse("r.example/a:8").remote_tag == "8"
    assert Reference.parse("r.example/a:8").with_digest(DIGEST).remote_tag == f"sha256:{HEX}"


def test_a_short_name_has_no_registry() -> None:
    with pytest.raises(UserError, match="names no registry") as caught:
        Reference.parse("redis").on_registry()
    assert "HOST/redis:latest" in caught.value.hint


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("[fe80::1]:5000", False),
        ("r.example:443", False),
        ("", False),
    ],
)
def test_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer
