"""Makes a base image for an ordinary user: in a user namespace of his own, where he is root and has as many further
users as /etc/subuid gives him. There ``baseimage.build_base_image`` runs, in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from uklimg import proc
from uklimg.baseimage import BaseParams, build_base_image
from uklimg.debian import Run
from uklimg.errors import ExitCode, ToolError, UklimgError

_REQUEST, _ERROR = "request.json", "error.json"


def build_as_user(
    params: BaseParams,
    debs: Iterable[Path],
    out: Path,
    work: Path,
    *,
    run: Run,
    env: Mapping[str, str],
    epoch: int,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """As ``build_base_image``, for whoever is not root. ToolError HOST when there is no user namespace for him."""
    try_env = {**env, "LC_ALL": "C.UTF-8"}
    for program in ("unshare", "newuidmap"):
        proc.find(program, try_env)
    probe = run(namespace_cmd(("true",)), env=try_env, check=False)
    if probe.status != 0:
        raise ToolError(
            "an ordinary user needs a user namespace to make a base image, and gets none here",
            hint="your name belongs into /etc/subuid and /etc/subgid; or run uklimg as root",
            detail=probe.tail,
        )
    inner = work / "inner"
    inner.mkdir()
    request = {
        "params": asdict(params),
        "debs": [str(deb) for deb in debs],
        "out": str(out),
        "work": str(inner),
        "env": dict(env),
        "epoch": epoch,
        "parent": os.getpid(),
    }
    (work / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
    child = namespace_cmd((sys.executable, "-m", __name__, str(work)))
    modules = ":".join(path for path in sys.path if path)
    try:
        done = run(child, env={**try_env, "PYTHONPATH": modules}, on_line=on_line, check=False)
    finally:
        if inner.exists():  # not all in it is ours outside of the namespace
            proc.run(namespace_cmd(("rm", "-rf", "--", str(inner))), env=try_env, check=False)
    if done.status != 0:
        raise _error(work / _ERROR, done.tail)
    shutil.rmtree(work)


def namespace_cmd(argv: Sequence[str]) -> tuple[str, ...]:
    """The command as root of a new user namespace (unshare(1); util-linux 2.38)."""
    return ("unshare", "--map-root-user", "--map-users=auto", "--map-groups=auto", "--", *argv)


def _error(path: Path, tail: str) -> ToolError:
    """What the child wrote before it ended."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        code = ExitCode(found["exit_code"])
        return ToolError(found["message"], hint=found["hint"], detail=found["detail"], exit_code=code)
    except FileNotFoundError:
        return ToolError("making the base image in a user namespace failed", exit_code=ExitCode.STEP, detail=tail)


def child(work: Path) -> int:
    """What runs in the namespace; its exit status."""
    request = json.loads((work / _REQUEST).read_text(encoding="utf-8"))
    proc.die_with(request["parent"])  # what was asked for before does not survive entering the namespace
    try:
        build_base_image(
            BaseParams.of(request["params"]),
            [Path(deb) for deb in request["debs"]],
            Path(request["out"]),
            Path(request["work"]),
            run=proc.run,
            env=request["env"],
            epoch=request["epoch"],
            on_line=lambda line: print(line, flush=True),
        )
    except UklimgError as error:
        fields = {"message": error.message, "hint": error.hint, "detail": error.detail}
        (work / _ERROR).write_text(json.dumps({**fields, "exit_code": int(error.exit_code)}), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    raise SystemExit(child(Path(sys.argv[1])))
