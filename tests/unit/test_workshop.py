"""What `bench` and `profile` resolved once stays, and never keeps them from resolving anew."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_resolve import Archive, Folders

from uklimg.cli.host import Host
from uklimg.cli.workshop import Workshop
from uklimg.console import console
from uklimg.lock import Lock, LockedComponent, parse_lock
from uklimg.resolve import ResolvedSpec, resolve
from uklimg.settings import read_settings
from uklimg.spec import SeriesInfo, read_spec
from uklimg.store import Store

pytestmark = pytest.mark.unit

UKLFILE = "FROM debian:trixie AS build\nSOURCE debian:redis=8 /src\nFROM ukl:6.12\nLINK --from=build /p\n"


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    settings = read_settings({}, tmp_path, store=str(tmp_path / "store"))
    settings = cast(Any, SimpleNamespace(store=settings.store, config=settings.config, state=tmp_path / "state"))
    host = Host({}, tmp_path, 0, io.StringIO(), io.StringIO(), settings)
    with console("plain", host.stderr) as sink:
        return Workshop(host, Store(settings.store, sink), sink)


def resolved() -> ResolvedSpec:
    series = {"6.12": SeriesInfo("6.12", ())}
    spec = read_spec(UKLFILE, "Uklfile", build_args={}, base_images=["debian-trixie"], series=series)
    return resolve(spec, Lock(), Folders(), Archive())


def test_the_packaged_lock_is_the_first(workshop: Workshop) -> None:
    (lock,) = workshop._locks()
    assert lock.get(("source", "debian:redis")) is not None


def test_what_was_resolved_stays_but_not_what_our_own_folders_say(workshop: Workshop, tmp_path: Path) -> None:
    found = resolved()
    workshop._keep(found)
    kept, packaged = workshop._locks()
    keys = {entry.key for entry in kept.entries}
    own = {entry.key for entry in found.lock.entries if isinstance(entry, LockedComponent)}
    assert own and not own & keys
    # Of the packaged one as well, what the kept one lacks.
    assert {entry.key for entry in found.lock.entries} - own | {entry.key for entry in packaged.entries} == keys
    path = tmp_path / "state/bench.lock"
    before = path.stat().st_mtime_ns
    workshop._keep(found)
    assert path.stat().st_mtime_ns == before
    assert parse_lock(path.read_text(), "bench.lock").entries


@pytest.mark.parametrize("text", ["not TOML [", "version = 99\n"])
def test_a_lock_that_cannot_be_read_is_passed_over(workshop: Workshop, tmp_path: Path, text: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/bench.lock").write_text(text)
    assert len(workshop._locks()) == 1
