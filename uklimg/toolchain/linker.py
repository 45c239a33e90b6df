"""The ``ld`` that gcc runs for ukl-gcc: the user's link as a static executable, and the object it keeps beside.

Any other link (shared object, ``ld -r``, a question) is the real linker's at once. What the real linker prints and
how it ends passes through unchanged. When only the object fails, the program is linked all the same and the reason
is kept for LINK to tell.
"""

# Words of a command line, and names as the user wrote them.
# ruff: noqa: PTH118, PTH119

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uklimg.toolchain import archives, elf, ldargs, response, store

FALLBACK_FOLDER = "/usr/bin"
# Checks of configure (Autoconf's and nginx'), CMake and Meson: by the hundred, and nobody makes a unikernel of one.
CHECKS = ("conftest", "cmTC_", "sanitycheck", "autotest")
CHECK_FOLDERS = ("/CMakeFiles/", "/meson-private/")
LTO_OUTPUT = "'-flinker-output=nolto-rel'"
REPORT = 4000  # characters of the linker's message kept as a reason


def real_linker(name: str, path: str, own: str) -> str:
    """The first ``name`` on PATH that is not ours (``own`` is our script's real path), "" when there is none."""
    for folder in [*path.split(":"), FALLBACK_FOLDER]:
        candidate = os.path.join(folder or ".", name)
        if os.access(candidate, os.X_OK) and os.path.realpath(candidate) != own:
            return candidate
    return ""


def is_check(output: str) -> bool:
    """Is this the executable of a build system's check (or one thrown away)?"""
    name = os.path.basename(output)
    return name.startswith(CHECKS) or output == "/dev/null" or any(f in output for f in CHECK_FOLDERS)


@dataclass(frozen=True)
class Done:
    """How a linker ended: the status as a shell has it (128 + signal), and what it printed."""

    status: int
    output: bytes
    errors: bytes

    def show(self) -> None:
        for stream, text in ((sys.stdout, self.output), (sys.stderr, self.errors)):
            stream.flush()
            stream.buffer.write(text)
            stream.flush()


def run(cmd: Sequence[str], environment: Mapping[str, str] | None = None) -> Done:
    """Run a linker (an absolute path) and wait. Open descriptors are handed on: one may be make's job server.

    Without the subprocess module, whose import costs as much as a small link.
    """
    output, errors = (os.memfd_create(name) for name in ("output", "errors"))
    actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, errors, 2)]
    try:
        with response.shortened(cmd) as words:
            variables = os.environ if environment is None else environment
            child = os.posix_spawn(words[0], words, variables, file_actions=actions, setsigdef=[signal.SIGPIPE])
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Done(128 - status if status < 0 else status, _content(output), _content(errors))
    finally:
        os.close(output)
        os.close(errors)


def _content(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    with open(file, "rb", closefd=False) as stream:
        return stream.read()


def lto_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """For `ld -r`: make lto-wrapper write native, position-independent code."""
    options = environment.get("COLLECT_GCC_OPTIONS", "")
    return {**environment, "COLLECT_GCC_OPTIONS": f"{options} {LTO_OUTPUT} '-fPIE'".strip()}


def asks_for_lto(options: str) -> bool:
    """Does COLLECT_GCC_OPTIONS (quoted words) turn link-time optimisation on?"""
    last = ""
    for word in response.split(options):
        if word.startswith("-flto") and not word.startswith(("-flto-", "-flto=none")):
            last = word
        elif word == "-fno-lto":
            last = ""
    return bool(last)


def facts(link: ldargs.Link, program: str) -> bytes:
    """What the final link needs to know, as JSON of one key a line."""
    import json

    libraries = link.run_time_libraries()
    language = "c++" if {"-lstdc++", "-lsupc++"} & set(libraries) else "c"
    content = {
        "version": store.VERSION,
        "program": program,
        "language": language,
        "libs": list(libraries),
        "ld_options": list(link.replayed_options()),
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def say(text: str) -> None:
    sys.stderr.write(f"ukl-ld: {text}\n")


def explain_failure(link: ldargs.Link) -> None:
    """After a failed link: name the libraries that exist only as shared objects, and where an archive may be."""
    named = link.missing_archives()
    for missing in named:
        if missing.shared:
            say(f"no static archive of lib{missing.name}, only {missing.shared}; a unikernel is linked statically")
        else:
            say(f"neither lib{missing.name}.a nor lib{missing.name}.so is installed")
    others = tuple(m for m in archives.closure(link).lacking if m.name not in {n.name for n in named})
    for missing in others:
        say(f"no static archive of lib{missing.name}, only {missing.shared}, which a library of this link needs")
    if named or others:
        say(
            "hint: install the Debian packages that have the static archives (lib….a, mostly in lib…-dev), "
            "or configure the build to make them, or to do without these libraries"
        )


class Keeper:
    """Makes and keeps the relocatable object of one link."""

    def __init__(self, link: ldargs.Link, linker: str) -> None:
        self.link = link
        self.linker = linker
        self.folder = store.folder()
        self.temporary = self.folder / f".{os.getpid()}.o"
        self.reason = ""

    def make(self) -> bool:
        """Write the temporary object; False and ``reason`` when that is impossible."""
        self.reason = self.link.why_not_relocatable()
        if self.reason:
            return False
        try:
            store.ensure(self.folder)
            done = run(self.link.relocatable_cmd(self.linker, str(self.temporary)), lto_environment(os.environ))
        except OSError as error:
            self.reason = f"the relocatable link could not be started: {error}"
            return False
        if done.status:
            report = (done.output + done.errors).decode(errors="replace").strip()[-REPORT:]
            self.reason = f"the relocatable link failed with status {done.status}\n{report}"
        return not done.status

    def keep(self) -> None:
        """File the object, or the reason why there is none, under the executable's build ID."""
        output = Path(self.link.output)
        store.ensure(self.folder)
        build_id = elf.build_id(output)
        if not build_id:
            say(f"{output} has no build ID; no object is kept")
        elif self.reason:
            store.keep_error(self.folder, build_id, self.reason)
        else:
            store.keep(self.folder, build_id, self.temporary, facts(self.link, str(Path.cwd() / output)))

    def clean(self) -> None:
        try:
            self.temporary.unlink(missing_ok=True)
        except OSError as error:
            say(f"{self.temporary}: {error.strerror}")


def tell_without(link: ldargs.Link, names: Sequence[str]) -> None:
    if names:
        libraries = " ".join(f"lib{name}" for name in names)
        say(f"note: {link.output} is linked without {libraries}: no static archive, and nothing uses it")


def link_executable(link: ldargs.Link, linker: str, *, check: bool = False) -> tuple[Done, ldargs.Link]:
    """Link: how it ended, and the link it was (see ``archives``). A failure is about what the user wrote."""
    done = run(link.executable_cmd(linker))
    if done.status and (other := archives.second_try(link, is_check=check)):
        again = run(other.link.executable_cmd(linker))
        if not again.status:
            if not check:
                tell_without(link, other.without)
            return again, other.link
    return done, link


def link_from_object(link: ldargs.Link, linker: str, keeper: Keeper) -> Done | None:
    """Make the object first and link the executable from it; None when that does not work.

    This is for link-time optimisation: everything is compiled once instead of twice, and the executable runs the
    same code as the unikernel. What a second try would add is there from the start, since trying is expensive.
    """
    other = archives.second_try(link, is_check=False)
    keeper.link = other.link if other else link
    if not keeper.make():
        return None
    done = run(keeper.link.executable_cmd(linker, str(keeper.temporary)))
    if done.status:
        report = done.errors.decode(errors="replace").strip()[-REPORT:]
        keeper.reason = f"the program does not link from its relocatable object\n{report}"
        return None
    tell_without(link, other.without if other else ())
    return done


def link_and_keep(link: ldargs.Link, linker: str, bfd: str) -> int:
    """Link the executable, keep its object; the exit status of the executable's link.

    When the way over the object fails, the link is done as written, so that messages are about what the user wrote.
    """
    keeper = Keeper(link, bfd)
    try:
        lto = asks_for_lto(os.environ.get("COLLECT_GCC_OPTIONS", ""))
        done = link_from_object(link, linker, keeper) if lto else None
        if done is None:
            done, keeper.link = link_executable(link, linker)
            if not done.status and not keeper.reason:
                keeper.make()
        done.show()
        if done.status:
            explain_failure(link)
        else:
            try:
                keeper.keep()
            except (OSError, elf.NotElf) as error:
                say(f"no object is kept for {link.output}: {error}")
    finally:
        keeper.clean()
    return done.status


def main() -> None:
    own = os.path.realpath(sys.argv[0])
    name = os.path.basename(sys.argv[0])
    path = os.environ.get("PATH", "")
    linker = real_linker(name, path, own)
    if not linker:
        sys.exit(f"ukl-ld: cannot find '{name}'")
    args = response.expand(sys.argv[1:])
    link = ldargs.Link(ldargs.parse(args), os.path.isfile, os.path.realpath)
    if not link.is_executable:
        os.execv(linker, [linker, *sys.argv[1:]])
    try:
        if is_check(str(Path.cwd() / link.output)):
            done, _ = link_executable(link, linker, check=True)
            done.show()
            if done.status:
                explain_failure(link)
            sys.exit(done.status)
        sys.exit(link_and_keep(link, linker, real_linker("ld.bfd", path, own) or linker))
    except KeyboardInterrupt:
        sys.exit(130)
