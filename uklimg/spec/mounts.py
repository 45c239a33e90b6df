"""``RUN --mount=type=…``: what a command finds beside its stage's file system while it runs."""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Callable, Mapping

from uklimg.errors import Location, UserError
from uklimg.spec import values
from uklimg.spec.model import Mount
from uklimg.spec.scope import Scope, checked
from uklimg.spec.transfer import Names
from uklimg.spec.values import quoted
from uklimg.uklfile import ast
from uklimg.uklfile.parser import did_you_mean

SECRETS = "/run/secrets"  # where BuildKit puts a secret that has no target

_KINDS = ("bind", "cache", "tmpfs", "secret", "ssh")
_SHARING = ("shared", "private", "locked")
_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
_KEYS = ("type", "target", "source", "from", "readonly", "readwrite", "id", "sharing", "size", "mode", "uid", "gid")
_ALL_KEYS = (*_KEYS, "required", "env", *_ALIASES)
# What does not go with every kind: the option, and the kinds that have it.
_ONLY = {
    "source": ("bind",),
    "from": ("bind",),
    "sharing": ("cache",),
    "size": ("tmpfs",),
    "required": ("secret",),
    "env": ("secret",),
    "id": ("cache", "secret"),
}
# Where the engine and uklimg itself have theirs.
_RESERVED = ("/", "/dev", "/proc", "/sys", "/in", "/out", "/run/uklimg.log")


def mounts(directive: ast.Directive, scope: Scope, names: Names) -> tuple[Mount, ...]:
    """All of a RUN's; raises UserError."""
    found: dict[str, Mount] = {}
    for flag in directive.flags:
        if flag.name == "mount":
            made = mount(flag, scope, names)
            if made.size:
                scope.problems.warn(flag.location, "the size of a tmpfs mount is not kept to: it is a folder on disk")
            if made.target in found and made.target:
                raise UserError(f"a second mount at {made.target}", hint="another target=", location=flag.location)
            found[made.target or f"${made.env}"] = made
    return tuple(found.values())


def mount(flag: ast.Flag, scope: Scope, names: Names) -> Mount:
    """``--mount=type=cache,target=/path,…``; raises UserError."""
    fields = _fields(flag, scope)
    kind = fields.get("type", "bind")
    known = {"kind": (kind, _KINDS), "sharing": (fields.get("sharing", "shared"), _SHARING)}
    for what, (word, allowed) in known.items():
        if word not in allowed:
            hint = did_you_mean(word, allowed) or ", ".join(allowed)
            raise UserError(f"unknown {what} of mount {quoted(word)}", hint=hint, location=flag.location)
    if kind == "ssh":
        hint = "fetch with SOURCE, whose digest the lock keeps, or give a key as --mount=type=secret"
        raise UserError("RUN has no --mount=type=ssh", hint=hint, location=flag.location)
    for name, kinds in _ONLY.items():
        if name in fields and kind not in kinds:
            raise UserError(f"a {kind} mount has no {name}=", hint=f"{kinds[0]} has", location=flag.location)
    origin = names.origin(fields["from"], flag.location) if "from" in fields else None

    def value(name: str, function: Callable[[str], int]) -> int | None:
        return checked(function, fields[name], flag.location, f"{name}: ") if name in fields else None

    source_path = fields.get("source", "")
    if kind == "bind" and origin is None:
        source_path = checked(values.in_context, source_path or ".", flag.location)
    elif kind == "bind":
        source_path = values.absolute(source_path)
        if source_path == "/":
            message = f"a bind mount from={fields['from']} needs source=/path"
            raise UserError(message, hint="the part of it that the command reads", location=flag.location)
    writable = kind in ("cache", "tmpfs")
    read_only = _truth(fields, "readonly", flag) if "readonly" in fields else not writable
    target = _target(kind, fields, scope, flag.location)
    return Mount(
        kind=kind,
        target=target,
        source=source_path,
        origin=origin,
        read_only=not _truth(fields, "readwrite", flag) if "readwrite" in fields else read_only,
        id=fields.get("id", "") or (posixpath.basename(target) if kind == "secret" else ""),
        sharing=fields.get("sharing", "shared") if kind == "cache" else "",
        size=value("size", values.size) or 0,
        mode=value("mode", values.mode),
        uid=value("uid", lambda text: values.number(text, "a user id")),
        gid=value("gid", lambda text: values.number(text, "a group id")),
        required=_truth(fields, "required", flag) if "required" in fields else False,
        env=_variable(fields, flag.location),
    )


def _target(kind: str, fields: Mapping[str, str], scope: Scope, location: Location) -> str:
    """The absolute target; "" for a secret that is only a variable."""
    text = fields.get("target", "")
    if kind == "secret" and not text:
        if "env" in fields and "id" in fields:
            return ""
        if "id" not in fields:
            raise UserError("a secret mount needs id= or target=", hint="id=NAME", location=location)
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", fields["id"], re.ASCII):
            raise UserError(f"{quoted(fields['id'])} cannot name a file", hint="add target=/path", location=location)
        return f"{SECRETS}/{fields['id']}"
    if not text:
        raise UserError(f"a {kind} mount needs target=", hint="target=/path", location=location)
    target = values.absolute(text, scope.workdir)
    if target in _RESERVED or target.startswith(("/proc/", "/sys/", "/in/", "/out/")) or "\0" in target:
        raise UserError(f"nothing can be mounted at {quoted(target)}", hint="choose another", location=location)
    return target


def _variable(fields: Mapping[str, str], location: Location) -> str:
    name = fields.get("env", "")
    if "env" in fields and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
        raise UserError(
            f"{quoted(name)} is not a name for a variable", hint="letters, digits and _", location=location
        )
    return name


def _fields(flag: ast.Flag, scope: Scope) -> dict[str, str]:
    fields: dict[str, str] = {}
    try:
        rows = list(csv.reader([flag.value or ""], strict=True))
    except csv.Error as error:
        raise UserError(f"--mount: {error}", hint="type=…,target=…", location=flag.location) from error
    for item in rows[0] if rows else []:
        key, equals, value = item.partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if key not in _ALL_KEYS:
            hint = did_you_mean(key, _ALL_KEYS)
            raise UserError(f"unknown mount option {quoted(key)}", hint=hint, location=flag.location)
        if not equals and key not in ("readonly", "readwrite", "required"):
            raise UserError(f"the mount option {key} needs a value", hint=f"{key}=…", location=flag.location)
        if key == "from" and "$" in value:
            raise UserError(
                "from= does not take variables",
                hint="FROM $image AS name makes a stage of it",
                location=flag.location,
            )
        fields[key] = scope.text(ast.Word(value, flag.location)) if equals else "true"
        if key in ("type", "sharing"):
            fields[key] = fields[key].lower()
    return fields


def _truth(fields: Mapping[str, str], name: str, flag: ast.Flag) -> bool:
    value = fields[name].lower()
    if value not in ("true", "false", "1", "0"):
        raise UserError(f"{name} is true or false, not {quoted(value)}", hint=f"{name}=true", location=flag.location)
    return value in ("true", "1")
