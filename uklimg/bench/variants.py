"""Which UKL options are compared with plain Linux. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uklimg.bench.model import LINUX, Variant
from uklimg.definitions import UklHow
from uklimg.errors import UserError

BASE = Variant("base")
# The paper's systems, and on from there; what a kernel does not know is left out.
_LADDER = (
    ("BYP",), ("BYP", "SHORTCUT"), ("RET",), ("RET", "BYP"), ("RET", "BYP", "SHORTCUT"),
    ("NSS", "BYP"), ("NSS", "RET", "BYP"),
)  # fmt: skip
# What is also tried with our own C library: system calls as calls, without more and without the work around them.
_CALLED: tuple[tuple[str, ...], ...] = ((), ("BYP",))


def named(options: Sequence[str], glibc: str = "") -> Variant:
    name = "+".join((*options, *(("glibc",) if glibc else ()))) or BASE.name
    return Variant(name, ukl=tuple(options), glibc=glibc)


def every(known: Mapping[str, UklHow], glibc: str = "") -> tuple[Variant, ...]:
    """Plain Linux, the base model, and what ``known`` allows: the paper's combinations, and any other option alone.

    ``glibc`` is the version of our own C library, which calls the kernel in place of ``syscall``; "" for none.
    Options that every kernel has (UklHow.BASE) are no variants.
    """
    options = [name for name, how in known.items() if how is not UklHow.BASE]
    taken = [names for names in _LADDER if all(name in options for name in names)]
    covered = {name for names in taken for name in names}
    taken += [(name,) for name in options if name not in covered]
    called = [named(names, glibc) for names in _CALLED if glibc and all(name in options for name in names)]
    return (LINUX, BASE, *(named(names) for names in taken), *called)


def chosen(texts: Sequence[str], known: Mapping[str, UklHow], glibc: str = "") -> tuple[Variant, ...]:
    """--variant's values: ``base``, or options joined by "+" (``glibc`` among them: our own C library). Plain Linux
    comes first, asked for or not. UserError for an unknown option."""
    if not texts:
        return every(known, glibc)
    found = [LINUX]
    for text in texts:
        words = [word for word in text.split("+") if word]
        if text == LINUX.name or not words:
            continue
        wants_glibc = "glibc" in words
        if wants_glibc and not glibc:
            raise UserError(f"--variant {text}: there is no C library of our own")
        options = [word.upper() for word in words if word not in (BASE.name, "glibc")]
        for name in options:
            if name not in known:
                there = ", ".join(known) or "none"
                raise UserError(f"--variant {text}: no UKL option {name}", hint=f"there is {there}")
        found.append(named(options, glibc if wants_glibc else ""))
    return tuple(dict.fromkeys(found))
