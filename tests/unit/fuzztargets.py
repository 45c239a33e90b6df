"""What the fuzzer throws at everything that reads text: one function a parser, with strategies that make its input.

`test_fuzz.py` runs each for a moment, `scripts/fuzz.py --minutes N` for as long as one likes. A target raises when a
parser does what it must not: any exception but a UserError, an error without its place, a round trip that does not
come back.
"""

from __future__ import annotations

import gzip
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hostiletars import END, ODD, member
from hypothesis import strategies as st

from uklimg import archive, oci
from uklimg.advice.objects import ARCHIVE, scan_object
from uklimg.advice.sources import scan_source
from uklimg.cli.secrets import parse_secrets
from uklimg.definitions import parse_base, parse_source
from uklimg.digest import Digest
from uklimg.errors import ExitCode, ToolError, UserError, UserErrors
from uklimg.guest.protocol import decode_report, error_of_console, final_of_console
from uklimg.lock import (
    ComponentKind,
    Lock,
    LockedBase,
    LockedComponent,
    LockedFile,
    LockedPackage,
    LockedPackages,
    LockedSource,
    SourceKind,
    format_lock,
    parse_lock,
)
from uklimg.oci.layer import of_bytes
from uklimg.patchset import parse_patch
from uklimg.ref import Reference
from uklimg.spec import Run, SeriesInfo, Spec, read_spec, values
from uklimg.store import Store
from uklimg.uklfile.directives import RULES
from uklimg.uklfile.ignore import PatternError, compile_component, parse_rules
from uklimg.uklfile.substitute import MAX_LENGTH, Style, SubstitutionError, expand

GOLDEN = Path(__file__).parents[1] / "golden" / "uklfile"
SERIES = {"6.12": SeriesInfo("6.12", ("BYP", "RET", "NSS", "SHORTCUT"))}
BASES = ("debian-trixie", "debian-bookworm")


@dataclass(frozen=True)
class Target:
    name: str
    inputs: st.SearchStrategy[object]
    check: Callable[[object], None]


# --- Uklfiles

PIECES = (
    *sorted(RULES),
    *("run", "From", "ONBUILD", "MAINTAINER", "AS", "CMD", "NONE", "#", "# syntax=uklfile/1", "# escape=`"),
    *("\n", "\n", "\n", " ", " ", "\t", "\r\n", "\\\n", "`\n", "\\ \n", "\\", "\f", "\u2003", "\u0085", "\x1c"),
    *("<<E", "<<-E", '<<"E"', "<<'E'", "3<<E", "<<$E", "<<", "\nE\n", "\n\tE\n", "E"),
    *(
        "$",
        "${",
        "}",
        ":",
        "-",
        "+",
        "?",
        "%",
        "/",
        "*",
        "${x",
        "$x",
        "${x:-",
        "${x//",
        "${x##",
        "${x:?",
        "$$",
        "${}",
    ),
    *("'", '"', "=", "a=b", "a = b", "[", "]", '["a"]', '["a", 1]', ',"', "\\u0000", "\0", "\ud800", "é"),
    *("--from=0", "--from=build", "--mount=type=cache,target=/c", "--mount=", "--x", "--", "--chown=$x", "--name="),
    *(
        "debian:trixie",
        "ukl:6.12",
        "debian:x=1",
        "https://h/x",
        "git+https://h/x#c",
        "/p",
        "..",
        "*",
        "1.5g",
        "build",
    ),
)
FRAME = ("FROM debian:trixie AS build\n", "FROM ukl:6.12\nLINK --from=build /p\n")


def corpus() -> list[str]:
    """The golden cases and the example, line by line."""
    files = [*sorted(GOLDEN.glob("*/Uklfile")), GOLDEN.parents[2] / "Uklfile.example"]
    return [line for path in files for line in path.read_text(encoding="utf-8").splitlines(keepends=True)]


def _mutated(parts: tuple[list[str], list[tuple[int, str]]]) -> str:
    """Lines put together, with pieces put in at some places."""
    text = "".join(parts[0])
    for place, piece in parts[1]:
        at = place % (len(text) + 1)
        text = text[:at] + piece + text[at + place % 3 :]
    return text


def uklfiles() -> st.SearchStrategy[object]:
    piece = st.sampled_from(PIECES)
    lines = st.lists(st.sampled_from(corpus()), max_size=12)
    changes = st.lists(st.tuples(st.integers(0, 1 << 16), piece), max_size=6)
    mutated = st.tuples(lines, changes).map(_mutated)
    pieces = st.lists(piece, max_size=30).map("".join)
    body = st.one_of(mutated, pieces, st.lists(piece, max_size=30).map(" ".join), st.text(max_size=200))
    framed = st.tuples(body, body).map(lambda two: f"{FRAME[0]}{two[0]}\n{FRAME[1]}{two[1]}")
    return st.tuples(
        st.one_of(body, framed), st.dictionaries(st.sampled_from("xab"), st.text(max_size=5), max_size=2)
    )


def _spec(text: str, build_args: dict[str, str]) -> Spec:
    return read_spec(text, "f", build_args=build_args, base_images=BASES, series=SERIES)


def check_uklfile(value: object) -> None:
    assert isinstance(value, tuple)
    text, build_args = value
    try:
        found = _spec(text, build_args)
    except UserErrors as caught:
        lines = text.removeprefix("\ufeff").split("\n")
        for error in caught.errors:
            place = error.location
            assert place is not None
            assert place.file == "f"
            if "build argument" not in error.message:
                assert 1 <= place.line <= len(lines), error
                assert 1 <= place.column <= len(lines[place.line - 1]) + 1, error
            assert "\n" not in error.line()
        places = [error.location for error in caught.errors if error.location]
        assert places == sorted(places)
        return
    assert found == _spec(text, build_args)
    assert found.image.link.stage in {stage.name for stage in found.stages}
    runs = [step for stage in found.stages for step in stage.instructions if isinstance(step, Run)]
    for mount in (mount for run in runs for mount in run.mounts):
        assert mount.target.startswith("/") or (mount.kind == "secret" and mount.env)


# --- Variables

_QUOTED = re.compile(r"([\\$'\"])")


def check_expand(value: object) -> None:
    assert isinstance(value, tuple)
    text, escape, flags = value
    env = {"x": "a b", "a": "x*", "empty": "", "long": "ab/" * 50}
    style = Style(escape, *flags)
    try:
        found = expand(text, env, style)
    except SubstitutionError as error:
        assert str(error)
        return
    assert len(found.text) <= MAX_LENGTH
    assert all(found.words)
    assert set(found.unset).isdisjoint(env)
    # What is quoted comes back as it was.
    plain = text.replace("\0", "")
    assert expand(_QUOTED.sub(r"\\\1", plain), env).text == plain
    if "'" not in plain:
        assert expand(f"'{plain}'", env).text == plain
        assert expand(f"'{plain}'", env).words == ((plain,) if plain else ())


def expansions() -> st.SearchStrategy[object]:
    text = st.one_of(
        st.text(alphabet="$x{}:-+?#%/*\\'\" ab`@0", max_size=60),
        st.lists(st.sampled_from([*PIECES, "${long//b/", "${long#*", "${x%", "empty"]), max_size=20).map("".join),
        st.text(max_size=60),
    )
    return st.tuples(text, st.sampled_from("\\`"), st.tuples(*[st.booleans()] * 4))


# --- Ignore files

_PATH = st.lists(st.sampled_from(["a", "b", "a.o", "ab", "é", "[", "*"]), min_size=1, max_size=4).map("/".join)


def check_ignore(value: object) -> None:
    assert isinstance(value, tuple)
    text, paths = value
    try:
        compile_component(text.replace("/", "").replace("\n", ""))
    except PatternError as error:
        assert str(error)
    try:
        rules = parse_rules(text, "f")
    except UserErrors as caught:
        assert all(error.location and error.location.line and error.location.column for error in caught.errors)
        return
    for path in paths:
        if rules.ignored(path) and not rules.takes_back:
            assert rules.ignored(f"{path}/below"), "what is in an ignored folder is ignored"
    # A last line that takes everything back does so.
    again = parse_rules(f"{text}\n!**\n", "f")
    assert not any(again.ignored(path) for path in paths)


def ignores() -> st.SearchStrategy[object]:
    line = st.lists(st.sampled_from([*"a*?[]\\^-!/.~&|# ", "**", "**/", "a.o", "!", "../"]), max_size=10).map("".join)
    text = st.one_of(st.lists(line, max_size=5).map("\n".join), st.text(max_size=40))
    return st.tuples(text, st.lists(_PATH, max_size=4))


# --- Locks and definitions


def _file(name: str, origin: str) -> LockedFile:
    return LockedFile(name, Digest.of(name.encode()), len(name), origin)


def _lock() -> Lock:
    deb = LockedPackage("gcc", "1:1-2", "amd64", _file("gcc_1-2_amd64.deb", "debian:pool/g/gcc_1-2_amd64.deb"))
    return Lock(
        (
            LockedBase("debian-trixie", Digest.of(b"d"), (deb,)),
            LockedPackages("debian-trixie", (), ("cmake",), (deb,)),
            LockedSource("debian:x=1", SourceKind.DEBIAN, "1", (_file("x_1.dsc", "debian:pool/x/x_1.dsc"),)),
            LockedSource("https://h/a.tar", SourceKind.ARCHIVE, "", (_file("a.tar", "https://h/a.tar"),)),
            LockedComponent(ComponentKind.KERNEL, "6.12", "6.12.1", _file("l.tar", "debian:l.tar"), Digest.of(b"p")),
        )
    )


TOML_PIECES = (*"\n=[]{},\"'1\0é", "-1", "true", "1979-05-27", "version", "files", "[[x]]")
LOCK_TEXT = format_lock(_lock())
DEFINITIONS = tuple(
    path.read_text(encoding="utf-8")
    for pattern in ("kernel/*/source.toml", "libs/*/source.toml", "base-images/*/*.toml", "glibc/*/source.toml")
    for path in sorted(GOLDEN.parents[2].glob(pattern))
)


def _mutants(texts: Sequence[str], pieces: Sequence[str]) -> st.SearchStrategy[str]:
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.sampled_from(pieces)), max_size=5)
    whole = st.tuples(st.sampled_from(texts).map(lambda text: [text]), changes).map(_mutated)
    parts = st.tuples(st.lists(st.sampled_from(lines), max_size=20), changes).map(_mutated)
    return st.one_of(whole, parts)


def check_lock(value: object) -> None:
    assert isinstance(value, str)
    try:
        lock = parse_lock(value, "f")
    except UserError as error:
        assert error.location
        assert error.location.file == "f"
        return
    text = format_lock(lock)
    assert parse_lock(text) == parse_lock(format_lock(parse_lock(text)))
    assert {entry.key: entry for entry in parse_lock(text).entries} == {entry.key: entry for entry in lock.entries}
    assert format_lock(parse_lock(text)) == text


def check_definitions(value: object) -> None:
    assert isinstance(value, str)
    for read in (lambda: parse_source(value, "f"), lambda: parse_base(value, "f", "name")):
        try:
            read()
        except UserError as error:
            assert error.message
    try:
        parse_patch("0001-x.patch", value.encode(errors="surrogateescape"))
    except UserError as error:
        assert error.message


# --- Small texts


def check_words(value: object) -> None:
    assert isinstance(value, str)
    try:
        ref = Reference.parse(value)
    except UserError as error:
        assert error.message
    else:
        assert Reference.parse(str(ref)) == ref
    for function in (values.size, values.memory, values.cpus, values.duration, values.mode):
        try:
            assert function(value) >= 0
        except values.BadValueError as error:
            assert str(error)
    others: tuple[Callable[[str], object], ...] = (
        *(values.ports, values.signal, values.package, values.dependency, values.in_context, values.owner),
        lambda text: values.kconfig_value(text, False),
    )
    for other in others:
        try:
            other(value)
        except values.BadValueError as error:
            assert str(error)
    try:
        parse_secrets([value])
    except UserError as error:
        assert error.message
    decode_report(value.encode(errors="surrogateescape"))
    final_of_console(value.encode(errors="surrogateescape"))
    error_of_console(value.encode(errors="surrogateescape"))


def words() -> st.SearchStrategy[object]:
    piece = st.sampled_from(
        [*"1a.:/@-_=+~,% ", "sha256:", "a" * 64, "localhost", "M", "ms", "tcp", "RT", "id=", "src="]
    )
    return st.one_of(st.lists(piece, max_size=12).map("".join), st.text(max_size=30))


# --- Binaries


def _object() -> bytes:
    """A small relocatable object: the interpreter's own executable would be too large to mutate."""
    header = bytearray(64 + 64 * 3 + 64)
    header[:20] = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x01\x00\x3e\x00"
    header[40:48] = (64).to_bytes(8, "little")
    header[52:54], header[58:60] = (64).to_bytes(2, "little"), (64).to_bytes(2, "little")
    header[60:62], header[62:64] = (3).to_bytes(2, "little"), (1).to_bytes(2, "little")
    names = b"\0.strtab\0.symtab\0"
    start = 64 + 64 * 3
    header[start : start + len(names)] = names
    for number, (name, kind, size) in enumerate([(0, 0, 0), (1, 3, len(names)), (9, 2, 24)]):
        at = 64 + 64 * number
        header[at : at + 8] = name.to_bytes(4, "little") + kind.to_bytes(4, "little")
        header[at + 24 : at + 40] = start.to_bytes(8, "little") + size.to_bytes(8, "little")
        header[at + 40 : at + 44] = (1).to_bytes(4, "little")
        header[at + 56 : at + 64] = (24).to_bytes(8, "little")
    return bytes(header)


OBJECT = _object()


def check_objects(value: object) -> None:
    assert isinstance(value, tuple)
    content = bytearray(OBJECT)
    cut, changes, form = value
    for at, byte in changes:
        content[at % len(content)] = byte
    data = bytes(content[: len(content) - cut])
    if form:
        header = b"a.o/".ljust(48) + str(len(data)).encode().ljust(10) + b"`\n"
        data = ARCHIVE + header + data + b"\n" * (len(data) % 2)
        data = data[: len(data) - form + 1]
    for finding in scan_object(data, "f"):
        assert "\n" not in finding.line()
        assert finding.as_json()


def binaries() -> st.SearchStrategy[object]:
    interesting = st.sampled_from([0, 1, 2, 3, 4, 0x7F, 0x80, 0xFE, 0xFF, 56, 64])
    change = st.tuples(st.integers(0, len(OBJECT)), interesting)
    return st.tuples(st.integers(0, len(OBJECT)), st.lists(change, max_size=10), st.integers(0, 3))


def check_sources(value: object) -> None:
    assert isinstance(value, str)
    lines = value.split("\n")
    for finding in scan_source(value, "f"):
        place = finding.location
        assert 1 <= place.line <= len(lines)
        assert 1 <= place.column <= len(lines[place.line - 1]) + 1


def sources() -> st.SearchStrategy[object]:
    words = ("/*", "*/", "//", "dlopen", "system(", "int ", "return ", "PROT_EXEC", "int $0x80", "%gs:", "::")
    piece = st.sampled_from([*"(){};\n\n \"'\\*/&.", *words])
    return st.one_of(st.lists(piece, max_size=30).map("".join), st.text(max_size=60))


# --- Archives of images


def _archive() -> bytes:
    """An image of one layer, as `save` writes it."""
    layer = of_bytes("/file", b"content" * 100)
    config = oci.ImageConfig(oci.Platform("linux", "amd64"), (Digest.of(layer),)).encode()
    parts = oci.Descriptor.of(oci.CONFIG, config), (oci.Descriptor.of(oci.LAYER, layer),)
    manifest = oci.Manifest(*parts).encode()
    entry = oci.Descriptor.of(oci.MANIFEST, manifest).annotated({oci.REF_NAME: "fuzz:1"})
    blobs = {f"blobs/sha256/{Digest.of(data).hex}": data for data in (layer, config, manifest)}
    index = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": oci.Index((entry,)).encode()}
    return b"".join(member(name, data) for name, data in {**index, **blobs}.items()) + END


IMAGES = _archive()


def check_archive(value: object) -> None:
    assert isinstance(value, tuple)
    changes, odd, at, cut, packed = value
    data = bytearray(IMAGES)
    for place, byte in changes:
        data[place % len(data)] = byte
    at = at % (len(data) // 512) * 512
    if odd is not None:
        data[at:at] = ODD[odd]("blobs/sha256/" + "0" * 64, b"x" * 512)
    whole = bytes(data[: len(data) - cut])
    with tempfile.TemporaryDirectory(prefix="uklimg-fuzz-") as folder, mock.patch("os.fsync"):
        store = Store(Path(folder) / "store")
        try:
            found = archive.load(store, io.BytesIO(gzip.compress(whole) if packed else whole))
        except (UserError, ToolError) as error:
            assert error.exit_code != ExitCode.BUG
            assert error.line().isprintable(), error.line()
            assert store.tags() == {}
        else:
            for image in found:
                store.verify(image.root)
        assert not list(store.tmp.iterdir())
        assert [path.name for path in Path(folder).iterdir()] == ["store"]


def archives() -> st.SearchStrategy[object]:
    interesting = st.one_of(st.sampled_from(list(b"\0012345678xgLKSV/.\xff\x80 ")), st.integers(0, 255))
    # A change in a header alone would only break its sum: some are the sum itself.
    header = st.tuples(st.integers(0, len(IMAGES) // 512), st.integers(0, 511)).map(lambda two: two[0] * 512 + two[1])
    change = st.tuples(st.one_of(header, st.integers(0, len(IMAGES))), interesting)
    odd = st.one_of(st.none(), st.sampled_from(sorted(ODD)))
    cut = st.one_of(st.just(0), st.integers(0, len(IMAGES)))
    return st.tuples(st.lists(change, max_size=8), odd, st.integers(0, 1 << 16), cut, st.booleans())


TARGETS = (
    Target("archive", archives(), check_archive),
    Target("uklfile", uklfiles(), check_uklfile),
    Target("expand", expansions(), check_expand),
    Target("ignore", ignores(), check_ignore),
    Target("lock", st.one_of(_mutants([LOCK_TEXT], TOML_PIECES), st.text(max_size=60)), check_lock),
    Target("definitions", st.one_of(_mutants(DEFINITIONS, TOML_PIECES), st.text(max_size=60)), check_definitions),
    Target("words", words(), check_words),
    Target("objects", binaries(), check_objects),
    Target("sources", sources(), check_sources),
)
