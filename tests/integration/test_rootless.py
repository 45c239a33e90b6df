"""Builds by an ordinary user with buildah: the same image as root's, and nothing left when he is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from enginelib import running, wait_for
from ordinaryuser import PYTHON, ROOT, User, ordinary_user
from privatestore import sparse_store

pytestmark = pytest.mark.integration

UKLFILE = """FROM debian:trixie AS build
WORKDIR /src
COPY main.c .
RUN make main && ./main && chown -R 5:6 /src && rm -r /etc/alternatives && mkdir /etc/alternatives && chmod 751 /opt
FROM ukl:6.12
LINK --from=build /src/main
"""
KEPT = ("base-image", "kernel-kit")


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with ordinary_user() as found:
        yield found


ARGV = ("build", "--engine", "buildah", "--progress", "plain")
STAGE = (*ARGV, "--target", "build")
OFFLINE = ("--locked", "--offline")


@dataclass(frozen=True)
class Project:
    """A context of the user's, with its lock; and what root made of the same files: the image's and the stage's
    digests."""

    folder: Path
    made: list[str]


@pytest.fixture(scope="module")
def project(user: User, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    (folder / "Uklfile").write_text(UKLFILE)
    (folder / "main.c").write_text('#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n')
    shutil.copy(ROOT / "scripts/example.lock", folder / "Uklfile.lock")
    command, env = [sys.executable, "-m", "uklimg"], {**os.environ, "PYTHONPATH": str(ROOT)}
    made = [
        subprocess.run([*command, *argv], cwd=folder, env=env, capture_output=True, text=True, check=False)
        for argv in (ARGV, STAGE)
    ]
    theirs = user.home / "project"
    shutil.copytree(folder, theirs)
    user.own(theirs)
    return Project(theirs, digests(*made))


def digests(*results: subprocess.CompletedProcess[str]) -> list[str]:
    assert [result.returncode for result in results] == [0] * len(results), [result.stderr for result in results]
    return [result.stdout.split()[-1] for result in results]


def test_an_ordinary_user_builds_what_root_builds(user: User, project: Project) -> None:
    with sparse_store(KEPT, user.home) as store:
        user.own(store)
        environ = {"UKLIMG_STORE": str(store)}
        found = [user.uklimg(*argv, *OFFLINE, cwd=project.folder, **environ) for argv in (ARGV, STAGE)]
        assert digests(*found) == project.made
        assert "=> [build 3/3] RUN" in found[0].stderr and "=> compiler wrapper" in found[0].stderr
        pruned = user.uklimg("prune", "--all", cwd=project.folder, **environ)
        assert pruned.returncode == 0 and "stay" not in pruned.stderr, pruned.stderr


def test_kill_9_leaves_no_process(user: User, project: Project) -> None:
    mark = f"{3000 + os.getpid()}.5"
    uklfile = UKLFILE.replace("WORKDIR /src", f"RUN sleep {mark} & sleep {mark}")
    (project.folder / "Uklfile").write_text(uklfile)
    with sparse_store((*KEPT, "toolchain"), user.home) as store:
        user.own(store)
        command = [PYTHON, "-m", "uklimg", *STAGE, *OFFLINE]
        env = {**user.env, "UKLIMG_STORE": str(store)}
        said = user.home / "said"
        with (
            said.open("wb") as log,
            subprocess.Popen(command, cwd=project.folder, env=env, stderr=log, **user.identity) as victim,
        ):
            wait_for(lambda: len(running(mark)) > 1 or victim.poll() is not None)
            assert victim.poll() is None, said.read_text()
            victim.send_signal(signal.SIGKILL)
        wait_for(lambda: running(mark) == [])
