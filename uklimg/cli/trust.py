"""Keys and signatures on the command line: --verify, --signed-as, --sign."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from uklimg import oci, signing
from uklimg.cli.host import Host
from uklimg.digest import Digest
from uklimg.errors import UserError
from uklimg.ref import Reference
from uklimg.signing import PrivateKey, PublicKey, Signed, UntrustedError
from uklimg.store import Store

if TYPE_CHECKING:
    from uklimg.remote.transport import Transport

PASSWORDS = ("UKLIMG_KEY_PASSWORD", "COSIGN_PASSWORD")
"""Environment variables with the password of a private key, the first that is set counting."""


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify",
        metavar="KEY",
        action="append",
        default=[],
        help="take the image only if it is signed with this public key, or with another one that is given",
    )
    parser.add_argument(
        "--signed-as",
        metavar="HOST/NAME",
        default="",
        help="the name that the signature must have (REF's own); for images of a mirror",
    )


@dataclass
class Check:
    """What --verify asks for. ``seen`` are the good signatures that were found, by the digest that they are of."""

    keys: tuple[PublicKey, ...]
    signed_as: str = ""
    seen: dict[Digest, Signed] = field(default_factory=dict)

    def admit(self, found: Iterable[Signed], digest: Digest, name: str, what: str) -> None:
        """Raises UntrustedError unless one of ``found`` is a good signature of ``digest`` as an image of the
        repository ``name``."""
        _, signed = signing.trusted(found, self.keys, digest, self.signed_as or name, what)
        self.seen[digest] = signed

    def at(self, ref: Reference, transport: Transport, what: str = "") -> Callable[[oci.Descriptor], None]:
        """For ``client.pull`` and ``pull_referrer``: looks for signatures in the repository."""
        from uklimg.remote.signatures import find_signatures

        def admit(root: oci.Descriptor) -> None:
            self.admit(find_signatures(root.digest, transport), root.digest, ref.name, what or str(ref))

        return admit

    def local(self, name: str, root: oci.Descriptor, store: Store, host: Host) -> None:
        """The same for an image of the store: by a signature that came with it, else by one of the registry that
        the name says. The caller holds a session."""
        from uklimg import attachments

        there = None if name.startswith("sha256:") else Reference.parse(name)
        in_registry = there is not None and bool(there.host)
        if not self.signed_as and not in_registry:
            raise UserError(f"{name} does not say what the signature should name", hint="--signed-as HOST/NAME")
        try:
            self.admit(attachments.signatures(store, root.digest), root.digest, there.name if there else "", name)
        except UntrustedError:
            if there is None or not in_registry:
                raise
            self.at(there, host.connect(there), name)(root)
            attachments.keep_signature(store, self.seen[root.digest], root)


def check_of(args: argparse.Namespace, host: Host) -> Check | None:
    """What --verify and --signed-as say; None when nothing is to be checked. UserError for a bad key."""
    if not args.verify:
        if args.signed_as:
            raise UserError("--signed-as says what --verify is to find", hint="--verify KEY")
        return None
    if args.signed_as:
        named = Reference.parse(args.signed_as)
        if named.on_registry().name != args.signed_as:
            raise UserError(f"--signed-as {args.signed_as} is not HOST/NAME", hint=f"--signed-as {named.name}")
    return Check(tuple(signing.public_key(read_key(text, host), text) for text in args.verify), args.signed_as)


def read_key(text: str, host: Host) -> bytes:
    """The bytes of a key file."""
    path = host.path(text)
    try:
        with path.open("rb") as file:
            data = file.read(signing.MAX_KEY + 1)
    except OSError as error:
        raise UserError(f"cannot read the key {text}: {error.strerror}") from None
    if len(data) > signing.MAX_KEY:
        raise UserError(f"{text} is too large for a key")
    return data


def signing_key(text: str, host: Host) -> PrivateKey:
    """A private key file, whose password is asked for where it has one."""
    return signing.private_key(read_key(text, host), text, lambda: password(host, f"Password of {text}: "))


def password(host: Host, prompt: str, *, twice: bool = False) -> bytes:
    """Out of the environment, else asked for on the terminal. UserError when there is neither."""
    for name in PASSWORDS:
        if name in host.environ:
            return host.environ[name].encode()
    if not sys.stdin.isatty():
        raise UserError("the key wants a password", hint=f"set {PASSWORDS[0]}")
    typed = getpass.getpass(prompt, host.stderr)
    if twice and getpass.getpass("Again: ", host.stderr) != typed:
        raise UserError("the two passwords are not the same")
    return typed.encode()


def refuse_existing(*paths: Path) -> None:
    """UserError for a file that is there."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path} is there already", hint="no key is ever written over")


def write_new(path: Path, data: bytes, mode: int) -> None:
    """A file that was not there; UserError when it was."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise UserError(f"{path} is there already", hint="no key is ever written over") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    with os.fdopen(fd, "wb") as file:
        file.write(data)
