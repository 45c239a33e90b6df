"""uklimg diff: what differs between two images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from uklimg import attached, attachments, blueprint, blueprints, oci, symbols
from uklimg.cli import options
from uklimg.cli import run as run_verb
from uklimg.cli.host import Host
from uklimg.compare import Difference
from uklimg.console import console
from uklimg.digest import JSON, Digest
from uklimg.evidence import gather
from uklimg.lock import LockedBase, LockedImage, LockedPackages, parse_lock
from uklimg.rebuild import image_pairs
from uklimg.store import Store

NAME = "diff"
HELP = "say what differs between two images"
SHOWN = 40
# What says nothing about the image but which one it is.
_IDENTITY = ("digest", "size", "files", "platforms", "notes", "weakens")

APPLICATION, KERNEL = "application", "kernel"

Values = Mapping[str, str]
Change = tuple[str, str, str]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="REF", help="an image of the store")
    parser.add_argument("second", metavar="REF", help="another one")
    options.add_format(parser)


@dataclass(frozen=True)
class _Side:
    """One of the two images. What only a blueprint says is None without one; ``symbols``: sizes by name, of the
    application and the kernel, as far as they are known."""

    name: str
    image: oci.Descriptor
    configuration: Values
    kernel: Values | None
    locked: Values | None
    steps: Values | None
    symbols: Mapping[str, Values] = field(default_factory=dict)


def run(args: argparse.Namespace, host: Host) -> int:
    with console("plain", host.stderr) as sink:
        store = host.store(sink)
        first, second = (_side(text, store) for text in (args.first, args.second))
        if first.image.digest != second.image.digest:
            first, second = (replace(side, symbols=symbols_of(store, side.image)) for side in (first, second))
        found = {pair.name: pair.differences() for pair in image_pairs(store, first.image, store, second.image)}
    files = [item for items in found.values() for item in items]
    sections = {
        "configuration": _changes(first.configuration, second.configuration),
        "kernel configuration": _changes(first.kernel, second.kernel),
        "locked inputs": _changes(first.locked, second.locked),
        "steps": _changes(first.steps, second.steps),
        **{
            f"{whose} symbols": _by_difference(_changes(first.symbols.get(whose), second.symbols.get(whose)))
            for whose in (APPLICATION, KERNEL)
        },
    }
    if args.format == "json":
        options.print_json(host, _json(first, second, sections, files))
    elif first.image.digest == second.image.digest:
        host.print(f"{first.name} and {second.name} are the same image: {first.image.digest}")
    else:
        _print(host, (first, second), sections, files)
    return 0


def _side(text: str, store: Store) -> _Side:
    name, root = options.image_of(text, store)
    image = options.read_image(store, root)
    summary = oci.describe(image.index, image.manifests, image.config, root.digest).as_json()
    assert isinstance(summary, Mapping)
    configuration = {key: _text(value) for key, value in summary.items() if key not in _IDENTITY}
    carried = blueprints.read(store, attachments.subject_of(store, root).digest)
    if carried is None:
        return _Side(name, root, configuration, None, None, None)
    config = blueprints.text(store, carried, blueprint.KERNEL_CONFIG)
    return _Side(
        name,
        root,
        configuration,
        kernel_options(config) if config else None,
        locked_inputs(blueprints.text(store, carried, blueprint.LOCK)),
        {step.id: step.key.short for step in carried.blueprint.steps},
    )


def _text(value: JSON) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={item}" for name, item in sorted(value.items()))
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return str(value)


def kernel_options(text: str) -> Values:
    """CONFIG_NAME → value of a .config; what is not set is not in it."""
    lines = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
    return {name: value for name, _, value in lines}


def locked_inputs(text: str) -> Values:
    """Version, or digest where there is none, of everything in a lock by its name; packages one by one."""
    found: dict[str, str] = {}
    for entry in parse_lock(text).entries:
        if isinstance(entry, LockedBase | LockedPackages):
            found.update((f"package {package.name}", package.version) for package in entry.packages)
        elif isinstance(entry, LockedImage):
            found[" ".join(entry.key)] = entry.manifest.short
        else:
            files = entry.files if hasattr(entry, "files") else (entry.file,)
            found[" ".join(entry.key)] = entry.version or files[0].digest.short
    return found


def symbols_of(store: Store, root: oci.Descriptor) -> Mapping[str, Values]:
    """Sizes of symbols by whose they are: of the files that were attached to the image or that its build left here,
    else, of the application's functions only, of the image itself."""
    subject = attachments.subject_of(store, root)
    found: dict[str, Values] = {}
    image = options.read_image(store, root)
    try:
        for name, path in _symbol_files(store, subject.digest):
            found[KERNEL if name == gather.VMLINUX else APPLICATION] = _sizes(symbols.elf_symbols(path))
        if APPLICATION not in found and image.run.target == oci.TARGET_UKL:
            path = run_verb.boot_file(store, image, oci.VMLINUX)
            found[APPLICATION] = _sizes(symbols.embedded_functions(path))
    except symbols.NoSymbolsError:
        # Somebody else's files; there is more to compare.
        return found
    return found


def _symbol_files(store: Store, image: Digest) -> list[tuple[str, Path]]:
    entry = attachments.entry_of(store, image, attached.DEBUG)
    if entry is not None and attachments.is_there(store, entry):
        files = attachments.files(store, entry, attached.DEBUG, image)
        return [(name, store.verified_path(blob.digest)) for name, blob in files.items()]
    carried = blueprints.read(store, image)
    return list(gather.symbol_files(store, carried)) if carried is not None else []


def _sizes(found: Mapping[str, int]) -> Values:
    return {name: str(size) for name, size in found.items()}


def _by_difference(changes: list[Change] | None) -> list[Change] | None:
    """What grew or shrank most first."""
    if changes is None:
        return None
    return sorted(changes, key=lambda change: (-abs(int(change[2] or 0) - int(change[1] or 0)), change[0]))


def _changes(before: Values | None, after: Values | None) -> list[Change] | None:
    """(name, value before, value after), "" where it is missing; None when one side is not known."""
    if before is None or after is None:
        return None
    names = sorted({*before, *after})
    return [(n, before.get(n, ""), after.get(n, "")) for n in names if before.get(n) != after.get(n)]


def _print(
    host: Host,
    sides: tuple[_Side, _Side],
    sections: Mapping[str, list[Change] | None],
    files: list[Difference],
) -> None:
    for title, changes in sections.items():
        if changes is None:
            if title.endswith("symbols"):
                host.print(f"{title}: not known; `uklimg artifacts REF debug` fetches them")
                continue
            without = " and ".join(side.name for side in sides if side.kernel is None)
            host.print(f"{title}: not known, for {without} carries no blueprint")
        elif changes:
            host.print(f"{title}:")
            _limited(
                host, [f"{name}: {before or '(none)'} -> {after or '(none)'}" for name, before, after in changes]
            )
    if files:
        host.print("files:")
        _limited(host, [item.line() for item in files])


def _limited(host: Host, lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        host.print(f"  {line}")
    if len(lines) > SHOWN:
        host.print(f"  and {len(lines) - SHOWN} more (--format json has all)")


def _json(
    first: _Side,
    second: _Side,
    sections: Mapping[str, list[Change] | None],
    files: list[Difference],
) -> JSON:
    return {
        "first": {"name": first.name, "digest": str(first.image.digest)},
        "second": {"name": second.name, "digest": str(second.image.digest)},
        "same": first.image.digest == second.image.digest,
        **{
            title.replace(" ", "_"): None
            if changes is None
            else [{"name": name, "before": before, "after": after} for name, before, after in changes]
            for title, changes in sections.items()
        },
        "files": [item.as_json() for item in files],
    }
