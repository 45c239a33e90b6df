"""RUN's mounts as a step has them: what goes into its key and what is only there while it runs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from uklimg.errors import Location, UserError
from uklimg.graph import Input, RunMount
from uklimg.spec.model import Mount, Run

_MODES = {"secret": 0o400, "tmpfs": 0o1777}


def run_mounts(
    run: Run,
    bind: Callable[[Mount, Location], tuple[Input, str]],
    *,
    secrets: Collection[str],
    ignore_caches: bool,
) -> tuple[tuple[RunMount, ...], dict[str, Input]]:
    """The mounts of a RUN, and the step's inputs that they show.

    ``bind`` finds what a bind mount shows: an input and a path in it. ``secrets`` are the ids that there are; one
    that is required and not among them is a UserError. With ``ignore_caches`` (--locked) a cache is an empty folder,
    and the step's key the one of that.
    """
    found: list[RunMount] = []
    inputs: dict[str, Input] = {}
    for number, mount in enumerate(run.mounts):
        name = path = ""
        kind = mount.kind
        if kind == "cache" and ignore_caches:
            kind = "tmpfs"
        elif kind == "secret" and mount.required and mount.id not in secrets:
            hint = f"--secret id={mount.id},src=FILE, or env=VARIABLE"
            raise UserError(f"there is no secret {mount.id!r}", hint=hint, location=run.location)
        elif kind == "bind":
            name = f"mount {number}"  # no absolute path: the input is mounted only as we say
            inputs[name], path = bind(mount, run.location)
        found.append(
            RunMount(
                kind=kind,
                target=mount.target,
                input=name,
                path=path,
                read_only=mount.read_only,
                id=mount.id or mount.target,
                sharing=mount.sharing,
                mode=_MODES.get(mount.kind, 0o755) if mount.mode is None else mount.mode,
                uid=mount.uid or 0,
                gid=mount.gid or 0,
                required=mount.required,
                variable=mount.env,
            )
        )
    return tuple(found), inputs


def warnings(runs: Sequence[Run]) -> tuple[tuple[Location, str], ...]:
    """What a build should say about the mounts of the RUNs that its result depends on."""
    text = "RUN --mount=type=cache makes this build not reproducible (with --locked the cache is an empty folder)"
    return tuple((run.location, text) for run in runs if any(mount.kind == "cache" for mount in run.mounts))
