"""What verbs about guests that run by themselves share; not a verb."""

from __future__ import annotations

import argparse
import json
import secrets
import time
from collections.abc import Sequence

from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.errors import UserError
from uklimg.oci import HealthCheck, Image
from uklimg.runner.machine import Machine, MachineConfig, UserNetwork
from uklimg.running import policy
from uklimg.running.folder import Guests, check_name, new_id
from uklimg.running.record import Identity, Record
from uklimg.spec.values import BadValueError, duration

_FOLDER = "guests"
_TIMES = ("interval", "timeout", "start_period", "start_interval")


def guests_of(host: Host) -> Guests:
    return Guests(host.settings.state / _FOLDER)


def add_guests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guests", metavar="GUEST", nargs="+", help="name or id of a guest")


def add_detached(parser: argparse.ArgumentParser) -> None:
    """Options of `run` for guests that run by themselves."""
    parser.add_argument("-d", "--detach", action="store_true", help="leave it running, and print its id")
    parser.add_argument("--name", default="", help="what `ps` and others call it (with -d)")
    parser.add_argument("--rm", action="store_true", help="with -d: forget it when it has ended")
    parser.add_argument(
        "--restart", metavar="POLICY", default="no", help="no, on-failure[:N] or always (with -d; no)"
    )
    parser.add_argument(
        "--health-cmd", metavar="COMMAND", default="", help="a command of the guest's, or a JSON list"
    )
    for name, what in (
        ("interval", "between checks (30s)"),
        ("timeout", "for one check (30s)"),
        ("start-period", "in which failures do not count (0s)"),
        ("start-interval", "between checks until then (5s)"),
    ):
        parser.add_argument(f"--health-{name}", metavar="TIME", default="", help=f"the time {what}")
    parser.add_argument(
        "--health-retries", type=int, metavar="N", default=None, help="failures in a row that count (3)"
    )
    parser.add_argument("--no-healthcheck", action="store_true", help="run no health check")


def health_options(args: argparse.Namespace) -> dict[str, bool]:
    """The options about a health check, and whether they were given."""
    words = ("health_cmd", *(f"health_{name}" for name in _TIMES), "health_retries")
    return {"--" + word.replace("_", "-"): getattr(args, word) not in ("", None) for word in words}


def health_of(args: argparse.Namespace, image: HealthCheck | None) -> HealthCheck | None:
    """The image's health check with what the command line says; None when there is to be none."""
    given = {name: getattr(args, f"health_{name}") for name in _TIMES}
    retries = options.at_least_one(args.health_retries, "--health-retries")
    asked = any(health_options(args).values())
    if args.no_healthcheck:
        if asked:
            raise UserError("--no-healthcheck and another --health option exclude one another")
        return None
    argv, shell = (image.argv, image.shell) if image else ((), False)
    if args.health_cmd:
        argv, shell = _health_command(args.health_cmd)
    if not argv:
        if asked:
            raise UserError("the image has no health check", hint="--health-cmd COMMAND")
        return None
    base = image or HealthCheck(())
    return HealthCheck(
        argv,
        shell,
        interval=_duration("interval", given["interval"]) or base.interval,
        timeout=_duration("timeout", given["timeout"]) or base.timeout,
        start_period=_duration("start-period", given["start_period"]) or base.start_period,
        start_interval=_duration("start-interval", given["start_interval"]) or base.start_interval,
        retries=retries or base.retries,
    )


def _health_command(text: str) -> tuple[tuple[str, ...], bool]:
    if not text.startswith("["):
        return (text,), True
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise UserError(f"{text!r} is not a list of words", hint='--health-cmd \'["/bin/check", "--all"]\'')
    return tuple(words), False


def _duration(name: str, text: str) -> int:
    if not text:
        return 0
    try:
        return duration(text)
    except BadValueError as error:
        raise UserError(f"--health-{name}: {error}", hint=error.hint) from error


def new_record(
    args: argparse.Namespace,
    image: Image,
    machine: Machine,
    config: MachineConfig,
    command: Sequence[str],
    health: HealthCheck | None,
) -> Record:
    ports = config.network.forwards if isinstance(config.network, UserNetwork) else ()
    restart = policy.parse_restart(args.restart)
    if args.rm and restart.when != "no":
        raise UserError("--rm and --restart exclude one another")
    return Record(
        id=new_id(),
        name=check_name(args.name) if args.name else f"{image.run.program}-{secrets.token_hex(3)}",
        image=args.ref,
        digest=str(image.descriptor.digest),
        command=tuple(command),
        hypervisor=machine.name,
        memory=config.memory,
        cpus=config.cpus,
        created=time.time(),
        supervisor=Identity.own(),
        ports=tuple(str(port) for port in ports),
        volumes=(*args.volume, *args.mount),
        restart=str(restart),
        remove=args.rm,
        health=policy.STARTING if health else "",
    )


def age(seconds: float) -> str:
    """ "5 minutes": the largest unit that fits, rounded down."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(0, int(seconds))} s"
