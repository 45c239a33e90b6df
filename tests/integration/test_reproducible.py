"""The same lock, the same digest: whoever builds, where, and under which circumstances.

Base image and kernel come from the machine's store, since they take minutes; scripts/reproduce.sh makes them anew
under other circumstances, too. Everything else is made in empty stores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
from privatestore import kernel_keys, store_of
from test_build import Project

from uklimg import blueprints
from uklimg.blueprint import first_difference
from uklimg.blueprints import Carried
from uklimg.digest import Digest
from uklimg.store import Store

pytestmark = [pytest.mark.integration, pytest.mark.boot]  # boot: the kernel is made before the first of them

UKLFILE = r"""
ARG WORD=hello
FROM debian:trixie AS library
SOURCE lib-1.0.tar.xz /src
RUN make -C /src -j$(nproc) CFLAGS='-O2 -g' CXXFLAGS='-O2 -g' liball.a

FROM debian:trixie AS build
ARG WORD
ENV LEVEL=2
WORKDIR /app
COPY --from=library /src/liball.a /src/*.h /app/
COPY program main.c /app/
ADD lib-1.0.tar.xz /unpacked/
RUN <<EOF
set -e
$CC -O$LEVEL -g -DWORD="\"$WORD\"" -c *.c
$CXX -g -o program *.o liball.a
./program
date -d @$SOURCE_DATE_EPOCH >date; ls -l --time-style=full-iso /unpacked/* >listing; id >id
umask >umask; env | sort >env; hostname >hostname; locale >locale
tar c --sort=name lib >lib.tar; stat -c '%a %u %g %Y %n' *.c *.h >stat
python3 -m compileall -q lib
EOF

FROM ukl:6.12
LINK --from=build /app/program
COPY --from=build /app /built
COPY etc /etc/app/
COPY program/link /etc/app.conf
COPY --chmod=600 main.c /root/main.c
COPY <<file /etc/note
written here
file
VOLUME /data /var/lib/program
ENV A=1 B=2
LABEL a=1 b=2 org.opencontainers.image.title=reproducible
EXPOSE 80 443/tcp
CMD ["program", "x"]
MEMORY 128M
"""
MAIN = "#include <stdio.h>\nint all(void);\n"
MAIN += 'int main(void) { return printf("%s %d " __FILE__ "\\n", WORD, all()) < 0; }\n'


def write_context(folder: Path, *, private: bool) -> None:
    """The same files; with ``private`` in another order, with other modes and dates."""
    files = {
        "main.c": MAIN,
        "program/one.c": "int one(void) { return 1; }\n",
        "program/deep/two.txt": "two\n",
        "program/lib/module.py": "VALUE = {1, 2, 3}\n",
        "etc/a.conf": "a\n",
        "etc/sub/b.conf": "b\n",
    }
    folder.mkdir(parents=True)
    for name, text in sorted(files.items(), reverse=private):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "etc/run.sh").write_text("#!/bin/sh\n")
    (folder / "etc/run.sh").chmod(0o700 if private else 0o755)
    (folder / "program/link").symlink_to("../etc/a.conf")
    write_library(folder / "lib-1.0.tar.xz")
    (folder / "Uklfile").write_text(UKLFILE)
    if private:
        for path in sorted(folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o700 if path.is_dir() or path.name == "run.sh" else 0o600)
                os.utime(path, (1_000_000_000, 1_000_000_000))


def write_library(path: Path) -> None:
    """A C and a C++ file, and a Makefile that makes an archive of them."""
    files = {
        "lib-1.0/one.cc": '#include "all.h"\n#include <string>\nstatic std::string s(__FILE__);\n'
        'extern "C" int all(void) { return (int)s.size() + other(); }\n',
        "lib-1.0/other.c": '#include "all.h"\nint other(void) { return __LINE__; }\n',
        "lib-1.0/all.h": '#ifdef __cplusplus\nextern "C"\n#endif\nint other(void);\n',
        "lib-1.0/Makefile": "liball.a: one.o other.o\n\t$(AR) rcs $@ $^\n",
    }
    with tarfile.open(path, "w:xz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.gname = len(text), 1_500_000_000, 1234, "staff"
            archive.addfile(info, BytesIO(text.encode()))


@dataclass(frozen=True)
class Circumstances:
    """Of a build. ``processors`` 0: all of them."""

    folder: str
    private: bool = False
    umask: int = 0o022
    host_name: str = ""
    processors: int = 0
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def argv(self, command: list[str]) -> list[str]:
        if self.processors:
            there = sorted(os.sched_getaffinity(0))[: self.processors]
            command = ["taskset", "-c", ",".join(map(str, there)), *command]
        if self.host_name:
            script = 'hostname "$1" && shift && exec "$@"'
            command = ["unshare", "--uts", "sh", "-c", script, "sh", self.host_name, *command]
        return command


@dataclass(frozen=True)
class Built:
    digest: Digest
    carried: Carried


def build(root: Path, where: Path, circumstances: Circumstances, lock: Path) -> Built:
    folder = where / circumstances.folder
    if not folder.exists():
        write_context(folder, private=circumstances.private)
        shutil.copy(lock, folder / "Uklfile.lock")
    command = Project(folder).argv("--store", str(root), "build", "--locked", "-t", "same", *circumstances.arguments)
    done = subprocess.run(
        circumstances.argv(command),
        cwd=folder,
        env={**Project(folder).env, **circumstances.variables},
        umask=circumstances.umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    digest = Digest.parse(done.stdout.split()[-1])
    carried = blueprints.read(Store(root), digest)
    assert carried is not None
    return Built(digest, carried)


@dataclass(frozen=True)
class Reference:
    built: Built
    root: Path
    where: Path
    lock: Path
    borrowed: list[Digest]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    where = tmp_path_factory.mktemp("reproducible")
    write_context(where / "plain", private=False)
    project = Project(where / "plain")
    assert project.uklimg("lock").status == 0
    borrowed = kernel_keys(project)
    lock = where / "plain/Uklfile.lock"
    with store_of(borrowed) as root:
        yield Reference(build(root, where, Circumstances("plain"), lock), root, where, lock, borrowed)


def check_same(reference: Reference, other: Built) -> None:
    step = first_difference(reference.built.carried.blueprint.steps, other.carried.blueprint.steps)
    assert step is None, f"the first step that differs is {step.id}"
    assert other.digest == reference.built.digest
    assert other.carried == reference.built.carried


def test_another_place_and_person(reference: Reference) -> None:
    """Another folder, umask, host name, number of processors, locale, time zone, home; files of other modes and
    dates; variables that tools listen to; an empty store."""
    with store_of(reference.borrowed) as root:
        home = reference.where / "home of nobody"
        home.mkdir()
        circumstances = Circumstances(
            "much/deeper/context",
            private=True,
            umask=0o077,
            host_name="elsewhere",
            processors=1,
            arguments=("--jobs", "1", "--progress", "plain"),
            variables={
                "TZ": "Pacific/Kiritimati",
                "LC_ALL": "tr_TR.UTF-8",
                "LANG": "tr_TR.UTF-8",
                "HOME": str(home),
                "TMPDIR": str(home),
                "USER": "nobody",
                "LOGNAME": "nobody",
                "SOURCE_DATE_EPOCH": "1",
                "CFLAGS": "-O0",
                "CC": "false",
                "MAKEFLAGS": "-k",
                "PYTHONHASHSEED": "7",
                "TAR_OPTIONS": "--mtime=@1",
                "GZIP": "-9",
            },
        )
        check_same(reference, build(root, reference.where, circumstances, reference.lock))


def test_everybody_may_write(reference: Reference) -> None:
    with store_of(reference.borrowed) as root:
        circumstances = Circumstances(
            "open", umask=0, host_name="uklimg.example.org", variables={"PYTHONHASHSEED": "0"}
        )
        check_same(reference, build(root, reference.where, circumstances, reference.lock))


def test_some_from_the_cache(reference: Reference) -> None:
    """The steps of one stage are cached, those of the others are made again, at another time."""
    time.sleep(1.1)
    store = Store(reference.root)
    for record in list(store.records()):
        if record.step.startswith(("stage:build", "app:", "image", "init")):
            (reference.root / f"cache/{record.key.hex}.json").unlink()
    check_same(reference, build(reference.root, reference.where, Circumstances("plain"), reference.lock))
    check_same(reference, build(reference.root, reference.where, Circumstances("plain"), reference.lock))


def test_the_circumstances_are_what_they_say(tmp_path: Path) -> None:
    """Else nothing above would be tested."""
    script = "import os, socket; print(socket.gethostname(), len(os.sched_getaffinity(0)))"
    command = Circumstances("x", host_name="elsewhere", processors=1).argv([sys.executable, "-c", script])
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "elsewhere 1\n"
