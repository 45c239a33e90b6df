"""COPY, ADD and SOURCE: what comes from where."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from uklimg.digest import Digest
from uklimg.errors import Location, UserError
from uklimg.ref import is_loopback
from uklimg.spec import values
from uklimg.spec.model import (
    BaseImage,
    ContextSource,
    Copy,
    DebianSource,
    GitSource,
    HeredocFile,
    OciImage,
    Origin,
    Source,
    SourceRef,
    StageRef,
    UrlSource,
)
from uklimg.spec.scope import Scope, checked
from uklimg.spec.values import BadValueError, quoted
from uklimg.uklfile import ast
from uklimg.uklfile.directives import RULES
from uklimg.uklfile.lexer import parse_heredoc
from uklimg.uklfile.parser import did_you_mean

_OCI = re.compile(
    r"(?:localhost|[A-Za-z0-9.-]+\.[A-Za-z0-9.-]+|[A-Za-z0-9.-]+:[0-9]+|localhost:[0-9]+|\[[0-9a-f:.]+\](?::[0-9]+)?)"
    r"(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)+(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_COMMIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", re.ASCII)


@dataclass(frozen=True)
class Names:
    """What FROM and --from can mean at one point: base images, and earlier stages by name (lower case) and number.

    ``later`` are the names of stages that come only afterwards.
    """

    base_images: Collection[str]
    stages: Mapping[str, str]  # name or number -> BuildStage.name
    later: Collection[str] = ()

    def base_image(self, text: str) -> BaseImage | None:
        """``debian:trixie`` and ``debian-trixie`` are both the folder debian-trixie."""
        folder = text.replace(":", "-")
        return next((BaseImage(folder) for name in self.base_images if name.replace(":", "-") == folder), None)

    def origin(self, text: str, location: Location, what: str = "stage or image") -> Origin:
        """The stage, base image or registry image that ``text`` names; an error calls it ``what``."""
        if text.lower() in self.stages:
            return StageRef(self.stages[text.lower()])
        if text.lower() in self.later:
            hint = "a stage can use only stages above it"
            raise UserError(f"stage {quoted(text)} comes later", hint=hint, location=location)
        if base := self.base_image(text):
            return base
        if len(text) <= 512 and _OCI.fullmatch(text):
            return OciImage(text)
        stages = [name for name in self.stages if not name.isdecimal()]
        bases = sorted(name.replace("-", ":", 1) for name in self.base_images)
        hint = did_you_mean(text, [*stages, *bases])
        if text == "scratch":
            hint = f"a build stage needs a compiler; there is {', '.join(bases) or 'none'}"
        if not hint:
            stages_known = f"stages: {', '.join(stages)}; " if stages else ""
            known = f"{stages_known}base images: {', '.join(bases) or 'none'}"
            hint = f"{known}; an image of a registry is written with its host, as in host.example/name:tag"
        raise UserError(f"unknown {what} {quoted(text)}", hint=hint, location=location)


def copy(node: ast.Transfer, scope: Scope, names: Names) -> Copy:
    """COPY or ADD; raises UserError."""
    assert node.dest is not None, "the parser gives COPY a destination"
    origin = _from_flag(node, names)
    files, words = _heredocs(node, scope)
    if parse_heredoc(node.dest.text, node.dest.location):
        raise UserError("a heredoc cannot be the destination", hint="COPY <<EOF /path", location=node.dest.location)
    sources: list[str] = []
    for word in words:
        text = scope.text(word)
        if not text:
            raise UserError(
                f"an empty source in {node.keyword}", hint="a path of the build context", location=word.location
            )
        if node.keyword == "ADD" and re.match(r"[a-z+]+://|git@", text):
            hint = "SOURCE in a build stage fetches, and the lock keeps the digest"
            raise UserError(f"ADD does not fetch {quoted(text)}", hint=hint, location=word.location)
        sources.append(_source_path(text, origin, word.location))
    dest = values.destination(scope.text(node.dest), scope.workdir)
    if len(sources) + len(files) > 1 and not dest.endswith("/"):
        hint = f"end it with a slash: {dest}/"
        raise UserError("several sources need a folder as destination", hint=hint, location=node.dest.location)
    checksum = node.flag("checksum")
    if checksum is not None:
        raise UserError("--checksum is for what is fetched", hint="use SOURCE", location=checksum.location)
    owner, mode = scope.flag(node, "chown"), scope.flag(node, "chmod")
    return Copy(
        location=node.location,
        sources=tuple(sources),
        files=files,
        dest=dest,
        origin=origin,
        unpack=node.keyword == "ADD",
        chown=checked(values.owner, owner.text, owner.location) if owner else "",
        chmod=checked(values.mode, mode.text, mode.location) if mode else None,
        parents=_is_set(node, "parents"),
        exclude=tuple(
            scope.text(ast.Word(flag.value, flag.location))
            for flag in node.flags
            if flag.name == "exclude" and flag.value
        ),
    )


def _from_flag(node: ast.Directive, names: Names) -> Origin | None:
    flag = node.flag("from")
    if flag is None:
        return None
    value = flag.value or ""
    if "$" in value:
        hint = "give it a stage of its own: FROM $image AS name"
        raise UserError("--from does not take variables", hint=hint, location=flag.location)
    return names.origin(value, flag.location)


def _is_set(node: ast.Directive, name: str) -> bool:
    flag = node.flag(name)
    return flag is not None and (flag.value or "true").lower() == "true"


def _source_path(text: str, origin: Origin | None, location: Location) -> str:
    if origin is None:
        return checked(values.in_context, text, location)
    return values.absolute(text).lstrip("/") or "."


def _heredocs(node: ast.Transfer, scope: Scope) -> tuple[tuple[HeredocFile, ...], list[ast.Word]]:
    """The sources that are heredocs, and the words that are not."""
    bodies = {heredoc.name: heredoc for heredoc in node.heredocs}
    files: list[HeredocFile] = []
    words: list[ast.Word] = []
    for word in node.sources:
        opening = parse_heredoc(word.text, word.location) if bodies else None
        if opening is None or opening.name not in bodies:
            words.append(word)
            continue
        if "/" in opening.name or opening.name in (".", ".."):
            raise UserError(
                f"{quoted(opening.name)} cannot name a file", hint="no slash: <<name", location=word.location
            )
        files.append(HeredocFile(opening.name, scope.heredoc(bodies[opening.name])))
    return tuple(files), words


def source(node: ast.Transfer, scope: Scope) -> Source:
    """SOURCE; raises UserError."""
    assert node.dest is not None, "the parser gives SOURCE a destination"
    if len(node.sources) != 1:
        raise UserError(
            "SOURCE takes one thing and a destination", hint=RULES["SOURCE"].usage, location=node.sources[1].location
        )
    word = node.sources[0]
    checksum, strip, patch = (scope.flag(node, name) for name in ("checksum", "strip", "patch"))
    what = source_ref(scope.text(word), word.location)
    if checksum and isinstance(what, ContextSource):
        raise UserError(
            "--checksum is for archives that are fetched", hint="leave it out", location=checksum.location
        )
    return Source(
        location=node.location,
        what=what,
        dest=values.absolute(scope.text(node.dest), scope.workdir),
        checksum=checked(_digest, checksum.text, checksum.location) if checksum else None,
        strip=checked(lambda text: values.number(text, "a number of folders"), strip.text, strip.location)
        if strip
        else None,
        patches=checked(values.in_context, patch.text, patch.location) if patch else "",
    )


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise BadValueError(str(error), "sha256: and 64 hexadecimal digits") from error


def source_ref(text: str, location: Location) -> SourceRef:
    """``debian:name[=version]``, ``https://…``, ``git+https://…#commit`` or a path of the context."""
    if text.startswith("debian:"):
        package = checked(values.package, text.removeprefix("debian:"), location)
        return DebianSource(package.name, package.version)
    if text.startswith("git+"):
        url, _, commit = text.removeprefix("git+").partition("#")
        if not re.match(r"https?://[^/\s]+/\S+\Z", url):
            raise UserError(f"{quoted(text)} is not a git source", hint="git+https://…#commit", location=location)
        _check_url(url, location)
        if not _COMMIT.fullmatch(commit):
            raise UserError("a git source needs a commit", hint=f"{url}#commit", location=location)
        return GitSource(url, commit)
    if re.match(r"https?://", text):
        _check_url(text, location)
        return UrlSource(text)
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text):
        hint = "debian:name[=version], https://…, git+https://…#commit, or a path of the context"
        raise UserError(f"unknown kind of source {quoted(match[1])}", hint=hint, location=location)
    if not text:
        raise UserError("an empty source", hint="debian:name, https://…, or a path", location=location)
    return ContextSource(checked(values.in_context, text, location))


def _check_url(url: str, location: Location) -> None:
    """https, or http to this machine itself: on the way anybody could change what is fetched for the first time."""
    match = re.fullmatch(r"(https?)://([^/\s]+)/\S+", url)
    if match is None:
        raise UserError(f"{quoted(url)} is not a URL", hint="https://host/path", location=location)
    if match[1] == "http" and not is_loopback(match[2].rpartition("@")[2]):
        hint = "https://…; plain http is for loopback addresses"
        raise UserError(f"{quoted(url)} is fetched without TLS", hint=hint, location=location)
