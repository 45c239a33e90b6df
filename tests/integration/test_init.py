"""`uklimg init` for two small projects, and the images that come of what it wrote."""

from __future__ import annotations

import json
import shutil
import uuid

import pytest
from test_build import Project
from test_build import locked as locked
from test_build import project as project

pytestmark = pytest.mark.integration

MAIN = '#include <stdio.h>\n#include <zlib.h>\nint main(void) { return printf("%s NONCE\\n", zlibVersion()) < 0; }\n'


def image_of(project: Project) -> dict[str, object]:
    """Build the image, and forget its name again."""
    tag = f"uklimg-test/init:{uuid.uuid4().hex[:8]}"
    done = project.uklimg("build", "-t", tag, "--progress", "plain")
    assert done.status == 0, done.err
    try:
        found: dict[str, object] = json.loads(project.uklimg("inspect", tag, "--format", "json").out)
    finally:
        project.uklimg("rmi", tag)
    return found


def test_a_makefile(project: Project) -> None:
    (project.folder / "main.c").write_text(MAIN.replace("NONCE", project.nonce))
    (project.folder / "main.o").write_text("not an object: .uklignore must leave it out")
    (project.folder / "Makefile").write_text(
        "PROG = versiond\nLIBS = -lz -lm\nall: $(PROG)\n$(PROG): main.o\n\t$(CC) -o $@ main.o $(LIBS)\n"
    )
    assert project.uklimg("init").status == 0
    found = image_of(project)
    assert found["program"] == "versiond"
    assert found["cmd"] == ["versiond"]


def test_meson(project: Project) -> None:
    (project.folder / "src").mkdir()
    (project.folder / "src/main.c").write_text(MAIN.replace("NONCE", project.nonce))
    (project.folder / "meson.build").write_text("project('demo', 'c')\nsubdir('src')\n")
    (project.folder / "src/meson.build").write_text(
        "executable('versiond', 'main.c', dependencies: dependency('zlib', static: true))\n"
    )
    assert project.uklimg("init").status == 0
    shutil.rmtree(project.folder / "build", ignore_errors=True)
    assert image_of(project)["program"] == "versiond"
