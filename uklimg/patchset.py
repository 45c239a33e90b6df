"""Patch sets: parsing, linting and digesting numbered ``git format-patch`` files. Pure.

The rules, each an error naming file and line: files ``NNNN-topic.patch`` numbered from 0001 without a gap; made by
``git format-patch -N --no-signature --zero-commit --full-index`` (zero commit, ``Subject: [PATCH] …``, whole object
names, no signature at the end); a body with what and why; trailers ``Signed-off-by`` and ``Upstream: none (why) |
submitted <url> | backport <commit>``; text only; hunks as long as they say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email import policy
from email.parser import Parser

from uklimg.digest import Digest
from uklimg.errors import Location, UserError, UserErrors

_NAME = re.compile(r"(\d{4})-([A-Za-z0-9][A-Za-z0-9._-]*)\.patch")
_FIRST = f"From {'0' * 40} Mon Sep 17 00:00:00 2001"
_TRAILER = re.compile(r"([A-Za-z][A-Za-z-]*): (.*)")
_SIGNER = re.compile(r"[^<>]+ <[^<>\s]+@[^<>\s]+>")
_UPSTREAM = re.compile(r"none \(.+\)|submitted https?://\S+|backport [0-9a-f]{12,40}")
_INDEX = re.compile(r"index ([0-9a-f]+)\.\.([0-9a-f]+)( \d{6})?")
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@.*")
# What ends the message; a message cannot hold such a line, git am would cut it there too.
_SEPARATOR = "---"


@dataclass(frozen=True)
class Patch:
    """One linted patch. ``added`` counts added lines by file (new path, sorted); ``content`` is the file as it is."""

    name: str
    number: int
    topic: str
    subject: str
    body: str
    signed_off_by: tuple[str, ...]
    upstream: str
    added: tuple[tuple[str, int], ...]
    content: bytes = field(repr=False)

    @property
    def digest(self) -> Digest:
        return Digest.of(self.content)


@dataclass(frozen=True)
class PatchSet:
    """Patches in the order in which they are applied; an empty set is one too."""

    patches: tuple[Patch, ...] = ()

    @property
    def digest(self) -> Digest:
        """Changes with a name, the order or a byte of a patch."""
        return Digest.of_json([[patch.name, str(patch.digest)] for patch in self.patches])

    def added_lines(self) -> Mapping[str, int]:
        """Added lines by file over all patches, sorted by file."""
        total: dict[str, int] = {}
        for patch in self.patches:
            for file, lines in patch.added:
                total[file] = total.get(file, 0) + lines
        return dict(sorted(total.items()))


def parse_patchset(files: Mapping[str, bytes], folder: str = "patches") -> PatchSet:
    """Parse and lint a folder's files by name; ``folder`` is named in errors. UserErrors with all that is wrong."""
    errors: list[UserError] = []
    patches: list[Patch] = []
    for expected, name in enumerate(sorted(files), 1):
        try:
            patch = parse_patch(name, files[name], folder)
        except UserErrors as error:
            errors.extend(error.errors)
            continue
        if patch.number != expected:
            problem = f"number {patch.number:04d} where {expected:04d} is due: patches are numbered without a gap"
            errors.append(UserError(problem, location=Location(f"{folder}/{name}")))
        patches.append(patch)
    if errors:
        raise UserErrors(errors)
    return PatchSet(tuple(patches))


def parse_patch(name: str, content: bytes, folder: str = "patches") -> Patch:
    """Parse and lint one patch; UserErrors with all that is wrong with it."""
    lint = _Lint(f"{folder}/{name}")
    found = _NAME.fullmatch(name)
    if not found:
        raise lint.only("not named NNNN-topic.patch")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise lint.only("not UTF-8 text") from error
    # Split at \n only: a form feed or a Unicode line separator is part of a source line.
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    else:
        lint.error(len(lines), "the last line has no newline")
    header_end = lines.index("") if "" in lines else len(lines)
    body_end = next((n for n in range(header_end, len(lines)) if lines[n] == _SEPARATOR), len(lines))
    diff_start = next((n for n in range(body_end, len(lines)) if lines[n].startswith("diff --git ")), len(lines))
    subject = _lint_header(lint, lines[:header_end])
    body, trailers = _split_trailers(lines[header_end + 1 : body_end])
    signers, upstream = _lint_message(lint, header_end + 2, body, trailers)
    if body_end == len(lines):
        lint.error(len(lines), "no '---' line after the message")
    added = _Diff(lint, lines, diff_start).read()
    lint.finish()
    return Patch(
        name, int(found[1]), found[2], subject, body, signers, upstream, tuple(sorted(added.items())), content
    )


class _Lint:
    """Collects the errors of one file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._errors: list[UserError] = []

    def error(self, line: int, problem: str, hint: str = "") -> None:
        """``line`` counts from 1."""
        self._errors.append(UserError(problem, hint=hint, location=Location(self._file, line)))

    def only(self, problem: str) -> UserErrors:
        return UserErrors([UserError(problem, location=Location(self._file))])

    def finish(self) -> None:
        if self._errors:
            raise UserErrors(self._errors)


def _lint_header(lint: _Lint, lines: list[str]) -> str:
    if not lines or lines[0] != _FIRST:
        lint.error(1, f"the first line is not {_FIRST!r}", "git format-patch --zero-commit")
    message = Parser(policy=policy.default).parsestr("\n".join(lines[1:]), headersonly=True)
    author, subject = message["From"], message["Subject"]
    if not author or not _SIGNER.fullmatch(str(author)):
        lint.error(1, "no 'From: name <address>'")
    if not subject or not re.match(r"\[PATCH\] \S", str(subject)):
        lint.error(1, "the subject does not start with '[PATCH] '", "git format-patch -N")
        return ""
    return str(subject).removeprefix("[PATCH] ")


def _split_trailers(lines: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Body and trailers (name, value): the last paragraph when its every line is a trailer or continues one."""
    text = "\n".join(lines).strip("\n")
    head, _, last = text.rpartition("\n\n")
    trailers: list[tuple[str, str]] = []
    for line in last.split("\n"):
        found = _TRAILER.fullmatch(line)
        if found:
            trailers.append((found[1], found[2]))
        elif line.startswith((" ", "\t")) and trailers:
            name, value = trailers[-1]
            trailers[-1] = (name, f"{value} {line.strip()}")
        else:
            return text, []
    return head.strip(), trailers


def _lint_message(lint: _Lint, line: int, body: str, trailers: list[tuple[str, str]]) -> tuple[tuple[str, ...], str]:
    if not body:
        lint.error(line, "the message has no body: say what the patch does and why")
    signers = tuple(value for name, value in trailers if name == "Signed-off-by")
    if not signers:
        lint.error(line, "no trailer 'Signed-off-by' in the last paragraph of the message")
    for signer in signers:
        if not _SIGNER.fullmatch(signer):
            lint.error(line, f"Signed-off-by: {signer!r} is not 'name <address>'")
    upstream = [value for name, value in trailers if name == "Upstream"]
    if len(upstream) != 1 or not _UPSTREAM.fullmatch(upstream[0]):
        lint.error(
            line,
            "wants one trailer 'Upstream'",
            "none (why) | submitted <url> | backport <12 or more digits of a commit>",
        )
    return signers, upstream[0] if upstream else ""


class _Diff:
    """Walks the diff part, counting added lines by file and checking every hunk against its header."""

    def __init__(self, lint: _Lint, lines: list[str], start: int) -> None:
        self._lint = lint
        self._lines = lines
        self._at = start
        self._file = ""
        self._added: dict[str, int] = {}

    def read(self) -> Mapping[str, int]:
        if self._at == len(self._lines):
            self._lint.error(self._at, "the patch changes nothing")
        while self._at < len(self._lines):
            line = self._lines[self._at]
            self._at += 1
            if line.startswith("diff --git "):
                self._file = line.rpartition(" b/")[2]
                self._added.setdefault(self._file, 0)
            elif line.startswith("@@ "):
                self._hunk(line)
            elif line == "-- ":
                self._lint.error(self._at, "a signature at the end", "git format-patch --no-signature")
                break
            elif line.startswith(("GIT binary patch", "Binary files ")):
                self._lint.error(self._at, f"{self._file} is binary: a patch set is text")
            elif line.startswith("index "):
                self._index(line)
            elif not line.startswith(_HEADERS):
                self._lint.error(self._at, f"{line[:40]!r} is not part of a diff")
                break
        return self._added

    def _index(self, line: str) -> None:
        found = _INDEX.fullmatch(line)
        if not found or len(found[1]) != 40 or len(found[2]) != 40:
            self._lint.error(self._at, "the index line has shortened object names", "git format-patch --full-index")

    def _hunk(self, header: str) -> None:
        found = _HUNK.fullmatch(header)
        if not found:
            self._lint.error(self._at, f"{header[:40]!r} is not a hunk header")
            return
        start = self._at
        old, new = (1 if count is None else int(count) for count in found.groups())
        while (old > 0 or new > 0) and self._at < len(self._lines):
            mark = self._lines[self._at][:1]
            if mark not in ("+", "-", " ", "\\"):
                break
            old -= mark in ("-", " ")
            new -= mark in ("+", " ")
            self._added[self._file] = self._added.get(self._file, 0) + (mark == "+")
            self._at += 1
        if old or new:
            self._lint.error(start, "the hunk is not as long as its header says")
        while self._at < len(self._lines) and self._lines[self._at].startswith("\\ "):
            self._at += 1  # "\ No newline at end of file"


_HEADERS = (
    "--- ",
    "+++ ",
    "old mode ",
    "new mode ",
    "new file mode ",
    "deleted file mode ",
    "similarity index ",
    "dissimilarity index ",
    "rename from ",
    "rename to ",
    "copy from ",
    "copy to ",
)
