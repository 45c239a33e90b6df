"""The Spec: values, scoping and checks one by one. What whole files give is in tests/golden/uklfile."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uklimg.errors import UserErrors
from uklimg.spec import BaseImage, Copy, OciImage, Port, Run, SeriesInfo, Spec, StageRef, build_spec
from uklimg.spec import values as v
from uklimg.uklfile.directives import RULES
from uklimg.uklfile.parser import parse

pytestmark = pytest.mark.unit

# A loaded machine may be slow at any one example; that says nothing about the code.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SERIES = {"6.12": SeriesInfo("6.12", ("BYP", "NSS", "PF_DF"))}


def spec(text: str, build_args: Mapping[str, str] | None = None, file: str = "f") -> Spec:
    return build_spec(parse(text, file), build_args=build_args or {}, base_images=["debian-trixie"], series=SERIES)


def stage(lines: str, build_args: Mapping[str, str] | None = None) -> Spec:
    """A Uklfile around ``lines`` of a build stage, which begin on line 2."""
    return spec(f"FROM debian:trixie AS build\n{lines}\nFROM ukl:6.12\nLINK /p", build_args)


def image(lines: str) -> Spec:
    return spec(f"FROM debian:trixie AS build\nFROM ukl:6.12\nLINK /bin/p\n{lines}")


def errors(text: str) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        spec(text)
    return caught.value.line().split("\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("256M", 256 << 20),
        ("1.5g", 3 << 29),
        ("64MiB", 64 << 20),
        ("1 GB", 1 << 30),
        ("1048576", 1 << 20),
        ("2kb", 2048),
    ],
)
def test_size(text: str, value: int) -> None:
    assert v.size(text) == value


@pytest.mark.parametrize("text", ["", "M", "1X", "-1M", "1e3", "1.M", "٣M", "9" * 30])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(v.BadValueError):
        v.size(text)


@pytest.mark.parametrize("text", ["1M", "64", "1000p"])
def test_memory_has_bounds(text: str) -> None:
    with pytest.raises(v.BadValueError):
        v.memory(text)


@pytest.mark.parametrize(
    ("text", "value"), [("30s", 30 * 10**9), ("1m30s", 90 * 10**9), ("1.5h", 5400 * 10**9), ("0", 0), ("1ms", 10**6)]
)
def test_duration(text: str, value: int) -> None:
    assert v.duration(text) == value


@pytest.mark.parametrize("text", ["", "1", "s", "1x", "-1s", "1s ", "1us", "1.s.5s5"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(v.BadValueError):
        v.duration(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [("SIGTERM", "SIGTERM"), ("quit", "SIGQUIT"), ("15", "SIGTERM"), ("17", "SIGCHLD"), ("SIGRTMIN+3", "SIGRTMIN+3")],
)
def test_signal(text: str, name: str) -> None:
    assert v.signal(text) == name


@pytest.mark.parametrize("text", ["", "0", "99", "SIG", "SIGX", "RTMIN+31"])
def test_wrong_signals(text: str) -> None:
    with pytest.raises(v.BadValueError):
        v.signal(text)


def test_ports() -> None:
    assert v.ports("80") == (Port(80, "tcp"),)
    assert v.ports("53-54/UDP") == (Port(53, "udp"), Port(54, "udp"))
    assert str(Port(80, "tcp")) == "80/tcp"


@pytest.mark.parametrize(
    ("path", "workdir", "result"),
    [
        ("/a/", "/", "/a/"),
        (".", "/w", "/w/"),
        ("a/..", "/w", "/w/"),
        ("../../x", "/w", "/x"),
        ("//a", "/", "/a"),
        ("", "/w", "/w"),
    ],
)
def test_destination(path: str, workdir: str, result: str) -> None:
    assert v.destination(path, workdir) == result


def test_context_paths_stay_inside() -> None:
    assert [v.in_context(path) for path in ("a/../b", "/a", ".", "", "./a/")] == ["b", "a", ".", ".", "a"]
    for path in ("..", "../a", "a/../../b"):
        with pytest.raises(v.BadValueError):
            v.in_context(path)


def test_kconfig_values() -> None:
    assert [v.kconfig_value(text, False) for text in ("y", "N", "17", "-1", "0xFF", "tcp")] == [
        "y", "n", "17", "-1", "0xff", '"tcp"',
    ]  # fmt: skip
    assert v.kconfig_value('5"\\', True) == '"5\\"\\\\"'


def test_argv_is_entrypoint_and_command_or_the_programs_name() -> None:
    assert image("").image.argv == ("p",)
    assert image('CMD ["a"]').image.argv == ("a",)
    assert image('CMD ["a", "$x"]\nENTRYPOINT ["e", ""]').image.argv == ("e", "", "a", "$x")


def test_defaults_of_the_image() -> None:
    found = image("").image
    assert (found.memory, found.cpus, found.stop_signal, found.userland) == (256 << 20, 1, "SIGTERM", "none")
    assert (found.link.stage, found.link.path, found.link.name) == ("build", "/bin/p", "p")


def test_ukl_options_are_in_the_order_of_the_series() -> None:
    assert image("UKL PF_DF\nUKL NSS byp").image.ukl_options == ("BYP", "NSS", "PF_DF")
    assert image("ARG O='NSS BYP'\nUKL $O").image.ukl_options == ("BYP", "NSS")


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("debian:trixie", BaseImage("debian-trixie")),
        ("debian-trixie", BaseImage("debian-trixie")),
        ("BUILD", StageRef("build")),
        ("0", StageRef("build")),
        ("localhost/a", OciImage("localhost/a")),
        ("localhost:5000/a/b:tag", OciImage("localhost:5000/a/b:tag")),
        ("h.example/a@sha256:" + "0" * 64, OciImage("h.example/a@sha256:" + "0" * 64)),
    ],
)
def test_bases(text: str, base: object) -> None:
    found = spec(f"FROM debian:trixie AS build\nFROM {text}\nFROM ukl:6.12\nLINK --from=build /p")
    assert found.stages[1].base == base


@pytest.mark.parametrize(
    "text", ["a", "a/b", "a:b", "h.example/A", "h.example", "http://h.example/a", "h.example/a@sha256:0"]
)
def test_no_bases(text: str) -> None:
    assert errors(f"FROM {text}\nFROM ukl:6.12\nLINK /p")[0].startswith(f"f:1:6: unknown base image '{text}'")


def run_of(found: Spec) -> Run:
    (run,) = (i for i in found.stages[0].instructions if isinstance(i, Run))
    return run


def test_run_is_left_to_the_shell() -> None:
    run = run_of(stage("ENV X=1\nRUN echo $X '$Y'"))
    assert run.argv == ("/bin/sh", "-c", "echo $X '$Y'")
    assert dict(run.env)["X"] == "1"
    assert run.network is False


def test_build_arguments_override_defaults_and_need_no_declared_global() -> None:
    assert dict(run_of(stage("ARG X=$nothing\nRUN x", {"X": "$given"})).env)["X"] == "$given"
    assert dict(run_of(stage("ARG X\nRUN x")).env).get("X") is None
    assert stage("RUN x", {"VERSON": "1"}).warnings[0][1] == "the build argument 'VERSON' is not used"


def test_build_arguments_must_be_text() -> None:
    with pytest.raises(UserErrors, match="is not text"):
        stage("ARG X", {"X": "\udc80"})


def test_env_values_see_what_was_before_the_line() -> None:
    assert stage("ENV a=1\nENV a=2 b=$a").stages[0].env == (("a", "2"), ("b", "1"))


def test_doubling_variables_stops_before_memory_does() -> None:
    lines = "\n".join(["ENV a=xxxxxxxx", *["ENV a=$a$a$a$a$a$a$a$a"] * 40])
    with pytest.raises(UserErrors, match="longer than"):
        stage(lines)


def test_copy_from_an_image_and_of_a_stage() -> None:
    found = spec(
        "FROM debian:trixie AS a\nFROM ukl:6.12\nLINK /p\nCOPY --from=debian:trixie /etc /e\nCOPY --from=A x ./\n"
    )
    assert found.image.copies[0].origin == BaseImage("debian-trixie")
    assert found.image.copies[1] == Copy(found.image.copies[1].location, ("x",), (), "/", StageRef("a"))


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("COPY x /init", "/init"),
        ("COPY x /sbin/../init", "/init"),
        ("COPY <<init /\ntext\ninit", "/init"),
        ("ADD x /ukl/p", "/ukl/p"),
        ("COPY x /ukl/", "/ukl"),
        ("WORKDIR /ukl\nCOPY x y", "/ukl/y"),
        ("COPY x /etc/uklimg/run.conf", "/etc/uklimg/run.conf"),
        ("COPY x /dev/console", "/dev/console"),
    ],
)
def test_what_starts_the_image_is_not_copied_over(line: str, path: str) -> None:
    head = "FROM debian:trixie AS build\nFROM ukl:6.12\nLINK /bin/p\n"
    (error,) = errors(head + line)
    at = 4 + line.startswith("WORKDIR")
    assert error.startswith(f"f:{at}:") and f"to {path!r}, which uklimg makes itself (" in error


@pytest.mark.parametrize(
    ("line", "place", "mount"),
    [
        ("COPY x /tmp/seed", "4:8", "/tmp"),
        ("COPY x y /run/", "4:10", "/run"),
        ("COPY <<socket.conf /run/app/\ntext\nsocket.conf", "4:20", "/run"),
        ("ADD x /dev/null", "4:7", "/dev"),
        ("COPY x /proc", "4:8", "/proc"),
        ("WORKDIR /run/app", "4:9", "/run"),
    ],
)
def test_what_is_mounted_over_is_no_place_for_files(line: str, place: str, mount: str) -> None:
    """The image would be built, and lack them."""
    (error,) = errors("FROM debian:trixie AS build\nFROM ukl:6.12\nLINK /bin/p\n" + line)
    assert error.startswith(f"f:{place}: ") and f": {mount} is mounted over when the image starts (" in error


def test_where_files_may_be_beside_the_mounts() -> None:
    found = image("COPY x /tmpl/\nCOPY y /run.d\nWORKDIR /tmp\nVOLUME /run/state").image
    assert (found.workdir, found.volumes) == ("/tmp", ("/run/state",))


def test_copy_near_what_starts_the_image() -> None:
    found = image("COPY x /init.d/\nCOPY x /uklx\nCOPY <<y /\ntext\ny\nVOLUME /initdata").image
    assert [copy.dest for copy in found.copies] == ["/init.d/", "/uklx", "/"]
    assert errors("FROM debian:trixie AS a\nFROM ukl:6.12\nLINK /p\nVOLUME /ukl/p\n")[0].startswith("f:4:8: ")


def test_stage_by_name() -> None:
    found = stage("")
    assert found.stage("build") is found.stages[0]
    with pytest.raises(KeyError):
        found.stage("x")


def test_errors_of_all_stages_at_once() -> None:
    lines = errors("FROM nowhere AS a\nRUN --network=x y\nFROM a AS b\nCMD x\nFROM ukl:1\nRUN x\nUKL FAST\nMEMORY x")
    assert [line.split(": ")[0] for line in lines] == ["f:1:6", "f:2:5", "f:4:1", "f:5:1", "f:5:6", "f:6:1", "f:8:8"]


ARGUMENTS = st.sampled_from(
    [
        "a",
        "/a",
        "a=b",
        "x",
        "${a:-b}",
        "$a",
        "[",
        '["a", "b"]',
        "<<E",
        "--from=0",
        "debian:x",
        "1",
        "1M",
        "a b",
        "..",
        "*",
        "'",
        "https://h/x",
    ]
)
LINE = st.tuples(st.sampled_from(sorted(RULES)), st.lists(ARGUMENTS, max_size=4)).map(
    lambda t: " ".join((t[0], *t[1]))
)
FILES = st.lists(st.one_of(LINE, st.sampled_from(["FROM debian:trixie", "FROM ukl:6.12", "LINK /p", "E", "ARG a=b"])))


@RELAXED
@given(
    st.one_of(FILES.map("\n".join), st.text(max_size=300)), st.dictionaries(st.text(max_size=3), st.text(max_size=5))
)
def test_any_text_is_a_spec_or_user_errors(text: str, build_args: dict[str, str]) -> None:
    try:
        found = spec(text, build_args)
    except UserErrors as caught:
        assert all(error.location is not None for error in caught.errors)
        places = [error.location for error in caught.errors if error.location]
        assert places == sorted(places)
        return
    assert found.image.link.stage in {s.name for s in found.stages}


@RELAXED
@given(st.lists(LINE, max_size=8), st.lists(LINE, max_size=8))
def test_lines_in_a_sound_frame(build: list[str], last: list[str]) -> None:
    """As above, in a frame that lets most lines reach the checks behind the parser."""
    text = "\n".join(["FROM debian:trixie AS build", *build, "FROM ukl:6.12", "LINK --from=build /p", *last])
    try:
        spec(text)
    except UserErrors as caught:
        assert caught.line()


def test_proxies_need_no_arg_and_reach_only_commands_with_a_network() -> None:
    given = {"http_proxy": "http://user:password@proxy", "NO_PROXY": "here", "other": "x"}
    text = "FROM debian:trixie AS b\nRUN --network=default x\nRUN y\nFROM ukl:6.12\nLINK --from=b /p"
    found = spec(text, given)
    online, offline = (step for step in found.stages[0].instructions if isinstance(step, Run))
    assert online.proxies == (("NO_PROXY", "here"), ("http_proxy", "http://user:password@proxy"))
    assert offline.proxies == ()
    assert "http_proxy" not in dict(online.env)
    assert [warning for _, warning in found.warnings] == ["the build argument 'other' is not used"]
    declared = spec(text.replace("RUN y", "ARG http_proxy\nRUN y"), given)
    assert [
        dict(step.env).get("http_proxy") for step in declared.stages[0].instructions if isinstance(step, Run)
    ] == [
        None,
        given["http_proxy"],
    ]
