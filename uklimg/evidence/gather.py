"""Makes what is attached to an image out of its blueprint and the store: SBOM, provenance, lock, .config, symbols."""

from __future__ import annotations

import lzma
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from uklimg import __version__, attached, attachments, blueprint, blueprints, oci
from uklimg.attached import Kind
from uklimg.blueprints import Carried
from uklimg.data import Data
from uklimg.digest import Digest
from uklimg.errors import UserError
from uklimg.evidence.copyrights import licences
from uklimg.evidence.parts import Recipe, parts_of
from uklimg.evidence.provenance import provenance
from uklimg.evidence.sbom import sbom
from uklimg.lock import (
    ComponentKind,
    Lock,
    LockedBase,
    LockedComponent,
    LockedPackage,
    LockedSource,
    SourceKind,
    parse_lock,
)
from uklimg.recipes.kernel import STEP_ID as KERNEL_KIT
from uklimg.store import Store

_MAX_COPYRIGHT = 4 << 20
_DOC = "usr/share/doc/"
VMLINUX = "vmlinux"
"""The kernel's file among the symbols."""


@dataclass(frozen=True)
class Evidence:
    """Makes artifacts about images of ``store``. ``builder`` is who built them, as a URI."""

    store: Store
    data: Data
    builder: str = ""

    def attach(self, root: oci.Descriptor, kinds: Iterable[Kind]) -> tuple[oci.Descriptor, ...]:
        """The entries of ``kinds`` about the image ``root``, an index: what is attached to it, else made from its
        blueprint; none of what there is nothing to make from. What somebody else says of an image that was built
        here does not count. The caller holds a session."""
        found = (self.one(root, kind) for kind in kinds)
        return tuple(entry for entry in found if entry is not None)

    def one(self, root: oci.Descriptor, kind: Kind) -> oci.Descriptor | None:
        """As ``attach``, of one kind."""
        there = attachments.entry_of(self.store, root.digest, kind)
        if there is not None and not attachments.is_there(self.store, there):
            there = None
        before = there.annotations.get(attached.IDENTITY, "") if there else ""
        if there is not None and not before and not self.built_here(root):
            return there  # somebody else made it, and it came along
        carried = blueprints.read(self.store, root.digest)
        if carried is None:
            return there
        identity = self._identity(carried, kind)
        if there is not None and before == identity:
            return there
        files = self._files(root, carried, kind)
        if not files:
            return None
        self.store.put_bytes(attached.NO_CONFIG)
        manifest = self.store.put_bytes(attached.manifest(kind, files, root).encode(), oci.MANIFEST)
        made = attached.entry(manifest, kind.artifact_type, root.digest, identity)
        attachments.put(self.store, made)
        return made

    def _identity(self, carried: Carried, kind: Kind) -> str:
        builder = self.builder if kind == attached.PROVENANCE else ""
        about = {"uklimg": __version__, "blueprint": str(carried.artifact.digest), "builder": builder}
        return str(Digest.of_json(about))

    def _files(self, root: oci.Descriptor, carried: Carried, kind: Kind) -> Mapping[str, oci.Descriptor]:
        if kind == attached.LOCK:
            return {blueprint.LOCK: carried.files[blueprint.LOCK]}
        if kind == attached.CONFIG:
            name = blueprint.KERNEL_CONFIG
            return {name: carried.files[name]} if name in carried.files else {}
        if kind == attached.DEBUG:
            return dict(self._symbols(carried))
        if kind == attached.SBOM:
            return {"sbom.cdx.json": self.store.put_bytes(self._sbom(root, carried), kind.media_type)}
        # Who did not build it cannot say how it was built.
        if not self.built_here(root):
            return {}
        return {"provenance.json": self.store.put_bytes(self._provenance(root, carried), kind.media_type)}

    def built_here(self, root: oci.Descriptor) -> bool:
        """Whether the store remembers the build that made the image."""
        carried = blueprints.read(self.store, root.digest)
        record = self.store.record(carried.blueprint.steps[-1].key) if carried else None
        return record is not None and record.result.root.digest == root.digest

    def _sbom(self, root: oci.Descriptor, carried: Carried) -> bytes:
        image = oci.read_image(lambda blob: self.store.read_blob(blob.digest), root)
        lock = self._lock(carried)
        known = _Licences(self.store, carried, lock)
        parts = parts_of(image.run, carried.blueprint, carried.files, lock, self.recipe, known)
        return sbom(root.digest, image.run, parts, __version__)

    def _provenance(self, root: oci.Descriptor, carried: Carried) -> bytes:
        image = oci.read_image(lambda blob: self.store.read_blob(blob.digest), root)
        subjects = [(image.run.program, root.digest)]
        subjects += [(f"{image.run.program} {entry.platform}", entry.digest) for entry in image.index.manifests]
        uklfile = blueprints.text(self.store, carried, blueprint.UKLFILE)
        lock = self._lock(carried)
        return provenance(subjects, image.run, carried.blueprint, carried.files, uklfile, lock, self.builder)

    def _lock(self, carried: Carried) -> Lock:
        return parse_lock(blueprints.text(self.store, carried, blueprint.LOCK))

    def recipe(self, component: LockedComponent) -> Recipe | None:
        """What this uklimg has of it, if that is still the same."""
        readers = {
            ComponentKind.KERNEL: self.data.kernel,
            ComponentKind.LIBC: self.data.libc,
            ComponentKind.LIBRARY: self.data.library,
        }
        try:
            folder = readers[component.kind](component.name)
        except UserError:
            return None
        if folder.patches.digest != component.patches or folder.definition.version != component.version:
            return None
        return Recipe(folder.definition.name, folder.definition.license, folder.patches)

    def _symbols(self, carried: Carried) -> Iterator[tuple[str, oci.Descriptor]]:
        for name, path in symbol_files(self.store, carried):
            yield name, self.store.put_file(path, attached.DEBUG.media_type)


def symbol_files(store: Store, carried: Carried) -> Iterator[tuple[str, Path]]:
    """The kernel's ELF file (``vmlinux``) and the application's (``NAME.debug``), both with symbols, as far as the
    store has what the steps left."""
    for step in carried.blueprint.steps:
        if step.id != KERNEL_KIT and step.recipe not in ("app", "program"):
            continue
        result = store.lookup(step.key)
        for path in sorted(store.tree(result).iterdir()) if result else ():
            if path.suffix == ".debug" or (step.id == KERNEL_KIT and path.name == VMLINUX):
                yield path.name, path


class _Licences:
    """Licences of Debian's packages and sources, out of what the store still has of them; () where it has nothing
    that a machine can read."""

    def __init__(self, store: Store, carried: Carried, lock: Lock) -> None:
        self._store = store
        self._in_base: dict[str, str] = {}
        bases = [entry.name for entry in lock.entries if isinstance(entry, LockedBase)]
        for step in carried.blueprint.steps:
            if step.id in {f"base:{name}" for name in bases} and step.result and store.has(step.result):
                self._in_base |= _copyright_files(store.blob_path(step.result))

    def __call__(self, entry: LockedPackage | LockedSource) -> tuple[str, ...]:
        if isinstance(entry, LockedPackage):
            if entry.name in self._in_base:
                return licences(self._in_base[entry.name])
            return licences(self._of_package(entry))
        return licences(self._of_source(entry)) if entry.kind is SourceKind.DEBIAN else ()

    def _of_package(self, package: LockedPackage) -> str:
        if not self._store.has(package.file.digest, package.file.size):
            return ""
        from debian.debfile import DebError, DebFile

        try:
            with DebFile(self._store.blob_path(package.file.digest)) as file:
                content = file.data.get_content(f"{_DOC}{package.name}/copyright")
        except (DebError, KeyError, OSError, EOFError, lzma.LZMAError, tarfile.TarError):
            return ""
        return content.decode("utf-8", "replace") if isinstance(content, bytes) else str(content or "")

    def _of_source(self, source: LockedSource) -> str:
        """debian/copyright of the packaging."""
        for file in source.files:
            if ".debian.tar" in file.name and self._store.has(file.digest, file.size):
                try:
                    with tarfile.open(self._store.blob_path(file.digest)) as archive:
                        return _text(archive, archive.getmember("debian/copyright"))
                except (KeyError, OSError, EOFError, lzma.LZMAError, tarfile.TarError):
                    return ""
        return ""


def _copyright_files(layer: Path) -> dict[str, str]:
    """Copyright files of a base image by package; some packages' are a link to another's folder."""
    texts: dict[str, str] = {}
    links: dict[str, str] = {}
    with tarfile.open(layer, "r:") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not name.startswith(_DOC):
                continue
            package, _, rest = name.removeprefix(_DOC).partition("/")
            if member.issym() and not rest:
                links[package] = member.linkname.rstrip("/").rpartition("/")[2]
            elif member.issym() and rest == "copyright":
                links[package] = member.linkname.rpartition("/")[0].rpartition("/")[2]
            elif rest == "copyright":
                texts[package] = _text(archive, member)
    for package in links:
        target = links[package]
        for _ in range(5):
            target = links.get(target, target)
        if package not in texts and target in texts:
            texts[package] = texts[target]
    return texts


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = archive.extractfile(member) if member.isreg() and member.size <= _MAX_COPYRIGHT else None
    return content.read().decode("utf-8", "replace") if content else ""
