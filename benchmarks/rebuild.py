"""What a developer waits for: a build with nothing changed, an application linked anew, a bzImage of it."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks import bench, byhand, report
from uklimg import proc
from uklimg.errors import ToolError
from uklimg.recipes import app as app_recipe
from uklimg.recipes import bzimage as bzimage_recipe

MODULE = "benchmarks.rebuild"
TAG = "uklimg-benchmark"
# The command line without its installed script, so that this works in a checkout.
_UKLIMG = "from uklimg.cli.main import entry; entry()"


def main() -> int:
    top = bench.parser(MODULE, "Time a build with nothing changed, the application's link, and a bzImage.")
    top.add_argument("--repeat", type=int, default=5, help="how often each is done (5)")
    args = top.parse_args()
    return bench.run(args, lambda found: measure(found, args))


def measure(found: bench.Bench, args: argparse.Namespace) -> report.Report:
    graph = found.example()
    found.make(graph)
    facts = report.machine(found.host.env)
    build_cmd = [
        *(sys.executable, "-c", _UKLIMG, "--store", str(found.store.root)),
        *("build", "-f", str(bench.EXAMPLE), "-t", TAG, "--progress", "plain", str(bench.ROOT)),
    ]
    import_cmd = [sys.executable, "-c", "from uklimg.cli.main import parser; parser(['build'])"]
    _command(found, build_cmd)  # the first may have to write a tag, or the lock
    builds: list[float] = []
    imports: list[float] = []
    plain: list[float] = []
    links: list[bench.Timing] = []
    packs: list[bench.Timing] = []
    app = next(step.id for step in graph.steps if step.id.startswith(app_recipe.step_id("")))
    for _ in range(args.repeat):
        builds.append(_command(found, build_cmd, expect="0 of "))
        imports.append(_command(found, import_cmd))
        plain.append(found.command(graph, app, byhand.static_link(graph.step(app))).seconds)
        links.append(found.again(graph, app))
        packs.append(found.again(graph, bzimage_recipe.STEP_ID))
    rows = (
        ("uklimg build, nothing changed", *_spread(builds)),
        ("of it, Python and its imports", *_spread(imports)),
        ("ordinary static link of Redis' objects", *_spread(plain)),
        ("link and embed: the same objects to a bootable vmlinux", *_spread(_commands(links))),
        ("the whole step, container and store included", *_spread([timing.whole for timing in links])),
        ("bzImage of that vmlinux", *_spread(_commands(packs))),
        ("the whole step, container and store included", *_spread([timing.whole for timing in packs])),
    )
    title = f"Building Redis again, {args.repeat} times"
    return report.Report("rebuild", facts, (report.Table(title, ("what", "minimum, s", "median, s"), rows),))


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
