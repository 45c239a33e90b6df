"""`uklimg bench` for real: the smallest suite, plain Linux against the base model, with the kernels that other tests
boot. What the figures are is for benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import validate
from redislib import ROOT, uklimg

pytestmark = [pytest.mark.boot, pytest.mark.twin]


def test_a_suite_as_plain_linux_and_as_the_base_model(tmp_path: Path) -> None:
    words = ("--variant", "base", "--samples", "20", "--accel", "tcg", "--progress", "plain")
    output, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    done = uklimg("bench", "syscall", *words, "--output", str(output), "--picture", str(picture))
    assert done.status == 0, done.stderr
    assert "Measured: guest instructions" in done.stdout and "| getppid" in done.stdout
    value = json.loads(output.read_text())
    validate(value, json.loads((ROOT / "docs/bench.schema.json").read_text()))
    assert [variant["name"] for variant in value["variants"]] == ["linux", "base"]
    cases = {(case["case"], case["size"]): case["values"] for case in value["suites"][0]["cases"]}
    assert len(cases) == 3 + 4 * 6
    assert all(values["linux"]["value"] > 0 and values["base"]["value"] > 0 for values in cases.values())
    # Larger buffers are copied.
    for name in ("read", "write", "sendto", "recvfrom"):
        assert cases[name, 8192]["linux"]["value"] > cases[name, 1]["linux"]["value"] + 8192 / 8
    assert picture.read_text().count('id="bar-') == len(cases)


def test_fio_on_a_disk_is_counted_from_beside_it(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    words = ("--variant", "base", "--samples", "200", "--accel", "tcg", "--progress", "plain")
    done = uklimg("bench", "fio", *words, "--output", str(output))
    assert done.status == 0, done.stderr
    cases = {case["case"]: case["values"] for case in json.loads(output.read_text())["suites"][0]["cases"]}
    for variant in ("linux", "base"):
        own, all_of_it = (cases[f"read or write{more}"][variant]["value"] for more in ("", " with interrupts"))
        assert 0 < own < all_of_it


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("sycall",), "no suite 'sycall'"),
        (("syscall", "--variant", "FASTER"), "no UKL option FASTER"),
        (("syscall", "--picture", "bench.gif"), "bench.gif is no picture"),
        (("syscall", "--samples", "-1"), "--samples wants a number"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(words: tuple[str, ...], problem: str) -> None:
    done = uklimg("bench", *words)
    assert done.status == 1
    assert problem in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_flame_graph_has_the_application_above_the_kernel(tmp_path: Path) -> None:
    """Redis, as other tests boot it; perf and its libraries are taken from Debian once."""
    uklimg_test = "uklimg-test/example:base"
    words = ("--client", "redis", "--requests", "300", "--accel", "tcg", "--progress", "plain")
    out, folded = tmp_path / "redis.svg", tmp_path / "redis.txt"
    done = uklimg("profile", *words, "-o", str(out), "--folded", str(folded), uklimg_test)
    assert done.status == 0, done.stderr
    assert done.stdout.startswith(f"{out}: ")
    stacks = folded.read_text()
    # From the first function of the program, through the C library, into the kernel.
    assert re.search(r"^redis-server;_start;.*;main;aeMain;.*;do_syscall_64;.*tcp_sendmsg", stacks, re.MULTILINE), (
        stacks
    )
    assert "(application)</title>" in out.read_text() and "(kernel)</title>" in out.read_text()
    assert "default_idle" not in stacks
