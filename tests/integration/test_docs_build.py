"""The examples of docs/uklfile.md that compile little, built: the first as an image, the others in one build."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from test_build import Project
from test_build import locked as locked
from test_build import project as project

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from test_docs import Example, examples

pytestmark = pytest.mark.integration

HELLO = "#include <stdio.h>\nint main(int argc, char **argv) { return puts(argv[argc - 1]) < 0; } /* NONCE */\n"


@pytest.fixture
def context(project: Project) -> Project:
    (project.folder / "hello.c").write_text(HELLO.replace("NONCE", project.nonce))
    (project.folder / "Makefile").write_text("hello: hello.c\n\t$(CC) -o $@ hello.c\n")
    return project


def test_the_first_example_makes_an_image(context: Project) -> None:
    (whole,) = (example for example in examples() if example.built and not example.kind)
    (context.folder / "Uklfile").write_text(whole.text)
    tag = f"uklimg-test/docs:{context.nonce[:8]}"
    done = context.uklimg("build", "-t", tag, "--progress", "plain")
    assert done.status == 0, done.err
    assert context.uklimg("rmi", tag).status == 0


def test_the_stages_do_what_the_page_says(context: Project) -> None:
    wanted: list[Example] = [example for example in examples() if example.built and example.kind == "build"]
    assert len(wanted) >= 4
    stages = "".join(
        f"FROM debian:trixie AS line{example.line}\nENV NONCE=NONCE\n{example.body}" for example in wanted
    )
    collected = "".join(f"COPY --from=line{example.line} /etc/os-release /{example.line}/\n" for example in wanted)
    context.write(f"{stages}FROM debian:trixie AS build\n{collected}")
    done = context.stage()
    assert done.status == 0, done.err
