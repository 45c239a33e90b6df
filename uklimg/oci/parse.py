"""From bytes that somebody else wrote to the structures of ``model``.

What comes from a registry is hostile until proven otherwise: size, nesting and counts are limited, repeated keys
(which two readers may understand differently) are refused, and everything wrong is a CorruptError that says where.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar

from uklimg.digest import Digest
from uklimg.errors import CorruptError
from uklimg.oci.model import (
    INDEX,
    INDEXES,
    MANIFEST,
    MANIFESTS,
    Descriptor,
    History,
    ImageConfig,
    Index,
    Manifest,
    Platform,
)

MAX_MANIFEST = 4 << 20
"""Bytes of a manifest or index: what registries are asked to accept (distribution-spec, "Pushing Manifests")."""
MAX_CONFIG = 8 << 20
MAX_BLOB = 1 << 40
MAX_DEPTH = 16
MAX_LAYERS = 8192  # an image has some ten; an artifact with the packages of build containers, thousands
MAX_MANIFESTS = 16384

_Object: TypeAlias = Mapping[str, object]
_T = TypeVar("_T")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


def parse_json(data: bytes, what: str, limit: int = MAX_MANIFEST) -> _Object:
    """The object in ``data``; ``what`` names it in errors."""
    if len(data) > limit:
        raise CorruptError(f"{what} has {len(data)} bytes, more than {limit}")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what} is no good JSON: {str(error)[:200]}") from None
    _check_depth(value, what)
    return _object(value, what)


def parse_manifest(data: bytes, what: str = "manifest") -> Manifest:
    """An OCI or Docker (schema 2) image manifest."""
    top = parse_json(data, what)
    media_type = _media_type(top, what, MANIFESTS)
    _only(top, what, "manifests")
    return Manifest(
        config=_descriptor(top.get("config"), f"{what}.config"),
        layers=_list(top, "layers", what, _descriptor, MAX_LAYERS),
        annotations=_strings(top, "annotations", what),
        artifact_type=_text(top, "artifactType", what),
        subject=_optional(top, "subject", what, _descriptor),
        media_type=media_type,
    )


def parse_index(data: bytes, what: str = "index") -> Index:
    """An OCI index or Docker manifest list."""
    top = parse_json(data, what)
    media_type = _media_type(top, what, INDEXES)
    _only(top, what, "layers")
    return Index(
        manifests=_list(top, "manifests", what, _descriptor, MAX_MANIFESTS),
        annotations=_strings(top, "annotations", what),
        artifact_type=_text(top, "artifactType", what),
        subject=_optional(top, "subject", what, _descriptor),
        media_type=media_type,
    )


def parse_index_or_manifest(data: bytes, what: str = "manifest") -> Index | Manifest:
    """Whichever it is by its fields; a mediaType (image-spec 1.0 left it optional) must agree."""
    top = parse_json(data, what)
    is_index = "manifests" in top
    if is_index == ("layers" in top):
        raise CorruptError(f"{what} is neither an index nor an image manifest")
    return parse_index(data, what) if is_index else parse_manifest(data, what)


def parse_config(data: bytes, what: str = "image config") -> ImageConfig:
    """An OCI image configuration; Docker's has the same fields."""
    top = parse_json(data, what, MAX_CONFIG)
    config = _object(top.get("config") or {}, f"{what}.config")
    rootfs = _object(top.get("rootfs") or {}, f"{what}.rootfs")
    return ImageConfig(
        platform=_platform(top, what),
        diff_ids=_list(rootfs, "diff_ids", f"{what}.rootfs", _digest, MAX_LAYERS),
        entrypoint=_list(config, "Entrypoint", what, _string),
        cmd=_list(config, "Cmd", what, _string),
        env=_list(config, "Env", what, _string),
        user=_text(config, "User", what),
        workdir=_text(config, "WorkingDir", what),
        exposed_ports=tuple(sorted(_object(config.get("ExposedPorts") or {}, f"{what}.ExposedPorts"))),
        volumes=tuple(sorted(_object(config.get("Volumes") or {}, f"{what}.Volumes"))),
        labels=_strings(config, "Labels", what),
        stop_signal=_text(config, "StopSignal", what),
        created=_text(top, "created", what),
        history=_list(top, "history", what, _history),
    )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(value: object, what: str) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise CorruptError(f"{what} is nested more than {MAX_DEPTH} levels deep")


def _media_type(top: _Object, what: str, allowed: frozenset[str]) -> str:
    if top.get("schemaVersion") != 2:
        raise CorruptError(f"{what}.schemaVersion is not 2")
    media_type = _text(top, "mediaType", what) or (INDEX if INDEX in allowed else MANIFEST)
    if media_type not in allowed:
        raise CorruptError(f"{what} has the media type {media_type[:100]!r}")
    return media_type


def _only(top: _Object, what: str, other: str) -> None:
    """Index and manifest at once is CVE-2021-41190: two readers take the same bytes for different things."""
    if other in top:
        raise CorruptError(f"{what} has {other!r}: it is neither an index nor an image manifest")


def _object(value: object, where: str) -> _Object:
    if not isinstance(value, dict):
        raise CorruptError(f"{where} is no object")
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise CorruptError(f"{where} is no text")
    return value


def _text(holder: _Object, key: str, where: str) -> str:
    value = holder.get(key)
    return "" if value is None else _string(value, f"{where}.{key}")


def _strings(holder: _Object, key: str, where: str) -> Mapping[str, str]:
    where = f"{where}.{key}"
    return {k: _string(v, f"{where}.{k[:60]}") for k, v in _object(holder.get(key) or {}, where).items()}


def _list(
    holder: _Object, key: str, where: str, convert: Callable[[object, str], _T], limit: int = 100_000
) -> tuple[_T, ...]:
    where = f"{where}.{key}"
    value = holder.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > limit:
        raise CorruptError(f"{where} is no list of at most {limit} entries")
    return tuple(convert(item, f"{where}[{number}]") for number, item in enumerate(value))


def _optional(holder: _Object, key: str, where: str, convert: Callable[[object, str], _T]) -> _T | None:
    value = holder.get(key)
    return None if value is None else convert(value, f"{where}.{key}")


def _digest(value: object, where: str) -> Digest:
    try:
        return Digest.parse(_string(value, where))
    except ValueError:
        raise CorruptError(f"{where} is no sha256 digest") from None


def _descriptor(value: object, where: str) -> Descriptor:
    holder = _object(value, where)
    size = holder.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB:
        raise CorruptError(f"{where}.size is no size")
    media_type = _text(holder, "mediaType", where)
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise CorruptError(f"{where}.mediaType is no media type")
    platform = holder.get("platform")
    return Descriptor(
        media_type=media_type,
        digest=_digest(holder.get("digest"), f"{where}.digest"),
        size=size,
        annotations=_strings(holder, "annotations", where),
        platform=None if platform is None else _platform(platform, f"{where}.platform"),
        artifact_type=_text(holder, "artifactType", where),
    )


def _platform(value: object, where: str) -> Platform:
    holder = _object(value, where)
    return Platform(
        os=_text(holder, "os", where),
        architecture=_text(holder, "architecture", where),
        os_version=_text(holder, "os.version", where),
        os_features=_list(holder, "os.features", where, _string),
        variant=_text(holder, "variant", where),
    )


def _history(value: object, where: str) -> History:
    holder = _object(value, where)
    return History(
        created_by=_text(holder, "created_by", where),
        comment=_text(holder, "comment", where),
        empty_layer=holder.get("empty_layer") is True,
    )
