"""What is Docker's and Podman's alone, and that an image is the same whichever engine makes it.

test_engine.py has what every engine does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from enginelib import BUSYBOX, ENVIRON, Bench, Way, running_dockerd
from privatestore import sparse_store

from uklimg.digest import Digest
from uklimg.engine.docker import DockerEngine
from uklimg.errors import ExitCode, ToolError

pytestmark = pytest.mark.integration
pytest_plugins = ("enginefixtures",)

ROOT = Path(__file__).resolve().parents[2]
UKLFILE = """FROM debian:trixie AS build
WORKDIR /src
COPY main.c .
RUN make main && ./main && rm -r /etc/alternatives && mkdir /etc/alternatives && chmod 751 /opt
FROM ukl:6.12
LINK --from=build /src/main
"""


def uklimg(*argv: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "uklimg", *argv]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_an_engine_that_does_not_see_our_files_is_refused(tmp_path: Path) -> None:
    """A daemon in a mount namespace of its own stands for one on another machine."""
    hidden = tmp_path / "store"
    hidden.mkdir()
    with running_dockerd(hides=hidden) as way:
        bench = Bench(hidden, way)
        with pytest.raises(ToolError) as caught:
            bench.tree("true")
        assert caught.value.exit_code is ExitCode.HOST
        assert caught.value.line().startswith(
            f"the container engine at unix://{way.socket} does not see this machine's"
        )
        assert bench.containers() == [] and bench.leftovers() == []


def test_nobody_listens(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", Way("docker", tmp_path / "no.sock"))
    with pytest.raises(ToolError, match="no Docker or Podman answers at unix://") as caught:
        bench.tree("true")
    assert caught.value.exit_code is ExitCode.HOST and "docker.io" in caught.value.hint
    bench.engine = DockerEngine(tmp_path / "engine", {**ENVIRON, "DOCKER_HOST": "nonsense://here"})
    with pytest.raises(ToolError, match="no Docker or Podman answers at nonsense://here"):
        bench.tree("true")


def test_a_step_may_use_the_processors_that_we_may(dockerd: Way, podman: Way, tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        for way in (dockerd, podman):
            assert Bench(tmp_path / way.name, way).tree("nproc")[0] == ["1"]
    finally:
        os.sched_setaffinity(0, allowed)


def test_files_of_the_image_that_look_like_the_engines_stay(dockerd: Way, podman: Way, tmp_path: Path) -> None:
    make = "echo 10.0.0.1 here > /etc/hosts; ln -s /proc/self/mounts /etc/mtab; echo x > /.dockerenv"
    look = "cat /etc/hosts /.dockerenv; readlink /etc/mtab; ls /etc; rm /etc/hosts"
    results = []
    for way in (dockerd, podman, Way("oci")):
        bench = Bench(tmp_path / way.name, way)
        one = bench.rootfs(make, "one")
        assert bench.tree(look, base=one)[0] == [
            "10.0.0.1 here",
            "x",
            "/proc/self/mounts",
            "hostname",
            "hosts",
            "mtab",
            "passwd",
        ]
        two = bench.rootfs("rm /etc/hosts /etc/mtab", "two", one)
        assert bench.names(two) == ["etc", "etc/.wh.hosts", "etc/.wh.mtab"]
        results.append(bench.rootfs("touch /etc/resolv.conf; echo 1 > /etc/hosts", "three", two).root.digest)
    assert len(set(results)) == 1


def test_a_device_in_the_output_is_an_error_of_the_step(dockerd: Way, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", dockerd)
    with pytest.raises(ToolError, match="left out/pipe, which is a device, pipe or socket") as caught:
        bench.tree("mkfifo /out/pipe")
    assert caught.value.exit_code is ExitCode.STEP


def test_other_people_s_images_and_containers_stay(dockerd: Way, tmp_path: Path) -> None:
    api = dockerd.ask()
    shutil.copy(BUSYBOX, tmp_path)
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "theirs.tar", "busybox"], check=True)
    api.import_image_from_file(str(tmp_path / "theirs.tar"), repository="theirs", tag="1")
    container = api.create_container("theirs:1", ["/busybox", "true"])["Id"]
    try:
        bench = Bench(tmp_path / "store", dockerd)
        bench.tree("true")
        bench.engine.prune(())
        assert bench.images() == ""
        assert api.inspect_container(container)["Id"] == container
        assert api.images(name="theirs")
    finally:
        api.remove_container(container)
        api.remove_image("theirs:1")


def test_docker_makes_the_image_that_buildah_makes(dockerd: Way, tmp_path: Path) -> None:
    """In a store that has the base image, which needs no engine, and the kernel; every other step runs.

    test_rootless.py has the same with buildah in such a store.
    """
    (tmp_path / "Uklfile").write_text(UKLFILE)
    (tmp_path / "main.c").write_text('#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n')
    shutil.copy(ROOT / "scripts/example.lock", tmp_path / "Uklfile.lock")
    first = uklimg("build", "--engine", "buildah", "--progress", "plain", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    with sparse_store({"base-image", "kernel-kit"}) as store:
        environ = {"UKLIMG_STORE": str(store), "DOCKER_HOST": f"unix://{dockerd.socket}", "UKLIMG_ENGINE": "docker"}
        found = uklimg("build", "--locked", "--offline", "--progress", "plain", cwd=tmp_path, **environ)
        assert found.returncode == 0, found.stderr
        assert "=> compiler wrapper" in found.stderr and "=> [build 3/3] RUN" in found.stderr
        assert found.stdout.split()[-1] == first.stdout.split()[-1]
        pruned = uklimg("prune", "--all", cwd=tmp_path, **environ)
        assert pruned.returncode == 0 and "stay" not in pruned.stderr
        ours = Digest.of(os.fsencode(store / "engine" / "docker")).hex[:12]
        assert not any(ours in name for image in dockerd.ask().images() for name in image["RepoTags"] or ())
