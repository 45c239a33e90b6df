"""A build stage: its directives in order, each turned into an instruction or into a change of the scope."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from uklimg.errors import UserError
from uklimg.spec import values
from uklimg.spec.model import (
    HEREDOC_FOLDER,
    BuildStage,
    Depends,
    HeredocFile,
    Instruction,
    MakeFolder,
    Origin,
    Package,
    Packages,
    Run,
)
from uklimg.spec.mounts import mounts
from uklimg.spec.scope import Scope, checked, chomped, environment
from uklimg.spec.transfer import Names, copy, source
from uklimg.spec.values import quoted
from uklimg.uklfile import ast
from uklimg.uklfile.directives import RULES, Place
from uklimg.uklfile.lexer import parse_heredoc


def build_stage(node: ast.Stage, name: str, base: Origin, scope: Scope, names: Names) -> BuildStage:
    """The stage after ``node``'s directives; ``scope`` is changed by them, errors go to its problems."""
    reader = _Reader(scope, names)
    for directive in node.directives:
        with scope.problems.collected():
            if RULES[directive.keyword].place is Place.IMAGE:
                raise UserError(
                    f"{directive.keyword} in a build stage",
                    hint="it belongs in the last stage, FROM ukl:<series>",
                    location=directive.location,
                )
            reader.read(directive)
    return BuildStage(
        location=node.origin.location,
        name=name,
        base=base,
        instructions=tuple(reader.instructions),
        env=environment(scope.env),
        workdir=scope.workdir,
        user=scope.user,
        labels=environment(scope.labels),
    )


@dataclass
class _Reader:
    scope: Scope
    names: Names
    instructions: list[Instruction] = field(default_factory=list)

    def read(self, directive: ast.AnyDirective) -> None:
        """Raises UserError for the first thing that is wrong with one directive."""
        match directive:
            case ast.Pairs(keyword="ARG"):
                self.scope.declare(directive)
            case ast.Pairs(keyword="ENV"):
                self.scope.set_env(directive)
            case ast.Pairs(keyword="LABEL"):
                self.scope.set_labels(directive)
            case ast.Text(keyword="WORKDIR"):
                workdir(directive, self.scope)
                self.instructions.append(MakeFolder(directive.location, self.scope.workdir, self.scope.user))
            case ast.Text(keyword="USER"):
                self.user(directive)
            case ast.Command(keyword="SHELL"):
                self.shell(directive)
            case ast.Command(keyword="RUN"):
                self.instructions.append(self.run(directive))
            case ast.Transfer(keyword="SOURCE"):
                self.instructions.append(source(directive, self.scope))
            case ast.Transfer():
                self.instructions.append(copy(directive, self.scope, self.names))
            case ast.Words(keyword="PACKAGES"):
                self.instructions.append(Packages(directive.location, self.packages(directive)))
            case ast.Words(keyword="DEPENDS"):
                self.instructions.append(Depends(directive.location, self.packages(directive)))
            case _:
                raise AssertionError(directive.keyword)

    def user(self, directive: ast.Text) -> None:
        text = self.scope.text(directive.text)
        self.scope.user = checked(values.owner, text, directive.text.location)

    def shell(self, directive: ast.Command) -> None:
        if not directive.command.argv:
            raise UserError(
                "SHELL takes a JSON array", hint='SHELL ["/bin/bash", "-c"]', location=directive.command.location
            )
        self.scope.shell = directive.command.argv

    def packages(self, directive: ast.Words) -> tuple[Package, ...]:
        """All of the list, sorted (their order means nothing); every wrong one is reported."""
        function = values.package if directive.keyword == "PACKAGES" else values.dependency
        found: dict[tuple[str, bool], Package] = {}
        for word in directive.words:
            with self.scope.problems.collected():
                for item in self.scope.words(word):
                    package = checked(function, item.text, item.location)
                    earlier = found.setdefault((package.name, package.recipe), package)
                    if earlier.version != package.version:
                        raise UserError(
                            f"{package.name} is given with two versions",
                            hint="leave one of them out",
                            location=item.location,
                        )
        return tuple(sorted(found.values(), key=lambda package: (package.recipe, package.name)))

    def run(self, directive: ast.Command) -> Run:
        argv, files = shell_command(directive.command, directive.heredocs, self.scope.shell)
        network = directive.flag("network")
        if network and network.value not in ("default", "none"):
            raise UserError(
                f"unknown network {quoted(network.value or '')}", hint="none or default", location=network.location
            )
        if security := directive.flag("security"):
            raise UserError("RUN has no --security", hint="steps run unprivileged", location=security.location)
        online = network is not None and network.value == "default"
        return Run(
            location=directive.location,
            argv=argv,
            env=environment(self.scope.values),
            workdir=self.scope.workdir,
            user=self.scope.user,
            text=directive.command.text,
            network=online,
            mounts=mounts(directive, self.scope, self.names),
            files=files,
            proxies=self.scope.arguments.proxies() if online else (),
        )


def shell_command(
    command: ast.CommandLine, heredocs: Sequence[ast.Heredoc], shell: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[HeredocFile, ...]]:
    """The whole argv. A command that is one heredoc is that script; other heredocs are the shell's own."""
    if command.argv is not None:
        if not command.argv:
            raise UserError("an empty command", hint='RUN ["/bin/program"]', location=command.location)
        return command.argv, ()
    if not heredocs:
        return (*shell, command.text), ()
    first = heredocs[0]
    if len(heredocs) > 1 or parse_heredoc(command.text, command.location) is None:
        bodies = "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in heredocs)
        return (*shell, command.text + bodies), ()
    content = chomped(first, first.content)
    if not content.startswith("#!"):
        return (*shell, content), ()
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", first.name) or first.name in (".", ".."):
        raise UserError(f"{quoted(first.name)} cannot name a script", hint="as in <<EOF", location=first.location)
    return (*shell, f"{HEREDOC_FOLDER}/{first.name}"), (HeredocFile(first.name, content.encode(), 0o755),)


def workdir(directive: ast.Text, scope: Scope) -> None:
    text = scope.text(directive.text)
    if not text:
        raise UserError("WORKDIR without a path", hint="WORKDIR /path", location=directive.text.location)
    scope.workdir = values.absolute(text, scope.workdir)
