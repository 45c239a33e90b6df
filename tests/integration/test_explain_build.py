"""`plan` and `explain` of a real project that was built and then changed; the store is the machine's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from uklimg.errors import ExitCode

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
UKLFILE = """FROM debian:trixie AS build
ENV GREETING=hello-NONCE
COPY src /src/
RUN grep -r . /src && echo $GREETING >/greeting
FROM ukl:6.12
LINK --from=build /x
"""


@dataclass(frozen=True)
class Project:
    folder: Path
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def write(self, text: str = UKLFILE, **files: str) -> None:
        (self.folder / "Uklfile").write_text(text.replace("NONCE", self.nonce))
        (self.folder / "src").mkdir(exist_ok=True)
        for name, content in files.items():
            (self.folder / "src" / name).write_text(content)

    def __call__(self, *argv: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "uklimg", *argv],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write(one="1", two=made.nonce)
    made("build", "--target", "build")
    return made


def test_a_changed_file_of_the_context_is_named(project: Project) -> None:
    project.write(one="changed", three=project.nonce)
    (project.folder / "src/two").unlink()
    text = project("explain", "--target", "build").splitlines()
    assert text[0] == "stage:build:1  [build 1/2] COPY src /src/"
    assert text[1].startswith("  compared with ")
    assert text[2:] == [
        "  input /in/tree: file src/one changed",
        "  input /in/tree: file src/three is new",
        "  input /in/tree: file src/two is gone",
        "stage:build:2  [build 2/2] RUN grep -r . /src && echo $GREETING >/greeting",
        text[6],
        "  input step stage:build:1 changed, which see",
        text[-1],
    ]
    assert text[-1].endswith(" steps would run; it begins with stage:build:1")
    plan = project("plan", "--target", "build")
    assert "input /in/tree: file src/one changed, and 2 more (about " in plan
    project("build", "--target", "build")
    found = json.loads(project("explain", "stage:build:1", "--target", "build", "--format", "json"))
    assert [(change["file"], change["kind"]) for change in found[0]["changes"]] == [
        ("src/one", "changed"),
        ("src/three", "added"),
        ("src/two", "removed"),
    ]


def test_a_changed_variable_and_what_it_may_take(project: Project) -> None:
    project.write(UKLFILE.replace("hello", "good-bye"))
    (change,) = json.loads(project("explain", "--target", "build", "--format", "json"))[0]["changes"]
    assert change["field"] == "action.container.env.GREETING"
    assert change["text"].endswith(f": hello-{project.nonce} → good-bye-{project.nonce}")
    plan = {one["step"]: one for one in json.loads(project("plan", "--target", "build", "--format", "json"))}
    assert plan["stage:build:1"]["state"] == "hit" and plan["stage:build:1"]["why"] == ""
    assert plan["stage:build:2"]["runs"] and plan["stage:build:2"]["milliseconds"] > 0
    again = json.loads(project("plan", "--no-cache", "--target", "build", "--format", "json"))
    assert {one["why"] for one in again} == {"--no-cache"}


def test_a_step_that_is_not_there_and_a_folder(project: Project) -> None:
    err = project("explain", "stage:build:7", "--target", "build", status=ExitCode.NOT_FOUND)
    assert err.startswith("uklimg: no step 'stage:build:7' (did you mean stage:build:")
    assert project("explain", ".", "--target", "build").startswith("0 of ")
