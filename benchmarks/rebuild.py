"""What a developer waits for: a build with nothing changed, an application linked anew, a bzImage of it.

A build with nothing changed takes turns with buildah's of ten cached trivial steps.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import bench, byhand, report
from uklimg import proc
from uklimg.errors import ToolError
from uklimg.recipes import app as app_recipe
from uklimg.recipes import bzimage as bzimage_recipe

MODULE = "benchmarks.rebuild"
TAG = "uklimg-benchmark"
# Ten steps, each of which leaves a small file.
TEN_STEPS = "FROM scratch\nCOPY busybox /bin/sh\n" + "".join(f"RUN echo {n} > /file{n}\n" for n in range(9))
# Without ours, buildah of Debian 12 asks for more open files than some machines allow.
CONTAINERS_CONF = "[containers]\ndefault_ulimits = []\n"
# The command line without its installed script, so that this works in a checkout.
_UKLIMG = "from uklimg.cli.main import entry; entry()"


def main() -> int:
    top = bench.parser(MODULE, "Time a build with nothing changed, the application's link, and a bzImage.")
    top.add_argument("--repeat", type=int, default=5, help="how often each is done (5)")
    args = top.parse_args()
    return bench.run(args, lambda found: measure(found, args))


def measure(found: bench.Bench, args: argparse.Namespace) -> report.Report:
    with tempfile.TemporaryDirectory(prefix="uklimg-benchmark-") as name:
        folder = Path(name)
        try:
            return measure_in(folder, found, args)
        finally:
            # buildah's files belong to its own storage, which it takes away itself.
            remove_cmd = [*_buildah(folder), "rmi", "--all", "--force"]
            proc.run(remove_cmd, env=_buildah_env(folder, found), check=False)


def measure_in(folder: Path, found: bench.Bench, args: argparse.Namespace) -> report.Report:
    graph = found.example()
    found.make(graph)
    facts = report.machine(found.host.env)
    build_cmd = [
        *(sys.executable, "-c", _UKLIMG, "--store", str(found.store.root)),
        *("build", "-f", str(bench.EXAMPLE), "-t", TAG, "--progress", "plain", str(bench.ROOT)),
    ]
    import_cmd = [sys.executable, "-c", "from uklimg.cli.main import parser; parser(['build'])"]
    _command(found, build_cmd)  # the first may have to write a tag, or the lock
    ten_cmd = _ten_steps(folder)
    proc.run(ten_cmd, env=_buildah_env(folder, found))
    tens: list[float] = []
    builds: list[float] = []
    imports: list[float] = []
    plain: list[float] = []
    links: list[bench.Timing] = []
    packs: list[bench.Timing] = []
    app = next(step.id for step in graph.steps if step.id.startswith(app_recipe.step_id("")))
    for _ in range(args.repeat):
        began = time.monotonic()
        proc.run(ten_cmd, env=_buildah_env(folder, found))
        tens.append(time.monotonic() - began)
        builds.append(_command(found, build_cmd, expect="0 of "))
        imports.append(_command(found, import_cmd))
        plain.append(found.command(graph, app, byhand.static_link(graph.step(app))).seconds)
        links.append(found.again(graph, app))
        packs.append(found.again(graph, bzimage_recipe.STEP_ID))
    rows = (
        ("uklimg build, nothing changed", *_spread(builds)),
        ("of it, Python and its imports", *_spread(imports)),
        ("buildah bud --layers, ten trivial steps, nothing changed", *_spread(tens)),
        ("ordinary static link of Redis' objects", *_spread(plain)),
        ("link and embed: the same objects to a bootable vmlinux", *_spread(_commands(links))),
        ("the whole step, container and store included", *_spread([timing.whole for timing in links])),
        ("bzImage of that vmlinux", *_spread(_commands(packs))),
        ("the whole step, container and store included", *_spread([timing.whole for timing in packs])),
    )
    title = f"Building Redis again, {args.repeat} times"
    return report.Report("rebuild", facts, (report.Table(title, ("what", "minimum, s", "median, s"), rows),))


def _buildah(folder: Path) -> list[str]:
    return ["buildah", "--root", f"{folder}/root", "--runroot", f"{folder}/run"]


def _buildah_env(folder: Path, found: bench.Bench) -> dict[str, str]:
    return {**found.host.env, "CONTAINERS_CONF": f"{folder}/containers.conf"}


def _ten_steps(folder: Path) -> list[str]:
    """The command that builds TEN_STEPS with a storage of its own in ``folder``."""
    context = folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(TEN_STEPS)
    shutil.copy("/bin/busybox", context)
    (folder / "containers.conf").write_text(CONTAINERS_CONF)
    return [*_buildah(folder), "bud", "--layers", "--isolation", "chroot", "--quiet", "-t", "ten", str(context)]


def _command(found: bench.Bench, argv: list[str], expect: str = "") -> float:
    """Seconds of a command of ours, which must say ``expect``."""
    began = time.monotonic()
    done = proc.run(argv, env=found.host.env, cwd=bench.ROOT)
    seconds = time.monotonic() - began
    if expect not in done.tail:
        raise ToolError("the build was to run no step", detail=done.tail)
    return seconds


def _commands(timings: list[bench.Timing]) -> list[float]:
    return [timing.command for timing in timings if timing.command is not None]


def _spread(values: list[float]) -> tuple[float, float]:
    return min(values), bench.median(values)


if __name__ == "__main__":
    sys.exit(main())
