"""The recipes of static libraries: one TREE step a library, which any image shares, and DEPENDS. Pure.

The work is done by ``uklimg/inside/library.py`` and ``uklimg/inside/depends.py`` inside the build container.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from uklimg.definitions import BuildSystem, SourceFolder
from uklimg.graph import Blob, Container, Inline, InlineFile, Input, Kind, Output, Step
from uklimg.lock import LockedPackages
from uklimg.recipes.scripts import HOME, python, scripts
from uklimg.recipes.stage import INSTALL_PACKAGES, package_inputs, title
from uklimg.recipes.toolchain import environment

RECIPE_VERSION = 1
_LIBRARIES = "/in/libraries"
_RECIPE = "/in/recipe"


def step_id(base: str, name: str) -> str:
    """The step that builds the library ``name`` of libs/ in the base image ``base``."""
    return f"library:{base}:{name}"


def tools_id(base: str, names: Sequence[str]) -> str:
    """The step that adds the Debian packages ``names`` to ``base`` for builds of libraries."""
    return f"tools:{base}:{'+'.join(names)}"


def library_step(
    step_id: str, below: str, name: str, folder: SourceFolder, needs: Mapping[str, str], inside: Mapping[str, bytes]
) -> Step:
    """A TREE step: a prefix with include/, lib/*.a, lib/pkgconfig and lib/cmake.

    ``below`` is the step whose root file system has the compiler wrapper and the build's packages; ``needs`` are
    steps of this recipe by library, with all that those need.
    """
    definition, library = folder.definition, folder.library
    recipe = {
        "name": name,
        "version": definition.version,
        "build": library.build.value,
        "archives": list(library.archives),
        "folder": library.folder,
        "options": list(library.options),
        "targets": list(library.targets),
        "install": list(library.install),
    }
    files = [InlineFile("recipe.json", json.dumps(recipe, sort_keys=True).encode())]
    if library.build is BuildSystem.SCRIPT:
        files.append(InlineFile("build.sh", folder.script))
    source = f"/in/source/{definition.file.name}"
    inputs: dict[str, Input] = {
        f"{HOME}/inside": scripts(inside, "library.py", "depends.py", "source.py"),
        source: Blob(definition.file.name, definition.file.digest, definition.file.size, definition.urls),
        _RECIPE: Inline(tuple(files)),
        **_trees(needs),
    }
    if folder.patches.patches:
        inputs["/in/patches"] = Inline(tuple(InlineFile(p.name, p.content) for p in folder.patches.patches))
    argv = python(
        "inside/library.py",
        *("--source", source),
        *("--patches", "/in/patches"),
        *("--recipe", _RECIPE),
        *("--needs", _LIBRARIES),
        *("--out", "/out"),
    )
    return Step(
        id=step_id,
        title=f"library {name} {definition.version}",
        recipe="library",
        recipe_version=RECIPE_VERSION,
        action=Container(rootfs=below, argv=argv, env=environment()),
        inputs=inputs,
    )


def depends_step(
    step_id: str,
    below: str,
    libraries: Mapping[str, str],
    locked: LockedPackages | None,
    inside: Mapping[str, bytes],
    words: Sequence[str],
) -> Step:
    """DEPENDS: the trees of ``libraries`` (steps of ``library_step`` by name) in /usr/local, and Debian's packages.

    ``words`` is what was asked for, for the title.
    """
    inputs: dict[str, Input] = {f"{HOME}/inside": scripts(inside, "depends.py"), **_trees(libraries)}
    put = python("inside/depends.py", "--libraries", _LIBRARIES)
    argv: tuple[str, ...] = put
    if locked is not None:
        inputs.update(package_inputs(locked))
        install = INSTALL_PACKAGES if locked.packages else ""
        names = [name.partition("=")[0] for name in locked.requested]
        argv = ("/bin/sh", "-ec", f'{install}\nexec "$@"', "sh", *put, "--packages", *names)
    return Step(
        id=step_id,
        title=title(f"DEPENDS {' '.join(words)}"),
        recipe="stage-depends",
        recipe_version=RECIPE_VERSION,
        action=Container(rootfs=below, argv=argv),
        inputs=inputs,
        kind=Kind.ROOTFS,
    )


def _trees(libraries: Mapping[str, str]) -> dict[str, Input]:
    return {f"{_LIBRARIES}/{name}": Output(step) for name, step in sorted(libraries.items())}
