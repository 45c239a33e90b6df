"""Signatures in a real registry: made here and checked by others, made by others and checked here, and refused."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_cli import Command, Result, add_image
from test_evidence import with_blueprint
from test_registry import Server, registry
from trixietools import trixie

from uklimg import attached, attachments, blueprint, oci, signing
from uklimg.cli import artifacts
from uklimg.digest import Digest
from uklimg.errors import ExitCode, ToolError
from uklimg.ref import Reference
from uklimg.remote.auth import NoCredentials
from uklimg.remote.client import push
from uklimg.remote.referrers import fallback_tag, push_referrer
from uklimg.remote.signatures import push_signature, signature_tag
from uklimg.remote.transport import Transport
from uklimg.store import Store

pytestmark = pytest.mark.integration

PASSWORD = "correct horse"


@dataclass(frozen=True)
class Machine:
    """A store and a folder with keys: ``good`` (encrypted) and ``other`` (not)."""

    uklimg: Command
    server: Server

    def __call__(self, *argv: str) -> Result:
        return self.uklimg(*argv, UKLIMG_KEY_PASSWORD=PASSWORD)

    @property
    def store(self) -> Store:
        return self.uklimg.store

    @property
    def keys(self) -> Path:
        return self.uklimg.cwd

    def name(self, name: str) -> str:
        return f"{self.server.host}/{name}"

    def transport(self, name: str) -> Transport:
        return Transport(Reference.parse(name), NoCredentials())

    def another(self, folder: Path) -> Machine:
        """The same keys and registry, and an empty store."""
        environ = {**self.uklimg.environ, "UKLIMG_STORE": str(folder)}
        return Machine(Command(self.keys, environ), self.server)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry(tmp_path_factory.mktemp("trust") / "registry") as running:
        yield running


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    made = Machine(Command(folder, {"PATH": os.environ["PATH"], "HOME": str(folder)}), server)
    assert made("keygen", "good").status == 0
    assert made("keygen", "--no-password", "other").status == 0
    return folder


@pytest.fixture
def machine(tmp_path: Path, server: Server, keys: Path) -> Machine:
    shutil.copytree(keys, tmp_path / "keys")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "UKLIMG_STORE": str(tmp_path / "store")}
    return Machine(Command(tmp_path / "keys", environ), server)


Pushed = Callable[..., tuple[str, oci.Descriptor]]


@pytest.fixture
def pushed(machine: Machine, tmp_path: Path, request: pytest.FixtureRequest) -> Pushed:
    """Pushes an image of this test's own, signed unless told otherwise; its name and index."""

    def make(*options: str, repository: str = "") -> tuple[str, oci.Descriptor]:
        title = request.node.name.replace("[", "-").replace("]", "").replace("_", "-").lower()
        name = machine.name(f"{repository or title}:1")
        root = add_image(machine.store, tmp_path, name, labels={"title": title})
        done = machine("push", *(options or ("--sign", "good.key")), name)
        assert done.status == 0, done.err
        return name, root

    return make


def openssl(*argv: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *argv], input=stdin, check=True, capture_output=True).stdout


def skopeo(machine: Machine, key: Path, name: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Copy an image out of the registry under a policy that wants it signed with ``key``."""
    folder.mkdir()
    (folder / "registries.d").mkdir()
    attachments = {"docker": {machine.server.host: {"use-sigstore-attachments": True}}}
    (folder / "registries.d/here.yaml").write_text(json.dumps(attachments))
    wanted = {"type": "sigstoreSigned", "keyPath": str(key), "signedIdentity": {"type": "matchRepository"}}
    policy = {"default": [{"type": "reject"}], "transports": {"docker": {machine.server.host: [wanted]}}}
    (folder / "policy.json").write_text(json.dumps(policy))
    argv = [trixie("skopeo"), "--policy", f"{folder}/policy.json", "--registries.d", f"{folder}/registries.d", "copy"]
    argv += [*options, "--src-tls-verify=false", f"docker://{name}", f"dir:{folder}/image"]
    return subprocess.run(argv, check=False, capture_output=True, text=True)


def cosign(machine: Machine, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(machine.keys), "COSIGN_PASSWORD": PASSWORD}
    return subprocess.run(
        [trixie("cosign"), *argv], check=False, capture_output=True, text=True, env=env, cwd=machine.keys
    )


VERIFY = ("verify", "--insecure-ignore-tlog=true", "--allow-http-registry")


@pytest.mark.parametrize("how", [(), ("--experimental-oci11",)], ids=["tag", "referrer"])
def test_cosign_accepts_what_is_signed_here_and_refuses_another_key(
    machine: Machine, pushed: Pushed, how: tuple[str, ...]
) -> None:
    name, root = pushed()
    if how:  # only as a referrer
        repository = name.partition("/")[2].rpartition(":")[0]
        tags = machine.server.storage / "docker/registry/v2/repositories" / repository / "_manifests/tags"
        shutil.rmtree(tags / signature_tag(root.digest))
    found = cosign(machine, *VERIFY, *how, "--key", "good.pub", name)
    assert found.returncode == 0, found.stderr
    (said,) = json.loads(found.stdout)
    assert said["critical"]["image"]["docker-manifest-digest"] == str(root.digest)
    found = cosign(machine, *VERIFY, *how, "--key", "other.pub", name)
    assert found.returncode != 0
    assert "no matching signatures" in found.stderr or "no signatures found" in found.stderr


def test_cosign_signs_with_its_key_and_with_ours(machine: Machine, pushed: Pushed, tmp_path: Path) -> None:
    name, root = pushed("--no-blueprint")
    by_digest = f"{name.rpartition(':')[0]}@{root.digest}"
    assert cosign(machine, "generate-key-pair", "--output-key-prefix", "theirs").returncode == 0
    for key in ("theirs", "good"):
        argv = ("sign", "--key", f"{key}.key", "--tlog-upload=false", "--allow-http-registry", "-y", by_digest)
        done = cosign(machine, *argv)
        assert done.returncode == 0, done.stderr
        assert machine.another(tmp_path / key)("pull", "--verify", f"{key}.pub", name).status == 0
    # And we with its.
    second, _ = pushed("--sign", "theirs.key", repository="second")
    assert cosign(machine, *VERIFY, "--key", "theirs.pub", second).returncode == 0


def test_skopeo_accepts_what_is_signed_here_and_refuses_another_key(
    machine: Machine, pushed: Pushed, tmp_path: Path
) -> None:
    """The image of a platform is chosen out of the index, so that manifest's own signature counts."""
    name, root = pushed()
    found = skopeo(machine, machine.keys / "good.pub", name, tmp_path / "good")
    assert found.returncode == 0, found.stderr
    found = skopeo(machine, machine.keys / "other.pub", name, tmp_path / "other")
    assert found.returncode != 0
    assert "ignature" in found.stderr
    assert root.media_type == oci.INDEX


def test_openssl_verifies_the_payload(machine: Machine, pushed: Pushed, tmp_path: Path) -> None:
    """With nothing but the registry's files: cosign's specification, read by hand."""
    name, root = pushed()
    transport = machine.transport(name)
    subjects = [root, *oci.parse_index(machine.store.read_blob(root.digest)).manifests]
    for subject in subjects:
        data, _ = transport.manifest(signature_tag(subject.digest), "a signature")
        manifest = oci.parse_manifest(data)
        assert manifest.config.media_type == oci.CONFIG
        (layer,) = manifest.layers
        assert layer.media_type == "application/vnd.dev.cosign.simplesigning.v1+json"
        payload = machine.server.blob(layer.digest)
        signature = tmp_path / "signature"
        signature.write_bytes(base64.b64decode(layer.annotations["dev.cosignproject.cosign/signature"]))
        key = machine.keys / "good.pub"
        said = openssl("dgst", "-sha256", "-verify", str(key), "-signature", str(signature), str(payload))
        assert said == b"Verified OK\n"
        critical = json.loads(payload.read_bytes())["critical"]
        assert critical == {
            "identity": {"docker-reference": name.rpartition(":")[0]},
            "image": {"docker-manifest-digest": str(subject.digest)},
            "type": "cosign container image signature",
        }
    # The index's is among its referrers, too.
    data, _ = transport.manifest(fallback_tag(root.digest), "the list")
    assert signing.ARTIFACT in [entry.artifact_type for entry in oci.parse_index(data).manifests]


def test_what_is_signed_is_pulled_and_what_is_not_leaves_nothing(
    machine: Machine, pushed: Pushed, tmp_path: Path
) -> None:
    name, root = pushed()
    other = machine.another(tmp_path / "second")
    done = other("pull", "--verify", "other.pub", "--verify", "good.pub", name)
    assert done.status == 0, done.err
    assert other.store.tags()[name].digest == root.digest
    (kept,) = attachments.signatures(other.store, root.digest)
    assert signing.claim_of(kept.payload).digest == root.digest
    # By digest, index or manifest.
    below = oci.parse_index(machine.store.read_blob(root.digest)).manifests[0]
    for digest in (root.digest, below.digest):
        third = machine.another(tmp_path / digest.short)
        assert third("pull", "--verify", "good.pub", f"{name.rpartition(':')[0]}@{digest}").status == 0

    fourth = machine.another(tmp_path / "fourth")
    done = fourth("pull", "--verify", "other.pub", name)
    refused(fourth, done, f"{name} is signed, but not with other.pub")


def refused(machine: Machine, done: Result, message: str) -> None:
    """One line, its exit code, no name in the store, and nothing of the image."""
    assert done.status == ExitCode.UNTRUSTED
    assert len(done.err.splitlines()) == 1, done.err
    assert message in done.err
    assert not machine.store.tags()
    assert not list((machine.store.root / "blobs/sha256").iterdir())


def test_an_image_without_a_signature_is_refused(machine: Machine, pushed: Pushed, tmp_path: Path) -> None:
    name, _ = pushed("--no-blueprint")
    other = machine.another(tmp_path / "other")
    refused(other, other("pull", "--verify", "good.pub", name), f"{name} is not signed")
    done = other("run", "--verify", "good.pub", name)
    assert done.status == ExitCode.RUN_FAILED
    assert "is not signed" in done.err
    assert not other.store.tags()


def give(machine: Machine, name: str, subject: oci.Descriptor, signed: signing.Signed) -> None:
    """Put any signature at all beside an image of the registry."""
    with machine.store.session():
        push_signature(signed, subject, machine.store, machine.transport(name))


def key_of(machine: Machine, name: str) -> signing.PrivateKey:
    return signing.private_key((machine.keys / name).read_bytes(), name, PASSWORD.encode)


@pytest.mark.parametrize("what", ["payload", "other-digest", "other-name", "no-payload", "no-base64"])
def test_signatures_that_do_not_hold(machine: Machine, pushed: Pushed, tmp_path: Path, what: str) -> None:
    name, root = pushed("--no-blueprint")
    repository = name.rpartition(":")[0]
    key = key_of(machine, "good.key")
    good = key.sign(signing.payload_of(signing.Claim(root.digest, repository)))
    expected = f"{name} is signed, but not with good.pub"
    if what == "payload":
        signed = signing.Signed(good.payload.replace(b"null", b'{"creator":"eve"}'), good.signature)
    elif what == "other-digest":
        elsewhere = Digest.of(b"another image")
        signed = key.sign(signing.payload_of(signing.Claim(elsewhere, repository)))
        expected = f"{name} is {root.digest}, and the signature with good.pub is about {elsewhere}"
    elif what == "other-name":
        signed = key.sign(signing.payload_of(signing.Claim(root.digest, f"{repository}-other")))
        expected = f"{name} is signed with good.pub as {repository}-other, not as {repository}"
    elif what == "no-payload":
        signed = key.sign(b'{"critical":{"type":"something else"}}')
        expected = "payload"
    else:
        signed = signing.Signed(good.payload, good.signature[:-4] + "!!!!")
    give(machine, name, root, signed)
    other = machine.another(tmp_path / "other")
    done = other("pull", "--verify", "good.pub", name)
    if what == "no-payload":
        assert done.status == ExitCode.CORRUPT
        assert not other.store.tags()
        return
    refused(other, done, expected)
    if what == "other-name":
        assert other("pull", "--verify", "good.pub", "--signed-as", f"{repository}-other", name).status == 0


def test_a_payload_that_the_registry_changed_is_refused(machine: Machine, pushed: Pushed, tmp_path: Path) -> None:
    name, root = pushed()
    data, _ = machine.transport(name).manifest(signature_tag(root.digest), "a signature")
    (layer,) = oci.parse_manifest(data).layers
    stored = machine.server.blob(layer.digest)
    stored.write_bytes(stored.read_bytes().replace(root.digest.hex.encode(), b"0" * 64))
    other = machine.another(tmp_path / "other")
    done = other("pull", "--verify", "good.pub", name)
    assert done.status == ExitCode.CORRUPT
    assert "payload of a signature is damaged" in done.err
    assert not other.store.tags()


def test_signatures_of_several_keys_stand_side_by_side(machine: Machine, pushed: Pushed, tmp_path: Path) -> None:
    name, root = pushed()
    for _ in range(2):  # twice is once
        done = machine("sign", "--key", "other.key", name)
        assert done.status == 0, done.err
    data, _ = machine.transport(name).manifest(signature_tag(root.digest), "signatures")
    assert len(oci.parse_manifest(data).layers) == 2
    for key in ("good.pub", "other.pub"):
        other = machine.another(tmp_path / key)
        assert other("pull", "--verify", key, name).status == 0
        assert skopeo(machine, machine.keys / key, name, tmp_path / f"skopeo-{key}").returncode == 0


def test_an_image_is_signed_by_its_digest_without_being_here(
    machine: Machine, pushed: Pushed, tmp_path: Path
) -> None:
    name, root = pushed("--no-blueprint")
    other = machine.another(tmp_path / "other")
    done = other("sign", "--key", "good.key", name)
    assert done.status == ExitCode.NOT_FOUND, "what a tag means is the registry's word"
    done = other("sign", "--key", "good.key", f"{name.rpartition(':')[0]}@{root.digest}")
    assert done.status == 0, done.err
    assert other("pull", "--verify", "good.pub", name).status == 0
    assert skopeo(machine, machine.keys / "good.pub", name, tmp_path / "skopeo").returncode == 0


def test_a_signature_for_an_image_that_the_registry_lacks(machine: Machine, tmp_path: Path) -> None:
    name = machine.name("never-pushed:1")
    add_image(machine.store, tmp_path, name)
    done = machine("sign", "--key", "good.key", name)
    assert done.status == ExitCode.NOT_FOUND
    assert "push` it first" in done.err


def test_run_refuses_an_image_of_the_store_that_is_not_signed(machine: Machine, pushed: Pushed) -> None:
    """Whether it was pulled with --verify once does not matter: the signature is looked at each time."""
    name, root = pushed()
    done = machine("run", "--verify", "other.pub", name)
    assert done.status == ExitCode.RUN_FAILED
    assert "is signed, but not with other.pub" in done.err
    # Under a name of its own nobody knows what the signature is to say.
    assert machine("tag", name, "mine").status == 0
    done = machine("run", "--verify", "good.pub", "mine")
    assert "--signed-as HOST/NAME" in done.err
    # With the right key it goes on, up to what is no kernel.
    for argv in ((name,), ("--signed-as", name.rpartition(":")[0], "mine")):
        done = machine("run", "--verify", "good.pub", "--accel", "tcg", *argv)
        assert "signed" not in done.err
    assert root.digest


def test_skopeo_signs_with_our_key_and_we_accept_it(machine: Machine, pushed: Pushed, tmp_path: Path) -> None:
    """cosign's encrypted form of a private key, and containers/image's signatures."""
    name, _ = pushed("--no-blueprint")
    (tmp_path / "passphrase").write_text(PASSWORD)
    (tmp_path / "registries.d").mkdir()
    attachments = {"docker": {machine.server.host: {"use-sigstore-attachments": True}}}
    (tmp_path / "registries.d/here.yaml").write_text(json.dumps(attachments))
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    signed = machine.name("signed-by-skopeo:2")
    argv = [
        trixie("skopeo"),
        "--policy",
        f"{tmp_path}/policy.json",
        "--registries.d",
        f"{tmp_path}/registries.d",
        "copy",
    ]
    argv += ["--sign-by-sigstore-private-key", f"{machine.keys}/good.key"]
    argv += ["--sign-passphrase-file", f"{tmp_path}/passphrase", "--src-tls-verify=false", "--dest-tls-verify=false"]
    subprocess.run([*argv, f"docker://{name}", f"docker://{signed}"], check=True, capture_output=True)
    other = machine.another(tmp_path / "other")
    done = other("pull", "--verify", "good.pub", signed)
    assert done.status == 0, done.err
    assert other("inspect", signed).status == 0


def test_keys_that_openssl_made(machine: Machine, pushed: Pushed, tmp_path: Path) -> None:
    key, public = machine.keys / "ssl.key", machine.keys / "ssl.pub"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
    openssl("ec", "-in", str(key), "-pubout", "-out", str(public))
    name, _ = pushed("--sign", "ssl.key")
    assert machine.another(tmp_path / "other")("pull", "--verify", "ssl.pub", name).status == 0


def listed(machine: Machine, name: str, root: oci.Descriptor) -> list[str]:
    data, _ = machine.transport(name).manifest(fallback_tag(root.digest), "the list")
    return [entry.artifact_type for entry in oci.parse_index(data).manifests]


def test_what_is_attached_is_found_by_others_and_fetched_when_asked_for(machine: Machine, tmp_path: Path) -> None:
    name = machine.name("attached:1")
    root = add_image(machine.store, tmp_path, name)
    with_blueprint(machine.store, root)
    assert machine("push", "--sign", "good.key", name).status == 0
    kinds = (attached.LOCK, attached.CONFIG, attached.SBOM, attached.PROVENANCE)
    types = [signing.ARTIFACT, blueprint.ARTIFACT, *(kind.artifact_type for kind in kinds)]
    assert listed(machine, name, root) == types
    assert machine("push", "--sign", "good.key", name).status == 0
    assert sorted(listed(machine, name, root)) == sorted(types), "twice is once"
    argv = [trixie("oras"), "discover", "--plain-http", "--format", "json", name]
    said = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    assert sorted(entry["artifactType"] for entry in said["manifests"]) == sorted(types)

    other = machine.another(tmp_path / "other")
    assert other("pull", "--verify", "good.pub", name).status == 0
    assert [kind for kind, *_ in artifacts.listed(other.store, root)] == ["blueprint", "signature"]
    for kind in kinds:
        shown = [m("inspect", f"--{kind.name}", *options, name) for m, options in ((machine, ()), (other, VERIFIED))]
        assert [result.status for result in shown] == [0, 0], shown[1].err
        assert shown[0].out == shown[1].out
    inspected = json.loads(other("inspect", *VERIFIED, "--format", "json", name).out)
    assert [entry["verified"] for entry in inspected["signatures"]] == [True]
    assert inspected["signatures"][0]["name"] == name.rpartition(":")[0]
    assert {entry["kind"] for entry in inspected["attached"]} >= {"sbom", "provenance", "signature"}
    # Signed by somebody else, what was fetched is not shown.
    done = other("inspect", "--sbom", "--verify", "other.pub", name)
    assert done.status == ExitCode.UNTRUSTED
    assert not done.out


VERIFIED = ("--verify", "good.pub")


def test_a_bill_of_materials_that_somebody_else_attached(machine: Machine, pushed: Pushed, tmp_path: Path) -> None:
    name, root = pushed()
    store = machine.store
    store.put_bytes(attached.NO_CONFIG)
    forged = {"sbom.cdx.json": store.put_bytes(b'{"components":[]}')}
    artifact = store.put_bytes(attached.manifest(attached.SBOM, forged, root).encode(), oci.MANIFEST)
    entry = attached.entry(artifact, attached.SBOM.artifact_type, root.digest)
    push_referrer(entry, root.digest, store, machine.transport(name))
    careful = machine.another(tmp_path / "careful")
    assert careful("pull", *VERIFIED, name).status == 0
    done = careful("inspect", "--sbom", *VERIFIED, name)
    assert (done.status, done.out) == (ExitCode.UNTRUSTED, "")
    assert "its sbom is not signed" in done.err
    assert not careful.store.has(artifact.digest)
    # Fetched once by somebody who does not look, it is still not trusted.
    assert careful("inspect", "--sbom", name).out == '{"components":[]}'
    assert careful("inspect", "--sbom", *VERIFIED, name).status == ExitCode.UNTRUSTED


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (("--attach", "none"), []),
        (("--attach", "lock"), ["lock"]),
        (("--attach", "sbom,config"), ["sbom", "config"]),
        (("--no-blueprint",), None),
    ],
)
def test_what_is_attached_is_the_users_choice(
    machine: Machine, tmp_path: Path, options: tuple[str, ...], kinds: list[str] | None
) -> None:
    name = machine.name(f"chosen-{'-'.join(kinds or ['nothing'])}-{len(options)}:1")
    root = add_image(machine.store, tmp_path, name, labels={"choice": " ".join(options)})
    with_blueprint(machine.store, root)
    assert machine("push", *options, name).status == 0
    if kinds is None:
        with pytest.raises(ToolError):
            listed(machine, name, root)
        return
    types = [blueprint.ARTIFACT, *(attached.KINDS[kind].artifact_type for kind in kinds)]
    assert listed(machine, name, root) == types


def test_what_is_attached_must_be_signed_too(machine: Machine, pushed: Pushed, tmp_path: Path) -> None:
    """A blueprint that somebody else attached does not come with the image."""
    name, root = pushed()
    store, transport = machine.store, machine.transport(name)
    files = {
        file: store.put_bytes(b"version = 1\n", media_type)
        for file, media_type in blueprint.FILES.items()
        if file in (blueprint.UKLFILE, blueprint.LOCK)
    }
    steps = (blueprint.StepRecord("image", "image", "image", 1, Digest.of(b"key"), root.digest),)
    config = store.put_bytes(blueprint.Blueprint("9", steps).encode(), blueprint.CONFIG)
    manifest = blueprint.manifest(config, files, root)
    artifact = blueprint.entry(store.put_bytes(manifest.encode(), oci.MANIFEST), root.digest)
    push(Reference.parse(name), root, store, transport)
    push_referrer(artifact, root.digest, store, transport)
    other = machine.another(tmp_path / "other")
    assert "without" not in other("pull", name).err
    other = machine.another(tmp_path / "careful")
    done = other("pull", "--verify", "good.pub", name)
    assert done.status == 0
    assert "comes without its blueprint: its blueprint is not signed" in done.err
    assert not other.store.has(artifact.digest)
