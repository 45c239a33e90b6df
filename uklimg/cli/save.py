"""uklimg save: images of the store as one file."""

from __future__ import annotations

import argparse
import uuid
from typing import IO, TextIO

from uklimg import archive
from uklimg.cli import options
from uklimg.cli.host import Host
from uklimg.console import console
from uklimg.errors import InternalError, ToolError, UserError

NAME = "save"
HELP = "write images to a file (an OCI archive)"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", default="", help="the file (default: standard output)")
    parser.add_argument("refs", metavar="REF", nargs="+", help="an image of the store")


def run(args: argparse.Namespace, host: Host) -> int:
    if not args.output and host.stdout.isatty():
        raise UserError("an archive is not for a terminal", hint="-o FILE")
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        with store.session():
            images = dict(options.image_of(text, store) for text in args.refs)
            if not args.output:
                archive.save(store, images, binary_output(host.stdout))
                return 0
            path = host.path(args.output)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            try:
                with temporary.open("xb") as file:
                    archive.save(store, images, file)
                temporary.rename(path)
            except OSError as error:
                raise ToolError(f"cannot write {path}: {error.strerror}") from error
            finally:
                temporary.unlink(missing_ok=True)
    host.print(str(path))
    return 0


def binary_output(stdout: TextIO) -> IO[bytes]:
    binary: IO[bytes] | None = getattr(stdout, "buffer", None)
    if binary is None:
        raise InternalError("standard output takes text only")
    return binary
