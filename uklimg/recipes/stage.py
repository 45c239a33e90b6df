"""The recipes of a build stage's instructions: each is one step that changes a root file system. Pure.

``below`` is always the id of the step whose root file system the new one starts from, ``inside`` the contents of the
package's folder of that name (scripts that run in the container).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from uklimg.graph import Blob, Container, ContextTree, Inline, InlineFile, Input, Kind, Output, RunMount, Step
from uklimg.lock import LockedPackages, LockedSource, SourceKind
from uklimg.recipes.scripts import HOME, python, scripts
from uklimg.spec.model import HEREDOC_FOLDER, Copy, MakeFolder, Run, Source

RECIPE_VERSION = 1
PICKED = "var/lib/ukl/picked"
"""Where a pick step leaves the files, relative to the root: the only thing in its layer."""

_TITLE = 96
_SOURCE = "/in/source"
_COPY = "/in/copy"

# dpkg wants to configure what others pre-depend on first, which "--install" of all at once does not promise.
INSTALL_PACKAGES = """\
set -e
export DEBIAN_FRONTEND=noninteractive
for pass in 1 2 3 4 5; do
    dpkg --force-unsafe-io --install /in/packages/*.deb && break
    [ $pass -lt 5 ]
done
rm -rf /var/log/* /var/cache/ldconfig /var/cache/debconf/*-old /var/lib/dpkg/*-old
rm -f /var/lib/dpkg/lock /var/lib/dpkg/lock-frontend /var/lib/dpkg/triggers/Lock
"""


def title(text: str) -> str:
    """One line that is not too long for a progress line."""
    line = " ".join(text.split())
    return line if len(line) <= _TITLE else f"{line[: _TITLE - 1]}…"


def run_step(
    step_id: str,
    below: str,
    run: Run,
    wrapper: Mapping[str, str],
    mounts: Sequence[RunMount] = (),
    mounted: Mapping[str, Input] | None = None,
) -> Step:
    """RUN. ``wrapper``: the variables that lead to the compiler wrapper; the stage's own win. ``mounts`` and the
    inputs ``mounted`` that they need: see ``runmounts``."""
    inputs: dict[str, Input] = dict(mounted or {})
    if run.files:
        inputs[HEREDOC_FOLDER] = Inline(tuple(InlineFile(file.name, file.content, file.mode) for file in run.files))
    action = Container(
        rootfs=below,
        argv=run.argv,
        env={**wrapper, **dict(run.env)},
        workdir=run.workdir,
        network=run.network,
        user=run.user,
        mounts=tuple(mounts),
        proxies=dict(run.proxies),
    )
    return _step(step_id, f"RUN {run.text}", "run", action, inputs)


def folder_step(step_id: str, below: str, folder: MakeFolder) -> Step:
    """WORKDIR: the folder, made with its parents and given to the user unless it is there."""
    script = '[ -d "$1" ] || { mkdir -p "$1" && chown "$2" "$1"; }'
    argv = ("/bin/sh", "-ec", script, "sh", folder.path, folder.user)
    return _step(step_id, f"WORKDIR {folder.path}", "workdir", Container(rootfs=below, argv=argv), {})


def source_step(
    step_id: str,
    below: str,
    source: Source,
    locked: LockedSource | None,
    *,
    tree: ContextTree | None,
    path: str,
    patches: ContextTree | None,
    inside: Mapping[str, bytes],
) -> Step:
    """SOURCE, of the files of ``locked`` or of ``path`` in the build context's ``tree``."""
    inputs: dict[str, Input] = {f"{HOME}/inside": scripts(inside, "source.py")}
    if locked is not None:
        files = sorted(locked.files)
        for file in files:
            inputs[f"{_SOURCE}/{file.name}"] = Blob(file.name, file.digest, file.size, (file.origin,))
        main = next((file for file in files if file.name.endswith(".dsc")), files[0])
        where = f"{_SOURCE}/{main.name}"
        what = f"{locked.reference}" if locked.kind is not SourceKind.DEBIAN else _debian_name(locked)
    else:
        assert tree is not None
        inputs[_SOURCE] = tree
        where, what = f"{_SOURCE}/{path}", path
    argv = ["--from", where, "--dest", source.dest]
    if source.strip is not None:
        argv += ["--strip", str(source.strip)]
    if patches is not None:
        inputs["/in/patches"] = patches
        argv += ["--patches", f"/in/patches/{source.patches}"]
    action = Container(rootfs=below, argv=python("inside/source.py", *argv))
    return _step(step_id, f"SOURCE {what} {source.dest}", "source", action, inputs)


def _debian_name(locked: LockedSource) -> str:
    name = locked.reference.partition("=")[0]
    return f"{name}={locked.version}"


def copy_step(
    step_id: str, below: str, copy: Copy, tree: Input | None, title_text: str, inside: Mapping[str, bytes]
) -> Step:
    """COPY or ADD. ``tree`` is what the sources are relative to, None when there are only heredocs."""
    params = {
        "sources": list(copy.sources),
        "files": [file.name for file in copy.files],
        "dest": copy.dest,
        "unpack": copy.unpack,
        "chown": copy.chown,
        "chmod": copy.chmod,
        "parents": copy.parents,
        "exclude": list(copy.exclude),
    }
    content = json.dumps(params, sort_keys=True).encode()
    files = (InlineFile(f"files/{file.name}", file.content, file.mode) for file in copy.files)
    inputs: dict[str, Input] = {
        f"{HOME}/inside": scripts(inside, "copy.py"),
        _COPY: Inline((InlineFile("params.json", content), *files)),
    }
    if tree is not None:
        inputs["/in/tree"] = tree
    argv = python("inside/copy.py", "put", f"{_COPY}/params.json", "/in/tree", f"{_COPY}/files")
    return _step(step_id, title_text, "copy", Container(rootfs=below, argv=argv), inputs)


def copy_title(copy: Copy, origin: str) -> str:
    words = ["ADD" if copy.unpack else "COPY", *([f"--from={origin}"] if origin else [])]
    return title(" ".join([*words, *copy.sources, *(f"<<{file.name}" for file in copy.files), copy.dest]))


def pick_step(step_id: str, below: str, stage: str, sources: Sequence[str], inside: Mapping[str, bytes]) -> Step:
    """What COPY --from takes out of a stage (called ``stage``): a layer on top of it that holds the sources below
    PICKED, under the paths they have there."""
    sources = [f"/{source.lstrip('/')}" for source in sources]
    argv = python("inside/copy.py", "pick", "--into", f"/{PICKED}", *sources)
    action = Container(rootfs=below, argv=argv)
    return _step(
        step_id,
        f"take {' '.join(sources)} from {stage}",
        "pick",
        action,
        {f"{HOME}/inside": scripts(inside, "copy.py")},
    )


def picked(step_id: str) -> Output:
    """The files of a pick step, as an input of another one."""
    return Output(step_id, PICKED)


def packages_step(step_id: str, below: str, locked: LockedPackages) -> Step:
    """PACKAGES: the locked packages, installed offline."""
    inputs = package_inputs(locked)
    argv = ("/bin/sh", "-ec", INSTALL_PACKAGES) if inputs else ("/bin/true",)
    names = " ".join(locked.requested)
    return _step(step_id, f"PACKAGES {names}", "packages", Container(rootfs=below, argv=argv), inputs)


def package_inputs(locked: LockedPackages) -> dict[str, Input]:
    """The packages where INSTALL_PACKAGES, a script for /bin/sh, installs them from."""
    return {f"/in/packages/{package.file.name}": package.file.blob() for package in sorted(locked.packages)}


def _step(step_id: str, text: str, recipe: str, action: Container, inputs: Mapping[str, Input]) -> Step:
    return Step(
        id=step_id,
        title=title(text),
        recipe=f"stage-{recipe}",
        recipe_version=RECIPE_VERSION,
        action=action,
        inputs=inputs,
        kind=Kind.ROOTFS,
    )
