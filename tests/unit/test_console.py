"""What a user sees of events: lines, JSON, bars; and never a password or a control character."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Sequence

import pytest

from uklimg.console import BarConsole, JsonConsole, PlainConsole, clean, console, duration, size
from uklimg.events import (
    BuildFinished,
    BuildPlanned,
    Event,
    Note,
    StepCached,
    StepCancelled,
    StepFailed,
    StepFinished,
    StepOutput,
    StepStarted,
    TransferFinished,
    TransferProgress,
    TransferStarted,
)

pytestmark = pytest.mark.unit

BUILD: Sequence[Event] = (
    BuildPlanned(2, 1),
    StepCached("base", "base image", "sha256:1"),
    StepStarted("run", "RUN make", "sha256:2"),
    TransferStarted("t", "fetch", "a.deb", 2_000_000),
    TransferProgress("t", 2_000_000),
    TransferFinished("t"),
    TransferStarted("u", "fetch", "b.deb", 5),
    TransferFinished("u", skipped=True),
    StepOutput("run", "cc -c a.c"),
    StepFinished("run", "RUN make", 2.04),
    Note("done"),
    Note("careful", warning=True),
    BuildFinished(1, 1, 2, 64.4),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(made: PlainConsole | JsonConsole | BarConsole, stream: io.StringIO, sent: Sequence[Event]) -> str:
    with made as sink:
        for event in sent:
            sink(event)
    return stream.getvalue()


def plain(*sent: Event) -> str:
    stream = io.StringIO()
    return shown(PlainConsole(stream), stream, sent)


def test_manifests_and_signatures_are_no_lines() -> None:
    """A signed image has dozens of them."""
    sent = [
        event
        for name, total in (("239", 239), ("unknown", 0), ("vmlinux", 19_900_000))
        for event in (TransferStarted(name, "push", name, total), TransferFinished(name))
    ]
    assert plain(*sent) == "push unknown\npush vmlinux (19.9 MB)\n"


def test_plain_lines() -> None:
    assert plain(*BUILD) == (
        "2 steps, 1 of them cached\n"
        "CACHED base image\n"
        "=> RUN make\n"
        "fetch a.deb (2.0 MB)\n"
        "   | cc -c a.c\n"
        "   done in 2.0 s: RUN make\n"
        "done\n"
        "warning: careful\n"
        "1 of 2 steps ran, 1 cached, 1 min 04 s\n"
    )


def test_steps_at_once_do_not_mix() -> None:
    assert plain(
        StepStarted("a", "A", ""),
        StepStarted("b", "B", ""),
        StepOutput("b", "b1"),
        StepStarted("c", "C", ""),
        StepOutput("a", "a1"),
        StepOutput("c", "c1"),
        StepFinished("c", "C", 1),
        StepOutput("b", "b2"),
        StepOutput("a", "a2"),
        StepFinished("a", "A", 2),
        StepOutput("b", "b3"),
        StepStarted("d", "D", ""),
        StepFinished("b", "B", 3),
        StepFinished("d", "D", 4),
    ).splitlines() == [
        *("=> A", "   | a1", "   | a2", "   done in 2.0 s: A"),
        *("=> C", "   | c1", "   done in 1.0 s: C"),
        *("=> B", "   | b1", "   | b2", "   | b3", "   done in 3.0 s: B"),
        *("=> D", "   done in 4.0 s: D"),
    ]


def test_when_one_fails_the_others_are_shown_too() -> None:
    assert plain(
        StepStarted("a", "A", ""),
        StepStarted("b", "B", ""),
        StepOutput("b", "error"),
        StepFailed("b", "B", "/log"),
        StepCancelled("a", "A"),
        BuildFinished(3, 0, 9, 1.25, failed=True),
    ).splitlines() == [
        *("=> A", "   cancelled: A", "=> B", "   | error", "   FAILED B", "   log: /log"),
        "not finished: 3 of 9 steps ran, 1.2 s",
    ]


def test_what_is_held_back_is_shown_however_it_ends() -> None:
    sent = (StepStarted("a", "A", ""), StepStarted("b", "B", ""), StepOutput("b", "said"))
    assert plain(*sent).splitlines() == ["=> A", "=> B", "   | said"]


def test_much_output_is_held_back_in_a_file() -> None:
    lines = [f"line {number} \N{SNOWMAN}" for number in range(20_000)]
    sent: list[Event] = [StepStarted("a", "A", ""), StepStarted("b", "B", "")]
    sent += [StepOutput("b", line) for line in lines]
    text = plain(*sent, StepFinished("b", "B", 1), StepFinished("a", "A", 1)).splitlines()
    assert text == [
        *("=> A", "   done in 1.0 s: A", "=> B"),
        *(f"   | {line}" for line in lines),
        "   done in 1.0 s: B",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (754, "12 min 34 s"),
        (3599.7, "1 h 00 min"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_bars_name_all_that_runs_and_what_is_left_to_fetch() -> None:
    stream = Terminal()
    text = shown(
        BarConsole(stream),
        stream,
        [
            BuildPlanned(9, 0),
            StepStarted("a", "kernel 6.12", ""),
            StepStarted("b", "RUN make", ""),
            TransferStarted("t", "fetch", "linux.tar", 2_000_000),
            TransferStarted("u", "fetch", "b.deb", 2_000_000),
            TransferProgress("t", 1_000_000),
            TransferStarted("v", "fetch", "c.deb", 10_000_000),
            TransferFinished("v", skipped=True),
        ],
    )
    assert "kernel 6.12 | RUN make" in text
    assert "fetch linux.tar +1" in text
    assert "1.00M/4.00M" in text.rpartition("left")[0].rpartition("\r")[2]


def test_a_failed_step_says_where_the_log_is() -> None:
    assert plain(StepFailed("run", "RUN make", "/store/logs/1.log")).endswith("log: /store/logs/1.log\n")


def test_json_is_one_object_a_line_with_all_fields() -> None:
    stream = io.StringIO()
    lines = [json.loads(line) for line in shown(JsonConsole(stream), stream, BUILD).splitlines()]
    assert len(lines) == len(BUILD)
    assert lines[0] == {"event": "build-planned", "total": 2, "cached": 1}
    assert lines[2] == {"event": "step-started", "step": "run", "title": "RUN make", "key": "sha256:2"}
    assert lines[9] == {"event": "step-finished", "step": "run", "title": "RUN make", "seconds": 2.04}


def test_bars_end_with_lines_of_what_was_done() -> None:
    stream = Terminal()
    text = shown(BarConsole(stream), stream, BUILD)
    assert "CACHED base image" in text
    assert "done in 2.0 s: RUN make" in text
    assert "fetch a.deb" in text
    assert "2/2" in text
    # In the end the bar is taken away: nothing of it stays on the line.
    assert text.rpartition("\r")[2].strip("\x1b[A \n") == "1 of 2 steps ran, 1 cached, 1 min 04 s"


@pytest.mark.parametrize(
    ("progress", "stream", "kind"),
    [
        ("auto", Terminal(), BarConsole),
        ("auto", io.StringIO(), PlainConsole),
        ("plain", Terminal(), PlainConsole),
        ("json", Terminal(), JsonConsole),
    ],
)
def test_who_is_shown_what(progress: str, stream: io.StringIO, kind: type[object]) -> None:
    assert type(console(progress, stream)) is kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:secret@host.example/x", "https://***@host.example/x"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("bell\x07 and back\x08", "bell and back"),
        ("a\ttab and ümläut", "a\ttab and ümläut"),
        ("mail a@b.example", "mail a@b.example"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize("made", [PlainConsole, JsonConsole])
def test_no_password_and_no_control_character_is_printed(
    made: type[PlainConsole] | type[JsonConsole],
) -> None:
    stream = io.StringIO()
    text = shown(made(stream), stream, [StepOutput("s", "\x1b[2Jfrom https://me:secret@host/"), Note("x://a:b@c")])
    assert "secret" not in text
    assert "a:b" not in text
    assert "\x1b" not in text


def test_a_reader_that_is_gone_does_not_end_the_build() -> None:
    stream = io.StringIO()
    stream.close()
    sink = PlainConsole(stream)
    sink(Note("nobody hears this"))
    assert stream.closed


def test_events_of_several_threads_stay_whole_lines() -> None:
    stream = io.StringIO()
    sink = PlainConsole(stream)

    def send(word: str) -> None:
        for _ in range(200):
            sink(Note(word * 20))

    threads = [threading.Thread(target=send, args=(word,)) for word in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 800
    assert set(lines) == {word * 20 for word in "abcd"}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (3e15, "3000.0 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
