"""--secret: what RUN --mount=type=secret may read, as Docker's option of that name has it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uklimg.errors import UserError

MAXIMUM = 500 << 10  # bytes; BuildKit's limit
_USAGE = "--secret id=NAME,src=FILE or id=NAME,env=VARIABLE"


@dataclass(frozen=True)
class Secret:
    """``path`` or ``variable`` is "", the other one says where the secret is."""

    id: str
    path: str = field(default="", repr=False)
    variable: str = ""


def parse_secrets(words: Sequence[str]) -> tuple[Secret, ...]:
    """``id=x,src=file`` or ``id=x,env=VARIABLE``; ``id=x`` alone is the variable x. Raises UserError."""
    found: dict[str, Secret] = {}
    for word in words:
        fields: dict[str, str] = {}
        try:
            items = next(csv.reader([word], strict=True), [])
        except csv.Error as error:
            raise UserError(f"--secret {word!r}: {error}", hint=_USAGE) from error
        for item in items:
            key, _, value = item.partition("=")
            key = {"source": "src"}.get(key, key)
            if key not in ("id", "src", "env", "type") or not value:
                raise UserError(f"--secret: {item!r} is not known", hint=_USAGE)
            fields[key] = value
        if "id" not in fields or ("src" in fields and "env" in fields):
            raise UserError(f"--secret {word!r} is not a secret", hint=_USAGE)
        secret = Secret(fields["id"], fields.get("src", ""), fields.get("env", ""))
        if not secret.path and not secret.variable:
            secret = Secret(secret.id, variable=secret.id)
        if secret.id in found:
            raise UserError(f"--secret id={secret.id} is given twice")
        found[secret.id] = secret
    return tuple(found.values())


def read_secrets(words: Sequence[str], environ: Mapping[str, str], cwd: Path) -> Mapping[str, bytes]:
    """What they hold, by id. UserError when one is not there."""
    return {secret.id: _read(secret, environ, cwd) for secret in parse_secrets(words)}


def _read(secret: Secret, environ: Mapping[str, str], cwd: Path) -> bytes:
    if secret.variable:
        if secret.variable not in environ:
            raise UserError(f"the environment has no {secret.variable} for the secret {secret.id!r}", hint=_USAGE)
        return environ[secret.variable].encode(errors="surrogateescape")
    try:
        with (cwd / Path(secret.path).expanduser()).open("rb") as file:
            content = file.read(MAXIMUM + 1)
    except OSError as error:
        raise UserError(f"cannot read the secret {secret.id!r} of {secret.path!r}: {error.strerror}") from error
    if len(content) > MAXIMUM:
        raise UserError(f"the secret {secret.id!r} is larger than {MAXIMUM >> 10} KiB")
    return content
