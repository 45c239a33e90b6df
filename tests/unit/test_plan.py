"""Planning: which steps a Uklfile becomes, what each needs, and what a change in the Uklfile reruns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from test_resolve import KERNEL, Archive, Folders

from uklimg.definitions import UklHow
from uklimg.digest import Digest
from uklimg.errors import Location, UserError, UserErrors
from uklimg.graph import Blob, Container, ContextTree, Host, Inline, Output, Step
from uklimg.lock import Lock
from uklimg.oci import HealthCheck
from uklimg.plan import Assets, Options, Plan, Selected, plan
from uklimg.recipes import init as init_recipe
from uklimg.recipes import toolchain
from uklimg.recipes.image import run_config_of
from uklimg.recipes.userland import STEP_ID
from uklimg.resolve import resolve
from uklimg.spec import SeriesInfo, build_spec
from uklimg.uklfile.parser import parse

pytestmark = pytest.mark.unit

UKLFILE = """FROM debian:trixie AS build
WORKDIR /src
SOURCE debian:redis=8 /src
COPY fix.patch /src/
RUN make
FROM ukl:6.12
LINK --from=build /src/redis-server
COPY --from=build /src/redis.conf /etc/
COPY hello /etc/hello
VOLUME /data
WORKDIR /work
CMDLINE quiet "my=a b"
EXPOSE 6379
ENV A=1
CMD ["redis-server", "/etc/redis.conf"]
LABEL org.opencontainers.image.title=redis
"""
SCRIPTS = (
    "kit.py",
    "override.py",
    "twin.py",
    "link.py",
    "elf.py",
    "embed.py",
    "frames.py",
    "functions.py",
    "app.lds",
    "ret.s",
    "bzimage.py",
    "app.py",
    "program.py",
    "copy.py",
    "source.py",
    "depends.py",
    "library.py",
    "glibc.py",
)
ASSETS = Assets(
    dict.fromkeys(init_recipe.SOURCES, b"int main;"),
    {name: name.encode() for name in (*toolchain.MODULES, toolchain.HEADER)},
    {name: name.encode() for name in SCRIPTS},
    {name: name.encode() for name in SCRIPTS},
)
UKL = {"PF_SS": UklHow.BASE, "BYP": UklHow.IMAGE, "NSS": UklHow.KERNEL}
SERIES = replace(
    KERNEL,
    configs={"base": b"CONFIG_A=y\n", "debug": b"CONFIG_D=y\n"},
    definition=replace(KERNEL.definition, ukl=UKL),
)


def select(sources: Sequence[str], exclude: Sequence[str], place: Location) -> Selected:
    if "gone" in sources:
        raise UserError("'gone' is not in the build context", location=place)
    tree = ContextTree(Digest.of_json([*sources, "without", *exclude]), "/context", tuple(sources))
    if "link" in sources:
        return Selected(tree, ("real",), ("link",))
    return Selected(tree, tuple(sources))


def planned(text: str = UKLFILE, options: Options | None = None, assets: Assets = ASSETS) -> Plan:
    series = {"6.12": SeriesInfo("6.12", tuple(UKL))}
    spec = build_spec(parse(text, "Uklfile"), build_args={}, base_images=["debian-trixie"], series=series)
    return plan(resolve(spec, Lock(), Folders(series=SERIES), Archive()), select, assets, options)


def changed(before: Plan, after: Plan) -> set[str]:
    """Steps whose keys differ, or that are only in one of the two."""
    keys: tuple[Mapping[str, Digest], ...] = (before.graph.keys, after.graph.keys)
    return {name for name in keys[0].keys() | keys[1].keys() if keys[0].get(name) != keys[1].get(name)}


def problems(text: str) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        planned(text)
    return [error.line() for error in caught.value.errors]


def test_the_steps_of_an_image_and_what_each_needs() -> None:
    found = planned()
    assert found.graph.target == "image"
    assert {step.id: step.needs() for step in found.graph.steps} == {
        "base:debian-trixie": (),
        "toolchain:debian-trixie": ("base:debian-trixie",),
        "stage:build:1": ("toolchain:debian-trixie",),
        "stage:build:2": ("stage:build:1",),
        "stage:build:3": ("stage:build:2",),
        "stage:build:4": ("stage:build:3",),
        "pick:1": ("stage:build:4",),
        "kernel-kit": ("base:debian-trixie",),
        "app:redis-server": ("kernel-kit", "stage:build:4"),
        "bzimage": ("app:redis-server", "base:debian-trixie", "kernel-kit"),
        "init": ("base:debian-trixie",),
        "initramfs": ("init", "pick:1"),
        "image": ("app:redis-server", "bzimage", "initramfs"),
    }


def test_titles_name_stage_and_place_in_it() -> None:
    titles = [step.title for step in planned().graph.steps if step.id.startswith("stage:")]
    assert titles == [
        "[build 1/4] WORKDIR /src",
        "[build 2/4] SOURCE debian:redis=8 /src",
        "[build 3/4] COPY fix.patch /src/",
        "[build 4/4] RUN make",
    ]


def test_errors_of_steps_have_a_place_in_the_uklfile() -> None:
    places = planned().places
    assert places["stage:build:4"] == Location("Uklfile", 5, 1)
    assert places["app:redis-server"].line == 7
    assert places["kernel-kit"].line == 6
    asked = UKLFILE.replace("VOLUME", "KCONFIG EXT4_FS=y\nVOLUME")
    line = asked.splitlines().index("KCONFIG EXT4_FS=y") + 1
    assert planned(asked).places["kernel-kit"].line == line, "what can be wrong with a kernel is what was asked of it"


def test_build_steps_run_with_the_wrapper() -> None:
    step = planned().graph.step("stage:build:4")
    assert isinstance(step.action, Container)
    assert step.action.env["CC"] == "ukl-gcc"
    assert step.action.workdir == "/src"
    assert not step.action.network


def test_copy_from_a_stage_takes_its_picked_files() -> None:
    step = planned().graph.step("initramfs")
    assert step.inputs["copy:0"] == Output("pick:1", "var/lib/ukl/picked")
    assert isinstance(step.inputs["copy:1"], ContextTree)
    assert isinstance(step.action, Host)
    assert isinstance(step.action.params, Mapping)
    assert step.action.params["folders"] == ["/data", "/work"]


def test_what_the_image_says() -> None:
    found = planned()
    step = found.graph.step("image")
    assert isinstance(step.action, Host)
    run = run_config_of(step.action.params)
    assert run == found.run
    assert run.program == "redis-server"
    assert run.argv == ("redis-server", "/etc/redis.conf")
    assert run.cmdline == 'quiet "my=a b"'
    assert run.exposed_ports == ("6379/tcp",)
    assert (run.kernel_version, run.libc_version) == ("6.12.107", "1")
    assert run.env == {"A": "1"}


def test_a_health_check_is_the_images_alone_and_has_defaults() -> None:
    text = UKLFILE.replace("CMD [", "HEALTHCHECK --interval=1m --retries=5 CMD redis-cli ping\nCMD [")
    found = planned(text)
    assert changed(planned(), found) == {"image"}
    check = HealthCheck(("redis-cli ping",), shell=True, interval=60 * 10**9, retries=5)
    assert found.run.healthcheck == check
    step = found.graph.step("image")
    assert isinstance(step.action, Host)
    assert run_config_of(step.action.params).healthcheck == check
    assert planned(UKLFILE.replace("CMD [", "HEALTHCHECK NONE\nCMD [")).run.healthcheck is None


ALL_BELOW_RUN = {"stage:build:4", "pick:1", "app:redis-server", "bzimage", "initramfs", "image"}


@pytest.mark.parametrize(
    ("old", "new", "steps"),
    [
        ("RUN make\n", "RUN make -j2\n", ALL_BELOW_RUN),
        ("fix.patch", "fox.patch", {"stage:build:3", *ALL_BELOW_RUN}),
        ("CMD [", "MEMORY 512M\nCMD [", {"image"}),
        ("ENV A=1", "ENV A=2", {"initramfs", "image"}),
        ("hello /etc/hello", "hello /etc/hullo", {"initramfs", "image"}),
        ("LINK --from", "KCONFIG EXT4_FS=y\nLINK --from", {"kernel-kit", "app:redis-server", "bzimage", "image"}),
    ],
)  # fmt: skip
def test_a_change_reruns_what_depends_on_it_and_nothing_else(old: str, new: str, steps: set[str]) -> None:
    assert changed(planned(), planned(UKLFILE.replace(old, new))) == steps


def test_comments_and_places_are_in_no_key() -> None:
    assert changed(planned(), planned("# a remark\n\n" + UKLFILE)) == set()


@pytest.mark.parametrize(
    ("folder", "name", "steps"),
    [
        ("link", "bzimage.py", {"bzimage", "image"}),
        ("link", "link.py", {"app:redis-server", "bzimage", "image"}),
        ("link", "kit.py", {"kernel-kit", "app:redis-server", "bzimage", "image"}),
        ("inside", "app.py", {"app:redis-server", "bzimage", "image"}),
    ],
)
def test_a_change_of_a_script_reruns_the_steps_that_run_it(folder: str, name: str, steps: set[str]) -> None:
    link = {**ASSETS.link, name: b"changed"} if folder == "link" else ASSETS.link
    inside = {**ASSETS.inside, name: b"changed"} if folder == "inside" else ASSETS.inside
    assert changed(planned(), planned(assets=replace(ASSETS, link=link, inside=inside))) == steps


def test_another_kernel_configuration_shares_everything_but_the_kernel() -> None:
    debug = planned(options=Options(kernel_configs=("debug",)))
    assert changed(planned(), debug) == {"kernel-kit", "app:redis-server", "bzimage", "image"}


def test_a_target_stops_at_a_stage_and_drops_what_it_does_not_need() -> None:
    found = planned(options=Options(target="build")).graph
    assert found.target == "stage:build:4"
    assert {step.id for step in found.steps} == {
        "base:debian-trixie",
        "toolchain:debian-trixie",
        *(f"stage:build:{n}" for n in range(1, 5)),
    }


def test_the_plain_linux_twin_has_the_same_build_stages_and_another_kernel() -> None:
    ukl, twin = planned(), planned(options=Options(twin=True))
    assert changed(ukl, twin) == {
        *("kernel-kit", "app:redis-server", "bzimage"),
        *("program:redis-server", "initramfs", "image"),
    }
    graph = twin.graph
    assert graph.step("kernel-kit").title == "kernel 6.12.107 without UKL"
    assert graph.step("program:redis-server").needs() == ("stage:build:4",)
    assert graph.step("initramfs").inputs["program:redis-server"] == Output("program:redis-server", "redis-server")
    assert graph.step("image").inputs == {
        "vmlinux": Output("kernel-kit", "vmlinux"),
        "bzImage": Output("kernel-kit", "bzImage"),
        "initramfs": Output("initramfs", "initramfs.cpio"),
    }
    assert replace(twin.run, target="ukl") == ukl.run and twin.run.target == "linux"


def test_the_twin_has_no_option_of_ukl() -> None:
    text = UKLFILE.replace("VOLUME", "UKL NSS\nKCONFIG UKL_TEXT_MIB=64\nVOLUME")
    assert changed(planned(), planned(text)) == {"kernel-kit", "app:redis-server", "bzimage", "image"}
    assert changed(planned(options=Options(twin=True)), planned(text, Options(twin=True))) == set()
    assert planned(text).run.ukl_options == ("NSS",)
    assert planned(text, Options(twin=True)).run.ukl_options == ()


def test_an_unknown_target() -> None:
    with pytest.raises(UserError, match="no build stage 'other' to stop at"):
        planned(options=Options(target="other"))


def test_a_stage_on_a_stage_starts_where_that_one_ends() -> None:
    text = "FROM debian:trixie AS a\nRUN one\nFROM a AS b\nRUN two\nFROM ukl:6.12\nLINK --from=b /p\n"
    assert planned(text).graph.step("stage:b:1").needs() == ("stage:a:1",)


def test_stages_that_nothing_needs_are_not_built() -> None:
    text = "FROM debian:trixie AS idle\nRUN one\n" + UKLFILE
    assert not any(step.id.startswith("stage:idle") for step in planned(text).graph.steps)


def test_packages_are_inputs_of_their_step() -> None:
    text = UKLFILE.replace("RUN make", "PACKAGES ninja-build\nRUN make")
    step = planned(text).graph.step("stage:build:4")
    assert [found.name for found in step.inputs.values() if isinstance(found, Blob)] == ["ninja-build_1_amd64.deb"]


def test_a_userland_is_a_step_of_its_own_that_only_the_initramfs_reads() -> None:
    plain, wanted = planned().graph, planned(UKLFILE.replace("VOLUME", "USERLAND busybox\nVOLUME")).graph
    assert STEP_ID not in plain.keys
    assert planned(UKLFILE.replace("VOLUME", "USERLAND none\nVOLUME")).graph.keys == plain.keys
    step = wanted.step(STEP_ID)
    assert [found.name for found in step.inputs.values() if isinstance(found, Blob)] == ["busybox-static_1_amd64.deb"]
    assert wanted.step("initramfs").inputs["tree:0"] == Output(STEP_ID)
    changed = {name for name, key in wanted.keys.items() if plain.keys.get(name) != key}
    assert changed == {STEP_ID, "initramfs", "image"}


def mounted(flags: str, options: Options | None = None) -> tuple[Plan, Step]:
    found = planned(UKLFILE.replace("RUN make", f"RUN {flags} make"), options)
    return found, found.graph.step("stage:build:4")


def test_a_bind_mount_is_an_input_that_is_shown_at_its_target() -> None:
    flags = "--mount=target=/context --mount=source=sub/file,target=x --mount=from=debian:trixie,src=/a/b,dst=/c"
    _, step = mounted(flags)
    assert isinstance(step.action, Container)
    shown = [(mount.target, mount.path, mount.read_only) for mount in step.action.mounts]
    assert shown == [("/context", ".", True), ("/src/x", "sub/file", True), ("/c", "/a/b", True)]
    assert [type(step.inputs[mount.input]) for mount in step.action.mounts] == [ContextTree, ContextTree, Output]
    assert step.needs() == ("pick:1", "stage:build:3")


def test_a_cache_is_in_no_key_by_content_and_marks_the_image() -> None:
    plain, _ = mounted("")
    assert plain.run.reproducible
    assert not plain.warnings
    found, _ = mounted("--mount=type=cache,target=/c,id=one")
    assert [place.line for place, _ in found.warnings] == [5]
    assert not found.run.reproducible
    image = found.graph.step("image").action
    assert isinstance(image, Host)
    assert not run_config_of(image.params).reproducible
    for how in ("id=two", "id=one,sharing=locked"):
        other, _ = mounted(f"--mount=type=cache,target=/c,{how}")
        assert other.graph.keys == found.graph.keys
    locked, _ = mounted("--mount=type=cache,target=/c,id=one", Options(ignore_caches=True))
    tmpfs, _ = mounted("--mount=type=tmpfs,target=/c,mode=0755")
    assert locked.run.reproducible
    assert not locked.warnings
    assert locked.graph.keys["image"] == tmpfs.graph.keys["image"]


def test_a_cache_in_a_stage_that_the_image_does_not_need_does_not_mark_it() -> None:
    found = planned(f"FROM debian:trixie AS idle\nRUN --mount=type=cache,target=/c one\n{UKLFILE}")
    assert found.run.reproducible
    assert not found.warnings


def test_a_required_secret_must_be_given() -> None:
    text = UKLFILE.replace("RUN make", "RUN --mount=type=secret,id=key,required make")
    assert problems(text) == ["Uklfile:5:1: there is no secret 'key' (--secret id=key,src=FILE, or env=VARIABLE)"]
    given = planned(text, Options(secrets=frozenset(["key"])))
    assert given.graph.keys == planned(text.replace(",required", "")).graph.keys


def test_files_that_are_not_in_the_context_are_said_at_their_place() -> None:
    assert problems(UKLFILE.replace("fix.patch", "gone").replace("COPY hello", "COPY gone")) == [
        "Uklfile:4:1: 'gone' is not in the build context",
        "Uklfile:9:1: 'gone' is not in the build context",
    ]


def test_a_link_of_the_context_is_copied_under_the_name_that_the_uklfile_gives() -> None:
    step = planned(UKLFILE.replace("COPY hello", "COPY link")).graph.step("initramfs")
    assert isinstance(step.action, Host)
    assert isinstance(step.action.params, Mapping)
    assert "'sources': ['real'], 'files': [], 'dest': '/etc/hello'" in str(step.action.params)


def test_a_link_that_would_be_copied_under_another_name_is_refused() -> None:
    assert problems(UKLFILE.replace("COPY hello /etc/hello", "COPY link /etc/")) == [
        "Uklfile:9:1: 'link' is a symbolic link to a file of another name "
        "(copy it by itself to a destination with its name)"
    ]


def test_kernel_without_anything_of_its_own_changes_nothing() -> None:
    assert changed(planned(), planned(UKLFILE.replace("LINK", "KERNEL 6.12.107\nLINK"))) == set()


def test_a_kernel_with_patches_of_the_context() -> None:
    text = UKLFILE.replace("LINK", "KERNEL --patches=mine\nLINK")
    found = planned(text)
    assert changed(planned(), found) == {"kernel-kit", "app:redis-server", "bzimage", "image"}
    step = found.graph.step("kernel-kit")
    assert isinstance(step.action, Container)
    assert step.action.argv[2:5] == ("/run/ukl/link/override.py", "--more", "/in/more/mine")
    assert isinstance(step.inputs["/in/more"], ContextTree) and "/in/patches" in step.inputs
    assert changed(found, planned(text.replace("=mine", "=others"))) >= {"kernel-kit"}
    # Scripts that only overrides use are in no other kernel's key.
    link = {**ASSETS.link, "override.py": b"changed"}
    assert changed(planned(), planned(assets=replace(ASSETS, link=link))) == set()
    assert "kernel-kit" in changed(found, planned(text, assets=replace(ASSETS, link=link)))


def test_a_kernel_from_the_context_or_from_elsewhere() -> None:
    found = planned(UKLFILE.replace("LINK", "KERNEL --source=linux.tar.xz 6.12.200\nLINK"))
    step = found.graph.step("kernel-kit")
    assert isinstance(step.action, Container)
    at = step.action.argv.index("--source")
    assert step.action.argv[2] == "/run/ukl/link/kit.py" and step.action.argv[at + 1] == "/in/source/linux.tar.xz"
    assert not any(isinstance(item, Blob) for item in step.inputs.values())
    assert step.title == "kernel 6.12.200" and found.run.kernel_version == "6.12.200"
    url = "https://example.org/linux-6.12.110.tar.xz"
    fetched = planned(UKLFILE.replace("LINK", f"KERNEL --source={url} 6.12.110\nLINK"))
    blob = fetched.graph.step("kernel-kit").inputs["/in/linux-6.12.110.tar.xz"]
    assert isinstance(blob, Blob) and blob.urls == (url,) and fetched.run.kernel_version == "6.12.110"


def test_ukl_options_that_need_another_kernel() -> None:
    kits = {}
    for words in ("PF_SS", "NSS", "NSS PF_SS"):
        found = planned(UKLFILE.replace("LINK", f"UKL {words}\nLINK"))
        config = found.graph.step("kernel-kit").inputs["/in/config"]
        assert isinstance(config, Inline)
        kits[words] = config.files
        assert found.run.ukl_options == tuple(sorted(words.split(), key=list(UKL).index))
    assert [file.path for file in kits["PF_SS"]] == ["10-base.config"]
    assert kits["NSS"][-1].path == "80-ukl.config" and kits["NSS"][-1].content == b"CONFIG_UKL_NSS=y\n"
    assert kits["NSS PF_SS"] == kits["NSS"]


def test_ukl_options_that_the_application_asks_for() -> None:
    plain, found = planned(), planned(UKLFILE.replace("LINK", "UKL BYP PF_SS\nLINK"))
    assert found.graph.step("kernel-kit") == plain.graph.step("kernel-kit")
    link = found.graph.step("app:redis-server").action
    assert isinstance(link, Container) and link.argv[-4:] == ("--ukl", "byp", "--out", "/out")


def test_proxies_are_in_no_key() -> None:
    text = UKLFILE.replace("RUN make", "RUN --network=default make")
    series = {"6.12": SeriesInfo("6.12", tuple(UKL))}
    made = []
    for arguments in ({}, {"https_proxy": "http://secret@proxy"}):
        spec = build_spec(parse(text, "Uklfile"), build_args=arguments, base_images=["debian-trixie"], series=series)
        made.append(plan(resolve(spec, Lock(), Folders(series=SERIES), Archive()), select, ASSETS))
    assert made[0].graph.keys == made[1].graph.keys
    action = made[1].graph.step("stage:build:4").action
    assert isinstance(action, Container)
    assert action.proxies == {"https_proxy": "http://secret@proxy"}


IMAGES = """FROM registry.example.org/gcc:14 AS build
COPY fix.patch /src/
RUN make
FROM registry.example.org/tools:1 AS tools
RUN true
FROM ukl:6.12
LINK --from=build /src/redis-server
COPY --from=tools /a /a
COPY --from=registry.example.org/tiny:1 /x /x
"""


def test_images_of_a_registry() -> None:
    found = planned(IMAGES)
    needs = {step.id: step.needs() for step in found.graph.steps}
    gcc, tools, tiny = (f"image:registry.example.org/{name}" for name in ("gcc:14", "tools:1", "tiny:1"))
    wrapper = "toolchain:registry.example.org/gcc:14"
    assert needs[wrapper] == (gcc,) and needs["stage:build:1"] == (wrapper,)
    assert needs["stage:tools:1"] == (tools,)  # nothing is linked from there
    assert needs["pick:1"] == ("stage:tools:1",) and needs["pick:2"] == (tiny,)
    assert needs["kernel-kit"] == needs["init"] == ("base:debian-trixie",)
    make, true, put = (found.graph.step(f"stage:{name}").action for name in ("build:2", "tools:1", "build:1"))
    assert isinstance(make, Container) and isinstance(true, Container) and isinstance(put, Container)
    assert make.env["PATH"] == "/opt/bin:/bin" and make.env["GO"] == "1" and make.env["CC"] == "ukl-gcc"
    assert true.env["PATH"] == "/opt/bin:/bin" and "CC" not in true.env
    assert put.argv[:2] == ("/bin/sh", "-c") and "lacks /usr/bin/python3" in put.argv[2]
    assert all(isinstance(found.graph.step(name).action, Host) for name in (gcc, "pick:1", "pick:2"))
    assert sorted(found.graph.step(gcc).inputs) == ["config", "layer-000", "layer-001"]
    assert found.places[wrapper].line == 7  # LINK is what wants it


def test_a_path_of_the_uklfile_wins_over_the_image() -> None:
    found = planned(IMAGES.replace("RUN make", "ENV PATH=/mine\nRUN make"))
    make = found.graph.step("stage:build:2").action
    assert isinstance(make, Container) and make.env["PATH"] == "/mine"


def test_our_libc_lies_below_the_build_stages() -> None:
    text = UKLFILE.replace("SOURCE", "DEPENDS debian:libx-dev\nSOURCE")
    before, after = planned(text), planned(text.replace("LINK", "GLIBC 2.41\nLINK"))
    needs = {step.id: step.needs() for step in after.graph.steps}
    assert needs["glibc-tools:debian-trixie"] == ("base:debian-trixie",)
    assert needs["glibc:debian-trixie:2.41"] == ("glibc-tools:debian-trixie",)
    assert needs["libc:debian-trixie"] == ("glibc:debian-trixie:2.41", "toolchain:debian-trixie")
    assert needs["stage:build:1"] == ("libc:debian-trixie",)
    for same in ("base:debian-trixie", "toolchain:debian-trixie", "kernel-kit", "init"):
        assert before.graph.keys[same] == after.graph.keys[same]
    actions = [found.graph.step("app:redis-server").action for found in (before, after)]
    first, second = (action.argv for action in actions if isinstance(action, Container))
    assert "--libc" not in first and second[second.index("--libc") + 1] == "/usr/lib/ukl/libc"


def test_our_libc_on_an_image_of_a_registry() -> None:
    text = UKLFILE.replace("FROM debian:trixie AS", "FROM registry.example.org/gcc:14 AS")
    found = planned(text.replace("LINK", "GLIBC 2.41\nLINK"))
    needs = {step.id: step.needs() for step in found.graph.steps}
    libc = "libc:registry.example.org/gcc:14"
    assert needs[libc] == ("glibc:debian-trixie:2.41", "toolchain:registry.example.org/gcc:14")
    assert needs["stage:build:1"] == (libc,)
