"""Licences out of a Debian package's copyright file, where a machine can read it (copyright-format 1.0); pure."""

from __future__ import annotations

import re

_FORMAT = re.compile(r"copyright-format/1|dep5|CopyrightFormat", re.IGNORECASE)
_MAX_NAMES = 100

# Debian's short names that SPDX has under another one. A "+" is SPDX's "-or-later".
_SAME = {
    "expat": "MIT",
    "mit": "MIT",
    "isc": "ISC",
    "zlib": "Zlib",
    "apache-2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause",
    "artistic": "Artistic-1.0",
    "artistic-2": "Artistic-2.0",
    "mpl-1.1": "MPL-1.1",
    "mpl-2.0": "MPL-2.0",
    "cc0": "CC0-1.0",
    "cc0-1.0": "CC0-1.0",
    "fsfap": "FSFAP",
    "psf-2": "PSF-2.0",
    "0bsd": "0BSD",
}
_GNU = re.compile(r"(?P<name>(?:L|A)?GPL|GFDL)-(?P<version>[1-3](?:\.[0-9])?)(?:\.0)?(?P<later>\+?)", re.IGNORECASE)


def licences(text: str) -> tuple[str, ...]:
    """What the package's files are under, sorted: SPDX identifiers where they are known, else Debian's own words.

    Empty when no machine can read the file.
    """
    from debian.deb822 import Deb822

    lines = text.splitlines()
    if not any(line.lower().startswith("format:") and _FORMAT.search(line) for line in lines[:10]):
        return ()
    found: set[str] = set()
    try:
        for paragraph in Deb822.iter_paragraphs(lines, use_apt_pkg=False):
            named = str(paragraph.get("License", "")).splitlines()
            if "Files" in paragraph and named and named[0].strip():
                found.update(_names(named[0].strip()))
    except ValueError:
        return ()
    return tuple(sorted(found)[:_MAX_NAMES])


def _names(short: str) -> list[str]:
    """``GPL-2+ or Expat`` is said as it stands; ``A and B`` are two."""
    words = " ".join(short.split())
    if len(words) > 200 or not words.isprintable():
        return []
    parts = [part.strip(" ,") for part in re.split(r"\s+and\s+|,\s", words) if part.strip(" ,")]
    return [_spdx(part) for part in parts]


def _spdx(short: str) -> str:
    choices = re.split(r"\s+or\s+|\s*\|\s*", short)
    known = [_one(choice) for choice in choices]
    if len(known) > 1:
        return " OR ".join(known) if all(" " not in one for one in known) else short
    return known[0]


def _one(short: str) -> str:
    if found := _GNU.fullmatch(short):
        version = found["version"] if "." in found["version"] else f"{found['version']}.0"
        # GFDL's first version is 1.1.
        return f"{found['name'].upper()}-{version}-{'or-later' if found['later'] else 'only'}"
    return _SAME.get(short.lower(), short)
