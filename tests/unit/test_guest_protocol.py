"""What PID 1 is told and what it reports."""

from __future__ import annotations

import pytest

from uklimg.errors import UserError
from uklimg.guest.config import guest_config, signal_number
from uklimg.guest.protocol import (
    GuestConfig,
    Helper,
    Mount,
    Program,
    Report,
    ReportKind,
    Status,
    decode_report,
    encode,
    encode_stop,
    error_of_console,
    final_of_console,
    stub,
)
from uklimg.oci import RunConfig

pytestmark = pytest.mark.unit


def test_records_in_order() -> None:
    config = GuestConfig(
        programs=(Program("redis", ("redis", "a b\n"), {"B": "2"}, "/w", timeout=5, keep=2, label="one"),),
        beside=(Helper(Program("/bin/sh"), wait=True, stop=True),),
        mounts=(Mount("/data", "tag", options="x=y", read_only=True),),
        env={"Z": "", "A": "1=1"},
        stop_signal=2,
        grace=3,
        markers=True,
        raw_console=True,
    )
    assert encode(config).split(b"\0") == [
        *(b"version=1", b"workdir=/", b"stop-signal=2", b"grace=3", b"hostname=uklimg", b"markers=1"),
        *(b"raw-console=1", b"env=A=1=1", b"env=Z="),
        *(b"mount=/data", b"type=9p", b"source=tag", b"data=x=y", b"read-only=1"),
        *(b"program=redis", b"label=one", b"arg=redis", b"arg=a b\n", b"env=B=2", b"workdir=/w", b"timeout=5"),
        *(b"keep=2", b"beside=/bin/sh", b"wait=1", b"stop=1"),
        *(b"", b""),
    ]
    assert encode_stop(7) == b"stop=7\0\0"


@pytest.mark.parametrize(
    "config",
    [
        GuestConfig(()),
        GuestConfig((Program("a", ("x\0y",)),)),
        GuestConfig((Program("a"),), env={"": "x"}),
        GuestConfig((Program("a"),), env={"a=b": "x"}),
        GuestConfig((Program("a", ("x" * (4 << 20),)),)),
    ],
)
def test_what_cannot_be_carried(config: GuestConfig) -> None:
    with pytest.raises(UserError):
        encode(config)


def test_stub() -> None:
    assert stub("redis-server") == b"\x7fUKL1\nredis-server\n"
    for name in ("", "a/b", "../x", "a b", "x" * 65, "-x", "a\n"):
        with pytest.raises(UserError):
            stub(name)


@pytest.mark.parametrize(
    ("line", "report"),
    [
        (b'{"ready":1}', Report(ReportKind.READY)),
        (b'{"begin":"x"}', Report(ReportKind.BEGIN, name="x")),
        (b'{"end":"x","exit":3}', Report(ReportKind.END, name="x", status=Status(exit=3))),
        (b'{"end":"x","signal":9,"timeout":true}', Report(ReportKind.END, "x", "", Status(signal=9), timeout=True)),
        (b'{"error":"no"}', Report(ReportKind.ERROR, text="no")),
        (b'{"exit":0}', Report(ReportKind.FINAL)),
        (b'{"signal":11}', Report(ReportKind.FINAL, status=Status(signal=11))),
        (b"", None),
        (b"{", None),
        (b"[1]", None),
        (b'{"exit":256}', None),
        (b'{"exit":-1}', None),
        (b'{"exit":true}', None),
        (b'{"exit":"0"}', None),
        (b'{"signal":65}', None),
        (b"\xff\xfe", None),
    ],
)
def test_reports(line: bytes, report: Report | None) -> None:
    assert decode_report(line) == report


def test_codes() -> None:
    assert [Status(exit=3).code, Status(signal=11).code, Status().code] == [3, 139, 0]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"x\nuklimg: exit 3\r\nreboot: Power down\r\n", Status(exit=3)),
        (b"no newline uklimg: exit 0\n", Status(exit=0)),
        (b"uklimg: exit 1\nuklimg: signal 11 (SIGSEGV)\n", Status(signal=11)),
        (b"uklimg: exit 1234\n", None),
        (b"uklimg: exited\n", None),
        (b"", None),
    ],
)
def test_final_line(text: bytes, status: Status | None) -> None:
    assert final_of_console(text) == status


def test_error_line() -> None:
    assert error_of_console(b"a\r\nuklimg: error: cannot execute x: why\r\nb") == "cannot execute x: why"
    assert error_of_console(b"fine") is None


def test_signal_numbers() -> None:
    assert [signal_number(text) for text in ("SIGTERM", "term", "15", "SIGRTMIN+3", "SIGUSR2")] == [
        15,
        15,
        15,
        37,
        12,
    ]
    for text in ("", "0", "65", "SIGNOPE", "SIGRTMIN+31", "-1"):
        with pytest.raises(UserError):
            signal_number(text)


def test_guest_of_an_image() -> None:
    run = RunConfig("redis", ("redis", "--x"), ("--y",), {"A": "1", "B": "1"}, workdir="/d", stop_signal="SIGINT")
    guest = guest_config(run, env={"B": "2"})
    assert guest.programs == (Program("redis", ("redis", "--x", "--y"), keep=2),)
    assert (guest.env, guest.workdir, guest.stop_signal) == ({"A": "1", "B": "2"}, "/d", 2)
    assert guest_config(run, arguments=["--z"]).programs[0].argv == ("redis", "--x", "--z")
    assert guest_config(RunConfig("redis")).programs == (Program("redis", ("redis",)),)
