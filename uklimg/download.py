"""Downloads a URL whose digest nobody has said yet, once, to put it into a lock. Later ones go through ``fetch``."""

from __future__ import annotations

from urllib.parse import urlsplit

import requests

from uklimg.digest import Digest
from uklimg.errors import ExitCode, ToolError, UserError
from uklimg.events import Sink, TransferFinished, TransferProgress, TransferStarted, discard
from uklimg.fetch import CONNECT_TIMEOUT, READ_TIMEOUT
from uklimg.store import Store

_CHUNK = 1 << 18


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
