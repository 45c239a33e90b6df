"""`uklimg lock` for real: what moved, what is missing, and an old lock that builds the old thing."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from privatestore import private_store
from test_build import ROOT, Project, ran

from uklimg.errors import ExitCode
from uklimg.lock import parse_lock
from uklimg.store import Store

pytestmark = pytest.mark.integration


STAGES = "FROM debian:trixie AS build\nSOURCE URL /src\nRUN echo this is $(cat /src/version.h) NONCE\n"


def archive(text: str) -> bytes:
    """A release with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("thing-1/version.h")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


@dataclass
class Upstream:
    """A site on loopback whose one file changes under its name."""

    url: str
    content: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    content: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = content["thing.tar.gz"]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Upstream(f"http://127.0.0.1:{server.server_address[1]}/thing.tar.gz", content)
    server.shutdown()
    server.server_close()


@pytest.fixture
def project(tmp_path: Path, upstream: Upstream) -> Project:
    """Builds what the site has, and says its version."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "scripts/example.lock", folder / "Uklfile.lock")
    made = Project(folder)
    upstream.content["thing.tar.gz"] = archive("one\n")
    made.write(
        f"FROM debian:trixie AS build\nSOURCE {upstream.url} /src\nRUN echo this is $(cat /src/version.h) NONCE\n"
    )
    return made


def test_an_old_lock_builds_the_old_thing(project: Project, upstream: Upstream) -> None:
    lock = project.folder / "Uklfile.lock"
    first = project.uklimg("lock")
    assert first.status == 0, first.err
    assert "- source debian:redis 5:8.0.2-3+deb13u2\n" in first.out
    assert re.search(r"^\+ base debian-trixie \(\d+ packages\)$", first.out, re.MULTILINE)
    assert re.search(r"^debian-trixie: libc \S+, gcc \S+, libgcc \S+, libstdc\+\+ \S+$", first.out, re.MULTILINE)
    built = project.stage()
    assert f"this is one {project.nonce}" in built.err
    old = lock.read_text()

    # Upstream has something else under the same name. What is locked is still built.
    upstream.content["thing.tar.gz"] = archive("two\n")
    assert ran(project.stage("--locked")) == 0
    assert lock.read_text() == old
    one = next(file for file in parse_lock(old).files() if file.name == "thing.tar.gz")

    # Not even a store that lost the old file takes the new one for it.
    with private_store() as clone:
        Store(clone).blob_path(one.digest).unlink()
        project.write(f"FROM debian:trixie AS build\nSOURCE {upstream.url} /other\nRUN cat /other/version.h\n")
        lost = project.uklimg("--store", str(clone), "build", "--target", "build", "--locked", "--progress", "plain")
        assert lost.status == ExitCode.CORRUPT
        assert "thing.tar.gz" in lost.err.splitlines()[-1] and "127.0.0.1" in lost.err.splitlines()[-1]

    # Forward on request, and only there.
    project.write(STAGES.replace("URL", upstream.url))
    moved = project.uklimg("lock", "--update", upstream.url)
    assert moved.status == 0, moved.err
    new = lock.read_text()
    changed = next(file for file in parse_lock(new).files() if file.name == "thing.tar.gz")
    assert moved.out.splitlines()[0] == (
        f"  source {upstream.url}: thing.tar.gz {one.digest.short} → {changed.digest.short}"
    )
    assert [line for line in old.splitlines() if line not in new.splitlines()] == [
        line for line in old.splitlines() if one.digest.hex in line
    ]
    assert f"this is two {project.nonce}" in project.stage().err

    # And back, with the old lock: the store has both.
    lock.write_text(old)
    back = project.stage("--locked")
    assert back.out == built.out and ran(back) == 0
    project.write(STAGES.replace("URL", upstream.url).replace("this is", "again"))
    assert f"again one {project.nonce}" in project.stage("--locked").err


def test_check_names_what_is_missing_and_what_is_out_of_date(project: Project, upstream: Upstream) -> None:
    lock = project.folder / "Uklfile.lock"
    before = lock.read_text()
    missing = project.uklimg("lock", "--check")
    assert missing.status == ExitCode.USER
    lines = missing.err.splitlines()
    assert [line for line in lines if "lacks base image debian-trixie" in line]
    assert lock.read_text() == before
    assert project.uklimg("lock").status == 0
    complete = project.uklimg("lock", "--check")
    assert complete.status == 0
    assert re.fullmatch(r"\S+/Uklfile.lock is complete: 3 entries, \d+ files\n", complete.out)

    text = lock.read_text()
    outdated = re.sub(r'definition = "sha256:...', 'definition = "sha256:000', text)
    outdated = re.sub(r'patches = "sha256:...', 'patches = "sha256:000', outdated)
    lock.write_text(outdated.replace(upstream.url, f"{upstream.url}.old"))
    found = project.uklimg("lock", "--check", "--format", "json")
    assert found.status == ExitCode.USER
    problems = json.loads(found.out)["problems"]
    assert len(problems) == 2
    assert any("the definition of base image debian-trixie changed" in problem for problem in problems)
    assert any("the patches of kernel 6.12 changed" in problem for problem in problems)

    moved = project.uklimg("lock", "--update", "debian-trixie", "--update", "kernel", "--format", "json")
    assert moved.status == 0, moved.err
    report = json.loads(moved.out)
    kinds = {(change["kind"], change["item"]) for change in report["changes"]}
    assert {("base", "definition"), ("kernel", "patches"), ("source", "")} <= kinds
    assert set(report["runtime"]["debian-trixie"]) == {"libc", "gcc", "libgcc", "libstdc++"}
    assert lock.read_text() == text

    project.write("FROM debian:trixie AS build\nRUN true NONCE\n")
    found = project.uklimg("lock", "--check")
    assert found.status == 0 and f"not used any more: source {upstream.url}" in found.out


def test_options_that_exclude_each_other_and_unknown_names(project: Project) -> None:
    found = project.uklimg("lock", "--check", "--update")
    assert found.status == ExitCode.USER and "exclude each other" in found.err
    found = project.uklimg("lock", "--update", "nobody")
    assert (
        found.status == ExitCode.USER and "nothing named 'nobody' is in the lock (there is debian:redis)" in found.err
    )


def test_plain_http_is_for_this_machine(project: Project) -> None:
    project.write("FROM debian:trixie AS build\nSOURCE http://example.org/x.tar.gz /src\n")
    found = project.uklimg("lock")
    assert (
        found.status == ExitCode.USER
        and "Uklfile:2:8: 'http://example.org/x.tar.gz' is fetched without TLS" in found.err
    )
