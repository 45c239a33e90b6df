"""Every guest program on plain Linux: it compiles without a warning, passes, and says the same each time.

What the programs find in a unikernel is worth something only when they are right here. The attack program must
find nothing here either: an ordinary kernel refuses all it tries.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from guestprograms import HERE, GuestProgram, Role, compile_cmd, load

from uklimg import proc

pytestmark = pytest.mark.guest

PROGRAMS = {program.name: program for program in load()}
ORDINARY = [name for name, program in PROGRAMS.items() if program.role is Role.PROGRAM]
KINDS = {"static": ("-static", "-no-pie"), "static-pie": ("-static-pie", "-fPIE")}
LIMIT = 300  # seconds; a program that hangs is a failure, one that is slow is not


@dataclass(frozen=True)
class Workshop:
    """Compiles each program once; ``scratch`` is where the programs may write (others must reach it)."""

    bin: Path
    scratch: Path
    env: dict[str, str]

    def build(self, name: str, kind: str) -> Path:
        output = self.bin / f"{name}-{kind}"
        if not output.exists():
            proc.run(compile_cmd(PROGRAMS[name], output, KINDS[kind]), env=self.env)
        return output

    def run(self, program: Path, *args: str, **extra: str) -> proc.Completed:
        env = {**self.env, "UKL_TMP": str(self.scratch), "EXPECT_UKL": "0", **extra}
        return proc.run([str(program), *args], env=env, check=False, timeout=LIMIT)


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    # Not pytest's folder: other users must reach the programs, or attacks as another user are refused for nothing.
    with tempfile.TemporaryDirectory(prefix="uklimg-guest-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        scratch = folder / "scratch"
        scratch.mkdir()
        yield Workshop(folder, scratch, proc.host_env(os.environ))


def ok(done: proc.Completed) -> str:
    assert done.status == 0, done.tail
    return done.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ORDINARY)
def test_passes_twice_with_equal_output(workshop: Workshop, name: str, kind: str) -> None:
    program = workshop.build(name, kind)
    args = PROGRAMS[name].args
    first, second = ok(workshop.run(program, *args)), ok(workshop.run(program, *args))
    assert first == second
    assert f"{name}: all checks passed" in first.splitlines()
    assert list(workshop.scratch.iterdir()) == []


@pytest.mark.parametrize("name", ORDINARY)
def test_both_kinds_say_the_same(workshop: Workshop, name: str) -> None:
    args = PROGRAMS[name].args
    outputs = {kind: ok(workshop.run(workshop.build(name, kind), *args)) for kind in KINDS}
    assert outputs["static"] == outputs["static-pie"]


@pytest.mark.parametrize("name", [*ORDINARY, "beside"])
def test_notices_that_it_is_not_ukl(workshop: Workshop, name: str) -> None:
    done = workshop.run(workshop.build(name, "static"), EXPECT_UKL="1")
    assert done.status == 99
    assert "not as UKL" in done.tail
    assert done.stdout == b""


@pytest.mark.parametrize("how", ["fork", "vfork", "thread", "direct"])
def test_beside_passes_the_status_on(workshop: Workshop, how: str) -> None:
    beside = workshop.build("beside", "static")
    busybox = str(proc.find("busybox", workshop.env))
    script = 'test "$UKL_VICTIM" && test -x "$UKL_STUB" && test "$UKL_TEXT" && exit 7'
    assert workshop.run(beside, f"--how={how}", busybox, "sh", "-c", script).status == 7
    if how != "direct":
        assert workshop.run(beside, f"--how={how}", busybox, "sh", "-c", "kill -9 $$").status == 128 + 9


def test_beside_tells_its_privilege(workshop: Workshop) -> None:
    assert workshop.run(workshop.build("beside", "static"), UKL_PROBE="1").status == 43


def attack(workshop: Workshop, beside: Path, *args: str, **extra: str) -> tuple[proc.Completed, list[str]]:
    """The attack program beside an ordinary root process; its lines."""
    done = workshop.run(beside, *args, str(workshop.build("attack", "static")), **extra)
    assert list(workshop.scratch.iterdir()) == []
    return done, done.text.splitlines()


@pytest.mark.parametrize("how", ["fork", "vfork", "thread"])
def test_an_ordinary_kernel_refuses_every_attack(workshop: Workshop, how: str) -> None:
    done, lines = attack(workshop, workshop.build("beside", "static"), f"--how={how}")
    assert done.status == 0, done.tail
    assert lines[-1] == "attack: all refused"
    assert {line.split(":")[0] for line in lines[:-1]} == {"refused"}
    assert len(set(lines)) == len(lines) > 500


def test_attacks_say_the_same_each_time(workshop: Workshop) -> None:
    outputs = {
        workshop.run(workshop.build("beside", kind), str(workshop.build("attack", kind))).stdout
        for kind in (*KINDS, *KINDS)
    }
    assert len(outputs) == 1


def test_an_escape_is_noticed(workshop: Workshop) -> None:
    stub = workshop.scratch.parent / "stub"
    stub.write_text('#!/bin/sh\ntest "$UKL_PROBE" = 1 && test "$UKL_PROGRAM" = beside && exit 42\n')
    stub.chmod(0o755)
    done = workshop.run(workshop.build("attack", "static"), "--self-test", UKL_STUB=str(stub))
    assert done.status == 1
    seen = [line.split(":")[1].strip() for line in done.text.splitlines() if line.startswith("SUCCEEDED: ")]
    for way in ("jump to", "call of", "return to", "signal handler in", "signal restorer in", "mapping over"):
        assert f"{way} application text" in seen
    assert "call of an application function that tells its level" in seen
    assert "sigreturn with cs=0x33 ss=0x2b to a kernel function" in seen
    for method in ("PTRACE_SETREGS", "PTRACE_SETREGSET", "PTRACE_POKEUSER"):
        for stop in ("at a signal", "after a system call"):
            assert f"{method} {stop} with cs=0x33 to kernel text" in seen
    for way in ("reading and writing kernel text by instructions", "kernel text through /proc/self/mem"):
        assert way in seen
    assert "script with the real stub as interpreter" in seen
    assert "exec of the real stub by an unprivileged user" in seen
    # What is forged for real stays refused also then.
    assert not any("cs=0x13" in what and "PTRACE_POKEUSER" not in what for what in seen)


def test_a_failed_check_is_a_failure(workshop: Workshop, tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text(
        f'#include "{HERE}/programs/uklcheck.h"\n'
        "int main(int argc, char **argv)\n{\n\t(void)argv;\n"
        '\tukl_begin("wrong");\n\tCHECK_EQ(argc, 2);\n\treturn ukl_end();\n}\n'
    )
    wrong = GuestProgram("wrong", (source,), False, (), (), frozenset(), 0, Role.PROGRAM)
    proc.run(compile_cmd(wrong, tmp_path / "wrong", KINDS["static"]), env=workshop.env)
    done = workshop.run(tmp_path / "wrong")
    assert done.status == 1
    assert done.tail.startswith("wrong: FAILED at wrong.c:6: argc is 1, not 2 = 2")
    assert workshop.run(tmp_path / "wrong", EXPECT_UKL="maybe").status == 99


def test_every_source_is_in_the_manifest() -> None:
    listed = {source for program in PROGRAMS.values() for source in program.sources}
    present = {path for folder in ("programs", "attack") for path in (HERE / folder).glob("*.c*")}
    assert listed == present
