"""uklimg completion: what makes a shell complete uklimg's commands, options, files and images."""

from __future__ import annotations

import argparse

from uklimg.cli.host import Host

NAME = "completion"
HELP = "print a shell's completion of this command"
SHELLS = ("bash", "zsh", "fish")

# Names of the store's images, at the moment of completion.
_IMAGES = "uklimg images 2>/dev/null | tail -n +2 | cut -d ' ' -f 1"
_PREAMBLE = {
    "bash": f'_uklimg_images() {{ compgen -W "$({_IMAGES})" -- "$1"; }}',
    "zsh": f'_uklimg_images() {{ local -a found; found=(${{(f)"$({_IMAGES})"}}); compadd -- $found; }}',
    "fish": "",
}
_IMAGE_ACTION = {"bash": "_uklimg_images", "zsh": "_uklimg_images", "fish": f"({_IMAGES})"}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads it")


def run(args: argparse.Namespace, host: Host) -> int:
    host.print(script(args.top, args.shell))
    return 0


def script(top: argparse.ArgumentParser, shell: str) -> str:
    """The completion for one of SHELLS of the whole command line, which notes in its actions what they take."""
    import shtab  # rarely wanted, and not free to import

    kinds = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "CONTEXT": shtab.DIRECTORY, "PATH": shtab.FILE}
    for action in _actions(top):
        name = action.metavar if isinstance(action.metavar, str) else ""
        if name in kinds:
            action.complete = kinds[name]  # type: ignore[attr-defined]
        elif name == "REF" and not action.option_strings:
            action.complete = _IMAGE_ACTION  # type: ignore[attr-defined]
    return str(shtab.complete(top, shell, preamble=_PREAMBLE[shell]))


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found: list[argparse.Action] = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                found += _actions(verb)
    return found
