"""A Uklfile with its lock and its build context, from files to a plan."""

from __future__ import annotations

import os
import posixpath
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uklimg.assets import read_assets
from uklimg.context import BuildContext, Selection, open_context, read_text
from uklimg.data import Data
from uklimg.errors import Location, ToolError, UserError
from uklimg.lock import LOCK_NAME, Lock, format_lock, parse_lock
from uklimg.plan import Options, Plan, Selected, literal, plan
from uklimg.ref import Reference
from uklimg.resolve import ResolvedSpec, Resolver, resolve
from uklimg.spec import SeriesInfo, Spec, read_spec
from uklimg.uklfile.ast import Pairs
from uklimg.uklfile.parser import parse

TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True)
class Project:
    """``lock_path`` is the Uklfile.lock next to the Uklfile; ``lock`` what it says, empty when it is not there.

    ``text`` is the Uklfile's, ``build_args`` are those given.
    """

    spec: Spec
    context: BuildContext
    lock_path: Path
    lock: Lock
    text: str = field(default="", repr=False)
    build_args: Mapping[str, str] = field(default_factory=dict, repr=False)

    def name_of(self, *, twin: bool = False) -> str:
        """How the image is called when nobody says: its title, else the context's folder. The plain-Linux twin has
        "-linux" behind that."""
        for text in (dict(self.spec.image.labels).get(TITLE, ""), self.context.root.name):
            name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
            if name:
                break
        else:
            name = "image"
        return str(Reference.parse(f"{name}-linux" if twin else name))


def open_project(uklfile: Path, context: Path, build_args: Mapping[str, str], data: Data, shown: str = "") -> Project:
    """Read everything. ``shown`` is the Uklfile's name in messages. UserErrors for whatever is wrong with it."""
    opened = open_context(context, uklfile)
    try:
        text = read_text(uklfile)
    except UserError as error:
        if not uklfile.exists():
            near = "" if LOCK_NAME in error.hint else error.hint
            error.hint = near or "-f FILE names another; `uklimg init` writes a first one"
        raise
    series = {name: SeriesInfo(name, tuple(data.kernel(name).definition.ukl)) for name in data.kernels()}
    spec = read_spec(
        text, shown or str(uklfile), build_args=build_args, base_images=data.base_images(), series=series
    )
    lock_path = uklfile.with_name(LOCK_NAME)
    lock = parse_lock(read_text(lock_path), str(lock_path)) if lock_path.exists() else Lock()
    return Project(spec, opened, lock_path, lock, text, build_args)


def declared_arguments(text: str) -> frozenset[str]:
    """The names of all ARGs of a Uklfile, before the first FROM and in stages."""
    tree = parse(text, "")
    directives = [*tree.arguments, *(directive for stage in tree.stages for directive in stage.directives)]
    arguments = [found for found in directives if isinstance(found, Pairs) and found.keyword == "ARG"]
    return frozenset(pair.name.text for argument in arguments for pair in argument.pairs)


def resolve_project(project: Project, data: Data, resolver: Resolver | None) -> ResolvedSpec:
    """With everything known by digest; see ``uklimg.resolve.resolve``."""
    return resolve(project.spec, project.lock, data, resolver)


def plan_project(project: Project, resolved: ResolvedSpec, options: Options) -> Plan:
    def select(sources: Sequence[str], exclude: Sequence[str], place: Location) -> Selected:
        return selected(project.context.select(sources, exclude=exclude, location=place), sources)

    return plan(resolved, select, read_assets(), options)


def selected(found: Selection, sources: Sequence[str]) -> Selected:
    """A selection as a plan wants it: each source as what it stands for, without wildcards and links."""
    renamed = tuple(
        posixpath.join(posixpath.dirname(match.source), match.name)
        for match in found.matches
        if not match.is_folder and match.name != posixpath.basename(match.path)
    )
    # "/./" in a source says what --parents keeps of it.
    pivots = any("/./" in source for source in sources)
    written = tuple(sources) if pivots else tuple(literal(match.path) for match in found.matches)
    return Selected(found.tree, written, renamed)


def parse_build_args(words: Sequence[str], environ: Mapping[str, str]) -> Mapping[str, str]:
    """--build-arg's ``NAME=value``, or ``NAME`` alone for the environment's value, as Docker has it."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise UserError(f"{word!r} is not a build argument", hint="--build-arg NAME=value")
        if equals:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
        else:
            raise UserError(f"the environment has no {name}", hint=f"--build-arg {name}=value")
    return found


def write_lock(path: Path, lock: Lock) -> None:
    """Replace the file, so that a reader sees the old lock or the new one."""
    replace_file(path, format_lock(lock))


def replace_file(path: Path, text: str) -> None:
    """Whoever reads ``path`` sees what was there or all of ``text``. ToolError when it cannot be written."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise ToolError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
