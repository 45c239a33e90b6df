"""Payloads, signatures and keys."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from pathlib import Path

import pytest
from test_cli import Command

from uklimg import oci, signing
from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, UserError
from uklimg.signing import Claim, PrivateKey, Signed, UntrustedError, trusted

pytestmark = pytest.mark.unit

DIGEST = Digest.of(b"image")
NAME = "registry.example/me/redis"
# `cosign generate-key-pair` (2.5.0) with the password "correct horse" made this pair.
COSIGN_KEY = b"""-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----
eyJrZGYiOnsibmFtZSI6InNjcnlwdCIsInBhcmFtcyI6eyJOIjo2NTUzNiwiciI6
OCwicCI6MX0sInNhbHQiOiJhVDNod280ZkYwTUJVZ3laTlFRRFA3dTFuYmp2dW9N
bWllVi84ZlJMdnU0PSJ9LCJjaXBoZXIiOnsibmFtZSI6Im5hY2wvc2VjcmV0Ym94
Iiwibm9uY2UiOiIxckxaeXFFSk8yZTYrQUx1Q2hZdjZHdXFBUFhTbDhnTSJ9LCJj
aXBoZXJ0ZXh0IjoiMEYwTUxvbE9od251Q0wvZ1FaL1RjbllrOHBOcFJGUTd3RXpS
R3l1RUNwNGNRYXM2bVJiM3VieFhYSzdoZ2ZHVEhtRzJvdU9Na0FzaFprNjRZdTlY
WXd6VCtNekNPQW1BNVVlN3NvNHpCVDBXVnpXaitRZmR4S0NlS3dqVXNQYXRtS3NZ
RVVySTNJS3BwUExBUitDeU12bXVyQXdZcGQvUkdjaHlpRXp1QWJUeDJXMkpTTUdJ
ZlEyWmpKbjRaV0Z0MjRENXlCTHhoUU8xUlE9PSJ9
-----END ENCRYPTED SIGSTORE PRIVATE KEY-----
"""
COSIGN_PUB = b"""-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEk7pusLOCBjYfJCy6+SQD/K8TUciq
W+2d3ws70ACkuveiF+ze1A/nZI3Th7GiACbo+vbaOQuC4nDalsoyExTfjg==
-----END PUBLIC KEY-----
"""


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    return signing.new_key()


@pytest.fixture(scope="module")
def other() -> PrivateKey:
    return signing.new_key()


@pytest.fixture
def uklimg(tmp_path: Path) -> Command:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "UKLIMG_STORE": str(tmp_path / "store")}
    return Command(tmp_path, environ)


def signed(key: PrivateKey, digest: Digest = DIGEST, name: str = NAME) -> Signed:
    return key.sign(signing.payload_of(Claim(digest, name)))


def test_the_payload_is_cosigns() -> None:
    """cosign, specs/SIGNATURE_SPEC.md; the same bytes each time."""
    expected = (
        '{"critical":{"identity":{"docker-reference":"registry.example/me/redis"},"image":{"docker-manifest-digest":"'
        f'{DIGEST}"}},"type":"cosign container image signature"}},"optional":null}}'
    )
    assert signing.payload_of(Claim(DIGEST, NAME)) == expected.encode()
    assert signing.claim_of(expected.encode()) == Claim(DIGEST, NAME)


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        (NAME, NAME),
        (f"{NAME}:8", NAME),
        (f"{NAME}:8@{DIGEST}", NAME),
        ("localhost:5000/a", "localhost:5000/a"),
        ("localhost:5000/a:1", "localhost:5000/a"),
    ],
)
def test_the_repository_of_a_claim(name: str, repository: str) -> None:
    assert Claim(DIGEST, name).repository == repository


@pytest.mark.parametrize(
    "change",
    [
        {"type": "another"},
        {"type": None},
        {"image": {}},
        {"image": {"docker-manifest-digest": "sha256:12"}},
        {"image": {"docker-manifest-digest": 7}},
        {"image": []},
        {"identity": None},
        {"identity": {"docker-reference": "a\nb"}},
        {"identity": {"docker-reference": "a" * 600}},
    ],
)
def test_what_is_no_payload(change: dict[str, object]) -> None:
    top = json.loads(signing.payload_of(Claim(DIGEST, NAME)))
    top["critical"] |= change
    with pytest.raises(CorruptError):
        signing.claim_of(json.dumps(top).encode())
    for junk in (b"", b"[]", b"{}", b'{"critical":1}', b"\xff", b"[" * 5000):
        with pytest.raises(CorruptError):
            signing.claim_of(junk)


def test_signing_is_deterministic_and_only_the_right_key_is_trusted(key: PrivateKey, other: PrivateKey) -> None:
    good = signed(key)
    assert signed(key) == good
    found, which = trusted([signed(other), good], [key.public], DIGEST, NAME, "it")
    assert (found, which) == (key.public, good)
    assert trusted([good], [other.public, key.public], DIGEST, NAME, "it")[0] == key.public
    for keys, wrong, message in [
        ([other], [good], "it is signed, but not with the new key"),
        ([key], [], "it is not signed"),
        ([key], [signed(key, Digest.of(b"another"))], "is about sha256:"),
        ([key], [signed(key, name="registry.example/me/other")], "as registry.example/me/other, not as"),
        ([key], [Signed(good.payload + b" ", good.signature)], "but not with"),
        ([key], [Signed(good.payload, "")], "but not with"),
        ([key], [Signed(good.payload, "%%%")], "but not with"),
        ([key], [Signed(good.payload, base64.b64encode(b"0" * 70).decode())], "but not with"),
    ]:
        with pytest.raises(UntrustedError, match=re.escape(message)) as caught:
            trusted(wrong, [k.public for k in keys], DIGEST, NAME, "it")
        assert caught.value.exit_code == ExitCode.UNTRUSTED


def test_private_keys_are_read_in_each_form(key: PrivateKey) -> None:
    def refuse() -> bytes:
        raise AssertionError("no password is asked for a key without one")

    plain = signing.private_key(key.pkcs8(), "k", refuse)
    sealed = signing.private_key(key.encrypted(b"pass"), "k", lambda: b"pass")
    assert plain.public.fingerprint == sealed.public.fingerprint == key.public.fingerprint
    assert key.encrypted(b"pass") != key.encrypted(b"pass"), "the salt is new each time"
    with pytest.raises(UserError, match="wrong password"):
        signing.private_key(key.encrypted(b"pass"), "k", lambda: b"word")
    assert b"key" not in repr(key).lower().encode() or "_key" not in repr(key)


def test_a_key_of_cosigns() -> None:
    key = signing.private_key(COSIGN_KEY, "cosign.key", lambda: b"correct horse")
    public = signing.public_key(COSIGN_PUB, "cosign.pub")
    assert key.public.fingerprint == public.fingerprint
    assert public.made(signed(key))
    assert public.pem() == COSIGN_PUB


def damaged(**changes: object) -> bytes:
    """A key file of cosign's form with other parameters."""
    sealed = signing.new_key().encrypted(b"p")
    content = json.loads(base64.b64decode(b"".join(sealed.splitlines()[1:-1])))
    for name, value in changes.items():
        part, _, key = name.partition("_")
        content[part] = {**content[part], key: value} if key else value
    label = b"ENCRYPTED SIGSTORE PRIVATE KEY"
    body = base64.b64encode(json.dumps(content).encode())
    return b"-----BEGIN " + label + b"-----\n" + body + b"\n-----END " + label + b"-----\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"kdf_name": "md5"},
        {"cipher_name": "rot13"},
        {"kdf_params": {"N": 1 << 40, "r": 8, "p": 1}},
        {"kdf_params": {"N": 3, "r": 8, "p": 1}},
        {"kdf_params": {"N": -1, "r": 8, "p": 1}},
        {"kdf_params": {}},
        {"cipher_nonce": "AAAA"},
        {"ciphertext": "AAAA"},
        {"ciphertext": "%"},
        {"kdf": None},
    ],
)
def test_damaged_keys(changes: dict[str, object]) -> None:
    """One line each, and no gigabytes for scrypt because a file asks for them."""
    with pytest.raises(UserError, match="k"):
        signing.private_key(damaged(**changes), "k", lambda: b"p")


@pytest.mark.parametrize("junk", [b"", b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", b"\0" * 100])
def test_what_is_no_key(junk: bytes, key: PrivateKey) -> None:
    with pytest.raises(UserError):
        signing.private_key(junk, "k", lambda: b"")
    with pytest.raises(UserError):
        signing.public_key(junk, "k")


def test_other_kinds_of_keys_are_refused(key: PrivateKey) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    for made in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        private = made.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        public = made.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(UserError, match="ECDSA P-256"):
            signing.private_key(private, "k", lambda: b"")
        with pytest.raises(UserError, match="ECDSA P-256"):
            signing.public_key(public, "k")
    with pytest.raises(UserError, match="is a private key"):
        signing.public_key(key.pkcs8(), "k")


def test_only_what_may_be_a_signature_is_looked_at(key: PrivateKey) -> None:
    layer = signing.layer_of(signed(key))
    others = (
        oci.Descriptor(oci.LAYER, DIGEST, 3, layer.annotations),
        layer.annotated({}),
        oci.Descriptor(signing.PAYLOAD, DIGEST, 1 << 30, layer.annotations),
    )
    manifest, config = signing.tag_manifest((*others, layer))
    assert signing.layers_of(manifest) == (layer,)
    assert manifest.config == oci.Descriptor.of(oci.CONFIG, config)
    many = signing.tag_manifest((layer,) * 5000)[0]
    assert len(signing.layers_of(many)) == signing.MAX_SIGNATURES


def test_keygen(uklimg: Command) -> None:
    made = uklimg("keygen", "my", UKLIMG_KEY_PASSWORD="secret")
    assert made.status == 0
    private, public = uklimg.cwd / "my.key", uklimg.cwd / "my.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in private.read_bytes()
    assert signing.public_key(public.read_bytes(), "my.pub").fingerprint in made.out
    before = private.read_bytes()
    again = uklimg("keygen", "my", UKLIMG_KEY_PASSWORD="secret")
    assert again.status == ExitCode.USER
    assert private.read_bytes() == before
    assert "PRIVATE" in (uklimg.cwd / "my.key").read_text()
    assert uklimg("keygen", "--no-password", "bare").status == 0
    assert b"ENCRYPTED" not in (uklimg.cwd / "bare.key").read_bytes()
    assert "secret" not in made.out + made.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pull", "--verify", "nowhere.pub", "localhost:1/a"], "cannot read the key nowhere.pub"),
        (["pull", "--verify", "k.key", "localhost:1/a"], "k.key is a private key"),
        (["pull", "--signed-as", "x.example/a", "localhost:1/a"], "--verify KEY"),
        (["pull", "--verify", "k.pub", "--signed-as", "x.example/a:1", "localhost:1/a"], "is not HOST/NAME"),
        (["pull", "--verify", "k.pub", "--signed-as", "a", "localhost:1/a"], "names no registry"),
        (["sign", "--key", "k.pub", "localhost:1/a"], "k.pub is no private key"),
        (["sign", "--key", "sealed.key", "localhost:1/a"], "wants a password"),
        (["push", "--sign", "none.key", "localhost:1/a"], "cannot read the key none.key"),
    ],
)
def test_wrong_keys_are_told_before_anything_else(uklimg: Command, argv: list[str], message: str) -> None:
    assert uklimg("keygen", "--no-password", "k").status == 0
    assert uklimg("keygen", "sealed", UKLIMG_KEY_PASSWORD="x").status == 0
    found = uklimg(*argv)
    assert found.status == ExitCode.USER
    assert message in found.err
    assert len(found.err.splitlines()) == 1
