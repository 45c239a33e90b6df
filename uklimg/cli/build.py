"""uklimg build: a Uklfile becomes an image in the store."""

from __future__ import annotations

import argparse
from dataclasses import replace

from uklimg import blueprints, oci
from uklimg.cli import caching, options, prune
from uklimg.cli.host import Host
from uklimg.cli.secrets import read_secrets
from uklimg.console import Console, console
from uklimg.errors import UserError
from uklimg.events import Note
from uklimg.ref import Reference
from uklimg.store import Store
from uklimg.storelimit import configured_limit

NAME = "build"
HELP = "build an image from a Uklfile"


def add(parser: argparse.ArgumentParser) -> None:
    options.add_build(parser)
    parser.add_argument("-t", "--tag", metavar="REF", action="append", default=[], help="a name for the image")
    parser.add_argument("--push", action="store_true", help="send it to the registries in its names (-t)")
    options.add_plain_http(parser)
    parser.add_argument("--plan", action="store_true", help="say what would run, and run nothing")
    options.add_jobs(parser)
    parser.add_argument(
        "--blueprint",
        choices=blueprints.MODES,
        default=blueprints.FULL,
        help="what the image carries for `verify`: all, all but files of the context, nothing (full)",
    )
    caching.add(parser)
    options.add_engine(parser)
    options.add_progress(parser)
    options.add_format(parser)


def run(args: argparse.Namespace, host: Host) -> int:
    names = [Reference.parse(text) for text in args.tag]
    for name in names:
        if name.digest is not None:
            raise UserError(f"-t {name}: a digest is no name", hint="NAME:TAG")
    if options.stage_of(args) and names:
        raise UserError(f"--target={args.target} makes no image that could be named", hint="leave out -t")
    if args.push and not any(name.host for name in names):
        raise UserError("--push without a name that begins with a registry", hint="-t HOST/NAME[:TAG]")
    options.limit_processors(args)
    if args.plan:
        from uklimg.cli import plan

        return plan.run(args, host)
    with console(args.progress, host.stderr) as sink:
        # Whether that one speaks TLS has nothing to do with where base images and caches are.
        root, tags, ran = _build(args, replace(host, plain_http=None), names, sink)
    if args.format == "json":
        options.print_json(host, {"digest": str(root.digest), "tags": tags, "ran": list(ran)})
    else:
        host.print(" ".join([*tags, str(root.digest)]))
    return 0


def _build(
    args: argparse.Namespace, host: Host, names: list[Reference], sink: Console
) -> tuple[oci.Descriptor, list[str], tuple[str, ...]]:
    """The image (or the stage's root file system), the names it got, and the steps that ran."""
    caching.locations(args)  # what is none is told before anything else
    limit = configured_limit(host.settings.config)
    project = options.project_of(args, host)
    store = host.store(sink)
    secrets = read_secrets(args.secret, host.environ, host.cwd)
    with store.session() as session:
        found = options.resolved(args, project, host, store, sink, write=not args.locked)
        made = options.planned(args, project, found)
        for place, text in made.warnings:
            sink(Note(f"{place}: {text}", warning=True))
        session.declare(made.graph.keys.values(), made.graph.blobs())
        with caching.sharing(host, store, args, made.graph.keys.values(), sink) as importer:
            lookup = importer.lookup if importer else None
            executor = host.executor(
                store,
                sink,
                offline=args.offline,
                vendor=args.vendor,
                secrets=secrets,
                lookup=lookup,
            )
            built = executor.run(made.graph, made.places, again=args.no_cache)
            root = built.result.root
            stage, twin = options.stage_of(args), options.is_twin(args)
            tags = [str(name) for name in names] or ([] if stage else [project.name_of(twin=twin)])
            for tag in tags:
                store.tag(tag, root)
            if not stage:
                blueprints.attach(
                    store,
                    project,
                    found,
                    made,
                    root,
                    kernel_configs=tuple(args.kernel_configs),
                    ignore_caches=args.locked,
                    twin=twin,
                    mode=args.blueprint,
                    anew=bool(built.ran),
                    lookup=lookup,
                )
        if args.push:
            _push(args, host, names, root, store, sink)
    if built.ran:
        prune.keep_within(limit, host, store, sink)
    return root, tags, built.ran


def _push(
    args: argparse.Namespace, host: Host, names: list[Reference], root: oci.Descriptor, store: Store, sink: Console
) -> None:
    from uklimg.cli import publish  # imports what a build does not need

    wanted = publish.Publishing(kinds=publish.USUAL)
    for name in names:
        if name.host:
            publish.publish(name, root, wanted, store, replace(host, plain_http=args.plain_http), sink)
            sink(Note(f"pushed {name.name}@{root.digest}"))
