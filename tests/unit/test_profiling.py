"""uklimg profile: what perf prints, counted, as a flame graph; and what runs in the guest."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from uklimg.profiling.boot import Wanted, profiler_cmd
from uklimg.profiling.flame import boxes, flame
from uklimg.profiling.stacks import Frame, Kind, folded, stacks
from uklimg.runner.machine import Accel

pytestmark = pytest.mark.unit

SCRIPT = """\
swapper
\tffffffff81000010 default_idle+0x8 ([kernel.kallsyms])

redis-server
\tffffffff81234567 tcp_sendmsg+0x12 ([kernel.kallsyms])
\tffffffff81000020 do_syscall_64 ([kernel.kallsyms])
\tffffffffc0001234 __libc_write ([kernel.kallsyms])
\tffffffffc0000000 main ([kernel.kallsyms])

redis-server
\tffffffffc0000000 main ([kernel.kallsyms])
redis-server
\tffffffffc0000000 main ([kernel.kallsyms])

kworker/0:1-eve
\tffffffff81000030 worker_thread ([kernel.kallsyms])

client
\t          401234 operator()(int, char const*) (/bench/client)
\t          400000 [unknown] (/bench/client)
\t               0 [unknown] ([unknown])

profiler
\t          400000 main (/bench/profiler)

"""
NAME, MAIN = Frame("redis-server", Kind.NAME), Frame("main", Kind.APPLICATION)


def test_samples_become_counted_stacks() -> None:
    found = stacks(SCRIPT.splitlines())
    assert found[NAME, MAIN] == 2
    assert {tuple(frame.name for frame in stack): count for stack, count in found.items()} == {
        ("redis-server", "main", "__libc_write", "do_syscall_64", "tcp_sendmsg"): 1,
        ("redis-server", "main"): 2,
        ("kworker/0:1-eve", "worker_thread"): 1,
        ("client", "[unknown]", "[/bench/client]", "operator()(int, char const*)"): 1,
    }
    (deep,) = (stack for stack in found if len(stack) == 5)
    kinds = [frame.kind for frame in deep]
    assert kinds == [Kind.NAME, Kind.APPLICATION, Kind.APPLICATION, Kind.KERNEL, Kind.KERNEL]


def test_a_kernel_without_an_application_has_modules_there() -> None:
    found = stacks(SCRIPT.splitlines(), unlinked=True)
    assert Frame("main", Kind.KERNEL) in {frame for stack in found for frame in stack}


def test_nothing_recorded() -> None:
    assert stacks([]) == {} and stacks("swapper\n\tffff default_idle\n".splitlines()) == {}
    assert boxes({}) == ()


def test_a_line_a_stack() -> None:
    assert (
        folded({(NAME, MAIN): 2, (NAME, Frame("a;b", Kind.KERNEL)): 1}) == "redis-server;a:b 1\nredis-server;main 2\n"
    )


def test_boxes_are_as_wide_as_their_part_and_stand_on_their_callers() -> None:
    f, g = Frame("f", Kind.KERNEL), Frame("g", Kind.KERNEL)
    found = boxes({(NAME, f): 1, (NAME, f, g): 2, (NAME, g): 1})
    assert [(box.frame, box.depth, box.left, box.width, box.count) for box in found] == [
        (NAME, 0, 0, 1, 4),
        (f, 1, 0, 0.75, 3),
        (g, 2, 0, 0.5, 2),
        (g, 1, 0.75, 0.25, 1),
    ]


def test_the_picture_says_what_each_box_is() -> None:
    text = flame(stacks(SCRIPT.splitlines()), "redis <8>: 'a' & b")
    root = ElementTree.fromstring(text)
    space = {"svg": "http://www.w3.org/2000/svg"}
    titles = [title.text or "" for title in root.findall("svg:g/svg:title", space)]
    assert "redis-server: 3 samples, 60.00% (name)" in titles
    assert "tcp_sendmsg: 1 samples, 20.00% (kernel)" in titles
    assert "operator()(int, char const*): 1 samples, 20.00% (process)" in titles
    words = [text.text or "" for text in root.findall("svg:text", space)]
    assert words[0] == "redis <8>: 'a' & b (5 samples)"
    assert words[1:] == ["application, linked with the kernel", "kernel", "processes in ring 3"]
    assert flame(stacks(SCRIPT.splitlines()), "x") == flame(stacks(SCRIPT.splitlines()), "x")
    # Every box lies within the picture.
    width, height = (int(root.attrib[name]) for name in ("width", "height"))
    for box in root.findall("svg:g/svg:rect", space):
        left, top, wide = (float(box.attrib[name]) for name in ("x", "y", "width"))
        assert left >= 0 and left + wide <= width and 0 < top < height


def test_what_runs_in_the_guest() -> None:
    argv = profiler_cmd(Wanted(10, 99, ("redis", "6379", "get/1/1/1")), Accel.TCG)
    assert argv[:6] == ("/bench/profiler", "10", "redis", "6379", "get/1/1/1", "--")
    text = " ".join(argv)
    perf = "/tools/lib/ld-linux-x86-64.so.2 --library-path /tools/lib /tools/perf"
    assert f"-- {perf} record -q -a -g -F 99 -e cpu-clock -o /tmp/perf.data -- {perf} script" in text
    assert "cpu-clock" not in " ".join(profiler_cmd(Wanted(10, 99), Accel.KVM))
