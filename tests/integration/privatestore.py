"""A store of a test's own that begins with everything the user's store has, and takes no room for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from uklimg import oci
from uklimg.digest import Digest
from uklimg.settings import read_settings
from uklimg.store import Store


@contextmanager
def private_store() -> Iterator[Path]:
    """A clone of the user's store on the same disk: records and tags copied, blobs linked. Gone at the end."""
    source = read_settings(os.environ, Path.cwd()).store
    with tempfile.TemporaryDirectory(dir=source.parent, prefix="test-store-") as folder:
        clone = Path(folder)
        # What promises blobs comes before the blobs: builds may be going on in the user's store.
        for name in ("oci-layout", "index.json"):
            shutil.copy(source / name, clone)
        shutil.copytree(source / "cache", clone / "cache")
        shutil.copytree(source / "blobs", clone / "blobs", copy_function=os.link)
        yield clone


class Planner(Protocol):
    """A build context: ``test_build.Project`` is one."""

    def uklimg(self, *argv: str) -> Planned: ...


class Planned(Protocol):
    @property
    def status(self) -> int: ...

    @property
    def out(self) -> str: ...


def kernel_keys(project: Planner) -> list[Digest]:
    """The keys of a project's base images and kernel, which are what takes minutes. It has a lock."""
    found = project.uklimg("plan", "--format", "json")
    assert found.status == 0
    steps = json.loads(found.out)
    return [Digest.parse(step["key"]) for step in steps if step["step"].startswith(("base:", "kernel-kit"))]


@contextmanager
def store_of(keys: Sequence[Digest]) -> Iterator[Path]:
    """A store that begins with nothing but the user's results of ``keys``, on the same disk. Gone at the end."""
    source = Store(read_settings(os.environ, Path.cwd()).store)
    with tempfile.TemporaryDirectory(dir=source.root.parent, prefix="test-store-") as folder:
        store = Store(Path(folder))
        for key in keys:
            assert store.borrow(source, key) is not None
        yield store.root


@contextmanager
def sparse_store(recipes: Collection[str], parent: Path | None = None) -> Iterator[Path]:
    """A store that has of the user's only the results of steps of these recipes. Gone at the end.

    It is beside the user's, or in ``parent``.
    """
    source = Store(read_settings(os.environ, Path.cwd()).store)
    with tempfile.TemporaryDirectory(dir=parent or source.root.parent, prefix="test-store-") as folder:
        made = Store(Path(folder))
        for record in source.records():
            if record.fields["recipe"] in recipes:
                for blob in source.closure(record.result.root):
                    if not made.has(blob.digest):
                        link_or_copy(source.blob_path(blob.digest), made.blob_path(blob.digest))
                shutil.copy(source.root / "cache" / f"{record.key.hex}.json", made.root / "cache")
        yield made.root


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy(source, target)


def damage(path: Path, at: int = 1000) -> None:
    """Change one byte of a blob. The file becomes one of its own first: a clone shares its blobs."""
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0x40
    path.unlink()
    path.write_bytes(data)


def check_intact(root: Path, since: frozenset[str]) -> None:
    """Every blob that is not in ``since`` has the bytes that its name says, every record and tag what it needs."""
    store = Store(root)
    for path in (root / "blobs/sha256").iterdir():
        if path.name not in since:
            with path.open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == path.name
    for record in store.records():
        assert all(store.has(blob.digest, blob.size) for blob in store.closure(record.result.root)), record.step
    for descriptor in store.tags().values():
        oci.read_image(lambda blob: store.read_blob(blob.digest), descriptor)


def blobs(root: Path) -> frozenset[str]:
    return frozenset(path.name for path in (root / "blobs/sha256").iterdir())


def layer_of(root: Path, tag: str, role: str) -> Path:
    """The blob that holds a file of an image."""
    store = Store(root)
    image = oci.read_image(lambda blob: store.read_blob(blob.digest), store.tags()[tag])
    return store.blob_path(Digest(image.file(role).digest.hex))
