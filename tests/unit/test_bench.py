"""uklimg bench: what is compared, what workloads print, ratios, tables, JSON, the picture."""

from __future__ import annotations

import builtins
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from jsonschema import validate

from uklimg.bench import picture, report, variants
from uklimg.bench.boot import How, mkfs_cmd, run_options
from uklimg.bench.model import LINUX, Case, CaseName, Measure, Report, SuiteResult, Value, Variant
from uklimg.bench.paper import beside, parse_paper
from uklimg.bench.printed import parse
from uklimg.bench.suites import SUITES, Booted, named_suites
from uklimg.data import Data, find_data
from uklimg.definitions import UklHow
from uklimg.errors import InternalError, ToolError, UserError
from uklimg.runner.machine import Accel
from uklimg.runner.volumes import Bind, Kind

pytestmark = pytest.mark.unit

ROOT = find_data()
FACTS = "bench-fact cpl 0\nbench-fact nops1000 1000\n"
SIZES = {"vmlinux": 10, "bzImage": 5, "initramfs": 3, "memory": 1000}


def booted(console: str) -> Booted:
    return Booted(console, SIZES)


# What is compared

KNOWN = {"PF_SS": UklHow.BASE, "BYP": UklHow.IMAGE, "RET": UklHow.IMAGE, "RTC": UklHow.IMAGE, "NSS": UklHow.KERNEL}


def names(*options: str, glibc: str = "") -> list[str]:
    known = {name: KNOWN.get(name, UklHow.IMAGE) for name in options}
    return [variant.name for variant in variants.every(known, glibc)]


def test_the_base_model_is_always_compared_and_what_every_kernel_does_is_none() -> None:
    assert names() == names("PF_SS") == ["linux", "base"]
    assert variants.every({})[0] is LINUX


def test_the_papers_combinations_and_other_options_alone() -> None:
    assert names("PF_SS", "BYP") == ["linux", "base", "BYP"]
    assert names("RTC", "BYP", "RET") == ["linux", "base", "BYP", "RET", "RET+BYP", "RTC"]
    assert names("BYP", "RET", "SHORTCUT", "NSS")[-4:] == ["RET+BYP", "RET+BYP+SHORTCUT", "NSS+BYP", "NSS+RET+BYP"]


def test_our_own_libc_is_one_more() -> None:
    assert names("BYP", "RET", glibc="2.41")[-3:] == ["RET+BYP", "glibc", "BYP+glibc"]
    assert variants.every({}, "2.41")[2] == Variant("glibc", glibc="2.41")


def test_variants_by_name() -> None:
    assert variants.chosen([], KNOWN) == variants.every(KNOWN)
    found = variants.chosen(["base", "ret+BYP", "linux", "base"], KNOWN)
    assert found == (LINUX, variants.BASE, Variant("RET+BYP", ukl=("RET", "BYP")))
    assert variants.chosen(["BYP+glibc"], KNOWN, "2.41")[1] == Variant("BYP+glibc", ukl=("BYP",), glibc="2.41")
    with pytest.raises(UserError, match="no UKL option BYB"):
        variants.chosen(["BYB"], KNOWN)
    with pytest.raises(UserError, match="no C library of our own"):
        variants.chosen(["glibc"], KNOWN)


# What is printed


def test_lines_of_a_console() -> None:
    console = f"[    0.1] bench\n{FACTS}bench read 256 10 20 30 40 50 7\nbench getppid 0 1 1 1 1 2 7\nbench x\n"
    console += "bench-cost a b c 1\n"
    found = parse(f"{console}bench-cost get/30/1 server 3000 30\n")
    assert {name: sample.ticks for name, sample in found.samples.items()} == {
        CaseName("read", 256): (10, 20, 30, 40, 50),
        CaseName("getppid"): (1, 1, 1, 1, 2),
    }
    assert found.costs == {("get/30/1", "server"): (3000, 30)}
    assert found.facts == {"cpl": 0, "nops1000": 1000}


def test_instructions_are_the_minimum_and_times_the_median() -> None:
    name = CaseName("read", 1)
    found = parse(f"{FACTS}bench-fact tsc-khz 2000000\nbench read 1 10 20 30 40 50 7\n")
    assert found.value(name, Measure.INSTRUCTIONS).value == 10
    value = found.value(name, Measure.TIME)
    assert value.value == 10 and value.percentiles == {"p0": 5, "p50": 10, "p90": 15, "p99": 20, "p99.9": 25}


def test_a_machine_that_does_not_count_is_noticed() -> None:
    with pytest.raises(ToolError, match="1000 nops are 77"):
        parse("bench-fact nops1000 77\n").scale(Measure.INSTRUCTIONS)
    with pytest.raises(ToolError, match="does not say how fast"):
        parse("bench-fact tsc-khz 0\n").scale(Measure.TIME)


def test_requests_cost_the_servers_time_or_take_their_own() -> None:
    console = f"{FACTS}bench-fact tsc-khz 1000000\nbench-cost get/30/16 server 4800 480\n"
    console += "bench-cost get/30/16 all 9600 480\nbench get/30/16 0 1 2 3 4 5 30\n"
    found = SUITES["redis"].read(booted(console), Measure.INSTRUCTIONS)
    assert {name.label: value.value for name, (_, value) in found.items()} == {
        "GET, pipeline 16": 10,
        "GET, pipeline 16 with client": 20,
    }
    ((name, (unit, value)),) = SUITES["memcached"].read(booted(console), Measure.TIME).items()
    assert (name.label, unit, value.value, value.percentiles["p99"]) == ("GET 30", "nanoseconds", 20, 4)


def test_fio_says_in_json_how_long_it_waited() -> None:
    percentile = {f"{p}00000": 7 for p in ("50.0", "90.0", "99.0", "99.9")}
    way = {"total_ios": 50, "runtime": 5, "clat_ns": {"percentile": percentile}}
    report = json.dumps({"fio version": "x", "jobs": [{"read": way, "write": way}]}, indent=2)
    timed = SUITES["fio"].read(booted(f"boot\nfio: hello\n{report}\nbye\n"), Measure.TIME)
    assert timed[CaseName("read")][1].value == 100_000 and timed[CaseName("write")][1].percentiles["p99.9"] == 7
    with pytest.raises(ToolError, match="fio printed no result"):
        SUITES["fio"].read(booted("nothing"), Measure.TIME)


def test_fio_is_watched_where_instructions_are_counted() -> None:
    console = f"{FACTS}bench-cost disk program 5000 50\nbench-cost disk all 6000 50\n"
    found = SUITES["fio"].read(booted(console), Measure.INSTRUCTIONS)
    assert {name.label: value.value for name, (_, value) in found.items()} == {
        "read or write": 100,
        "read or write with interrupts": 120,
    }
    for bad in (FACTS, f"{FACTS}bench-cost disk program 5000 50\n", f"{FACTS}bench-cost disk program 0 0\n"):
        with pytest.raises(ToolError, match="fio printed no result"):
            SUITES["fio"].read(booted(bad), Measure.INSTRUCTIONS)
    with pytest.raises(ToolError, match="does not count instructions"):
        SUITES["fio"].read(booted(console.replace("1000 1000", "1000 999")), Measure.INSTRUCTIONS)


def test_fio_does_what_the_papers_did() -> None:
    fio = SUITES["fio"]
    for measure, amount in ((Measure.INSTRUCTIONS, "1t"), (Measure.TIME, str(300 * 4096))):
        words = fio.command(measure, 300)
        wanted = {"--filename=/data/bench", "--rw=randrw", "--bs=4k", "--direct=1", "--iodepth=1"}
        assert {*wanted, f"--io_size={amount}"} <= set(words)
    assert fio.helper(Measure.INSTRUCTIONS, 300) == ("vda", "500", "300")
    assert fio.helper(Measure.TIME, 300) == () == SUITES["boot"].helper(Measure.TIME, 1)


def test_a_suite_with_a_disk_counts_while_the_guests_clock_goes_on(tmp_path: Path) -> None:
    how = How(Measure.INSTRUCTIONS, Accel.TCG, {}, cmdline="a=b", samples=7)
    bind = Bind(str(tmp_path), "/data", kind=Kind.BLOCK)
    counted = run_options(SUITES["fio"], how, (bind,))
    assert counted.binds == (bind,) and counted.icount == 0 and counted.extra[:2] == ("-icount", "sleep=on")
    timed = run_options(SUITES["fio"], replace(how, measure=Measure.TIME), (bind,))
    assert (timed.icount, timed.extra, timed.arguments[-5]) == (None, (), f"--io_size={7 * 4096}")
    redis = run_options(SUITES["redis"], how)
    assert (redis.binds, redis.extra, redis.cpus, redis.icount, redis.cmdline) == ((), (), 1, 0, "a=b")


def test_what_runs_beside_a_suite_is_packaged() -> None:
    beside = {name: suite.beside.program for name, suite in SUITES.items() if suite.beside}
    assert beside == {"fio": "watch", "redis": "client", "memcached": "client"}
    assert all((ROOT / "workloads" / program / "Uklfile").is_file() for program in beside.values())


def test_the_disks_file_system_needs_nothing_more_in_the_guest() -> None:
    assert mkfs_cmd(Path("/d/disk.img"))[-2:] == [
        "lazy_itable_init=0,lazy_journal_init=0,nodiscard,hash_seed=00000000-0000-4000-8000-000000000000",
        "/d/disk.img",
    ]


def test_boot() -> None:
    console = f"{FACTS}bench-fact main-ticks 12\nbench-fact memory-total 900\nbench-fact memory-free 700\n"
    found = SUITES["boot"].read(booted(console), Measure.INSTRUCTIONS)
    assert {name.label: (unit, value.value) for name, (unit, value) in found.items()} == {
        "machine's start to main()": ("instructions", 12),
        "memory in use at main()": ("bytes", 200),
        "memory the kernel took before": ("bytes", 100),
        "size of vmlinux": ("bytes", 10),
        "size of bzImage": ("bytes", 5),
        "size of initramfs": ("bytes", 3),
    }
    with pytest.raises(ToolError, match="boot printed no result"):
        SUITES["boot"].read(booted(FACTS), Measure.INSTRUCTIONS)


def test_suites_by_name() -> None:
    assert [suite.name for suite in named_suites(("fault", "boot", "fault"))] == ["fault", "boot"]
    assert len(named_suites(("boot", "all"))) == len(SUITES)
    with pytest.raises(UserError, match="no suite 'faults'"):
        named_suites(("faults",))


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_what_a_suite_builds_travels_with_the_package(suite: object) -> None:
    assert (ROOT / SUITES[suite.name].uklfile).is_file()  # type: ignore[attr-defined]
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {"apps": "uklimg/_data/apps", "workloads": "uklimg/_data/workloads"}.items() <= included.items()


# The paper

FIGURES = parse_paper((ROOT / "workloads/paper.toml").read_text())


def test_the_papers_figures_are_of_suites_of_ours() -> None:
    assert {figure.suite for figure in FIGURES} <= SUITES.keys()
    assert all(0.1 < figure.ratio < 1.1 for figure in FIGURES)
    ratios = {
        (figure.source, figure.case.label, " ".join(sorted(figure.options))): figure.ratio for figure in FIGURES
    }
    assert ratios["figure 3", "getppid", "BYP"] == pytest.approx(0.17)
    assert ratios["table 2", "fault 10", "RET"] == pytest.approx(0.8855)
    # 36.1 % more operations in the same time; 12.72 % fewer instructions.
    assert 1 / ratios["table 3", "read", "BYP RET"] == pytest.approx(1.361, abs=5e-4)
    assert ratios["table 7", "GET, pipeline 1", "BYP RET SHORTCUT"] == pytest.approx(0.8728, abs=5e-4)


def test_a_figure_stands_beside_the_variant_with_the_same_options() -> None:
    compared = (LINUX, variants.BASE, variants.named(("BYP", "RET")), variants.named(("RET", "BYP"), "2.41"))
    for measure, table in ((Measure.INSTRUCTIONS, "table 7"), (Measure.TIME, "table 6")):
        found = beside(FIGURES, "redis", CaseName("GET, pipeline 1"), compared, measure)
        sources = {name: source for name, (_, source) in found.items()}
        assert sources == dict.fromkeys(("base", "BYP+RET", "RET+BYP+glibc"), table)
    assert beside(FIGURES, "redis", CaseName("GET"), compared, Measure.TIME) == {}
    ret = (variants.named(("RET",)),)
    ((ratio, source),) = beside(FIGURES, "fault", CaseName("fault", 1), ret, Measure.TIME).values()
    assert source == "table 2" and ratio == pytest.approx(0.9234)


@pytest.mark.parametrize("text", ["", "paper = 1", "[[paper]]\nsource = 'x'", "[[paper", "[[paper]]\nsize = 'x'"])
def test_figures_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InternalError, match="paper"):
        parse_paper(text)


# Tables, JSON, picture

CASES = (
    Case(
        CaseName("getppid"),
        "instructions",
        {"linux": Value(200.0, {"p50": 201.0}), "base": Value(190.0), "BYP": Value(70.0)},
        {"BYP": (0.17, "figure 3")},
    ),
    Case(CaseName("read", 8192), "instructions", {"linux": Value(12345.0), "BYP": Value(99.5)}),
    Case(CaseName("odd"), "bytes", {"base": Value(1.0)}),
)
FOUND = Report(
    Measure.INSTRUCTIONS,
    {"accelerator": "tcg", "qemu": "10", "kernel": "6.12", "libc": "", "parameters": "a=b"},
    (LINUX, variants.BASE, variants.named(("BYP",))),
    (SuiteResult("syscall", "system calls", "A note.", CASES),),
)


def test_ratios_are_to_plain_linux() -> None:
    assert CASES[0].ratio("BYP") == 0.35 and CASES[0].ratio("linux") == 1
    assert CASES[1].ratio("base") is None and CASES[2].ratio("base") is None
    assert replace(CASES[0], values={"linux": Value(0), "base": Value(1)}).ratio("base") is None


def test_the_table() -> None:
    text = report.as_text(FOUND)
    assert "guest instructions (emulated" in text and "accelerator tcg, qemu 10, kernel 6.12, parameters a=b" in text
    assert (
        text.partition("system calls\n\n")[2]
        == """\
|             |  linux | base | ratio |  BYP | ratio |           the paper |
|-------------|-------:|-----:|------:|-----:|------:|--------------------:|
| getppid     |    200 |  190 | 0.950 |   70 | 0.350 | BYP 0.17 (figure 3) |
| read 8192   | 12,345 |    – |     – | 99.5 | 0.008 |                     |
| odd (bytes) |      – |    1 |     – |    – |     – |                     |

A note."""
    )
    assert "the paper" not in report.as_text(replace(FOUND, suites=(replace(FOUND.suites[0], cases=CASES[1:]),)))
    long = replace(FOUND, suites=(replace(FOUND.suites[0], note="A long note. " * 20),))
    assert max(len(line) for line in report.as_text(long).splitlines()[-3:]) <= 118


def test_times_have_their_percentiles() -> None:
    text = report.as_text(replace(FOUND, measure=Measure.TIME))
    assert text.startswith("Measured: nanoseconds.")
    assert re.search(r"\| getppid +\| linux +\| +201 \| +– \|", text)


def test_the_json_is_what_the_schema_says() -> None:
    value = json.loads(json.dumps(report.as_json(FOUND)))
    schema = json.loads((Path(__file__).parents[2] / "docs/bench.schema.json").read_text())
    validate(value, schema)
    first = value["suites"][0]["cases"][0]
    assert first["values"]["BYP"] == {"value": 70, "ratio": 0.35, "percentiles": {}}
    assert first["paper"] == {"BYP": {"ratio": 0.17, "source": "figure 3"}}
    assert value["variants"][0] == {"name": "linux", "target": "linux", "ukl": [], "glibc": ""}


def test_the_picture_has_a_bar_for_each_ratio(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    for path in (one, two):
        picture.draw(FOUND, path)
    assert one.read_bytes() == two.read_bytes()
    bars = re.findall(r'id="bar-([^"]+)"', one.read_text())
    assert sorted(bars) == ["syscall-BYP-getppid", "syscall-BYP-read 8192", "syscall-base-getppid"]
    marks = re.findall(r'id="paper-([^"]+)"', one.read_text())
    assert marks == ["syscall-BYP-getppid"]
    assert "(linux = 1, instructions, bytes)" in one.read_text()
    picture.draw(FOUND, tmp_path / "three.png")
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_nothing_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture.draw(replace(FOUND, suites=()), tmp_path / "empty.svg")
    with pytest.raises(ToolError, match="cannot write"):
        picture.draw(FOUND, tmp_path / "no" / "one.svg")


def test_a_picture_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"bench\.gif is no picture"):
        picture.check(Path("bench.gif"))
    real = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> ModuleType:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ToolError, match="a picture needs matplotlib") as caught:
        picture.check(Path("bench.svg"))
    assert caught.value.hint == "pip install 'uklimg[bench]'"


def test_workloads_are_data_of_the_package() -> None:
    assert Data(ROOT).root == ROOT
    assert {"syscall", "fault", "boot", "client", "watch"} <= {
        path.parent.name for path in ROOT.glob("workloads/*/Uklfile")
    }
