"""An ordinary user of this machine, made for a test and removed after it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What uklimg is, beside its package; and of the packages that tests run with, what is large and not needed.
_DATA = ("kernel", "glibc", "libs", "base-images")
PYTHON = os.path.realpath(sys.executable)  # outside of the virtual environment
_LARGE = ("mypy", "mypyc", "ruff*", "pip", "hypothesis", "__pycache__")


@dataclass(frozen=True)
class User:
    """``home`` has uklimg and what it imports in ``code``, because root's files may be nobody else's business."""

    name: str
    uid: int
    home: Path

    def uklimg(self, *argv: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.run([PYTHON, "-m", "uklimg", *argv], cwd, **environ)

    def run(self, argv: Sequence[str], cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, cwd=cwd, env={**self.env, **environ}, capture_output=True, text=True, check=False, **self.identity
        )

    @property
    def env(self) -> dict[str, str]:
        code = self.home / "code"
        path = "/usr/local/bin:/usr/bin:/bin"
        return {"HOME": str(self.home), "USER": self.name, "PATH": path, "PYTHONPATH": f"{code}:{code / 'site'}"}

    @property
    def identity(self) -> dict[str, Any]:
        """For subprocess; the umask is an unusual one."""
        return {"user": self.uid, "group": self.uid, "extra_groups": [], "umask": 0o027}

    def own(self, folder: Path) -> None:
        """Make the user the owner of a folder and what is in it, but for files that are hard links."""
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() or path.stat().st_nlink == 1:
                os.chown(path, self.uid, self.uid)


@contextmanager
def ordinary_user() -> Iterator[User]:
    """``useradd`` gives ranges of subordinate users and groups to new users."""
    name = f"uklimg-{uuid.uuid4().hex[:8]}"
    home = Path(tempfile.mkdtemp(prefix="uklimg-user-", dir="/var/tmp"))
    home.chmod(0o755)
    subprocess.run(["useradd", "--no-create-home", "--home-dir", home, "--user-group", name], check=True)
    try:
        code = home / "code"
        code.mkdir()
        for folder in ("uklimg", *_DATA):
            if (ROOT / folder).is_dir():
                shutil.copytree(ROOT / folder, code / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(sysconfig.get_path("purelib"), code / "site", ignore=shutil.ignore_patterns(*_LARGE))
        user = User(name, pwd.getpwnam(name).pw_uid, home)
        subprocess.run(["chmod", "-R", "a+rX", code], check=True)
        os.chown(home, user.uid, user.uid)
        yield user
    finally:
        subprocess.run(["userdel", name], check=True)
        shutil.rmtree(home)
