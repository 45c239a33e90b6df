"""Recipes: what a step runs, what it reads, and what changes its key."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_resolve import KERNEL

from uklimg.definitions import SourceFolder
from uklimg.digest import Digest
from uklimg.errors import InternalError, Location, UserError
from uklimg.graph import Blob, Container, ContextTree, Graph, Host, Inline, Kind, Output, Step
from uklimg.lock import LockedFile, LockedSource, SourceKind
from uklimg.patchset import Patch, PatchSet
from uklimg.recipes import bzimage, kernel, stage
from uklimg.recipes.app import app_step
from uklimg.recipes.scripts import scripts
from uklimg.spec.model import ContextSource, Copy, DebianSource, HeredocFile, MakeFolder, Run, Source, UrlSource

pytestmark = pytest.mark.unit

PLACE = Location("Uklfile", 3)
LINK = {
    name: name.encode()
    for name in (
        *("kit.py", "link.py", "elf.py", "embed.py", "frames.py", "functions.py", "ret.s", "app.lds"),
        "bzimage.py",
    )
}
INSIDE = {name: name.encode() for name in ("app.py", "copy.py", "source.py")}
RUN = Run(PLACE, ("/bin/sh", "-c", "make"), (("A", "1"),), "/src", "root", "make  \n  all")
CONFIGS = {"base": b"CONFIG_A=y\n", "debug": b"CONFIG_D=y\n"}
SERIES = replace(KERNEL, configs=CONFIGS)


def container(step: Step) -> Container:
    assert isinstance(step.action, Container)
    return step.action


def inline(step: Step, target: str) -> dict[str, bytes]:
    found = step.inputs[target]
    assert isinstance(found, Inline)
    return {file.path: file.content for file in found.files}


def key(step: Step) -> Digest:
    """The step's key on top of steps that never change."""
    below = [Step(name, name, name, 1, Host("made")) for name in step.needs()]
    return Graph.of([*below, step], step.id).keys[step.id]


def test_run_has_the_wrapper_and_the_stages_own_variables_win() -> None:
    step = stage.run_step("s", "below", RUN, {"CC": "ukl-gcc", "A": "0"})
    action = container(step)
    assert step.kind is Kind.ROOTFS
    assert action.rootfs == "below"
    assert action.argv == ("/bin/sh", "-c", "make")
    assert dict(action.env) == {"CC": "ukl-gcc", "A": "1"}
    assert (action.workdir, action.user, action.network) == ("/src", "root", False)
    assert step.title == "RUN make all"


def test_a_script_of_a_heredoc_is_mounted_where_run_looks_for_it() -> None:
    run = replace(RUN, files=(HeredocFile("EOF", b"#!/bin/sh\n", 0o755),))
    assert inline(stage.run_step("s", "below", run, {}), "/dev/pipes") == {"EOF": b"#!/bin/sh\n"}


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, argv=("/bin/sh", "-c", "make all")),
        replace(RUN, env=()),
        replace(RUN, workdir="/"),
        replace(RUN, user="nobody"),
        replace(RUN, network=True),
    ],
)
def test_whatever_a_run_step_sees_is_in_its_key(other: Run) -> None:
    assert key(stage.run_step("s", "below", RUN, {})) != key(stage.run_step("s", "below", other, {}))


def test_the_text_of_a_run_step_is_not_in_its_key() -> None:
    other = replace(RUN, text="something else", location=Location("Other", 9))
    assert key(stage.run_step("s", "below", RUN, {})) == key(stage.run_step("s", "below", other, {}))


def test_titles_are_one_short_line() -> None:
    title = stage.title("RUN " + "x" * 200 + "\n more")
    assert len(title) == 96
    assert title.endswith("…")
    assert "\n" not in title


def test_workdir_passes_path_and_user_as_arguments_not_as_shell_text() -> None:
    step = stage.folder_step("s", "below", MakeFolder(PLACE, "/a b;rm", "me:us"))
    assert container(step).argv[-2:] == ("/a b;rm", "me:us")
    assert "/a b" not in container(step).argv[2]


def debian_source() -> LockedSource:
    files = tuple(
        LockedFile(name, Digest.of(name.encode()), 7, f"debian:pool/{name}") for name in ("r.orig.tar.gz", "r_8.dsc")
    )
    return LockedSource("debian:redis", SourceKind.DEBIAN, "8-1", files)


def source_step(source: Source, locked: LockedSource | None, **more: object) -> Step:
    values = {"tree": None, "path": "", "patches": None, "inside": INSIDE, **more}
    return stage.source_step("s", "below", source, locked, **values)  # type: ignore[arg-type]


def test_a_debian_source_is_its_dsc_with_the_other_files_beside_it() -> None:
    step = source_step(Source(PLACE, DebianSource("redis"), "/src"), debian_source())
    assert {target for target, found in step.inputs.items() if isinstance(found, Blob)} == {
        "/in/source/r.orig.tar.gz",
        "/in/source/r_8.dsc",
    }
    assert container(step).argv[2:] == (
        "/run/ukl/inside/source.py",
        *("--from", "/in/source/r_8.dsc", "--dest", "/src"),
    )
    assert step.title == "SOURCE debian:redis=8-1 /src"


def test_an_archive_with_options() -> None:
    file = LockedFile("a.tar.gz", Digest.of(b"a"), 1, "https://example.org/a.tar.gz")
    locked = LockedSource("https://example.org/a.tar.gz", SourceKind.ARCHIVE, "", (file,))
    patches = ContextTree(Digest.of(b"p"), "/context", ("p", "p/1.patch"))
    source = Source(PLACE, UrlSource(file.origin), "/a", strip=2, patches="p")
    step = source_step(source, locked, patches=patches)
    assert container(step).argv[-4:] == ("--strip", "2", "--patches", "/in/patches/p")
    assert step.inputs["/in/patches"] == patches


def test_a_source_of_the_context() -> None:
    tree = ContextTree(Digest.of(b"t"), "/context", ("lib", "lib/a.c"))
    step = source_step(Source(PLACE, ContextSource("lib"), "/lib"), None, tree=tree, path="lib")
    assert step.inputs["/in/source"] == tree
    assert "/in/source/lib" in container(step).argv


def copy(**more: object) -> Copy:
    values: dict[str, object] = {"sources": ("a", "b*"), "files": (), "dest": "/x/"}
    return Copy(PLACE, **{**values, **more})  # type: ignore[arg-type]


def test_copy_hands_everything_on_as_json() -> None:
    files = (HeredocFile("note", b"hello"),)
    wanted = copy(files=files, chown="1:2", chmod=0o600, exclude=("*.o",), parents=True)
    step = stage.copy_step("s", "below", wanted, Output("pick:1", stage.PICKED), "COPY", INSIDE)
    given = inline(step, "/in/copy")
    assert given["files/note"] == b"hello"
    assert given["params.json"] == (
        b'{"chmod": 384, "chown": "1:2", "dest": "/x/", "exclude": ["*.o"], "files": ["note"], "parents": true, '
        b'"sources": ["a", "b*"], "unpack": false}'
    )
    assert step.inputs["/in/tree"] == Output("pick:1", "var/lib/ukl/picked")


def test_copy_titles_read_as_the_directive() -> None:
    assert stage.copy_title(copy(), "build") == "COPY --from=build a b* /x/"
    assert stage.copy_title(copy(sources=(), files=(HeredocFile("E", b""),), unpack=True), "") == "ADD <<E /x/"


def test_only_the_scripts_that_a_step_runs_are_in_its_key() -> None:
    before = stage.copy_step("s", "below", copy(), None, "COPY", INSIDE)
    other_script = stage.copy_step("s", "below", copy(), None, "COPY", {**INSIDE, "source.py": b"changed"})
    this_script = stage.copy_step("s", "below", copy(), None, "COPY", {**INSIDE, "copy.py": b"changed"})
    assert key(before) == key(other_script)
    assert key(before) != key(this_script)


def test_a_missing_script_is_our_bug() -> None:
    with pytest.raises(InternalError, match=r"the package lacks gone\.py"):
        scripts(INSIDE, "gone.py")


# --- kernel, application, bzImage


def kit(config: kernel.KernelConfig, folder: SourceFolder = SERIES) -> Step:
    return kernel.kernel_step("base", folder, config, LINK)


def test_a_kernel_kit_is_made_of_source_patches_and_fragments() -> None:
    patch = Patch("0001-a.patch", 1, "a", "a", "why", ("me",), "none (x)", (), b"diff")
    step = kit(kernel.KernelConfig(), replace(SERIES, patches=PatchSet((patch,))))
    assert inline(step, "/in/patches") == {"0001-a.patch": b"diff"}
    assert inline(step, "/in/config") == {"10-base.config": b"CONFIG_A=y\n"}
    assert inline(step, "/run/ukl/link") == {"kit.py": b"kit.py"}
    assert isinstance(step.inputs["/in/linux.tar.xz"], Blob)
    assert container(step).argv == (
        *("/usr/bin/python3", "-B", "/run/ukl/link/kit.py", "--source", "/in/linux.tar.xz"),
        *("--patches", "/in/patches", "--config", "/in/config/10-base.config", "--tree", "base", "--out", "/out"),
    )


def test_kernels_of_a_series_share_what_earlier_builds_left() -> None:
    base, debug = kit(kernel.KernelConfig()), kit(kernel.KernelConfig(("debug",), options=(("EXT4_FS", "n"),)))
    (mount,) = container(base).mounts
    assert (mount.kind, mount.target, mount.sharing, mount.ours) == ("cache", kernel.BUILD, "locked", True)
    assert container(debug).mounts == (mount,)
    argv = container(debug).argv
    assert argv[argv.index("--tree") + 1] == "base+debug"


def test_later_fragments_are_the_stronger_ones() -> None:
    tree = ContextTree(Digest.of(b"t"), "/context", ("my.config",))
    config = kernel.KernelConfig(("debug",), ("BYP",), tree, ("my.config",), (("EXT4_FS", "n"), ("NAME", '"x"')))
    step = kit(config)
    argv = container(step).argv
    assert argv[argv.index("--config") + 1 : argv.index("--tree")] == (
        "/in/config/10-base.config",
        "/in/config/20-debug.config",
        "/in/config/80-ukl.config",
        "/in/files/my.config",
        "/in/config/90-kconfig.config",
    )
    assert inline(step, "/in/config")["80-ukl.config"] == b"CONFIG_UKL_BYP=y\n"
    assert inline(step, "/in/config")["90-kconfig.config"] == b'# CONFIG_EXT4_FS is not set\nCONFIG_NAME="x"\n'
    assert key(step) != key(kit(kernel.KernelConfig()))


def test_an_unknown_fragment_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(UserError) as caught:
        kit(kernel.KernelConfig(("fast",)))
    assert caught.value.line() == "kernel/6.12 has no configuration 'fast' (there is base, debug)"


def test_an_application_does_not_depend_on_how_the_kernel_is_packed() -> None:
    def app(link: dict[str, bytes], ukl: tuple[str, ...] = ()) -> Step:
        return app_step(name="r", program="/src/r", stage="stage", kit="kit", link=link, inside=INSIDE, ukl=ukl)

    step = app(LINK)
    assert container(step).rootfs == "stage"
    assert container(step).argv[3:] == ("/src/r", "--kit", "/in/kit", "--name", "r", "--out", "/out")
    assert step.inputs["/in/kit"] == Output("kit")
    assert key(step) == key(app({**LINK, "kit.py": b"new", "bzimage.py": b"new"}))
    assert key(step) != key(app({**LINK, "app.lds": b"new"}))
    optional = app(LINK, ("ret", "byp", "ret"))
    assert container(optional).argv[6:] == ("--name", "r", "--ukl", "byp", "--ukl", "ret", "--out", "/out")
    assert key(step) != key(optional) == key(app(LINK, ("byp", "ret")))


def test_a_bzimage_is_made_of_the_kit_and_one_vmlinux() -> None:
    step = bzimage.bzimage_step(base="base", kit="kit", app="app:r", link=LINK)
    assert step.inputs["/in/vmlinux"] == Output("app:r", "vmlinux")
    assert container(step).argv[-1] == "/out/bzImage"
