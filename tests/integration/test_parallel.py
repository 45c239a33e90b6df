"""Steps at once for real: containers that run side by side, a failure beside one that runs, an interruption of both.

The store is the machine's own; the steps are each test's own (see ``test_build``).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from uklimg.errors import ExitCode
from uklimg.room import processors

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(processors() < 2, reason="with one processor steps run one after the other"),
]

ROOT = Path(__file__).resolve().parents[2]
# A step that ends only when its twin runs at the same time. They meet at sockets of the host's network, which is
# theirs with --network=default.
MEET = r"""FROM debian:trixie AS {name}
RUN --network=default python3 -u - {nonce} <<'EOF'
import socket, time
here = socket.socket(socket.AF_UNIX)
here.bind("\0uklimg-{nonce}-{name}")
here.listen()
print("{name} runs")
for attempt in range(600):
    try:
        socket.socket(socket.AF_UNIX).connect("\0uklimg-{nonce}-{other}")
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
else:
    raise SystemExit("alone")
here.accept()
print("{name} met {other}")
{then}
EOF
"""
LAST = """FROM debian:trixie AS build
COPY --from=left /etc/hostname /a
COPY --from=right /etc/hostname /b
FROM ukl:6.12
LINK --from=build /x
"""


@dataclass(frozen=True)
class Project:
    folder: Path
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def write(self, left: str = "", right: str = "") -> None:
        text = MEET.format(name="left", other="right", nonce=self.nonce, then=left)
        text += MEET.format(name="right", other="left", nonce=self.nonce, then=right)
        (self.folder / "Uklfile").write_text(text + LAST)

    def start(self, progress: str, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "uklimg", "build", "--target", "build", "--progress", progress, *options],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[str]:
        """Command lines of what is left of its steps."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if self.nonce in text:
                found.append(text)
        return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def events(err: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in err.splitlines() if line.startswith("{")]


def test_steps_of_two_stages_run_at_once_and_their_output_does_not_mix(project: Project) -> None:
    project.write()
    process = project.start("plain")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    lines = err.splitlines()
    for name, other in (("left", "right"), ("right", "left")):
        at = lines.index(f"   | {name} runs")
        assert lines[at - 1].startswith(f"=> [{name} 1/1] RUN")
        assert lines[at + 1] == f"   | {name} met {other}"
        assert re.fullmatch(rf"   done in [\d.]+ s: \[{name} 1/1\] RUN .*", lines[at + 2])
    assert "\x1b" not in err and "\r" not in err
    assert re.fullmatch(r"\d+ of \d+ steps ran(, \d+ cached)?, [\d.]+ s", lines[-1])


def test_one_job_is_one_processor_and_one_step_at_a_time(project: Project) -> None:
    run = 'RUN [ "$(nproc)" = 1 ] && echo {name} {nonce} && sleep 1\n'
    stages = [
        f"FROM debian:trixie AS {name}\n" + run.format(name=name, nonce=project.nonce) for name in ("left", "right")
    ]
    (project.folder / "Uklfile").write_text("".join(stages) + LAST)
    process = project.start("json", "--jobs", "1")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    running = 0
    for event in events(err):
        running += (event["event"] == "step-started") - (event["event"] == "step-finished")
        assert running <= 1


def test_a_failure_ends_the_step_beside_it_and_is_what_is_told(project: Project) -> None:
    project.write(left="time.sleep(600)", right='raise SystemExit("right is wrong")')
    process = project.start("json")
    _, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.STEP
    *tail, last = (line for line in err.splitlines() if not line.startswith("{"))
    assert tail[-1] == "right is wrong"
    assert re.match(r"uklimg: Uklfile:\d+:1: \[right 1/1\] RUN", last)
    log = re.search(r"the whole log is (\S+)", last)
    assert log and "right is wrong" in Path(log[1]).read_text()
    told = [(event["event"], event.get("step")) for event in events(err)]
    assert ("step-cancelled", "stage:left:1") in told
    assert ("step-failed", "stage:right:1") in told
    assert ("step-failed", "stage:left:1") not in told
    assert told[-1][0] == "build-finished"
    assert project.processes() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_both(project: Project, number: signal.Signals) -> None:
    project.write(left="time.sleep(600)", right="time.sleep(600)")
    process = project.start("json")
    assert process.stderr is not None
    met = 0
    while met < 2:
        line = process.stderr.readline()
        assert line, "the build ended too early"
        met += line.startswith("{") and " met " in str(json.loads(line).get("line"))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert [line for line in err.splitlines() if not line.startswith("{")] == ["uklimg: interrupted"]
    cancelled = {event["step"] for event in events(err) if event["event"] == "step-cancelled"}
    assert cancelled == {"stage:left:1", "stage:right:1"}
    assert project.processes() == []
