"""docs/ci: the files are YAML, their scripts are shell, and every uklimg command in them is one that there is."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from uklimg.cli.main import VERBS, parser

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).resolve().parents[2] / "docs/ci"
FILES = ("github.yml", "gitlab.yml")
# What is unavoidable: where the runner and its actions come from is said without hosts.
HOSTS = re.compile(r"[a-z0-9-]+\.(?:io|com|org|net|dev)\b")


def scripts(value: object) -> Iterator[str]:
    """Every `run:` of GitHub's, every `script:` and `before_script:` of GitLab's."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("run", "script", "before_script") and isinstance(item, (str, list)):
                yield item if isinstance(item, str) else "\n".join(item)
            else:
                yield from scripts(item)
    elif isinstance(value, list):
        for item in value:
            yield from scripts(item)


def commands(script: str) -> Iterator[list[str]]:
    """The uklimg commands in a script, those in $(…) too, with words in place of variables."""
    joined = script.replace("\\\n", " ")
    for found in re.finditer(r"(?:^|\$\(|[;&|] )\s*(uklimg (?:\"[^\"]*\"|[^\n;|)>])*)", joined, re.MULTILINE):
        text = found[1].replace("$REF", "registry.example/image").replace("$DIGEST", f"sha256:{'0' * 64}")
        text = text.replace('"${cache[@]}"', "--cache-from registry.example/cache:main")
        yield shlex.split(re.sub(r"\$\{?\w+\}?", "word", text))


@pytest.fixture(params=FILES)
def document(request: pytest.FixtureRequest) -> dict[object, object]:
    loaded = yaml.safe_load((FOLDER / request.param).read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_the_scripts_are_shell(document: dict[object, object]) -> None:
    found = list(scripts(document))
    assert len(found) >= 3
    for script in found:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_commands_are_ours(document: dict[object, object]) -> None:
    found = [command for script in scripts(document) for command in commands(script)]
    for command in found:
        assert parser().parse_args(command[1:]).verb == command[1]
    assert {command[1] for command in found} == {"build", "history", "inspect", "push", "tag", "verify"}
    build = next(command for command in found if command[1] == "build")
    assert {"--locked", "--cache-from"} <= set(build)
    written = sum(len(re.findall(r"\buklimg (?!build env)[a-z]+\b", script)) for script in scripts(document))
    assert len(found) == written, "a command that the test did not find"
    assert {command[1] for command in found} <= {*VERBS}


@pytest.mark.parametrize("name", FILES)
def test_no_host_is_named(name: str) -> None:
    assert not HOSTS.findall((FOLDER / name).read_text(encoding="utf-8"))


def test_the_jobs_run_one_after_the_other() -> None:
    github = yaml.safe_load((FOLDER / "github.yml").read_text(encoding="utf-8"))
    assert github["jobs"]["verify"]["needs"] == "build"
    assert github["jobs"]["build"]["outputs"]["digest"] == "${{ steps.build.outputs.digest }}"
    assert "id" in next(step for step in github["jobs"]["build"]["steps"] if step.get("name") == "Build")
    gitlab = yaml.safe_load((FOLDER / "gitlab.yml").read_text(encoding="utf-8"))
    assert gitlab["stages"] == [gitlab["build"]["stage"], gitlab["verify"]["stage"]]
    assert gitlab["verify"]["needs"][0]["job"] == "build"
