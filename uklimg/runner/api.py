"""Requests to a hypervisor's API: HTTP over its Unix socket."""

from __future__ import annotations

import http.client
import json
import socket

from uklimg.errors import ToolError
from uklimg.runner.machine import Call

_SECONDS = 5.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(self._path)


def call(request: Call) -> None:
    """PUT it; ToolError when nobody answers or the answer is no."""
    connection = _Connection(str(request.socket))
    try:
        body = b"" if request.body is None else json.dumps(request.body).encode()
        headers = {"Accept": "application/json"}
        if body:
            headers["Content-Type"] = "application/json"
        connection.request("PUT", request.path, body, headers)
        answer = connection.getresponse()
        said = answer.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise ToolError(f"the hypervisor does not answer: {error}") from error
    finally:
        connection.close()
    if answer.status >= 300:
        raise ToolError(f"the hypervisor says {answer.status} to {request.path}: {said}".strip())
