"""DEPENDS with all the steps below it: libraries, those that they need, and what their builds need. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from uklimg.graph import Step
from uklimg.lock import LockedPackages
from uklimg.recipes import library, stage
from uklimg.resolve import ResolvedSpec
from uklimg.spec.model import Depends


class Dependencies:
    """The libraries of one plan: each step is made once, whoever wants it."""

    def __init__(self, resolved: ResolvedSpec, inside: Mapping[str, bytes]) -> None:
        self._resolved = resolved
        self._inside = inside
        self._known: set[str] = set()

    def step(
        self, step_id: str, below: str, depends: Depends, base: str, wrapper: str, add: Callable[[Step], object]
    ) -> Step:
        """The step of DEPENDS on top of ``below``.

        Libraries are built on ``wrapper``, the step with the compiler wrapper on the base image ``base``; ``add``
        gets each step that no DEPENDS before has wanted.
        """

        def once(step: Step) -> str:
            if step.id not in self._known:
                self._known.add(step.id)
                add(step)
            return step.id

        names = [item.name for item in depends.items if item.recipe]
        locked = self._resolved.packages.get(depends.location)
        words = [*names, *(f"debian:{name}" for name in (locked.requested if locked else ()))]
        libraries = self._libraries(base, wrapper, names, once)
        return library.depends_step(step_id, below, libraries, locked, self._inside, words)

    def _libraries(
        self, base: str, wrapper: str, names: Sequence[str], once: Callable[[Step], str]
    ) -> dict[str, str]:
        """The steps that build ``names`` and all that they need, by library."""
        found: dict[str, str] = {}
        for name in names:
            folder = self._resolved.libraries[name].folder
            needs = self._libraries(base, wrapper, folder.library.needs, once)
            tools = self._resolved.tools.get((base, name))
            below = once(_tools(base, wrapper, tools)) if tools else wrapper
            step = library.library_step(library.step_id(base, name), below, name, folder, needs, self._inside)
            found |= {**needs, name: once(step)}
        return found


def _tools(base: str, wrapper: str, locked: LockedPackages) -> Step:
    return stage.packages_step(library.tools_id(base, locked.requested), wrapper, locked)
