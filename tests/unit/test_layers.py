"""Imports go only to lower layers, and only to some parts of the same one: architecture's table, as data.

Here the whole table stands once; the test reads the imports of every module out of its syntax tree.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import uklimg

pytestmark = pytest.mark.unit

PACKAGE = Path(uklimg.__file__).parent

# A name covers the module or the whole package below it; the longest that fits counts.
LAYERS: dict[int, tuple[str, ...]] = {
    0: ("__init__", "errors", "digest", "ref", "oci", "cpio"),
    1: (
        "uklfile",
        "spec",
        "patchset",
        "lock",
        "lockdiff",
        "definitions",
        "resolve",
        "graph",
        "recipes",
        "plan",
        "guest",
        "advice",
        "initialise",
        "walk",
        "blueprint",
        "attached",
        "evidence",
        "signing",
        "keydiff",
        "outlook",
        "bench",
        "profiling",
    ),
    2: (
        "proc",
        "events",
        "locks",
        "data",
        "assets",
        "context",
        "mirror",
        "settings",
        "storelimit",
        "roottree",
        "copyfiles",
        "room",
        "workers",
        "tarread",
    ),
    3: (
        "fetch",
        "engine",
        "store",
        "debian",
        "download",
        "gitsource",
        "registryimage",
        "resolver",
        "baseimage",
        "basechild",
        "imagebuild",
        "initramfsbuild",
        "toplayer",
        "hostfunctions",
        "runmounts",
        "project",
        "contexttar",
        "blueprints",
        "attachments",
        "symbols",
        "evidence.gather",
        "compare",
        "archive",
        "bench.picture",
    ),
    4: (
        "execute",
        "remote",
        "runner",
        "export",
        "running",
        "trial",
        "sharedcache",
        "rebuild",
        "vendor",
        "sources",
        "imagelock",
        "bench.boot",
        "profiling.boot",
    ),
    5: ("console", "turns", "cli", "__main__"),
}
# Scripts that run inside containers: they know nothing of uklimg but their own folder.
INSIDE = ("inside", "link", "toolchain")
# Members of one layer that must not know one another (and what each may still use of its own layer is below).
STRANGERS = (("engine", "store", "fetch"), ("execute", "remote", "runner"))
# What layers 0 and 1 must not touch: files, processes, the network, the clock, the environment.
WORLD = {"subprocess", "socket", "requests", "urllib.request", "http", "time", "datetime", "tempfile", "shutil", "sh"}
WORLD_NAMES = {"environ", "getenv", "open", "popen", "system"}


@cache
def modules() -> tuple[tuple[str, Path], ...]:
    """Every module as its dotted name below ``uklimg``."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] == "_data":
            continue
        name = ".".join(relative.with_suffix("").parts)
        found.append((name.removesuffix(".__init__"), path))
    return tuple(found)


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def covers(name: str, module: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def layer(module: str) -> int | None:
    fitting = [(len(name), number) for number, names in LAYERS.items() for name in names if covers(name, module)]
    return max(fitting)[1] if fitting else None


@cache
def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports, wherever in it; of ``from a import b`` both a and a.b."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@cache
def inner(path: Path) -> set[str]:
    """The modules of uklimg among them, by dotted name below it. A package is not among them where what is imported
    is a module of it: ``from uklimg.oci import layer`` needs oci.layer."""
    known = {name for name, _ in modules()}
    found = {name.removeprefix("uklimg.") for name in imports(path) if name.startswith("uklimg.")} & known
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def test_every_module_has_a_layer() -> None:
    lost = [name for name, _ in modules() if layer(name) is None and name.split(".")[0] not in INSIDE]
    assert not lost, "put them into the table"


def test_the_table_names_only_what_there_is() -> None:
    known = [name for name, _ in modules()]
    gone = [name for names in LAYERS.values() for name in names if not any(covers(name, other) for other in known)]
    assert not gone


def test_imports_go_down() -> None:
    wrong = []
    for name, path in modules():
        own = layer(name)
        if own is None:
            continue
        for other in inner(path):
            theirs = layer(other)
            if theirs is None or theirs > own:
                wrong.append(f"{name} (layer {own}) imports {other} (layer {theirs})")
    assert not wrong


def test_strangers_stay_strangers() -> None:
    wrong = []
    for name, path in modules():
        for group in STRANGERS:
            own = next((member for member in group if covers(member, name)), None)
            if own is not None:
                wrong += [f"{name} imports {o}" for o in inner(path) for m in group if m != own and covers(m, o)]
    # The executor is what brings engine and store together; everybody else of a group keeps to itself.
    assert not wrong


def test_no_cycles() -> None:
    needs = {name: inner(path) for name, path in modules()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(needs.get(name, ())):
                visit(other, (*above, name))
            done.add(name)

    for name in needs:
        visit(name, ())


def test_scripts_for_containers_import_nothing_of_ours_but_their_folder() -> None:
    wrong = []
    for name, path in modules():
        folder = name.split(".")[0]
        if folder in INSIDE:
            wrong += [
                f"{name} imports {o}"
                for o in imports(path)
                if o.startswith("uklimg.") and not covers(f"uklimg.{folder}", o)
            ]
    assert not wrong


def test_the_lower_layers_do_not_touch_the_world() -> None:
    wrong = []
    for name, path in modules():
        own = layer(name)
        if own is None or own > 1:
            continue
        wrong += [f"{name} imports {module}" for module in imports(path) & WORLD]
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WORLD_NAMES:
                wrong.append(f"{name} calls {node.func.id}")
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                wrong.append(f"{name} reads the environment")
    assert not wrong


def test_only_main_exits_and_only_proc_starts_processes() -> None:
    wrong = []
    for name, path in modules():
        if name.split(".")[0] in INSIDE:
            continue
        found = imports(path)
        if name != "proc" and {"subprocess", "sh"} & found:
            wrong.append(f"{name} starts processes")
        if name not in ("cli.main", "proc") and exits(path):
            wrong.append(f"{name} exits")
    assert not wrong


def exits(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("exit", "_exit")
        and isinstance(node.value, ast.Name)
        and node.value.id in ("sys", "os")
        for node in nodes(path)
    )
