"""SOURCE git+http://…: a repository on loopback, served by git's own server and as plain files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from privatestore import private_store
from test_build import ROOT, Project, ran

from uklimg import proc
from uklimg.digest import Digest
from uklimg.download import bring_commit, measure_commit
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.events import Event, Note
from uklimg.graph import Blob
from uklimg.lock import LockedFile, LockedSource, SourceKind, parse_lock
from uklimg.store import Store

pytestmark = pytest.mark.integration

# What an export must not obey.
ATTRIBUTES = "* text eol=crlf\nleft-out export-ignore\nkeyword export-subst ident\n"


@dataclass
class Repository:
    """A bare repository with a work tree to commit from. ``smart``: served by git http-backend, which gives out
    single commits; else as plain files, which any web server can do."""

    folder: Path
    port: int = 0
    smart: bool = True
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/thing.git"

    @property
    def bare(self) -> Path:
        return self.folder / "thing.git"

    def git(self, *argv: str) -> str:
        env = {
            **os.environ,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        done = subprocess.run(
            ["git", "-C", str(self.folder / "work"), *argv], env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self, version: str) -> str:
        (self.folder / "work/src/version").write_text(f"{version}\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", version)
        self.publish()
        return self.git("rev-parse", "HEAD")

    def publish(self) -> None:
        self.git("push", "--quiet", "--force", "--mirror", str(self.bare))
        subprocess.run(["git", "-C", str(self.bare), "update-server-info"], check=True)


def handler(repository: Repository) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            path, _, query = self.path.partition("?")
            repository.asked.append(f"{self.command} {self.path}")
            if repository.smart:
                self.backend(path, query)
                return
            file = repository.folder / path.lstrip("/")
            data = file.read_bytes() if file.is_file() else None
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def backend(self, path: str, query: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            env = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(repository.folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "CONTENT_LENGTH": str(len(body)),
            }
            done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
            self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    return Handler


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """One commit, tagged v1."""
    made = Repository(tmp_path / "git")
    (made.folder / "work/src/deep").mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", "--bare", str(made.bare)], check=True)
    made.git("init", "--quiet", "--initial-branch=main", ".")
    work = made.folder / "work"
    (work / ".gitattributes").write_text(ATTRIBUTES)
    (work / "left-out").write_text("kept\n")
    (work / "keyword").write_text("$Format:%H$ $Id$\n")
    (work / "src/deep/grüße").write_text("hello\n")
    (work / "src/run.sh").write_text("#!/bin/sh\necho it runs\n")
    (work / "src/run.sh").chmod(0o755)
    (work / "src/link").symlink_to("../keyword")
    made.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},parts/library")
    (work / "parts/library").mkdir(parents=True)
    made.commit("one")
    made.git("tag", "--annotate", "--message", "first", "v1")
    made.publish()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(made))
    made.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def env() -> dict[str, str]:
    return proc.host_env(os.environ)


def files(store: Store, digest: Digest, into: Path) -> dict[str, str]:
    """The tar's files by path, with their contents."""
    into.mkdir()
    subprocess.run(["tar", "xf", str(store.blob_path(digest)), "-C", str(into)], check=True)
    (top,) = into.iterdir()
    return {
        path.relative_to(top).as_posix(): path.read_text()
        for path in sorted(top.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def test_a_commit_is_taken_as_it_was_committed(repository: Repository, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    events: list[Event] = []
    commit, file = measure_commit(repository.url, "v1", store, env(), events.append)
    assert commit == repository.git("rev-parse", "v1^{commit}") != repository.git("rev-parse", "v1")
    assert file.name == f"thing-{commit[:12]}.tar"
    assert file.origin == f"git+{repository.url}#{commit}"
    found = files(store, file.digest, tmp_path / "out")
    assert found == {
        ".gitattributes": ATTRIBUTES,
        "keyword": "$Format:%H$ $Id$\n",
        "left-out": "kept\n",
        "src/deep/grüße": "hello\n",
        "src/run.sh": "#!/bin/sh\necho it runs\n",
        "src/version": "one\n",
    }
    top = next((tmp_path / "out").iterdir())
    assert (top / "src/link").readlink() == Path("../keyword")
    assert (top / "src/run.sh").stat().st_mode & 0o111
    assert list((top / "parts/library").iterdir()) == []
    notes = [event.text for event in events if isinstance(event, Note)]
    assert len(notes) == 1 and "the submodule parts/library" in notes[0] and "is not fetched" in notes[0]


def test_both_kinds_of_server_and_any_git_settings_give_the_same_bytes(
    repository: Repository, tmp_path: Path
) -> None:
    commit = repository.git("rev-parse", "HEAD")
    repository.commit("two")  # so that the commit is no branch's end
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        '[url "http://127.0.0.1:1/"]\n\tinsteadOf = http://127.0.0.1\n[core]\n\tautocrlf = true\n'
    )
    found: list[tuple[str, LockedFile]] = []
    for smart, name in ((True, commit), (False, commit), (True, "v1"), (False, "v1")):
        repository.smart = smart
        store = Store(tmp_path / f"store-{len(found)}")
        found.append(measure_commit(repository.url, name, store, {**env(), "HOME": str(home)}))
    assert len(set(found)) == 1
    assert any("git-upload-pack" in line and line.startswith("POST") for line in repository.asked)
    assert any("/objects/" in line for line in repository.asked)


def test_what_goes_wrong_is_one_line(repository: Repository, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match="has no tag or branch 'v9'") as unknown:
        measure_commit(repository.url, "v9", store, env())
    assert unknown.value.exit_code == ExitCode.NOT_FOUND
    short = repository.git("rev-parse", "--short=8", "HEAD")
    with pytest.raises(UserError, match="all of its 40 digits"):
        try:
            measure_commit(repository.url, short, store, env())
        except UserError as error:
            raise UserError(error.line()) from error
    with pytest.raises(ToolError, match=f"has no commit {'5' * 40}") as gone:
        measure_commit(repository.url, "5" * 40, store, env())
    assert gone.value.exit_code == ExitCode.NOT_FOUND
    with pytest.raises(ToolError, match=r"cannot fetch from http://127\.0\.0\.1:1/x\.git") as nobody:
        measure_commit("http://user:secret@127.0.0.1:1/x.git", "v1", store, env())
    assert nobody.value.exit_code == ExitCode.NETWORK and "secret" not in nobody.value.line()
    _, file = measure_commit(repository.url, "v1", store, env())
    with pytest.raises(CorruptError, match="is not the locked one"):
        bring_commit(Blob(file.name, Digest.of(b"other"), 0, (file.origin,)), store, env())
    assert not list((store.root / "tmp").iterdir())


def test_a_build_of_a_tag_that_moves(repository: Repository, tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    shutil.copy(ROOT / "scripts/example.lock", project.folder / "Uklfile.lock")
    source = f"git+{repository.url}#v1"
    stages = (
        f"FROM debian:trixie AS build\nSOURCE {source} /src/NONCE\n"
        "RUN echo version $(cat /src/NONCE/src/version) && /src/NONCE/src/run.sh && touch /src/NONCE/new\n"
    )
    project.write(stages)
    first = project.stage()
    assert first.status == 0
    assert "version one" in first.err and "it runs" in first.err
    lock = project.folder / "Uklfile.lock"
    entry = parse_lock(lock.read_text()).get(("source", source))
    assert isinstance(entry, LockedSource)
    assert (entry.kind, entry.version) == (SourceKind.GIT, repository.git("rev-parse", "v1^{commit}"))
    assert project.uklimg("vendor", "kept").status == 0

    old = entry.version
    new = repository.commit("two")
    repository.git("tag", "--force", "--annotate", "--message", "moved", "v1")
    repository.publish()
    # A machine that has nothing: the lock has the commit, and the repository still has that.
    file = entry.files[0]
    empty = Store(tmp_path / "empty")
    bring_commit(file.blob(), empty, env())
    assert empty.verified_path(file.digest).stat().st_size == file.size
    # Where the repository is gone, and the store's copy: the vendored one.
    repository.bare.rename(repository.folder / "gone.git")
    other = project.folder / "other"
    other.mkdir()
    shutil.copy(lock, other)
    text = (project.folder / "Uklfile").read_text()
    (other / "Uklfile").write_text(text.replace(f"/src/{project.nonce}", f"/other/{project.nonce}"))
    with private_store() as clone:
        Store(clone).blob_path(file.digest).unlink()
        options = ("--store", str(clone), "build", "--target", "build", "--progress", "plain", "--locked")
        lost = project.uklimg(*options, "other")
        assert lost.status == ExitCode.NETWORK and "Uklfile:2:1: cannot fetch from" in lost.err.splitlines()[-1]
        kept = project.uklimg(*options, "--offline", "--vendor", "kept", "other")
        assert kept.status == 0 and "version one" in kept.err, kept.err
        assert ran(kept) == 2
    repository.folder.joinpath("gone.git").rename(repository.bare)

    moved = project.uklimg("lock", "--update", source)
    assert f"  source {source} {old} → {new}\n" in moved.out
    assert "version two" in project.stage().err

    digest = re.search(r'name = "thing-[^}]*sha256 = "([0-9a-f]{64})"', lock.read_text())
    assert digest
    project.write(stages.replace("SOURCE ", f"SOURCE --checksum=sha256:{digest[1]} "))
    assert project.stage().status == 0
    project.write(stages.replace("SOURCE ", f"SOURCE --checksum=sha256:{'0' * 64} "))
    wrong = project.uklimg("build", "--target", "build")
    assert wrong.status == ExitCode.USER and "not the --checksum" in wrong.err


def test_only_addresses_that_nobody_on_the_way_can_change(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    for source, problem in (
        ("git+http://example.org/x.git#v1", "is fetched without TLS"),
        ("git+file:///srv/x.git#v1", "is not a git source"),
        ("git+ssh://example.org/x.git#v1", "is not a git source"),
        ("git+https://example.org/x.git", "a git source needs a commit"),
    ):
        project.write(f"FROM debian:trixie AS build\nSOURCE {source} /src\n")
        found = project.uklimg("lock")
        assert found.status == ExitCode.USER and problem in found.err, found.err
