"""What is buildah's alone; test_engine.py has what every engine does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from enginelib import Bench, Way

from uklimg.engine.buildah import BuildahEngine
from uklimg.engine.commands import CHROOT, OCI
from uklimg.errors import ToolError

pytestmark = pytest.mark.integration


def test_without_buildah(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", Way(OCI))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for program in ("unshare", "env"):
        (bin_ / program).symlink_to(f"/usr/bin/{program}")
    engine = BuildahEngine(tmp_path / "engine", {"PATH": str(bin_)})
    with pytest.raises(ToolError, match="buildah is not installed"), bench.store.scratch() as folder:
        engine.run(bench.job("true", folder), lambda line: None)


def test_where_runc_cannot_run_a_chroot_does(tmp_path: Path) -> None:
    """A runc that always fails stands for a host on which it does."""
    broken = tmp_path / "bin" / "runc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no cgroups here >&2\nexit 1\n")
    broken.chmod(0o755)
    bench = Bench(tmp_path / "store", Way(OCI))
    bench.engine = BuildahEngine(tmp_path / "store" / "engine", {"PATH": f"{broken.parent}:{os.environ['PATH']}"})
    assert bench.tree("hostname; ls / | grep -c home || :")[0] == ["uklimg", "0"]
    assert bench.engine.isolation == CHROOT


def test_here_runc_runs(tmp_path: Path) -> None:
    """With whatever isolation the engine finds."""
    bench = Bench(tmp_path / "store", Way(""))
    assert bench.tree("echo hello")[0] == ["hello"]
    assert isinstance(bench.engine, BuildahEngine) and bench.engine.isolation == OCI
