"""Options and helpers that several verbs share."""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from uklimg import oci
from uklimg.cli.host import Host
from uklimg.cli.secrets import parse_secrets
from uklimg.console import PROGRESS
from uklimg.digest import JSON, Digest
from uklimg.errors import ExitCode, InternalError, ToolError, UserError
from uklimg.events import Note, Sink
from uklimg.ref import Reference
from uklimg.settings import ENGINES
from uklimg.store import Store

if TYPE_CHECKING:  # imported by who needs it: not every verb has a Uklfile
    from uklimg.plan import Plan
    from uklimg.project import Project
    from uklimg.resolve import ResolvedSpec

DEFAULT_FILE = "Uklfile"
SHOWN_NAMES = 5  # of a store's images, where an error says what there is


def add_project(parser: argparse.ArgumentParser) -> None:
    """What names a Uklfile and says how to read it."""
    parser.add_argument("-f", "--file", metavar="FILE", default="", help="the Uklfile (default: CONTEXT/Uklfile)")
    parser.add_argument(
        "--build-arg", metavar="NAME=VALUE", action="append", default=[], help="the value of an ARG of the Uklfile"
    )
    parser.add_argument("context", metavar="CONTEXT", nargs="?", default=".", help="folder of the build context (.)")


def add_build(parser: argparse.ArgumentParser) -> None:
    """What `build`, `plan` and `explain` share beyond that."""
    add_project(parser)
    parser.add_argument("--locked", action="store_true", help="use what Uklfile.lock has, and never write it")
    parser.add_argument("--offline", action="store_true", help="use no network at all")
    parser.add_argument(
        "--secret",
        metavar="id=ID,src=FILE",
        action="append",
        default=[],
        help="a secret for RUN --mount=type=secret; env=VARIABLE in place of src= takes it from the environment",
    )
    add_vendor(parser)
    parser.add_argument("--no-cache", action="store_true", help="run every step, whatever the store has")
    parser.add_argument(
        "--target",
        metavar="ukl|linux|STAGE",
        default="",
        help="the image, its plain-Linux twin, or the build stage to stop at (ukl)",
    )
    # For developers of kernel patches: a series' further configuration fragments, as in --kernel-config debug.
    parser.add_argument(
        "--kernel-config", metavar="NAME", action="append", default=[], help=argparse.SUPPRESS, dest="kernel_configs"
    )


def add_vendor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vendor",
        metavar="DIR|REF",
        action="append",
        default=[],
        help="look here for sources first: a folder or repository that `uklimg vendor` filled",
    )


def add_plain_http(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plain-http",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="speak HTTP without TLS to the registry, or do not (only to this machine's own)",
    )


def registry_of(text: str) -> Reference:
    """A registry's HOST[:PORT], as a reference without a repository. UserError when it is something else."""
    host = text.rstrip("/")
    if "://" in host or "/" in host:
        raise UserError(f"{text!r} is no registry", hint="HOST[:PORT], without https:// and without a path")
    # What is a host in a reference is one here; a bare name is, too, as Docker has it.
    parsed = Reference.parse(f"{host}/x" if any(mark in host for mark in ".:[") else f"{host}.x/x")
    return replace(parsed, host=host, repository="", tag="")


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine", choices=ENGINES, default="", help="what runs the steps (buildah if installed, else docker)"
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=int, metavar="N", default=None, help="processors that steps may use, and steps at once (all)"
    )


def add_arguments(parser: argparse.ArgumentParser, text: str) -> None:
    """All further words, whatever they look like."""
    action = parser.add_argument("arguments", metavar="ARG", nargs=argparse.REMAINDER, help=text)
    action.required = False  # Python before 3.12 reports it among what is missing


def at_least_one(value: int | None, option: str) -> int:
    """What an option says, 0 when it was not given. UserError when it is less than 1."""
    if value is not None and value < 1:
        raise UserError(f"{option} wants a number greater than 0")
    return value or 0


def limit_processors(args: argparse.Namespace) -> None:
    """What --jobs says: steps inherit our processors, and `nproc` in them counts those; keys do not know of it."""
    if not (jobs := at_least_one(args.jobs, "--jobs")):
        return
    there = sorted(os.sched_getaffinity(0))
    if not there:
        raise InternalError("no processor to run on")
    os.sched_setaffinity(0, there[:jobs])


def add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--progress", choices=PROGRESS, default="auto", help="how progress is shown (auto)")


def write_result(path: Path, text: str) -> None:
    """To a file that the user named, which may be a device or a pipe. ToolError when it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ToolError(f"cannot write {path}: {error.strerror}") from error


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "json"), default="text", help="how the result is printed (text)")


def print_json(host: Host, value: JSON) -> None:
    host.print(json.dumps(value, indent=2, ensure_ascii=False))


def project_of(args: argparse.Namespace, host: Host) -> Project:
    from uklimg.project import open_project, parse_build_args

    context = host.path(args.context)
    uklfile = host.path(args.file) if args.file else context / DEFAULT_FILE
    shown = args.file or (DEFAULT_FILE if args.context == "." else str(Path(args.context) / DEFAULT_FILE))
    return open_project(uklfile, context, parse_build_args(args.build_arg, host.environ), host.data(), shown)


def resolved(
    args: argparse.Namespace, project: Project, host: Host, store: Store, sink: Sink, *, write: bool
) -> ResolvedSpec:
    """Resolve with what --locked and --offline allow, and ``write`` what the lock lacked."""
    from uklimg.project import resolve_project, write_lock

    for place, text in project.spec.warnings:
        sink(Note(f"{place}: {text}", warning=True))
    try:
        # A complete lock needs nothing that could ask the network, whose import takes longer than all else here.
        found = resolve_project(project, host.data(), None)
    except UserError:
        if args.locked or args.offline:
            raise
        with host.resolver(store, sink) as resolver:
            found = resolve_project(project, host.data(), resolver)
    if write and found.lock != project.lock:
        write_lock(project.lock_path, found.lock)
        sink(Note(f"wrote {project.lock_path}"))
    return found


def planned(args: argparse.Namespace, project: Project, found: ResolvedSpec) -> Plan:
    from uklimg.plan import Options
    from uklimg.project import plan_project

    secrets = frozenset(secret.id for secret in parse_secrets(args.secret))
    wanted = Options(stage_of(args), tuple(args.kernel_configs), secrets, args.locked, twin=is_twin(args))
    return plan_project(project, found, wanted)


def stage_of(args: argparse.Namespace) -> str:
    """The build stage that --target names; "" for an image."""
    return "" if args.target in (oci.TARGET_UKL, oci.TARGET_LINUX) else str(args.target)


def is_twin(args: argparse.Namespace) -> bool:
    return bool(args.target == oci.TARGET_LINUX)


def find_image(text: str, store: Store) -> tuple[str, oci.Descriptor] | None:
    """An image of the store by name, by name and digest, or by ``[sha256:]`` and the first digits of its digest.

    With all its digits a digest may also be that of one manifest of an index. None when there is none; UserError when
    the digits fit several.
    """
    tags = store.tags()
    digits = text.removeprefix("sha256:")
    if len(digits) >= 6 and all(char in "0123456789abcdef" for char in digits) and f"{text}:latest" not in tags:
        fitting = {entry.digest: (name, entry) for name, entry in tags.items() if entry.digest.hex.startswith(digits)}
        if len(fitting) > 1:
            raise UserError(f"{text} is the beginning of several images' digests", hint="give more digits")
        if fitting:
            return next(iter(fitting.values()))
        if text.startswith("sha256:"):
            return _untagged(text, store)
    ref = Reference.parse(text)
    if ref.digest is None:
        entry = tags.get(str(ref))
        return (str(ref), entry) if entry is not None else None
    for name, entry in tags.items():
        if Reference.parse(name).name == ref.name:
            if entry.digest == ref.digest:
                return name, entry
            if below := _manifest_in(entry, ref.digest, store):
                return str(ref), below
    return None


def _manifest_in(index: oci.Descriptor, digest: Digest, store: Store) -> oci.Descriptor | None:
    """The manifest of that digest in an index, if it is one and has it."""
    if index.media_type not in oci.INDEXES or not store.has(index.digest):
        return None
    listed = oci.parse_index(store.read_blob(index.digest), str(index.digest)).manifests
    return next((entry.bare() for entry in listed if entry.digest == digest and store.has(digest)), None)


def _untagged(text: str, store: Store) -> tuple[str, oci.Descriptor] | None:
    """An image that a build left in the store, though its tag has moved on."""
    try:
        digest = Digest.parse(text)
    except ValueError:
        return None
    if not store.has(digest):
        return None
    data = store.read_blob(digest)
    return text, oci.Descriptor.of(oci.parse_index_or_manifest(data, text).media_type, data)


def image_of(text: str, store: Store) -> tuple[str, oci.Descriptor]:
    """As ``find_image``; ToolError NOT_FOUND when there is none."""
    found = find_image(text, store)
    if found is None:
        hint = _those_there(text, sorted(store.tags()))
        if not text.startswith("sha256:") and Reference.parse(text).host:
            hint += f"; uklimg pull {text} asks its registry"
        raise ToolError(f"no image {text} in the store", hint=hint, exit_code=ExitCode.NOT_FOUND)
    return found


def _those_there(text: str, names: Sequence[str]) -> str:
    """What to say of a store's images to somebody who asked for ``text``: one line, however many there are."""
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.7)
    if near:
        return f"did you mean {near[0]}?"
    if len(names) > SHOWN_NAMES:
        return f"there is {', '.join(names[:SHOWN_NAMES])} and {len(names) - SHOWN_NAMES} more: uklimg images"
    return f"there is {', '.join(names) or 'none'}"


def read_image(store: Store, root: oci.Descriptor) -> oci.Image:
    return oci.read_image(lambda blob: store.read_blob(blob.digest), root)
