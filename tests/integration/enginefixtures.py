"""Fixtures for tests of container engines (a pytest plugin)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from enginelib import DOCKER, PODMAN, WAYS, Bench, Way, running_dockerd, running_podman


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Way]:
    with running_dockerd() as way:
        yield way


@pytest.fixture(scope="session")
def podman() -> Iterator[Way]:
    with running_podman() as way:
        yield way


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    daemons = {DOCKER: "dockerd", PODMAN: "podman"}
    name: str = request.param
    found: Way = request.getfixturevalue(daemons[name]) if name in daemons else Way(name)
    return found


@pytest.fixture(scope="module")
def bench(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp(way.name) / "a Store", way)
