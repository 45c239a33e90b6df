"""The errors a user can meet, each with one line, a hint, a place and an exit code.

Library code raises; only ``uklimg.cli.main`` prints and exits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit statuses of ``uklimg`` (docs/reference.md lists them for users)."""

    OK = 0
    USER = 1  # the user's input is wrong
    USAGE = 2  # the command line is wrong
    STEP = 3  # a build step failed
    NETWORK = 4
    AUTH = 5
    NOT_FOUND = 6
    CORRUPT = 7
    HOST = 8  # a tool or resource of the host is missing
    UNTRUSTED = 9  # not signed with the key that the user trusts
    BUG = 70
    RUN_FAILED = 125  # `run` failed before or beside the program
    INTERRUPTED = 130


@dataclass(frozen=True, order=True)
class Location:
    """A place in a text file; ``line`` and ``column`` count from 1, 0 means unknown."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        text = self.file
        if self.line:
            text += f":{self.line}"
            if self.column:
                text += f":{self.column}"
        return text


class UklimgError(Exception):
    """An error with one clear line for the user.

    ``message`` says what is wrong, ``hint`` what to do about it; neither ends in a full stop.
    ``detail`` is longer text printed *before* the line (a compiler's output, a log's tail).
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        location: Location | None = None,
        exit_code: ExitCode | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.location = location
        self.detail = detail
        if exit_code is not None:
            self.exit_code = exit_code

    def line(self) -> str:
        """``file:line:column: message (hint)`` on one line."""
        where = f"{self.location}: " if self.location else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.message}{hint}".replace("\n", " ")


class UserError(UklimgError):
    """The user's input is wrong: a Uklfile, an argument, a file that is not there."""

    exit_code = ExitCode.USER


class UserErrors(UserError):
    """All errors of one input at once, sorted by place."""

    def __init__(self, errors: Iterable[UserError]) -> None:
        self.errors = tuple(sorted(errors, key=lambda e: e.location or Location("")))
        if not self.errors:
            raise InternalError("UserErrors without an error")
        super().__init__(self.errors[0].message, hint=self.errors[0].hint, location=self.errors[0].location)

    def line(self) -> str:
        return "\n".join(error.line() for error in self.errors)


class ToolError(UklimgError):
    """Something outside us failed: a host tool, a build step, the network, a registry.

    The exit code is set where it is raised; HOST when nothing fits better.
    """

    exit_code = ExitCode.HOST


class CorruptError(ToolError):
    """Bytes do not have the digest or size they were promised to have."""

    exit_code = ExitCode.CORRUPT


class InternalError(UklimgError):
    """A bug of ours."""

    exit_code = ExitCode.BUG
