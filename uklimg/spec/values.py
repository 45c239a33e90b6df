"""Single values of a Uklfile: sizes, times, ports, signals, names, paths. Each function raises BadValueError."""

from __future__ import annotations

import posixpath
import re
from fractions import Fraction

from uklimg.spec.model import Package, Port

MINIMUM_MEMORY = 16 << 20
MAXIMUM_CPUS = 512
_MAXIMUM_MEMORY = 1 << 46  # more than x86 can address

# By number, from 1 (signal(7) for x86).
# fmt: off
_SIGNALS = (
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
)
# fmt: on
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}
_NANOSECONDS["h"] = 3600 * 10**9

_DEBIAN_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_DEBIAN_VERSION = re.compile(r"(?:[0-9]{1,9}:)?[0-9][A-Za-z0-9.+~-]*")  # Debian Policy 5.6.12
_RECIPE_NAME = re.compile(r"[a-z0-9][a-z0-9+._-]*")
_RECIPE_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~:_-]*")


class BadValueError(ValueError):
    """``str()`` is what is wrong; ``hint`` what would be right."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def quoted(text: str) -> str:
    """``text`` in quotes on one line, cut where it gets long."""
    return repr(text if len(text) <= 80 else f"{text[:77]}…")


def size(text: str) -> int:
    """Bytes of ``256M``, ``1.5g``, ``64MiB``, ``1048576``; units are powers of 1024, as Docker's."""
    match = re.fullmatch(r"([0-9]{1,18})(\.[0-9]{1,9})? ?([kmgtp]?)(?:i?b)?", text.strip().lower(), re.ASCII)
    if match is None:
        raise BadValueError(f"{quoted(text)} is not a size", "a number with K, M or G, as in 256M")
    return int(Fraction(match[1] + (match[2] or "")) * 1024 ** _UNITS[match[3]])


def memory(text: str) -> int:
    """A machine's memory in bytes."""
    value = size(text)
    if value < MINIMUM_MEMORY:
        number = text.strip().rstrip("bBiI")
        meant = number.isascii() and number.isdecimal() and int(number[:9]) << 20 >= MINIMUM_MEMORY
        hint = f"did you mean {number}M?" if meant else "16M is the least"
        raise BadValueError(f"{value} bytes of memory are too few for a kernel", hint)
    if value > _MAXIMUM_MEMORY:
        raise BadValueError(f"{quoted(text)} is more memory than a machine can have", "as in 256M")
    return value


def cpus(text: str) -> int:
    number = text.strip()
    if not re.fullmatch(r"[0-9]{1,6}", number, re.ASCII) or not 1 <= int(number) <= MAXIMUM_CPUS:
        raise BadValueError(f"{quoted(text)} is not a number of CPUs", f"1 to {MAXIMUM_CPUS}")
    return int(number)


def number(text: str, what: str, base: int = 10) -> int:
    """A whole number from 0 on, in ``base`` 8 or 10."""
    digits = "[0-7]" if base == 8 else "[0-9]"
    if not re.fullmatch(f"{digits}{{1,9}}", text, re.ASCII):
        raise BadValueError(f"{quoted(text)} is not {what}", "a whole number from 0 on")
    return int(text, base)


def duration(text: str) -> int:
    """Nanoseconds of ``30s``, ``1m30s``, ``1.5h`` (Go's durations); at least a millisecond, or 0."""
    hint = "a number with ms, s, m or h, as in 1m30s"
    total = Fraction(0)
    rest = text
    while rest and rest != "0":
        match = re.match(r"([0-9]{1,12}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(ns|us|µs|μs|ms|s|m|h)", rest, re.ASCII)
        if match is None:
            raise BadValueError(f"{quoted(text)} is not a duration", hint)
        total += Fraction(match[1].rstrip(".")) * _NANOSECONDS[match[2]]
        rest = rest[match.end() :]
    if not text:
        raise BadValueError("an empty duration", hint)
    value = int(total)
    if 0 < value < 10**6:
        raise BadValueError(f"{quoted(text)} is shorter than a millisecond", hint)
    return value


def ports(text: str) -> tuple[Port, ...]:
    """``6379``, ``6379/tcp``, ``5000-5010/udp``; TCP when nothing is said."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/([A-Za-z]+))?", text, re.ASCII)
    if match is None:
        hint = "ports of the host are given to `uklimg run -p`" if ":" in text else "as in 6379/tcp"
        raise BadValueError(f"{quoted(text)} is not a port", hint)
    first, last = int(match[1]), int(match[2] or match[1])
    protocol = (match[3] or "tcp").lower()
    if protocol not in ("tcp", "udp"):
        raise BadValueError(f"unknown protocol {quoted(protocol)}", "tcp or udp")
    if not 1 <= first <= last <= 65535:
        raise BadValueError(f"{quoted(text)} is not a port", "ports are 1 to 65535, ranges ascend")
    return tuple(Port(value, protocol) for value in range(first, last + 1))


def signal(text: str) -> str:
    """``SIGTERM`` for SIGTERM, TERM, sigterm or 15; SIGRTMIN+n and SIGRTMAX-n stay."""
    name = text.strip().upper().removeprefix("SIG")
    if re.fullmatch(r"[0-9]{1,2}", name, re.ASCII) and 1 <= int(name) <= len(_SIGNALS):
        return f"SIG{_SIGNALS[int(name) - 1]}"
    if name in _SIGNALS or re.fullmatch(
        r"RTMIN(\+([0-9]|[12][0-9]|30))?|RTMAX(-([0-9]|[12][0-9]|30))?", name, re.ASCII
    ):
        return f"SIG{name}"
    raise BadValueError(f"{quoted(text)} is not a signal", "as in SIGTERM")


def package(text: str) -> Package:
    """``name[=version]`` of a Debian package."""
    name, equals, version = text.partition("=")
    if not _DEBIAN_NAME.fullmatch(name):
        raise BadValueError(f"{quoted(name)} is not the name of a Debian package", "lower case, as in zlib1g-dev")
    if equals and not _DEBIAN_VERSION.fullmatch(version):
        raise BadValueError(f"{quoted(version)} is not a Debian version", "as in 1:1.3.1-1")
    return Package(name, version)


def dependency(text: str) -> Package:
    """``name[=version]`` of a recipe, or ``debian:name[=version]``."""
    if text.startswith("debian:"):
        return package(text.removeprefix("debian:"))
    name, equals, version = text.partition("=")
    if not _RECIPE_NAME.fullmatch(name) or (equals and not _RECIPE_VERSION.fullmatch(version)):
        raise BadValueError(f"{quoted(text)} is not a library", "name[=version] of libs/, or debian:libfoo-dev")
    return Package(name, version, recipe=True)


def absolute(path: str, workdir: str = "/") -> str:
    """A path of a stage, absolute and normalised; relative ones start at ``workdir``. ``..`` stops at the root."""
    return "/" + posixpath.normpath(posixpath.join("/", workdir, path)).lstrip("/")


def destination(path: str, workdir: str) -> str:
    """As ``absolute``, with a "/" at the end where the text says that it is a folder."""
    folder = path.endswith("/") or path in (".", "..") or path.endswith(("/.", "/.."))
    result = absolute(path, workdir)
    return result + "/" if folder and result != "/" else result


def in_context(path: str) -> str:
    """A path of the build context, relative and normalised ("." is all of it)."""
    result = posixpath.normpath(path.lstrip("/") or ".")
    if result == ".." or result.startswith("../"):
        raise BadValueError(f"{quoted(path)} is outside the build context", "paths are relative to it")
    return result


def kconfig_value(text: str, string: bool) -> str:
    """A value as a .config has it; ``string`` when the Uklfile quotes it, which makes even "5" a string."""
    if "\n" in text:
        raise BadValueError("a kernel configuration value has one line", "NAME=value")
    if not string and re.fullmatch(r"[ymnYMN]|-?[0-9]+|0[xX][0-9a-fA-F]+", text, re.ASCII):
        return text.lower()
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def mode(text: str) -> int:
    if not re.fullmatch(r"[0-7]{3,4}", text, re.ASCII):
        raise BadValueError(f"{quoted(text)} is not a file mode", "octal, as in 0644")
    return int(text, 8)


def owner(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?", text, re.ASCII):
        raise BadValueError(f"{quoted(text)} is not an owner", "user[:group], names or numbers")
    return text
