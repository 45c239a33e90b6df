"""Counted call stacks as a flame graph: an SVG that needs nothing else. Pure.

A box is a function under its callers, as wide as the part of all samples in which it was there; callers are below.
Equal stacks make equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

from uklimg.profiling.stacks import Frame, Kind, Stacks

WIDTH, ROW, MARGIN, TOP = 1200, 16, 10, 44
# Boxes that are narrower, in pixels, are left out.
_NARROWEST = 0.3
_CHARACTER = 6.6
_COLOURS = {Kind.APPLICATION: "#f2a65a", Kind.KERNEL: "#7fb0d9", Kind.PROCESS: "#a9cf8f", Kind.NAME: "#cccccc"}
_LEGEND = {
    Kind.APPLICATION: "application, linked with the kernel",
    Kind.KERNEL: "kernel",
    Kind.PROCESS: "processes in ring 3",
}


@dataclass
class _Node:
    frame: Frame | None = None
    count: int = 0
    children: dict[Frame, _Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Box:
    """``left`` and ``width`` are parts of all samples, ``depth`` counts from the roots, 0."""

    frame: Frame
    depth: int
    left: float
    width: float
    count: int


def boxes(found: Stacks) -> tuple[Box, ...]:
    """Callers before those they call, and beside one another by name."""
    root = _Node()
    for stack, count in found.items():
        node = root
        node.count += count
        for frame in stack:
            node = node.children.setdefault(frame, _Node(frame))
            node.count += count
    return tuple(_boxes(root, 0, 0, root.count)) if root.count else ()


def _boxes(node: _Node, depth: int, left: int, total: int) -> Iterator[Box]:
    for frame in sorted(node.children, key=lambda frame: (frame.name, frame.kind.value)):
        child = node.children[frame]
        yield Box(frame, depth, left / total, child.count / total, child.count)
        yield from _boxes(child, depth + 1, left, total)
        left += child.count


def flame(found: Stacks, title: str) -> str:
    """The SVG's text."""
    inner = WIDTH - 2 * MARGIN
    shown = [box for box in boxes(found) if box.width * inner >= _NARROWEST]
    depth = max((box.depth for box in shown), default=0) + 1
    height = TOP + depth * ROW + 2 * MARGIN
    total = sum(found.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="monospace" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="18" font-size="14">{escape(title)} ({total:,} samples)</text>',
        *_legend(found),
    ]
    for box in shown:
        left, width = MARGIN + box.left * inner, box.width * inner
        top = height - MARGIN - (box.depth + 1) * ROW
        name = escape(box.frame.name)
        parts.append(
            f"<g><title>{name}: {box.count:,} samples, {box.width:.2%} ({box.frame.kind.value})</title>"
            f'<rect x="{left:.1f}" y="{top}" width="{max(0.2, width - 0.4):.1f}" height="{ROW - 1}" rx="1" '
            f'fill="{_COLOURS[box.frame.kind]}"/>{_label(box.frame.name, left, top, width)}</g>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _label(name: str, left: float, top: float, width: float) -> str:
    room = int((width - 6) / _CHARACTER)
    if room < 3:
        return ""
    text = name if len(name) <= room else f"{name[: room - 2]}.."
    return f'<text x="{left + 3:.1f}" y="{top + ROW - 5}">{escape(text)}</text>'


def _legend(found: Stacks) -> Iterator[str]:
    """For the kinds that are there."""
    there = {frame.kind for stack in found for frame in stack}
    left = MARGIN
    for kind, text in _LEGEND.items():
        if kind in there:
            yield f'<rect x="{left}" y="25" width="10" height="10" fill="{_COLOURS[kind]}"/>'
            yield f'<text x="{left + 14}" y="34">{escape(text)}</text>'
            left += 34 + round(len(text) * _CHARACTER)
