"""uklimg bench: an image with UKL options against its plain-Linux twin."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from uklimg import __version__
from uklimg.bench import picture, report, variants
from uklimg.bench.boot import How, boot
from uklimg.bench.model import LINUX, Case, Measure, Report, SuiteResult, Variant
from uklimg.bench.paper import Figure, beside, parse_paper
from uklimg.bench.suites import SUITES, Found, Suite, named_suites
from uklimg.cli import options
from uklimg.cli import run as booting
from uklimg.cli.host import Host
from uklimg.cli.workshop import Workshop
from uklimg.console import Console, console
from uklimg.digest import JSON
from uklimg.errors import UserError
from uklimg.events import Note
from uklimg.runner.accel import host_tsc_khz
from uklimg.runner.machine import Accel
from uklimg.runner.qemu import Qemu

NAME = "bench"
HELP = "measure what UKL gains: images against their plain-Linux twins"
SERIES = "6.12"
_PAPER = "workloads/paper.toml"
# As the paper's machines: what mitigations cost is not what is compared.
_CMDLINE = "mitigations=off"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suites", metavar="SUITE", nargs="+", help=f"{', '.join(SUITES)}, or all")
    parser.add_argument(
        "--variant",
        metavar="OPTION[+OPTION]…",
        action="append",
        default=[],
        help="compare this, as in base or RET+BYP (default: all that the kernel has)",
    )
    parser.add_argument(
        "--output", metavar="FILE", default="", help="also write what was found to this file, as JSON"
    )
    parser.add_argument(
        "--picture", metavar="FILE", default="", help="also draw it: a .svg or .png (needs matplotlib)"
    )
    booting.add_accel(parser)
    parser.add_argument(
        "--measure",
        choices=tuple(measure.value for measure in Measure),
        default="",
        help="what to measure (instructions under emulation, nanoseconds under KVM)",
    )
    parser.add_argument("--samples", type=int, metavar="N", default=0, help="samples or requests of each case")
    parser.add_argument("--cmdline", metavar="TEXT", default=_CMDLINE, help=f"kernel parameters ({_CMDLINE})")
    options.add_engine(parser)
    options.add_progress(parser)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how it is printed (table)")


def run(args: argparse.Namespace, host: Host) -> int:
    suites = named_suites(tuple(args.suites))
    if args.samples < 0:
        raise UserError("--samples wants a number greater than 0")
    drawing = host.path(args.picture) if args.picture else None
    if drawing is not None:
        picture.check(drawing)
    with console(args.progress, host.stderr) as sink:
        found = _measure(args, host, suites, sink)
    value = json.dumps(report.as_json(found), indent=1, ensure_ascii=False)
    if args.output:
        options.write_result(host.path(args.output), value + "\n")
    if drawing is not None:
        picture.draw(found, drawing)
    if args.format == "json":
        host.print(value)
    else:
        host.print(report.as_text(found))
    return 0


def _measure(args: argparse.Namespace, host: Host, suites: tuple[Suite, ...], sink: Console) -> Report:
    store = host.store(sink)
    data = host.data()
    known = data.kernel(SERIES).definition.ukl
    glibc = data.libcs()[-1]
    compared = variants.chosen(args.variant, known, glibc)
    figures = parse_paper((data.root / _PAPER).read_text(encoding="utf-8"))
    with store.session():
        shop = Workshop(host, store, sink)
        # Everything is built first: what is measured shares the machine with no compiler.
        images = {
            (suite.name, variant.name): shop.image(suite.uklfile, suite.context, variant)
            for suite in suites
            for variant in compared
        }
        first = images[suites[0].name, LINUX.name]
        accel = booting.accel_of(args.accel, host, first.vmlinux, sink)
        how = How(
            measure=_what(args.measure, accel, sink),
            accel=accel,
            env=host.env,
            programs={name: shop.program(name) for name in _beside(suites)},
            cmdline=args.cmdline,
            tsc_khz=host_tsc_khz(booting.cpuinfo()),
            samples=args.samples,
        )
        results = []
        for suite in suites:
            by_variant: dict[str, Found] = {}
            for variant in compared:
                sink(Note(f"{suite.name}: booting {variant.name}"))
                by_variant[variant.name] = suite.read(boot(suite, images[suite.name, variant.name], how), how.measure)
            results.append(_result(suite, how.measure, by_variant, compared, figures))
        facts: dict[str, JSON] = {
            "uklimg": __version__,
            "accelerator": accel.value,
            "qemu": Qemu().version(host.env).removeprefix("QEMU emulator version "),
            "kernel": first.run.kernel_version,
            "libc": first.run.libc_version,
            "parameters": args.cmdline,
        }
    return Report(how.measure, facts, compared, tuple(results))


def _beside(suites: tuple[Suite, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(suite.beside.program for suite in suites if suite.beside))


def _what(wanted: str, accel: Accel, sink: Console) -> Measure:
    if not wanted:
        return Measure.TIME if accel is Accel.KVM else Measure.INSTRUCTIONS
    measure = Measure(wanted)
    if measure is Measure.INSTRUCTIONS and accel is Accel.KVM:
        raise UserError("instructions are counted by emulation", hint="--accel tcg")
    if measure is Measure.TIME and accel is not Accel.KVM:
        sink(Note("time under emulation says little of time on a processor", warning=True))
    return measure


def _result(
    suite: Suite,
    measure: Measure,
    by_variant: Mapping[str, Found],
    compared: tuple[Variant, ...],
    figures: tuple[Figure, ...],
) -> SuiteResult:
    """The cases in the order in which plain Linux had them first, those of one name together."""
    names = list(dict.fromkeys(name for found in by_variant.values() for name in found))
    first = {name.name: at for at, name in reversed(list(enumerate(names)))}
    cases = []
    for name in sorted(names, key=lambda name: (first[name.name], name.size or 0)):
        there = {variant: found[name] for variant, found in by_variant.items() if name in found}
        unit = next(unit for unit, _ in there.values())
        values = {variant: value for variant, (_, value) in there.items()}
        cases.append(Case(name, unit, values, beside(figures, suite.name, name, compared, measure)))
    return SuiteResult(suite.name, suite.title, (suite.note or {}).get(measure, ""), tuple(cases))
