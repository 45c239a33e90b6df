"""The command line up to where containers and machines begin: arguments, errors, exit codes, listings."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_detached import record

from uklimg import oci, proc
from uklimg.cli import build, images, run
from uklimg.cli.host import Host
from uklimg.cli.main import VERBS, main, parser, read, verbs
from uklimg.cli.options import find_image
from uklimg.cli.run import variables
from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.guest.protocol import Status
from uklimg.imagebuild import build_image
from uklimg.project import parse_build_args
from uklimg.runner.launch import Outcome
from uklimg.runner.machine import PortForward
from uklimg.runner.qemu import Qemu
from uklimg.runner.volumes import Bind
from uklimg.running.folder import Guests
from uklimg.settings import read_settings
from uklimg.store import Store

pytestmark = pytest.mark.unit

UKLFILE = """FROM debian:trixie AS build
RUN make
FROM ukl:6.12
LINK --from=build /src/program
"""


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """Runs ``uklimg`` in a folder of its own, with a store of its own."""

    cwd: Path
    environ: Mapping[str, str]

    def __call__(self, *argv: str, **environ: str) -> Result:
        out, err = io.StringIO(), io.StringIO()
        status = main(argv, {**self.environ, **environ}, self.cwd, os.getuid(), out, err)
        return Result(status, out.getvalue(), err.getvalue())

    @property
    def store(self) -> Store:
        return Store(Path(self.environ["UKLIMG_STORE"]))


@pytest.fixture
def uklimg(tmp_path: Path) -> Command:
    folder = tmp_path / "work"
    folder.mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "UKLIMG_STORE": str(tmp_path / "store")}
    # Wherever no mirror is to be asked, asking one is an error at once.
    return Command(folder, {**environ, "UKLIMG_DEBIAN_MIRROR": "http://127.0.0.1:1"})


def add_image(store: Store, tmp_path: Path, name: str, **fields: object) -> oci.Descriptor:
    """An image of three small files in the store, tagged."""
    paths = {}
    for role in oci.PATHS:
        paths[role] = tmp_path / role
        paths[role].write_bytes(role.encode() * 100)
    layout = tmp_path / f"layout-{len(store.tags())}"
    run_config = oci.RunConfig(program="redis-server", kernel_version="6.12.107", **fields)  # type: ignore[arg-type]
    root = build_image(paths, layout, run_config)
    for blob in (layout / "blobs/sha256").iterdir():
        store.put_file(blob)
    store.tag(name, root)
    return root


# --- every verb


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in verbs():
        with pytest.raises(SystemExit) as caught:
            parser().parse_args([verb.NAME, "--help"])
        assert caught.value.code == 0
        assert verb.HELP in capsys.readouterr().out


def test_a_build_imports_no_library_that_it_need_not_use() -> None:
    """The start is most of what a build in which nothing changed takes."""
    heavy = (
        "concurrent.futures",
        "cryptography",
        "cyclonedx",
        "debian",
        "elftools",
        "nacl",
        "docker",
        "oras",
        "requests",
        "sh",
        "tomlkit",
        "tqdm",
        "urllib3",
    )
    code = (
        f"import sys; from uklimg.cli.main import parser; parser(['build']); print({{*{heavy}}} & {{*sys.modules}})"
    )
    done = proc.run([sys.executable, "-c", code], env=dict(os.environ), cwd=Path(__file__).parents[2])
    assert done.text == "set()"


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["build", "-t", "run"], ["build"]),
        (["--store", "build", "run"], ["run"]),
        (["--store=build", "rmi"], ["rmi"]),
        (["-h", "du"], ["du"]),
        (["fly"], list(VERBS)),
        (["--store"], list(VERBS)),
        (["completion"], list(VERBS)),
        ([], list(VERBS)),
    ],
)
def test_only_the_verb_that_is_named_is_imported(argv: list[str], names: list[str]) -> None:
    assert [module.NAME for module in verbs(argv)] == names


@pytest.mark.parametrize("argv", [[], ["fly"], ["build", "--wings"], ["run"], ["build", "--progress", "loud"]])
def test_a_wrong_command_line_is_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read(argv)
    assert caught.value.code == ExitCode.USAGE
    told = capsys.readouterr().err
    assert told.startswith("uklimg") and told.endswith(" --help)\n") and told.count("\n") == 1


def test_arguments_of_a_program_are_not_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(["run"])
    assert capsys.readouterr().err == "uklimg run: the following arguments are required: REF (uklimg run --help)\n"


def test_a_variable_that_this_machine_lacks_is_not_set(tmp_path: Path) -> None:
    settings = read_settings({}, tmp_path)
    host = Host({"THERE": "x y"}, tmp_path, 0, io.StringIO(), io.StringIO(), settings, None)
    assert variables(["THERE", "LACKS", "GIVEN=", "A=b=c"], host) == {"THERE": "x y", "GIVEN": "", "A": "b=c"}


@pytest.mark.parametrize(("there", "status"), [(True, ExitCode.BUG), (False, ExitCode.OK)])
def test_a_broken_pipe_is_the_end_only_when_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, status: int
) -> None:
    """`uklimg images | head` ends well; a connection that broke does not make a success of what failed."""

    def broken(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(images, "run", broken)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out:
        if not there:
            os.close(reader)
        assert main(["images"], {"UKLIMG_STORE": str(tmp_path)}, tmp_path, 0, out, io.StringIO()) == status
    if there:
        os.close(reader)


# --- errors of a Uklfile


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "cannot read '{cwd}/Uklfile': No such file or directory (-f FILE names another; `uklimg init` "),
        ("FORM x\n", "Uklfile:1:1: unknown directive 'FORM'"),
        (UKLFILE.replace("LINK --from=build /src/program", "LINK"), "Uklfile:4:1: LINK"),
        (UKLFILE.replace("debian:trixie", "debian:trixy"), "Uklfile:1:6: unknown base image 'debian:trixy'"),
        (UKLFILE.replace("ukl:6.12", "ukl:5.0"), "Uklfile:3:6: unknown kernel series '5.0'"),
        (UKLFILE + "UKL WARP\n", "Uklfile:5:5: "),
        (UKLFILE + "RUN true\n", "Uklfile:5:1: RUN"),
    ],
)
def test_errors_of_the_uklfile_are_one_line_with_their_place(uklimg: Command, text: str | None, line: str) -> None:
    if text is not None:
        (uklimg.cwd / "Uklfile").write_text(text)
    found = uklimg("build")
    assert found.status == ExitCode.USER
    assert found.out == ""
    lines = found.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"uklimg: {line.format(cwd=uklimg.cwd)}")


def test_all_errors_are_told_at_once_sorted(uklimg: Command) -> None:
    (uklimg.cwd / "Uklfile").write_text(UKLFILE.replace("RUN make", "RUM make").replace("LINK", "LINC"))
    found = uklimg("build")
    assert [line.partition(":1: ")[0] for line in found.err.splitlines()] == [
        "uklimg: Uklfile:2",
        "uklimg: Uklfile:4",
    ]


def test_an_unknown_kernel_series_lists_what_there_is(uklimg: Command) -> None:
    (uklimg.cwd / "Uklfile").write_text(UKLFILE.replace("ukl:6.12", "ukl:5.0"))
    assert "6.12" in uklimg("build").err.partition("5.0")[2]


def test_an_option_that_the_series_lacks_lists_what_there_is(uklimg: Command) -> None:
    (uklimg.cwd / "Uklfile").write_text(UKLFILE + "UKL SPEED\n")
    found = uklimg("build")
    assert found.status == ExitCode.USER
    assert "SPEED" in found.err and "BYP" in found.err
    assert "(" in found.err


def test_a_locked_build_without_a_lock_writes_none(uklimg: Command) -> None:
    (uklimg.cwd / "Uklfile").write_text(UKLFILE)
    for option in ("--locked", "--offline"):
        found = uklimg("build", option)
        assert found.status == ExitCode.USER
        assert "Uklfile.lock lacks base image debian-trixie" in found.err
        assert "uklimg lock" in found.err
        assert not (uklimg.cwd / "Uklfile.lock").exists()


def test_an_unreachable_mirror(uklimg: Command) -> None:
    (uklimg.cwd / "Uklfile").write_text(UKLFILE)
    found = uklimg("build")
    assert found.status == ExitCode.NETWORK
    last = found.err.splitlines()[-1]
    assert last.startswith("uklimg: Uklfile:1:1: ") or last.startswith("uklimg: cannot reach the Debian mirror")
    assert "http://127.0.0.1:1" in last
    assert not (uklimg.cwd / "Uklfile.lock").exists()


def test_a_damaged_lock_says_where(uklimg: Command) -> None:
    (uklimg.cwd / "Uklfile").write_text(UKLFILE)
    (uklimg.cwd / "Uklfile.lock").write_text("version = 1\n[[bas\n")
    found = uklimg("build")
    assert found.status == ExitCode.USER
    assert f"{uklimg.cwd}/Uklfile.lock:2:" in found.err


def test_warnings_are_shown_and_do_not_fail(uklimg: Command) -> None:
    (uklimg.cwd / "Uklfile").write_text(UKLFILE)
    found = uklimg("build", "--build-arg", "NOBODY=1", "--locked")
    assert "warning: Uklfile: the build argument 'NOBODY' is not used" in found.err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["-t", "Redis"], "bad image reference 'Redis': 'Redis' is no part of a name (names are lower case)"),
        (["-t", "redis@sha256:" + "0" * 64], "a digest is no name"),
        (["--build-arg", "=1"], "'=1' is not a build argument"),
        (["--build-arg", "UNSET"], "the environment has no UNSET"),
        (["--jobs", "-1"], "--jobs wants a number greater than 0"),
        (["nowhere"], "the build context"),
    ],
)
def test_wrong_values_of_options(uklimg: Command, argv: list[str], line: str) -> None:
    (uklimg.cwd / "Uklfile").write_text(UKLFILE)
    found = uklimg("build", *argv)
    assert found.status == ExitCode.USER
    assert line in found.err
    assert len(found.err.splitlines()) == 1


def test_build_args_come_from_the_command_line_or_the_environment() -> None:
    assert parse_build_args(["A=1", "B", "C=x=y", "D="], {"B": "2"}) == {"A": "1", "B": "2", "C": "x=y", "D": ""}


# --- whatever else may happen


def replaced(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(args: argparse.Namespace, host: Host) -> int:
        raise error

    monkeypatch.setattr(build, "run", fail)


def test_a_bug_is_one_line_and_a_file(uklimg: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    replaced(monkeypatch, ZeroDivisionError("division\nby zero"))
    found = uklimg("build")
    assert found.status == ExitCode.BUG
    assert found.err.startswith("uklimg: bug: ZeroDivisionError: division by zero (please report it with ")
    assert len(found.err.splitlines()) == 1
    (written,) = (tmp_path / "state" / "uklimg").iterdir()
    assert "Traceback" in written.read_text()


def test_a_bug_in_detail(uklimg: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    replaced(monkeypatch, ZeroDivisionError("x"))
    assert "Traceback (most recent call last)" in uklimg("build", UKLIMG_DEBUG="1").err


def test_control_c(uklimg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, KeyboardInterrupt())
    found = uklimg("build")
    assert (found.status, found.err) == (ExitCode.INTERRUPTED, "uklimg: interrupted\n")


def test_a_tools_own_words_come_before_the_line(uklimg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ToolError("it failed", hint="try again", exit_code=ExitCode.STEP, detail="a.c:1: error\nmake: Error 1")
    replaced(monkeypatch, error)
    found = uklimg("build")
    assert found.status == ExitCode.STEP
    assert found.err == "a.c:1: error\nmake: Error 1\nuklimg: it failed (try again)\n"


def test_passwords_in_errors_are_masked(uklimg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, ToolError("cannot reach https://me:secret@host/", detail="$ https://me:secret@host/"))
    assert "secret" not in uklimg("build").err


# --- settings


def test_the_store_is_where_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert read_settings({}, tmp_path).store == tmp_path / "cache/uklimg/store"
    assert read_settings({"UKLIMG_STORE": "there"}, tmp_path).store == tmp_path / "there"
    assert read_settings({"UKLIMG_STORE": "there"}, tmp_path, store="/else").store == Path("/else")


def test_a_store_that_cannot_be_made_is_one_line(uklimg: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = uklimg("--store", str(tmp_path / "file"), "images")
    assert found.status == ExitCode.HOST
    assert found.err.startswith("uklimg: cannot make the store: ")


# --- images


def test_images(uklimg: Command, tmp_path: Path) -> None:
    assert uklimg("images").out.splitlines()[0].split() == ["NAME", "DIGEST", "SIZE", "KERNEL", "PROGRAM"]
    root = add_image(uklimg.store, tmp_path, "redis:latest")
    row = uklimg("images").out.splitlines()[1].split()
    assert row[:2] == ["redis:latest", root.digest.short]
    assert row[-2:] == ["6.12.107", "redis-server"]
    (value,) = json.loads(uklimg("images", "--format", "json").out)
    assert value["digest"] == str(root.digest)
    assert value["name"] == "redis:latest"


def test_a_damaged_image_is_listed_all_the_same(uklimg: Command, tmp_path: Path) -> None:
    root = add_image(uklimg.store, tmp_path, "redis:latest")
    path = uklimg.store.blob_path(root.digest)
    path.chmod(0o644)
    path.write_bytes(b"x" * root.size)
    assert "redis:latest" in uklimg("images").out


def test_inspect(uklimg: Command, tmp_path: Path) -> None:
    root = add_image(uklimg.store, tmp_path, "redis:latest", memory=256 << 20, exposed_ports=("6379/tcp",))
    text = uklimg("inspect", "redis").out
    for expected in (str(root.digest), "256M", "6379/tcp", "/unikraft/bin/kernel", "linux/amd64", "base model"):
        assert expected in text
    value = json.loads(uklimg("inspect", root.digest.short, "--format", "json").out)
    assert value["name"] == "redis:latest"
    assert value["memory"] == 256 << 20


def test_images_are_found_by_name_and_digest(uklimg: Command, tmp_path: Path) -> None:
    store = uklimg.store
    root = add_image(store, tmp_path, "redis:latest")
    add_image(store, tmp_path, "host.example/redis:8", memory=64 << 20)
    for text in ("redis", "redis:latest", f"redis@{root.digest}", str(root.digest), root.digest.hex[:8]):
        found = find_image(text, store)
        assert found is not None, text
        assert found[1].digest == root.digest
    assert find_image("redis:8", store) is None
    assert find_image("host.example/redis:8", store) is not None
    assert find_image(f"other@{root.digest}", store) is None


def test_a_single_manifest_is_an_image_too(uklimg: Command, tmp_path: Path) -> None:
    store = uklimg.store
    root = add_image(store, tmp_path, "redis:latest")
    below = oci.parse_index(store.read_blob(root.digest)).manifests[0]
    for text in (f"redis@{below.digest}", str(below.digest)):
        found = uklimg("inspect", text, "--format", "json")
        assert found.status == 0, found.err
        said = json.loads(found.out)
        assert (said["digest"], said["program"]) == (str(below.digest), "redis-server")
        assert [entry["manifest"] for entry in said["platforms"]] == [str(below.digest)]
        assert [entry["role"] for entry in said["files"]] == list(oci.PATHS)
    assert find_image(f"other@{below.digest}", store) is None
    assert uklimg("tag", f"redis@{below.digest}", "one").status == 0
    listed = {entry["name"]: entry for entry in json.loads(uklimg("images", "--format", "json").out)}
    assert listed["one:latest"]["program"] == "redis-server"
    assert uklimg("diff", "one", "redis").status == 0


def test_rmi_by_digest_forgets_all_names(uklimg: Command, tmp_path: Path) -> None:
    root = add_image(uklimg.store, tmp_path, "redis:latest")
    for name in ("redis:8", "other:1"):
        assert uklimg("tag", "redis", name).status == 0
    assert uklimg("rmi", f"redis@{root.digest}").out.split() == ["redis:8", "redis:latest"]
    assert uklimg("rmi", str(root.digest)).out.split() == ["other:1"]
    found = uklimg("rmi", str(root.digest))
    assert found.status == ExitCode.NOT_FOUND
    assert "has no name here" in found.err


@pytest.mark.parametrize("verb", ["inspect", "rmi", "push", "tag"])
def test_an_image_that_is_not_there(uklimg: Command, tmp_path: Path, verb: str) -> None:
    add_image(uklimg.store, tmp_path, "redis:latest")
    name = "localhost:1/radis" if verb == "push" else "radis"
    found = uklimg(verb, name, *(["x"] if verb == "tag" else []))
    assert found.status == ExitCode.NOT_FOUND
    assert "redis:latest" in found.err
    assert ("uklimg pull localhost:1/radis asks its registry" in found.err) is (verb == "push")


def test_who_inspects_a_guest_is_told_where_to_look(uklimg: Command, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        guests = Guests(tmp_path / "state/uklimg/guests")
        guests.create(record("cache"))
        found = uklimg("inspect", "cache")
    assert found.status == ExitCode.NOT_FOUND
    assert "cache is a guest: uklimg ps -a --format json" in found.err


def test_tag_and_rmi(uklimg: Command, tmp_path: Path) -> None:
    add_image(uklimg.store, tmp_path, "redis:latest")
    assert uklimg("tag", "redis", "localhost:5000/r:1").status == 0
    assert list(uklimg.store.tags()) == ["localhost:5000/r:1", "redis:latest"]
    assert uklimg("rmi", "redis").out == "redis:latest\n"
    assert list(uklimg.store.tags()) == ["localhost:5000/r:1"]


def test_prune_keeps_what_has_a_name(uklimg: Command, tmp_path: Path) -> None:
    root = add_image(uklimg.store, tmp_path, "redis:latest")
    loose = uklimg.store.put_bytes(b"loose")
    assert "removed" in uklimg("prune").out
    assert not uklimg.store.has(loose.digest)
    assert uklimg.store.verify(root)
    assert int(json.loads(uklimg("du", "--format", "json").out)["total"]) > 0


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_a_name_without_a_registry_cannot_be_sent_or_brought(uklimg: Command, verb: str) -> None:
    found = uklimg(verb, "redis")
    assert found.status == ExitCode.USER
    assert "names no registry" in found.err


@pytest.mark.parametrize("argv", [["push", "redis", "localhost:1/redis"], ["pull", "localhost:1/redis"]])
def test_a_registry_that_cannot_be_reached(uklimg: Command, tmp_path: Path, argv: list[str]) -> None:
    add_image(uklimg.store, tmp_path, "redis:latest")
    found = uklimg(*argv)
    assert found.status == ExitCode.NETWORK
    assert "localhost:1" in found.err.splitlines()[-1]


# --- run


def options_of(uklimg: Command, *argv: str) -> tuple[argparse.Namespace, Host]:
    args = parser().parse_args(["run", *argv])
    environ = {**uklimg.environ, "HERE": "there"}
    host = Host(environ, uklimg.cwd, 0, io.StringIO(), io.StringIO(), read_settings(environ, uklimg.cwd))
    return args, host


def test_the_options_of_run(uklimg: Command) -> None:
    args, host = options_of(
        uklimg, "-p", "8080:80", "-m", "512M", "--cpus", "2", "-v", "data:/data:ro", "-e", "A=1", "-e", "HERE",
        "--rm", "redis", "redis-server", "--port", "7", "-p", "x",
    )  # fmt: skip
    wanted = run.run_options(args, host)
    assert wanted.forwards == (PortForward(8080, 80),)
    assert wanted.memory == 512 << 20
    assert wanted.cpus == 2
    assert wanted.binds == (Bind(str(uklimg.cwd / "data"), "/data", True),)
    assert wanted.env == {"A": "1", "HERE": "there"}
    assert wanted.arguments == ("redis-server", "--port", "7", "-p", "x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-p", "80"], "'80' is not a port forward"),
        (["-m", "512"], "-m: 512 bytes of memory are too few for a kernel"),
        (["-v", "data"], "'data' is not a volume"),
        (["-e", "=1"], "'=1' is not a variable"),
        (["--cpus", "-1"], "--cpus"),
        (["-it"], "run has no -t"),
    ],
)
def test_wrong_options_of_run(uklimg: Command, argv: list[str], message: str) -> None:
    args, host = options_of(uklimg, *argv, "redis")
    with pytest.raises(UserError) as caught:
        run.run_options(args, host)
    assert message in caught.value.message


def test_failures_of_run_itself_are_125(uklimg: Command, tmp_path: Path) -> None:
    assert uklimg("run", "redis").status == ExitCode.RUN_FAILED
    add_image(uklimg.store, tmp_path, "redis:latest")
    assert uklimg("run", "-p", "80", "redis").status == ExitCode.RUN_FAILED
    found = uklimg("run", "-v", "gone:/data", "--accel", "tcg", "redis")
    assert found.status == ExitCode.RUN_FAILED
    assert "no folder" in found.err


def test_run_without_qemu_names_the_package(uklimg: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_image(uklimg.store, tmp_path, "redis:latest")
    monkeypatch.setattr(run, "HYPERVISORS", {"qemu": lambda: Qemu("qemu-of-nobody")})
    found = uklimg("run", "--accel", "tcg", "redis")
    assert found.status == ExitCode.RUN_FAILED
    assert "qemu-of-nobody is not installed (apt-get install" in found.err


@pytest.mark.parametrize(
    ("number", "options", "said"),
    [
        (11, [], "uklimg: the program was ended by SIGSEGV (--verbose shows where)\n"),
        (8, ["--verbose"], "uklimg: the program was ended by SIGFPE\n"),
        (15, [], ""),
        (0, [], ""),
    ],
)
def test_a_program_that_dies_of_a_fault_does_not_die_silently(
    uklimg: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, options: list[str], said: str
) -> None:
    add_image(uklimg.store, tmp_path, "redis:latest")
    monkeypatch.setattr(run, "launch", lambda *_, **__: Outcome(Status(signal=number)))
    found = uklimg("run", "--accel", "tcg", *options, "redis")
    assert (found.status, found.err) == (128 + number if number else 0, said)


@pytest.mark.parametrize(
    ("entrypoint", "arguments", "warned"),
    [((), ("--port", "1"), True), ((), ("p", "--port"), False), (("p",), ("--port",), False), ((), (), False)],
)
def test_an_option_in_the_place_of_the_programs_name(
    uklimg: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    entrypoint: tuple[str, ...],
    arguments: tuple[str, ...],
    warned: bool,
) -> None:
    add_image(uklimg.store, tmp_path, "redis:latest", entrypoint=entrypoint)
    monkeypatch.setattr(run, "HYPERVISORS", {"qemu": lambda: Qemu("qemu-of-nobody")})
    found = uklimg("run", "--accel", "tcg", "redis", *arguments)
    assert ("warning: --port is the program's name here" in found.err) is warned


def test_the_files_of_an_image_are_unpacked_once_and_checked_each_time(uklimg: Command, tmp_path: Path) -> None:
    root = add_image(uklimg.store, tmp_path, "redis:latest")
    image = oci.read_image(lambda blob: uklimg.store.read_blob(blob.digest), root)
    path = run.boot_file(uklimg.store, image, oci.VMLINUX)
    assert path.read_bytes() == b"vmlinux" * 100
    assert run.boot_file(Store(uklimg.store.root), image, oci.VMLINUX) == path
    layer = image.file(oci.VMLINUX)
    blob = uklimg.store.blob_path(layer.digest)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * layer.size)
    found = uklimg("run", "--accel", "tcg", "redis")
    assert found.status == ExitCode.RUN_FAILED
    assert "is corrupt" in found.err
