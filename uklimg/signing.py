"""Signatures as cosign makes and finds them: a "simple signing" payload, signed with an ECDSA P-256 key; pure.

The payload says which digest is meant and under which name (containers/image, docs/atomic-signature.md, "The JSON
data format"; cosign, specs/SIGNATURE_SPEC.md). Its bytes are a layer of a manifest, the signature an annotation of
that layer. Keys are PEM: a public key as SubjectPublicKeyInfo; a private key as PKCS #8, SEC 1, or cosign's own
encrypted form (scrypt and NaCl's secretbox).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uklimg.digest import JSON, Digest, canonical_json
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.oci import CONFIG, Descriptor, Manifest, parse_json

if TYPE_CHECKING:
    # Imported where a key is used: few commands do.
    from cryptography.hazmat.primitives.asymmetric import ec

PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
"""Annotation of a payload's layer: the signature, in base64."""
ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
"""artifactType of a signature among an image's referrers."""
MAX_PAYLOAD = 64 << 10
MAX_KEY = 64 << 10
MAX_SIGNATURES = 100
"""Of one image that are looked at."""

_TYPES = ("cosign container image signature", "atomic container signature")
_COSIGN_KEY = re.compile(
    rb"-----BEGIN ENCRYPTED (COSIGN|SIGSTORE) PRIVATE KEY-----(.*?)-----END ENCRYPTED \1 PRIVATE KEY-----", re.DOTALL
)
# What cosign writes; a file may ask for less, or somewhat more.
_SCRYPT = {"N": 65536, "r": 8, "p": 1}
_SCRYPT_MEMORY = 1 << 30
_SALT = 32


class UntrustedError(ToolError):
    """Nothing that was found was signed with the key that the user trusts."""

    exit_code = ExitCode.UNTRUSTED


@dataclass(frozen=True)
class Claim:
    """What a signature says: ``digest`` is ``name``, a repository with its host, perhaps with a tag."""

    digest: Digest
    name: str

    @property
    def repository(self) -> str:
        """The name without a tag or digest."""
        bare = self.name.partition("@")[0]
        return bare.rpartition(":")[0] if ":" in bare.rpartition("/")[2] else bare


@dataclass(frozen=True)
class Signed:
    """A payload and what is said to be its signature, unchecked."""

    payload: bytes = field(repr=False)
    signature: str


@dataclass(frozen=True)
class PublicKey:
    """``name`` is what the user calls it. ``fingerprint``: SHA-256 of the key's DER form, 64 hexadecimal digits."""

    name: str
    fingerprint: str
    _key: ec.EllipticCurvePublicKey = field(repr=False, compare=False)

    def made(self, signed: Signed) -> bool:
        """Whether the signature is this key's over the payload."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            signature = base64.b64decode(signed.signature, validate=True)
            self._key.verify(signature, signed.payload, ec.ECDSA(hashes.SHA256()))
        except (binascii.Error, ValueError, InvalidSignature):
            return False
        return True

    def pem(self) -> bytes:
        return _public_pem(self._key)


@dataclass(frozen=True)
class PrivateKey:
    """Signs; never shown."""

    public: PublicKey
    _key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    def sign(self, payload: bytes) -> Signed:
        """The same bytes each time (RFC 6979), where the library can."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            signature = self._key.sign(payload, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        except UnsupportedAlgorithm:
            signature = self._key.sign(payload, ec.ECDSA(hashes.SHA256()))
        return Signed(payload, base64.b64encode(signature).decode())

    def pkcs8(self) -> bytes:
        """PEM, not encrypted."""
        from cryptography.hazmat.primitives import serialization as form

        return self._key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())

    def encrypted(self, password: bytes) -> bytes:
        """PEM in cosign's form."""
        from cryptography.hazmat.primitives import serialization as form
        from nacl.secret import SecretBox

        der = self._key.private_bytes(form.Encoding.DER, form.PrivateFormat.PKCS8, form.NoEncryption())
        salt, nonce = os.urandom(_SALT), os.urandom(SecretBox.NONCE_SIZE)
        box = SecretBox(_derived(password, salt, _SCRYPT))
        content = {
            "kdf": {"name": "scrypt", "params": _SCRYPT, "salt": _base64(salt)},
            "cipher": {"name": "nacl/secretbox", "nonce": _base64(nonce)},
            "ciphertext": _base64(box.encrypt(der, nonce).ciphertext),
        }
        text = _base64(json.dumps(content, separators=(",", ":")).encode())
        lines = [text[at : at + 64] for at in range(0, len(text), 64)]
        label = "ENCRYPTED SIGSTORE PRIVATE KEY"
        return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def payload_of(claim: Claim) -> bytes:
    """The bytes to sign; the same for the same claim."""
    critical: JSON = {
        "identity": {"docker-reference": claim.name},
        "image": {"docker-manifest-digest": str(claim.digest)},
        "type": _TYPES[0],
    }
    return canonical_json({"critical": critical, "optional": None})


def claim_of(payload: bytes) -> Claim:
    """What a payload says; CorruptError when it is none. It must have been checked that somebody signed it."""
    try:
        critical = parse_json(payload, "the signature's payload", MAX_PAYLOAD)["critical"]
        if not isinstance(critical, dict) or critical["type"] not in _TYPES:
            raise TypeError("type")
        digest, name = critical["image"]["docker-manifest-digest"], critical["identity"]["docker-reference"]
        if not isinstance(digest, str) or not isinstance(name, str) or not name.isprintable() or len(name) > 512:
            raise TypeError("identity")
        return Claim(Digest.parse(digest), name)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"a signature's payload is none: {str(error)[:60]}") from None


def trusted(
    found: Iterable[Signed], keys: Sequence[PublicKey], digest: Digest, repository: str, what: str
) -> tuple[PublicKey, Signed]:
    """The first of ``keys`` that signed that ``digest`` is an image of ``repository``, and its signature.

    UntrustedError when none did; it says what the last one that came near had instead.
    """
    names = " or ".join(key.name for key in keys)
    problem, hint = f"{what} is not signed", ""
    for number, signed in enumerate(found):
        if number == 0:
            problem = f"{what} is signed, but not with {names}"
        key = next((key for key in keys if key.made(signed)), None)
        if key is None:
            continue
        claim = claim_of(signed.payload)
        if claim.digest != digest:
            problem = f"{what} is {digest}, and the signature with {key.name} is about {claim.digest}"
        elif claim.repository != repository:
            problem = f"{what} is signed with {key.name} as {claim.name[:200]}, not as {repository}"
            hint = f"--signed-as {claim.repository[:200]}, if that is what you want"
        else:
            return key, signed
    raise UntrustedError(problem, hint=hint)


# Manifests


def empty_config(layers: Sequence[Descriptor]) -> bytes:
    """What cosign and containers/image expect as the configuration of a signature's manifest: an image's."""
    rootfs = {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]}
    return canonical_json({"architecture": "", "config": {}, "os": "", "rootfs": rootfs})


def layer_of(signed: Signed) -> Descriptor:
    return Descriptor.of(PAYLOAD, signed.payload).annotated({SIGNATURE: signed.signature})


def tag_manifest(layers: Sequence[Descriptor]) -> tuple[Manifest, bytes]:
    """The manifest under the tag ``sha256-<digits>.sig``, and its configuration's bytes."""
    config = empty_config(layers)
    return Manifest(Descriptor.of(CONFIG, config), tuple(layers)), config


def referrer_manifest(layer: Descriptor, subject: Descriptor) -> tuple[Manifest, bytes]:
    """The manifest of one signature among the referrers of ``subject``, and its configuration's bytes."""
    config = b"{}"
    made = Manifest(Descriptor.of(ARTIFACT, config), (layer,), artifact_type=ARTIFACT, subject=subject.bare())
    return made, config


def layers_of(manifest: Manifest) -> tuple[Descriptor, ...]:
    """The signatures of either, as far as they may be any."""
    fitting = [
        layer
        for layer in manifest.layers
        if layer.media_type == PAYLOAD and SIGNATURE in layer.annotations and layer.size <= MAX_PAYLOAD
    ]
    return tuple(fitting[-MAX_SIGNATURES:])


# Keys


def new_key() -> PrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return _private(ec.generate_private_key(ec.SECP256R1()), "the new key")


def public_key(data: bytes, name: str) -> PublicKey:
    """Read a PEM file; UserError when it is no ECDSA P-256 public key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    if b"PRIVATE KEY-----" in data:
        raise UserError(f"{name} is a private key", hint="to verify, name the public one, as in cosign.pub")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{name} is no public key in PEM form", hint="`uklimg keygen` makes a pair") from None
    return _public(key, name)


def private_key(data: bytes, name: str, password: Callable[[], bytes]) -> PrivateKey:
    """Read a PEM file. ``password`` is asked only for a key that is encrypted. UserError for whatever is wrong."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        if found := _COSIGN_KEY.search(data):
            return _private(serialization.load_der_private_key(_decrypted(found[2], password(), name), None), name)
        secret = password() if b"ENCRYPTED" in data else None
        return _private(serialization.load_pem_private_key(data, secret), name)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if b"ENCRYPTED" in data:
            raise UserError(f"{name}: wrong password, or no private key") from None
        raise UserError(f"{name} is no private key in PEM form", hint="`uklimg keygen` makes a pair") from None


def _public(key: object, name: str) -> PublicKey:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UserError(f"{name} is no ECDSA P-256 key", hint="`uklimg keygen` makes a pair")
    der = key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(name, hashlib.sha256(der).hexdigest(), key)


def _private(key: object, name: str) -> PrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{name} is no ECDSA P-256 key", hint="`uklimg keygen` makes a pair")
    return PrivateKey(_public(key.public_key(), name), key)


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    return key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


def _decrypted(text: bytes, password: bytes, name: str) -> bytes:
    """PKCS #8 in DER form, out of the text of cosign's PEM block."""
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    try:
        content: Any = json.loads(base64.b64decode(b"".join(text.split()), validate=True))
        if content["kdf"]["name"] != "scrypt" or content["cipher"]["name"] != "nacl/secretbox":
            raise UserError(f"{name} is encrypted in a way that is not known here")
        salt, nonce, sealed = (
            base64.b64decode(part, validate=True)
            for part in (content["kdf"]["salt"], content["cipher"]["nonce"], content["ciphertext"])
        )
        box = SecretBox(_derived(password, salt, content["kdf"]["params"]))
        return bytes(box.decrypt(sealed, nonce))
    except CryptoError:
        raise UserError(f"{name}: wrong password") from None
    except (KeyError, TypeError, ValueError, binascii.Error, RecursionError):
        raise UserError(f"{name} is damaged") from None


def _derived(password: bytes, salt: bytes, params: dict[str, int]) -> bytes:
    n, r, p = params["N"], params["r"], params["p"]
    if not all(isinstance(number, int) and number > 0 for number in (n, r, p)) or 128 * n * r * p > _SCRYPT_MEMORY:
        raise ValueError("scrypt")
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=_SCRYPT_MEMORY + (64 << 20), dklen=32)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
