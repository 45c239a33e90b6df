"""Which Debian mirror to use. It is configuration, never part of a project's file or of a key.

In this order: the environment's UKLIMG_DEBIAN_MIRROR, ``[mirrors] debian`` of the user's uklimg.toml, the host's own
apt configuration.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from uklimg.errors import Location, ToolError, UserError

VARIABLE = "UKLIMG_DEBIAN_MIRROR"
CONFIG_NAME = "uklimg.toml"
# Its sections, and the key of each.
SECTIONS = {"mirrors": "debian", "engine": "name", "store": "limit", "vendor": "places", "provenance": "builder"}
APT_FOLDER = Path("/etc/apt")

_SCHEMES = ("http", "https")
_MIRROR_LIST = "mirror+file:"
_SUITES = re.compile(
    r"(oldoldstable|oldstable|stable|testing|unstable|sid|bullseye|bookworm|trixie|forky|duke)(-updates)?/?"
)
_ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>(\s+\S+)*)")


@dataclass(frozen=True)
class AptSource:
    """One URI of the host's apt configuration with one suite."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


def find_mirror(environ: Mapping[str, str], config: Path | None = None, apt_folder: Path = APT_FOLDER) -> str:
    """The root URL of the Debian mirror to use, without a slash at its end.

    ``config`` is the user's uklimg.toml, which need not exist. UserError when a configured value is not a URL;
    ToolError HOST when there is none anywhere (the host is no Debian).
    """
    if environ.get(VARIABLE):
        return _checked(environ[VARIABLE], UserError(f"{VARIABLE} is not an http or https URL"))
    if config is not None:
        configured = configured_mirror(config)
        if configured:
            return configured
    best = choose_mirror(apt_sources(apt_folder))
    if best is None:
        raise ToolError(
            "the host's apt configuration names no Debian mirror",
            hint=f"set {VARIABLE}, or debian in the section [mirrors] of {CONFIG_NAME}, to a mirror's URL",
        )
    return best


def display(mirror: str) -> str:
    """The mirror's URL without user name and password, for messages."""
    parts = urlsplit(mirror)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def read_section(config: Path, name: str) -> Mapping[str, object]:
    """A section of a uklimg.toml; empty when file or section are not there. UserError when it cannot be read, or
    has anything that nobody would read."""
    try:
        document = tomllib.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        from uklimg.lock import toml_location  # more than any command without a lock needs

        raise UserError(f"not TOML: {error}", location=toml_location(str(config), error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {config}: {error}") from error
    for found, entries in document.items():
        if found not in SECTIONS:
            known = f"there is {', '.join(SECTIONS)}"
            raise UserError(f"unknown section [{found}]", hint=known, location=Location(str(config)))
        for key in entries if isinstance(entries, dict) else ():
            if key != SECTIONS[found]:
                raise UserError(
                    f"unknown key {key!r} in [{found}]",
                    hint=f"it has {SECTIONS[found]}",
                    location=Location(str(config)),
                )
    section = document.get(name, {})
    return section if isinstance(section, dict) else {}


def configured_vendors(config: Path) -> tuple[str, ...]:
    """``[vendor] places`` of a uklimg.toml: folders and repositories with vendored files."""
    value = read_section(config, "vendor").get("places", [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise UserError(
            "[vendor] places is not a list of folders and registries' names", location=Location(str(config))
        )
    return tuple(value)


def configured_mirror(config: Path) -> str | None:
    """``[mirrors] debian`` of a uklimg.toml; None when the file or the key is not there."""
    value = read_section(config, "mirrors").get("debian")
    if value is None:
        return None
    problem = UserError("[mirrors] debian is not an http or https URL", location=Location(str(config)))
    if not isinstance(value, str):
        raise problem
    return _checked(value, problem)


def _checked(url: str, problem: UserError) -> str:
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc or re.search(r"\s", url):
        raise problem
    return url.rstrip("/")


def apt_sources(folder: Path) -> tuple[AptSource, ...]:
    """What sources.list and sources.list.d of an apt folder hold, in apt's order; unreadable files are skipped.

    A list of mirrors (apt-transport-mirror(1); Debian's cloud images have one) stands for the mirrors in it.
    """
    found: list[AptSource] = []
    for path in (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if path.suffix == ".list":
            found.extend(parse_one_line(text))
        elif path.suffix == ".sources":
            found.extend(parse_deb822(text))
    return tuple(replace(source, uri=uri) for source in found for uri in _mirrors(source.uri))


def _mirrors(uri: str) -> tuple[str, ...]:
    """The URI itself, or what the file of a ``mirror+file:`` lists, each line a URI and perhaps more."""
    if not uri.startswith(_MIRROR_LIST):
        return (uri,)
    try:
        text = Path(urlsplit(uri).path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(words[0] for line in text.splitlines() if (words := line.partition("#")[0].split()))


def parse_one_line(text: str) -> Iterable[AptSource]:
    """Entries in sources.list(5)'s one-line format, ``deb`` only."""
    for line in text.splitlines():
        entry = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if entry:
            signed_by = re.search(r"signed-by=(\S+)", entry["options"] or "")
            components = tuple(entry["components"].split())
            yield AptSource(entry["uri"], entry["suite"], components, signed_by[1] if signed_by else "")


def parse_deb822(text: str) -> Iterable[AptSource]:
    """Entries in sources.list(5)'s deb822 format, those that are enabled and of type ``deb``."""
    from debian.deb822 import Deb822  # not free to import

    for stanza in Deb822.iter_paragraphs(text, use_apt_pkg=False):
        if stanza.get("Enabled", "yes").lower() in ("no", "false", "off", "0", "disable", "without"):
            continue
        if "deb" not in stanza.get("Types", "").split():
            continue
        for uri in stanza.get("URIs", "").split():
            for suite in stanza.get("Suites", "").split():
                components = tuple(stanza.get("Components", "").split())
                yield AptSource(uri, suite, components, stanza.get("Signed-By", "").strip())


def choose_mirror(sources: Iterable[AptSource]) -> str | None:
    """The main Debian archive among a host's sources: third parties and security archives are passed over.

    A third party may use Debian's suite names too, so a URI that ends in /debian or is signed by the archive's
    keyring goes first; among equals the first one, as apt does.
    """
    best: tuple[int, str] | None = None
    for source in sources:
        parts = urlsplit(source.uri)
        if parts.scheme not in _SCHEMES or "security" in source.uri:
            continue
        if not _SUITES.fullmatch(source.suite) or "main" not in source.components:
            continue
        rank = 2 * ("debian-archive" in source.signed_by) + parts.path.rstrip("/").endswith("/debian")
        if best is None or rank > best[0]:
            best = (rank, source.uri.rstrip("/"))
    return best[1] if best else None
