"""An empty machine that builds from a shared cache: docker-registry on loopback, and a folder.

The cache is filled from the store. Each build on the empty machine has a new store and a PATH without any program, so
that it can run no step.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import bench, report
from uklimg import proc
from uklimg.errors import ToolError
from uklimg.store import Store

MODULE = "benchmarks.shared"
_UKLIMG = "from uklimg.cli.main import entry; entry()"


def main() -> int:
    top = bench.parser(MODULE, "Time builds on an empty machine from a shared cache.")
    top.add_argument("--repeat", type=int, default=3, help="how often each is done (3)")
    args = top.parse_args()
    return bench.run(args, lambda found: measure(found, args))


def measure(found: bench.Bench, args: argparse.Namespace) -> report.Report:
    found.make(found.example())
    facts = report.machine(found.host.env)
    rows: list[tuple[report.Cell, ...]] = []
    with tempfile.TemporaryDirectory(dir=found.store.root.parent, prefix="benchmark-") as folder:
        work = Path(folder)
        context = _context(work)
        with _registry(found, work) as host:
            for name, cache in (("registry", f"{host}/cache"), ("folder", f"dir:{work}/cache")):
                began = time.monotonic()
                _build(found, context, found.store.root, "--cache-to", cache)
                rows.append((f"{name}: filling it from a warm store", time.monotonic() - began, None, None))
                for what, target in (("the image", ()), ("the build stage's file system", ("--target", "build"))):
                    times, size = _empty(found, work, context, args.repeat, "--cache-from", cache, *target)
                    rows.append((f"{name}: {what}", min(times), bench.median(times), size))
    columns = ("what", "minimum, s", "median, s", "fetched, bytes")
    title = f"Uklfile.example on an empty machine from a warm shared cache, {args.repeat} times"
    return report.Report("shared", facts, (report.Table(title, columns, tuple(rows)),))


def _context(work: Path) -> Path:
    """Uklfile.example with the versions of the benchmarks."""
    context = work / "context"
    context.mkdir()
    shutil.copy(bench.EXAMPLE, context / "Uklfile")
    shutil.copy(bench.LOCK if bench.LOCK.exists() else bench.EXAMPLE_LOCK, context / "Uklfile.lock")
    return context


def _empty(found: bench.Bench, work: Path, context: Path, repeat: int, *argv: str) -> tuple[list[float], report.Cell]:
    """Seconds of builds that run nothing, each on an empty machine; and the bytes that one brought."""
    times: list[float] = []
    size = 0
    for _ in range(repeat):
        store = work / "store"
        began = time.monotonic()
        said = _build(found, context, store, "--locked", *argv, path="/nowhere")
        times.append(time.monotonic() - began)
        if '"ran": []' not in said:
            raise ToolError("the build was to run no step", detail=said)
        size = sum(path.stat().st_size for path in (Store(store).root / "blobs/sha256").iterdir())
        shutil.rmtree(store)
    return times, size


def _build(found: bench.Bench, context: Path, store: Path, *argv: str, path: str = "") -> str:
    env = {**found.host.env, **({"PATH": path} if path else {})}
    command = [sys.executable, "-c", _UKLIMG, "--store", str(store), "build", "--progress", "plain"]
    command += ["--format", "json", *argv, str(context)]
    return proc.run(command, env=env, cwd=bench.ROOT).text


@contextmanager
def _registry(found: bench.Bench, work: Path) -> Iterator[str]:
    """A registry of its own on a free port; gives ``host:port``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = work / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{host}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {work / 'registry'}}}}}\n"
    )
    with proc.spawn(["docker-registry", "serve", str(config)], env=found.host.env, merge=True) as server:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            try:
                opener.open(f"http://{host}/v2/", timeout=10).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        else:
            raise ToolError("docker-registry does not answer", detail=server.tail)
        yield host


if __name__ == "__main__":
    sys.exit(main())
