"""What --cache-to and --cache-from name. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from uklimg.errors import UserError
from uklimg.ref import DEFAULT_TAG, Reference

_FOLDER = "dir:"
_HINT = "HOST/NAME for a registry, dir:PATH for a folder"
_KEYS = {"registry": {"ref"}, "local": {"src", "dest"}}
# Of BuildKit, without a meaning here: every step is exported, and nothing is compressed.
_IGNORED = frozenset({"mode", "compression", "force-compression", "oci-mediatypes", "image-manifest"})


@dataclass(frozen=True)
class CacheLocation:
    """``ref`` names a repository, or ``folder`` a path as the user wrote it. ``ignore_error``: a cache that cannot be
    written is no failure of the build."""

    ref: Reference | None = None
    folder: str = ""
    ignore_error: bool = False

    def __str__(self) -> str:
        return self.ref.name if self.ref else f"{_FOLDER}{self.folder}"


def parse_location(text: str, option: str) -> CacheLocation:
    """``HOST/NAME``, ``dir:PATH``, or BuildKit's ``type=registry,ref=…`` and ``type=local,src=…|dest=…``.

    ``option`` is --cache-to or --cache-from. UserError for anything else.
    """
    if text.startswith(_FOLDER):
        return CacheLocation(folder=_path(text.removeprefix(_FOLDER), option))
    if "=" in text.partition(",")[0]:
        return _attributes(text, option)
    return CacheLocation(_repository(text, option))


def _attributes(text: str, option: str) -> CacheLocation:
    found: dict[str, str] = {}
    for word in text.split(","):
        name, equals, value = word.partition("=")
        if not equals or name in found:
            raise UserError(f"{option} {text}: {word!r} is not NAME=VALUE, or is there twice", hint=_HINT)
        found[name] = value
    kind = found.pop("type", "")
    if kind not in _KEYS:
        raise UserError(f"{option} {text}: type={kind} is unknown", hint="type=registry or type=local")
    ignore = found.pop("ignore-error", "false")
    if ignore not in ("true", "false"):
        raise UserError(f"{option} {text}: ignore-error is true or false")
    wanted = "ref" if kind == "registry" else "dest" if option == "--cache-to" else "src"
    for name in sorted(found.keys() - _IGNORED - {wanted}):
        raise UserError(f"{option} {text}: {name} has no meaning here", hint=f"type={kind},{wanted}=…")
    if not found.get(wanted):
        raise UserError(f"{option} {text}: {wanted}= is missing", hint=f"type={kind},{wanted}=…")
    if kind == "registry":
        return CacheLocation(_repository(found[wanted], option), ignore_error=ignore == "true")
    return CacheLocation(folder=_path(found[wanted], option), ignore_error=ignore == "true")


def _repository(text: str, option: str) -> Reference:
    ref = Reference.parse(text)
    if not ref.host:
        raise UserError(f"{option} {text} names no registry", hint=_HINT)
    if ref.digest is not None or ref.tag != DEFAULT_TAG:
        raise UserError(
            f"{option} {text}: a cache is a whole repository, whose tags are keys of steps",
            hint=f"{ref.name}, or a repository of its own: {ref.name}/{(ref.tag or 'cache').lower()}",
        )
    return ref


def _path(text: str, option: str) -> str:
    if not text or "\0" in text:
        raise UserError(f"{option} names no folder", hint=_HINT)
    return text
