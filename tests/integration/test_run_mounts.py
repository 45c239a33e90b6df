"""RUN --mount in real containers: what the command sees, and that nothing of it stays in the layer."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from test_build import Project, ran
from test_build import locked as locked
from test_build import project as project
from test_build import store as store

from uklimg.digest import Digest
from uklimg.store import Store

pytestmark = pytest.mark.integration

SECRET = "correct horse battery staple"


def top_layer(store: Store, key: str) -> list[str]:
    """The names in the layer of the last step of the stage ``build``."""
    record = next(record for record in store.records() if str(record.key) == key)
    with store.open_blob(record.result.layer.digest) as blob, tarfile.open(fileobj=blob) as archive:
        return archive.getnames()


def key_of(project: Project, step: str, *options: str) -> str:
    steps = json.loads(project.uklimg("plan", "--target", "build", "--format", "json", *options).out)
    return str(next(found["key"] for found in steps if found["step"] == step))


def test_every_kind_of_mount_and_nothing_of_it_stays(project: Project, store: Store) -> None:
    folder = project.folder
    (folder / "tree/deep").mkdir(parents=True)
    (folder / "tree/deep/file").write_text("deep")
    (folder / "one.txt").write_text("one")
    (folder / "skip").write_text("skipped")
    (folder / ".uklignore").write_text("skip\n")
    project.write(
        """FROM debian:trixie AS first
RUN mkdir -p /made && echo NONCE >/made/file && ln -s /made/file /made/link && ln -s /etc /outside
FROM debian:trixie AS build
RUN --mount=target=/context --mount=source=tree/deep,target=/deep,rw --mount=source=one.txt,target=/one \\
    --mount=from=first,source=/made,target=/made --mount=from=first,source=/made/link,target=/through \\
    --mount=from=first,source=/outside/os-release,target=/os \\
    --mount=type=tmpfs,target=/scratch set -ex; \\
  [ "$(cat /context/tree/deep/file)" = deep ]; [ ! -e /context/skip ]; ! touch /context/x; \\
  [ "$(cat /deep/file)" = deep ]; echo more >/deep/more; [ "$(cat /one)" = one ]; ! touch /one; \\
  [ "$(cat /made/file)" = NONCE ]; [ "$(cat /through)" = NONCE ]; ! touch /made/x; \\
  grep -q trixie /os; \\
  [ -z "$(ls -A /scratch)" ]; echo x >/scratch/x; [ ! -e /in ]; echo kept >/kept
"""
    )
    assert project.stage().status == 0
    assert not (folder / "tree/deep/more").exists()
    assert top_layer(store, key_of(project, "stage:build:1")) == ["kept"]
    (folder / "one.txt").write_text("two")
    assert project.stage().status != 0  # the file is part of the key, and its test fails now


def test_a_cache_outlives_the_step_and_locked_builds_do_not_see_it(project: Project, store: Store) -> None:
    text = "FROM debian:trixie AS build\nRUN --mount=type=cache,id=NONCE,target=/cache ls /cache; : NONCE; {}\n"
    project.write(text.format("touch /cache/from-before"))
    first = project.stage()
    assert first.status == 0
    assert "Uklfile:2:1: RUN --mount=type=cache makes this build not reproducible" in first.err
    project.write(text.format("[ -e /cache/from-before ]"))
    assert project.stage().status == 0
    project.write(text.format('[ -z "$(ls -A /cache)" ] && touch /cache/x'))
    locked = project.stage("--locked")
    assert locked.status == 0
    assert "not reproducible" not in locked.err
    assert top_layer(store, key_of(project, "stage:build:1", "--locked")) == []
    assert project.stage().status == 3  # without --locked it is another step, and finds the cache full
    (cache,) = (store.root / "mounts").glob(f"{Digest.of(project.nonce.encode()).hex}.0")
    assert [path.name for path in cache.iterdir()] == ["from-before"]
    shutil.rmtree(cache)


def test_a_secret_is_there_and_nowhere_else(project: Project, store: Store) -> None:
    (project.folder / "secret.txt").write_text(SECRET)
    project.write(
        """FROM debian:trixie AS build
RUN --mount=type=secret,id=file,required --mount=type=secret,id=file,target=/root/.netrc,mode=0444 \\
    --mount=type=secret,id=other,env=TOKEN --mount=type=secret,id=missing set -e; \\
  [ "$(wc -c </run/secrets/file)" = 28 ]; [ "$(stat -c %a:%u /run/secrets/file)" = 400:0 ]; \\
  cmp /run/secrets/file /root/.netrc; [ "${#TOKEN}" = 20 ]; [ ! -e /run/secrets/missing ]; \\
  [ ! -e /run/secrets/other ]; echo NONCE >/kept
"""
    )
    refused = project.stage()
    assert refused.status == 1
    assert refused.err.count("\n") == 1
    assert "Uklfile:2:1: there is no secret 'file'" in refused.err
    options = ("--secret", "id=file,src=secret.txt", "--secret", "id=other,env=OTHER")
    before = every_file(store.root)
    found = project.stage(*options, OTHER="from the environment")
    assert found.status == 0
    assert SECRET not in found.err + found.out
    assert top_layer(store, key_of(project, "stage:build:1", *options[:2])) == ["kept"]
    for path, written in every_file(store.root).items():
        if before.get(path) != written:
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert b"from the environment" not in content, path
    (project.folder / "secret.txt").write_text("another one of the right size")
    assert ran(project.stage(*options, OTHER="x")) == 0  # what a secret holds is in no key


def every_file(root: Path) -> dict[Path, int]:
    """What the store holds, and when it was written; without unpacked trees, the engine's root file systems,
    what is larger than any layer of this test, and what other builds have in hand."""
    found: dict[Path, int] = {}
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in ("trees", "engine", "tmp", "locks")]
        for name in files:
            with suppress(FileNotFoundError):
                info = Path(folder, name).lstat()
                if stat.S_ISREG(info.st_mode) and info.st_size < 8 << 20:
                    found[Path(folder, name)] = info.st_mtime_ns
    return found
