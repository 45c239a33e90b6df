"""--help and completion: every command shows an example, every example is one, every shell gets a script it reads."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from uklimg.cli import completion
from uklimg.cli.examples import EXAMPLES
from uklimg.cli.main import parser, verbs

pytestmark = pytest.mark.unit

NAMES = sorted(module.NAME for module in verbs())


@pytest.mark.parametrize("verb", NAMES)
def test_every_command_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert EXAMPLES.get(verb), f"put an example of `uklimg {verb}` into uklimg/cli/examples.py"
    with pytest.raises(SystemExit):
        parser().parse_args([verb, "--help"])
    said = capsys.readouterr().out
    assert "examples:\n" in said
    assert EXAMPLES[verb][0][0] in said


@pytest.mark.parametrize("command", sorted({command for verb in NAMES for command, _ in EXAMPLES.get(verb, ())}))
def test_every_example_is_one(command: str) -> None:
    words = shlex.split(command.partition(" > ")[0])
    assert words[0] == "uklimg"
    assert parser().parse_args(words[1:]).verb == words[1]


@pytest.mark.parametrize("verb", NAMES)
def test_every_option_says_what_it_does(verb: str) -> None:
    subparsers = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    silent = [action.dest for action in subparsers.choices[verb]._actions if not action.help]
    assert not silent


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_for_every_shell(shell: str, tmp_path: Path) -> None:
    script = completion.script(parser(), shell)
    for verb in NAMES:
        assert verb in script
    assert "kernel-config" not in script, "what --help does not show is not completed"
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(script)
        subprocess.run([shell, "-n", str(path)], check=True)


def completed(words: str, tmp_path: Path) -> list[str]:
    """What bash offers for a command line whose last word is not finished; `uklimg images` is a fake."""
    fake = tmp_path / "bin/uklimg"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho NAME DIGEST\necho redis:8 x\necho server:1 y\n")
    fake.chmod(0o755)
    (tmp_path / "script").write_text(completion.script(parser(), "bash"))
    ask = f"""source {tmp_path}/script
    COMP_WORDS=({words}); [[ {shlex.quote(words)} == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE={shlex.quote(words)}; COMP_POINT=${{#COMP_LINE}}
    eval "$(complete -p uklimg | sed 's/.*-F \\([^ ]*\\).*/\\1/') uklimg '' ''"
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", ask],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"},
    )
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def test_bash_completes_commands_options_and_images(tmp_path: Path) -> None:
    assert set(completed("uklimg pu", tmp_path)) == {"pull", "push"}
    shutil.rmtree(tmp_path / "bin")
    assert "--build-arg" in completed("uklimg build --b", tmp_path)
    shutil.rmtree(tmp_path / "bin")
    assert completed("uklimg run re", tmp_path) == ["redis:8"]
    shutil.rmtree(tmp_path / "bin")
    assert completed("uklimg build --progress js", tmp_path) == ["json"]
