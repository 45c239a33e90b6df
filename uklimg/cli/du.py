"""uklimg du: what the store takes on disk."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console, size
from uklimg.store import ResultUsage, Usage

NAME = "du"
HELP = "say what the store takes on disk"

_KINDS = {
    "images": "what named images need",
    "results": "results of steps",
    "sources": "what steps read: packages, archives",
    "unused": "blobs that nothing needs: `uklimg prune` removes them",
    "trees": "unpacked results",
    "mounts": "caches of RUN --mount=type=cache",
    "engine": "the container engine's copies",
    "other": "records, logs, temporary files",
}
_SHOWN = 30


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="also the results that take most")
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    with console("plain", host.stderr) as sink:
        usage, results = host.store(sink).du_results()
    if args.format == "json":
        values: dict[str, object] = {**asdict(usage), "blobs": usage.blobs, "total": usage.total}
        values["path"] = str(host.settings.store)
        if args.verbose:
            values["step_results"] = [{**asdict(one), "last_used": int(one.last_used)} for one in results]
        options.print_json(host, values)  # type: ignore[arg-type]
        return 0
    _print(host, usage)
    if args.verbose:
        _print_results(host, results)
    return 0


def _print(host: Host, usage: Usage) -> None:
    host.print(f"{host.settings.store}")
    for name, text in _KINDS.items():
        host.print(f"{name:8} {size(getattr(usage, name)):>10}  {text}")
    host.print(f"{'total':8} {size(usage.total):>10}")


def _print_results(host: Host, results: tuple[ResultUsage, ...]) -> None:
    host.print(f"\n{'key':12} {'alone':>10} {'in all':>10} {'used':>8}  step")
    now = time.time()
    for one in results[:_SHOWN]:
        used = age(now - one.last_used)
        host.print(f"{one.key[:12]:12} {size(one.frees):>10} {size(one.size):>10} {used:>8}  {one.step}")
    if len(results) > _SHOWN:
        host.print(f"and {len(results) - _SHOWN} more that take less (--format json has all)")


def age(seconds: float) -> str:
    """As `prune --older-than` takes it: ``5m``, ``3h``, ``12d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"
