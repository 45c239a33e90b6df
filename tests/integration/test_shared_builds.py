"""Whole builds on two machines that share a cache: the second has an empty store, and no engine at all.

The first machine is this one, with its warm store. The second is another store and an environment in which no program
is found, so that a build that ran anything would fail.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_build import ROOT, Project, Result
from test_registry import HTPASSWD, Server, free_port, registry

from uklimg.errors import ExitCode
from uklimg.settings import read_settings
from uklimg.store import Store

pytestmark = [pytest.mark.integration, pytest.mark.boot]

TAG = "uklimg-test/shared"
UKLFILE = """FROM debian:trixie AS build
COPY main.c /src/
RUN $CC -O2 -o /src/shared /src/main.c && /src/shared # NONCE
"""
LAST = """FROM ukl:6.12
LINK --from=build /src/shared
COPY main.c /etc/main.c
MEMORY 128M
"""


def make(folder: Path) -> Project:
    folder.mkdir()
    (folder / "main.c").write_text("int main(void) { return 0; }\n")
    shutil.copy(ROOT / "scripts/example.lock", folder / "Uklfile.lock")
    project = Project(folder)
    project.write(UKLFILE, LAST)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = make(tmp_path / "context")
    yield made
    made.uklimg("rmi", TAG)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with registry(tmp_path / "registry") as running:
        yield running


def build(project: Project, *argv: str, **environ: str) -> Result:
    found = project.uklimg("build", "-t", TAG, "--progress", "json", "--format", "json", *argv, **environ)
    if found.status:
        print(found.err)
    return found


def events(found: Result, kind: str) -> list[dict[str, object]]:
    said = [json.loads(line) for line in found.err.splitlines() if line.startswith("{")]
    return [event for event in said if event["event"] == kind]


def warnings(found: Result) -> list[object]:
    return [event["text"] for event in events(found, "note") if event["warning"]]


@dataclass(frozen=True)
class Elsewhere:
    """An empty machine."""

    store: Path

    def build(self, project: Project, *argv: str) -> Result:
        bare = self.store / "bin"
        bare.mkdir(parents=True, exist_ok=True)
        return build(project, "--locked", *argv, UKLIMG_STORE=str(self.store), PATH=str(bare))


def check_nothing_ran(found: Result, first: Result, elsewhere: Elsewhere) -> None:
    assert found.status == 0
    made = json.loads(found.out)
    assert made["ran"] == []
    assert made["digest"] == json.loads(first.out)["digest"]
    assert events(found, "step-started") == [] and warnings(found) == []
    # Only the image came, by one record.
    store = Store(elsewhere.store)
    assert [record.step for record in store.records()] == ["image"]
    store.verify(store.tags()[f"{TAG}:latest"])


def test_an_empty_machine_builds_from_a_shared_cache_without_running_anything(
    project: Project, server: Server, tmp_path: Path
) -> None:
    caches = [f"dir:{tmp_path}/cache", f"{server.host}/team/cache"]
    first = build(project, *(word for cache in caches for word in ("--cache-to", cache)))
    assert first.status == 0
    assert json.loads(first.out)["ran"]
    for verb in (("build", "--plan"), ("plan",)):
        plan = (*verb, "--locked", "--cache-from", caches[1], "--format", "json")
        planned = project.uklimg(*plan, UKLIMG_STORE=f"{tmp_path}/planned")
        assert [step["state"] for step in json.loads(planned.out)] == ["hit"] * len(json.loads(planned.out))
    for number, cache in enumerate(caches):
        elsewhere = Elsewhere(tmp_path / f"elsewhere-{number}")
        check_nothing_ran(elsewhere.build(project, "--cache-from", cache), first, elsewhere)
    # BuildKit's spelling, and two caches of which the first has nothing.
    elsewhere = Elsewhere(tmp_path / "elsewhere")
    found = elsewhere.build(
        project,
        "--cache-from", f"type=registry,ref={server.host}/nobody/wrote/here",
        "--cache-from", f"type=local,src={tmp_path}/cache",
    )  # fmt: skip
    check_nothing_ran(found, first, elsewhere)


def test_what_a_failed_build_had_made_is_shared(project: Project, tmp_path: Path) -> None:
    cache = f"dir:{tmp_path}/cache"
    project.write(UKLFILE, LAST.replace("/src/shared", "/src/gone"))
    failed = build(project, "--cache-to", cache)
    assert failed.status == ExitCode.STEP
    # The stage is in it: another machine does not make it again.
    found = project.uklimg(
        "build", "--target", "build", "--locked", "--cache-from", cache, "--format", "json",
        UKLIMG_STORE=str(tmp_path / "elsewhere"), PATH="/nowhere",
    )  # fmt: skip
    assert found.status == 0, found.err
    assert json.loads(found.out)["ran"] == []


def test_caches_that_cannot_be_used(project: Project, tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}/cache"
    found = build(project, "--cache-from", nowhere, "--cache-from", f"dir:{tmp_path}/missing")
    assert found.status == 0
    assert len(warnings(found)) == 2
    # The image is there, and that nobody else gets it is an error all the same.
    found = build(project, "--cache-to", nowhere)
    assert found.status == ExitCode.NETWORK
    assert f"uklimg: the cache {nowhere} could not be written: cannot reach" in found.err.splitlines()[-1]
    assert f"{TAG}:latest" in Store(read_settings(os.environ, Path.cwd()).store).tags()
    found = build(project, "--cache-to", f"type=registry,ref={nowhere},ignore-error=true")
    assert found.status == 0
    assert len(warnings(found)) == 1


def test_a_registry_with_users(project: Project, tmp_path: Path) -> None:
    users = tmp_path / "htpasswd"
    users.write_text(HTPASSWD + "\n")
    with registry(tmp_path / "closed", f"auth: {{htpasswd: {{realm: test, path: {users}}}}}\n") as closed:
        cache = f"{closed.host}/cache"
        anonymous = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "UKLIMG_STORE": str(store_path())}
        found = build(project, "--cache-to", cache, **anonymous)
        assert found.status == ExitCode.AUTH
        auth = tmp_path / "auth.json"
        auth.write_text(json.dumps({"auths": {closed.host: {"username": "ada", "password": "correct horse"}}}))
        first = build(project, "--cache-to", cache, REGISTRY_AUTH_FILE=str(auth))
        assert first.status == 0
        elsewhere = Elsewhere(tmp_path / "elsewhere")
        found = project.uklimg(
            "build", "-t", TAG, "--locked", "--cache-from", cache, "--format", "json", "--progress", "json",
            UKLIMG_STORE=str(elsewhere.store), REGISTRY_AUTH_FILE=str(auth), PATH="/nowhere",
        )  # fmt: skip
        check_nothing_ran(found, first, elsewhere)


def store_path() -> Path:
    return read_settings(os.environ, Path.cwd()).store


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--cache-to", "cache"], "--cache-to cache names no registry (HOST/NAME for a registry, dir:PATH"),
        (["--cache-to", "dir:"], "--cache-to names no folder"),
        (["--cache-from", "h:5000/x:main"], "a cache is a whole repository"),
        (["--cache-from", "type=gha"], "type=gha is unknown"),
        (["--cache-from", "type=local,dest=x"], "dest has no meaning here"),
        (["--offline", "--cache-from", "h:5000/x"], "--offline forbids --cache-from h:5000/x"),
    ],
)
def test_places_that_are_none(project: Project, argv: list[str], said: str) -> None:
    found = project.uklimg("build", *argv)
    assert found.status == ExitCode.USER
    assert found.err.startswith("uklimg: ") and said in found.err and found.err.count("\n") == 1
