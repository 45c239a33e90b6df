"""Downloads a URL whose digest nobody has said yet, once, to put it into a lock. Later ones go through ``fetch``."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import requests

from uklimg.digest import Digest
from uklimg.errors import CorruptError, ExitCode, ToolError, UserError
from uklimg.events import Sink, TransferFinished, TransferProgress, TransferStarted, discard
from uklimg.fetch import CONNECT_TIMEOUT, READ_TIMEOUT
from uklimg.gitsource import Git, origin, split_origin, tar_name
from uklimg.graph import Blob
from uklimg.lock import LockedFile
from uklimg.store import Store

_CHUNK = 1 << 18


def measure_commit(
    url: str, name: str, store: Store, environ: Mapping[str, str], sink: Sink = discard
) -> tuple[str, LockedFile]:
    """The commit that ``name`` means now, and its tar, which stays in the store. Errors: ``gitsource.Git``."""
    with store.scratch() as folder:
        git = Git(folder, environ, sink)
        commit = git.commit_of(url, name)
        with store.writer() as writer:
            git.export(url, commit, writer)
            done = writer.commit()
    return commit, LockedFile(tar_name(url, commit), done.digest, done.size, origin(url, commit))


def bring_commit(blob: Blob, store: Store, environ: Mapping[str, str], sink: Sink = discard) -> None:
    """Put the tar of a commit into the store. CorruptError when it is not the promised one."""
    url, commit = split_origin(blob.urls[0])
    sink(TransferStarted(str(blob.digest), "fetch", blob.name, blob.size))
    with store.scratch() as folder, store.writer() as writer:
        Git(folder, environ, sink).export(url, commit, writer)
        try:
            writer.commit(blob.digest)
        except CorruptError as error:
            raise CorruptError(
                f"the tree of commit {commit} is not the locked one: {error.message}",
                hint="the lock was edited, or made by another version of uklimg: uklimg lock --update",
            ) from None
    sink(TransferFinished(str(blob.digest)))


def measure(url: str, store: Store, sink: Sink = discard) -> tuple[Digest, int]:
    """Digest and size in bytes of what ``url`` has now; the file stays in the store. ToolError NETWORK, NOT_FOUND."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    name = urlsplit(url).path.rpartition("/")[2] or host
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"cannot fetch {url}", hint="http or https")
    try:
        headers = {"Accept-Encoding": "identity"}
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
        with requests.get(url, stream=True, timeout=timeout, headers=headers) as response, store.writer() as writer:
            if response.status_code != 200:
                code = ExitCode.NOT_FOUND if response.status_code in (404, 410) else ExitCode.NETWORK
                raise ToolError(f"{host} has no {name} (HTTP {response.status_code})", exit_code=code)
            length = response.headers.get("Content-Length", "")
            sink(TransferStarted(url, "fetch", name, int(length) if length.isdigit() else 0))
            for chunk in response.iter_content(_CHUNK):
                writer.write(chunk)
                sink(TransferProgress(url, len(chunk)))
            if length.isdigit() and writer.size != int(length):
                raise ToolError(f"{host} broke off the transfer of {name}", exit_code=ExitCode.NETWORK)
            done = writer.commit()
    except requests.RequestException as error:
        raise ToolError(
            f"cannot fetch {name} from {host}", hint="check the network and the address", exit_code=ExitCode.NETWORK
        ) from error
    sink(TransferFinished(url))
    return done.digest, done.size
