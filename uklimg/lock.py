"""``Uklfile.lock``: every input of a build by digest, as frozen types with one stable TOML form.

The file is TOML 1.0: ``version = 1``, then arrays of tables ``base``, ``packages``, ``source``, ``image``,
``component``. No mirror is named in it: an origin is ``debian:<path below any mirror's root>`` or the URL that the
Uklfile itself gave. Entries and the packages in them are sorted, so that equal locks are equal text. Pure.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from uklimg.digest import Digest
from uklimg.errors import InternalError, Location, UserError
from uklimg.graph import Blob

if TYPE_CHECKING:
    # Imported where a lock is written: most builds only read one.
    from tomlkit.items import AoT, Array, InlineTable, Table

LOCK_VERSION = 1
LOCK_NAME = "Uklfile.lock"

E = TypeVar("E", bound=Enum)
_DEB = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_%-]*\.deb")


@dataclass(frozen=True, order=True)
class LockedFile:
    """A file by digest. ``size`` in bytes; ``origin`` as ``uklimg.graph.Blob.urls`` takes it."""

    name: str
    digest: Digest
    size: int
    origin: str

    def blob(self) -> Blob:
        return Blob(self.name, self.digest, self.size, (self.origin,))


@dataclass(frozen=True, order=True)
class LockedPackage:
    """A Debian binary package; ``architecture`` is the package's own (``all`` or the machine's)."""

    name: str
    version: str
    architecture: str
    file: LockedFile


@dataclass(frozen=True)
class LockedBase:
    """A base image: ``name`` is its folder's; ``definition`` is the digest of what its folder asks for."""

    name: str
    definition: Digest
    packages: tuple[LockedPackage, ...]

    @property
    def key(self) -> EntryKey:
        return ("base", self.name)


@dataclass(frozen=True)
class LockedPackages:
    """What one PACKAGES adds: ``requested`` (sorted) with all it needs, without what was there before.

    That is the packages of ``base`` and those that the PACKAGES before it in the same file system, which asked for
    ``after`` (in order), have added.
    """

    base: str
    after: tuple[str, ...]
    requested: tuple[str, ...]
    packages: tuple[LockedPackage, ...]

    @property
    def key(self) -> EntryKey:
        return packages_key(self.base, self.after, self.requested)


def packages_key(base: str, after: tuple[str, ...], requested: tuple[str, ...]) -> EntryKey:
    return ("packages", " + ".join([base, *([" ".join(after)] if after else []), " ".join(requested)]))


class SourceKind(Enum):
    """How the files of a source are unpacked."""

    DEBIAN = "debian"  # a .dsc and what it lists: as `dpkg-source -x` does
    ARCHIVE = "archive"  # one tar or zip file
    GIT = "git"  # the tar of a commit (uklimg.gitsource)


@dataclass(frozen=True)
class LockedSource:
    """What one SOURCE names: ``reference`` is its text after substitution, ``version`` "" for archives, a commit
    for git."""

    reference: str
    kind: SourceKind
    version: str
    files: tuple[LockedFile, ...]

    @property
    def key(self) -> EntryKey:
        return ("source", self.reference)


class ComponentKind(Enum):
    KERNEL = "kernel"
    LIBC = "libc"
    LIBRARY = "library"


@dataclass(frozen=True)
class LockedComponent:
    """A kernel, libc or library of ours: upstream's ``file`` and the digests of patches and configuration.

    ``name`` is the folder's name (a kernel's series); ``patches`` is ``PatchSet.digest``.
    """

    kind: ComponentKind
    name: str
    version: str
    file: LockedFile
    patches: Digest

    @property
    def key(self) -> EntryKey:
        return (self.kind.value, self.name)


@dataclass(frozen=True)
class LockedImage:
    """An image of a registry: ``reference`` as the Uklfile has it, ``manifest`` that of linux/amd64, ``env`` its
    variables (``NAME=value``). ``files`` are its configuration and then its layers, bottom first; their origin is
    ``oci:HOST/NAME``."""

    reference: str
    manifest: Digest
    env: tuple[str, ...]
    files: tuple[LockedFile, ...]

    @property
    def key(self) -> EntryKey:
        return ("image", self.reference)


Entry: TypeAlias = LockedBase | LockedPackages | LockedSource | LockedComponent | LockedImage
EntryKey: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Lock:
    """All entries, sorted by key. An empty one stands for a lock file that is not there yet."""

    entries: tuple[Entry, ...] = ()
    _by_key: Mapping[EntryKey, Entry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_key = {entry.key: entry for entry in self.entries}
        if len(by_key) != len(self.entries):
            raise InternalError("two entries of the lock have the same key")
        object.__setattr__(self, "entries", tuple(by_key[key] for key in sorted(by_key)))
        object.__setattr__(self, "_by_key", by_key)

    def get(self, key: EntryKey) -> Entry | None:
        return self._by_key.get(key)

    def with_missing(self, entries: Iterable[Entry]) -> Lock:
        """What ``build`` writes: entries that were not there are added, one that was there never changes."""
        return Lock(tuple({**{entry.key: entry for entry in entries}, **self._by_key}.values()))

    def without(self, names: Iterable[str]) -> Lock:
        """What ``lock --update NAME…`` starts from. A name is an entry's key name (``debian-trixie``, ``6.12``,
        ``debian:redis=5:8.0.2-3``), its kind (``kernel``), or a source's name (``redis``).
        UserError when no entry has it."""
        dropped: set[EntryKey] = set()
        for name in names:
            matching = {entry.key for entry in self.entries if name in _names(entry)}
            if not matching:
                known = sorted({_names(entry)[0] for entry in self.entries})
                raise UserError(f"nothing named {name!r} is in the lock", hint="there is " + ", ".join(known))
            dropped |= matching
        for entry in self.entries:
            # What was added to a base image fits that one only.
            if isinstance(entry, LockedPackages) and ("base", entry.base) in dropped:
                dropped.add(entry.key)
        return Lock(tuple(entry for entry in self.entries if entry.key not in dropped))

    def only(self, keys: Iterable[EntryKey]) -> Lock:
        """The entries in use; ``lock`` drops the others."""
        wanted = set(keys)
        return Lock(tuple(entry for entry in self.entries if entry.key in wanted))

    def files(self) -> tuple[LockedFile, ...]:
        """Every file that a build with this lock may need, once each, sorted (``vendor``, ``du``)."""
        found: set[LockedFile] = set()
        for entry in self.entries:
            if isinstance(entry, LockedBase | LockedPackages):
                found.update(package.file for package in entry.packages)
            elif isinstance(entry, LockedSource | LockedImage):
                found.update(entry.files)
            else:
                found.add(entry.file)
        return tuple(sorted(found))


def _names(entry: Entry) -> tuple[str, ...]:
    kind, name = entry.key
    short = re.sub(r"^debian:|=.*$", "", name) if isinstance(entry, LockedSource) else name
    return (name, kind, short)


# --- writing -------------------------------------------------------------------------------------------------------


def format_lock(lock: Lock) -> str:
    """The one TOML text of a lock; ends in a newline."""
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("Written by uklimg; commit it. `uklimg lock --update` moves it forward."))
    document.add("version", tomlkit.item(LOCK_VERSION))
    groups: dict[str, AoT] = {}
    for entry in lock.entries:
        kind, table = _entry_table(entry)
        groups.setdefault(kind, tomlkit.aot()).append(table)
    for kind in sorted(groups):
        document.add(kind, groups[kind])
    return tomlkit.dumps(document)


def _entry_table(entry: Entry) -> tuple[str, Table]:
    import tomlkit

    table = tomlkit.table()
    if isinstance(entry, LockedBase):
        table.add("name", entry.name)
        table.add("definition", str(entry.definition))
        table.add("packages", _array(_package(package) for package in sorted(entry.packages)))
        return "base", table
    if isinstance(entry, LockedPackages):
        table.add("base", entry.base)
        table.add("after", list(entry.after))
        table.add("requested", list(entry.requested))
        table.add("packages", _array(_package(package) for package in sorted(entry.packages)))
        return "packages", table
    if isinstance(entry, LockedSource):
        table.add("reference", entry.reference)
        table.add("kind", entry.kind.value)
        table.add("version", entry.version)
        table.add("files", _array(_inline(_file(file)) for file in sorted(entry.files)))
        return "source", table
    if isinstance(entry, LockedImage):
        table.add("reference", entry.reference)
        table.add("manifest", str(entry.manifest))
        table.add("env", list(entry.env))
        table.add("files", _array(_inline(_file(file)) for file in entry.files))
        return "image", table
    table.add("kind", entry.kind.value)
    table.add("name", entry.name)
    table.add("version", entry.version)
    table.add("patches", str(entry.patches))
    for name, value in _file(entry.file).items():
        table.add("file" if name == "name" else name, value)
    return "component", table


def _file(file: LockedFile) -> dict[str, str | int]:
    return {"name": file.name, "origin": file.origin, "size": file.size, "sha256": file.digest.hex}


def _package(package: LockedPackage) -> InlineTable:
    file = package.file
    return _inline(
        {
            "name": package.name,
            "version": package.version,
            "architecture": package.architecture,
            "origin": file.origin,
            "size": file.size,
            "sha256": file.digest.hex,
        }
    )


def _inline(values: Mapping[str, str | int]) -> InlineTable:
    import tomlkit

    table = tomlkit.inline_table()
    table.update(values)
    return table


def _array(items: Iterable[InlineTable]) -> Array:
    """One item a line: a version that moved is one line of a diff."""
    import tomlkit

    array = tomlkit.array().multiline(True)
    array.extend(items)
    return array


# --- reading -------------------------------------------------------------------------------------------------------


def parse_lock(text: str, file: str = LOCK_NAME) -> Lock:
    """Read a lock; ``file`` is only named in errors. UserError for what ``format_lock`` cannot have written."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the lock is not TOML: {error}", location=toml_location(file, error)) from error
    if document.get("version") != LOCK_VERSION:
        raise UserError(
            f"the lock has version {document.get('version')!r}, this uklimg reads version {LOCK_VERSION}",
            hint="delete it and run `uklimg lock`",
            location=Location(file),
        )
    readers: Mapping[str, Callable[[_Reader], Entry]] = {
        "base": _read_base,
        "packages": _read_packages,
        "source": _read_source,
        "component": _read_component,
        "image": _read_image,
    }
    entries: list[Entry] = []
    for kind, tables in document.items():
        if kind == "version":
            continue
        if kind not in readers or not isinstance(tables, list):
            raise UserError(f"unknown {kind!r} in the lock", location=Location(file))
        for index, table in enumerate(tables, 1):
            reader = _Reader(file, f"{kind} {index}", table)
            entries.append(readers[kind](reader))
            reader.done()
    if len({entry.key for entry in entries}) != len(entries):
        raise UserError("the lock has an entry twice", hint="remove one", location=Location(file))
    return Lock(tuple(entries))


def toml_location(file: str, error: tomllib.TOMLDecodeError) -> Location:
    """The place that a TOML error's message ends in (``(at line 3, column 5)``)."""
    found = re.search(r"line (\d+), column (\d+)", str(error))
    return Location(file, int(found[1]), int(found[2])) if found else Location(file)


class _Reader:
    """Takes typed values out of one table; whatever is wrong is a UserError naming table and key."""

    def __init__(self, file: str, where: str, table: object) -> None:
        self._file = file
        self._where = where
        if not isinstance(table, dict):
            raise self.error("not a table")
        self._table: dict[str, Any] = dict(table)

    def error(self, problem: str) -> UserError:
        return UserError(f"the lock's {self._where}: {problem}", location=Location(self._file))

    def text(self, key: str) -> str:
        value = self._table.pop(key, None)
        if not isinstance(value, str):
            raise self.error(f"{key!r} must be a string")
        return value

    def number(self, key: str) -> int:
        value = self._table.pop(key, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(f"{key!r} must be a number, 0 or greater")
        return value

    def digest(self, key: str, prefix: str = "") -> Digest:
        try:
            return Digest.parse(prefix + self.text(key))
        except ValueError as error:
            raise self.error(f"{key!r}: {error}") from error

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._table.pop(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"{key!r} must be a list of strings")
        return tuple(value)

    def tables(self, key: str) -> tuple[_Reader, ...]:
        value = self._table.pop(key, None)
        if not isinstance(value, list):
            raise self.error(f"{key!r} must be a list of tables")
        return tuple(_Reader(self._file, f"{self._where}, {key} {n}", item) for n, item in enumerate(value, 1))

    def file(self, name_key: str = "name") -> LockedFile:
        file = LockedFile(
            name=self.text(name_key),
            origin=self.text("origin"),
            size=self.number("size"),
            digest=self.digest("sha256", "sha256:"),
        )
        if "/" in file.name or file.name in ("", ".", ".."):
            raise self.error(f"{file.name!r} is not a file name")
        return file

    def done(self) -> None:
        if self._table:
            raise self.error(f"unknown {sorted(self._table)[0]!r}")


def _read_package(reader: _Reader) -> LockedPackage:
    name, version, architecture = reader.text("name"), reader.text("version"), reader.text("architecture")
    origin, size, digest = reader.text("origin"), reader.number("size"), reader.digest("sha256", "sha256:")
    reader.done()
    file = LockedFile(origin.rpartition("/")[2], digest, size, origin)
    if not _DEB.fullmatch(file.name):
        raise reader.error(f"{origin!r} does not name a .deb")
    return LockedPackage(name, version, architecture, file)


def _read_base(reader: _Reader) -> Entry:
    packages = tuple(_read_package(table) for table in reader.tables("packages"))
    return LockedBase(reader.text("name"), reader.digest("definition"), tuple(sorted(packages)))


def _read_packages(reader: _Reader) -> Entry:
    packages = tuple(_read_package(table) for table in reader.tables("packages"))
    base, after, requested = reader.text("base"), reader.texts("after"), reader.texts("requested")
    return LockedPackages(base, after, requested, tuple(sorted(packages)))


def _read_source(reader: _Reader) -> Entry:
    files: list[LockedFile] = []
    for table in reader.tables("files"):
        files.append(table.file())
        table.done()
    kind = _enum(reader, SourceKind, "kind")
    return LockedSource(reader.text("reference"), kind, reader.text("version"), tuple(sorted(files)))


def _read_component(reader: _Reader) -> Entry:
    kind = _enum(reader, ComponentKind, "kind")
    name, version, patches = reader.text("name"), reader.text("version"), reader.digest("patches")
    return LockedComponent(kind, name, version, reader.file("file"), patches)


def _read_image(reader: _Reader) -> Entry:
    files: list[LockedFile] = []
    for table in reader.tables("files"):
        files.append(table.file())
        table.done()
    if len(files) < 2:
        raise reader.error("an image has a configuration and layers")
    return LockedImage(reader.text("reference"), reader.digest("manifest"), reader.texts("env"), tuple(files))


def _enum(reader: _Reader, kind: type[E], key: str) -> E:
    text = reader.text(key)
    for member in kind:
        if member.value == text:
            return member
    raise reader.error(f"{key!r} is {text!r}, not one of " + ", ".join(str(member.value) for member in kind))
