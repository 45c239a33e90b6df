"""Link an application's object for the split layout and embed it: ``link.py --help``.

Input is what the compiler wrapper kept (an object without libc, and a JSON file that says with what it wants to be
linked) and a kernel kit. Standard library only; runs in the build container.

Exit status: 0; 1 with one line on stderr that starts with ``ukl-link:`` when the application cannot be linked.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.link import elf, embed, frames, functions
else:  # in the container there is this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import elf
    import embed
    import frames
    import functions

UNDEFINED = re.compile(r"undefined reference to `([^']+)'")
TRUNCATED = re.compile(r"relocation truncated to fit: (\S+) against")
# In these libraries' place the link has a group with all of them, which resolves what they need of one another.
LIBC_FAMILY = {"-lc", "-lpthread", "-ldl", "-lrt", "-lutil", "-lgcc", "-lgcc_eh", "-lgcc_s"}
# What a libc of ours calls.
ENTRY = "__ukl_syscall"


# The data's first address, as in an ordinary program.
DATA_START = 0x400000
# Displacements of 31 bits from code at 2^64 - 2^30 end at 2^30.
DATA_REACH = (1 << 30) - DATA_START
# How much higher the second link is whose differences to the first are the addresses.
MOVED = 0x10000


@dataclass(frozen=True)
class Place:
    """Where to link: the code at ``text_start``, and everything ``moved`` bytes higher; and the build ID."""

    text_start: int
    moved: int = 0
    build_id: str = "sha1"


class LinkError(Exception):
    """One line for the user; ``detail`` is the linker's own words."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def start_file(name: str, libc: Path | None) -> str:
    """The path of crt1.o, crtbeginS.o and the like: of ``libc``, or what gcc finds."""
    own = libc / name if libc else None
    if own and own.is_file():
        return str(own)
    done = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def check_sizes(obj: elf.Elf, text_limit: int) -> None:
    """What surely cannot fit is told before the link: libraries come on top of ``obj``. ``text_limit`` is in bytes.

    LinkError when the data are more than the code reaches, TooLarge when the code is more than ``text_limit``.
    """
    there = [s for s in obj.sections() if s.flags & elf.SHF_ALLOC]
    data = sum(s.size for s in there if not s.flags & elf.SHF_EXECINSTR)
    if data > DATA_REACH:
        raise LinkError(
            f"the application has {-(-data // embed.MIB)} MiB of static data, and its code reaches "
            f"{DATA_REACH // embed.MIB} MiB; allocate the large arrays at run time"
        )
    embed.check_code(sum(s.size for s in there if s.flags & elf.SHF_EXECINSTR), text_limit)


def library_folders() -> list[str]:
    done = subprocess.run(["gcc", "-print-search-dirs"], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        if line.startswith("libraries: ="):
            return line.partition("=")[2].split(":")
    return []


def link_cmd(
    *,
    first: Path,
    obj: Path,
    out: Path,
    libs: list[str],
    libc: list[str],
    options: list[str],
    crt: dict[str, str],
    folders: list[str],
    place: Place,
    symbols: dict[str, int],
) -> list[str]:
    """ld's command line; ``first`` is what the code begins with.

    crtbeginS.o, not crtbeginT.o: the latter's addresses are 32 bits wide.
    """
    script = Path(__file__).resolve().with_name("app.lds")
    middle = [lib for lib in libs if lib not in LIBC_FAMILY]
    return [
        "ld", "-static", "-z", "noexecstack", "-z", "max-page-size=4096", f"--build-id={place.build_id}",
        "--eh-frame-hdr", f"--defsym=UKL_TEXT_START={place.text_start + place.moved:#x}",
        f"--defsym=UKL_DATA_START={DATA_START + place.moved:#x}",
        *(f"--defsym={name}={value + place.moved:#x}" for name, value in sorted(symbols.items())),
        "-T", str(script), "-o", str(out), *options,
        str(first), crt["crt1.o"], crt["crti.o"], crt["crtbeginS.o"], str(obj),
        *(f"-L{folder}" for folder in folders),
        *middle, "--start-group", "-lgcc", "-lgcc_eh", *libc, "--end-group",
        crt["crtendS.o"], crt["crtn.o"],
    ]  # fmt: skip


def run_linker(cmd: list[str]) -> tuple[int, str]:
    done = subprocess.run(cmd, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def assemble(source: Path, out: Path) -> Path:
    status, words = run_linker(["as", "-o", str(out), str(source)])
    if status:
        raise LinkError("as failed", words)
    return out


def link(
    obj: Path,
    info: dict[str, object],
    out: Path,
    place: Place,
    kernel: dict[str, int],
    libc: Path | None = None,
    called: dict[str, int] | None = None,
) -> list[str]:
    """Link ``obj`` to ``out``; names it lacks are looked for in the kernel. Returns those taken from there.

    ``libc`` is the folder of a libc of ours, None for the base image's own. What it calls for a system call is in the
    kernel; one without gets what ordinary programs have, an instruction. ``called``: of ``functions.addresses``.
    """
    called = called or {}
    crt = {n: start_file(n, libc) for n in ("crt1.o", "crti.o", "crtbeginS.o", "crtendS.o", "crtn.o")}
    libs = [str(x) for x in info.get("libs", [])]  # type: ignore[attr-defined]
    if info.get("language") == "c++" and "-lstdc++" not in libs:
        libs = ["-lstdc++", *libs]
    if "-lm" not in libs:
        libs.append("-lm")
    own = [str(libc / "libc-ukl.a")] if libc else ["-lc"]
    if libc and ENTRY not in kernel:
        own.append(str(libc / "libukl.a"))
    options = [str(x) for x in info.get("ld_options", [])]  # type: ignore[attr-defined]
    folders = [*([str(libc)] if libc else []), *library_folders()]

    def attempt(symbols: dict[str, int]) -> tuple[int, str]:
        cmd = link_cmd(
            first=first,
            obj=obj,
            out=out,
            libs=libs,
            libc=own,
            options=options,
            crt=crt,
            folders=folders,
            place=place,
            symbols=symbols,
        )
        return run_linker(cmd)

    with tempfile.TemporaryDirectory() as folder:
        first = assemble(Path(__file__).resolve().with_name("ret.s"), Path(folder) / "ret.o")
        status, words = attempt(called)
        wanted = sorted(set(UNDEFINED.findall(words)))
        taken = {name: kernel[name] for name in wanted if name in kernel}
        if status and wanted and len(taken) == len(wanted):
            status, words = attempt({**called, **taken})
    if status:
        missing = [name for name in wanted if name not in kernel]
        if missing:
            raise LinkError(f"undefined: {', '.join(missing[:5])}" + (" …" if missing[5:] else ""), words)
        if TRUNCATED.search(words):
            raise LinkError(
                "the application is not position independent or its data pass 1 GiB; "
                "build all of it through ukl-gcc, or make its static data smaller",
                words,
            )
        raise LinkError("ld failed", words)
    sys.stderr.write(words)
    return sorted({**called, **taken})


def kernel_symbols(path: Path) -> dict[str, int]:
    """Global symbols of the kernel, from its System.map."""
    found = {}
    for line in path.read_text().splitlines():
        value, kind, name = line.split(maxsplit=2)
        if kind in "TDRB":
            found[name] = int(value, 16)
    return found


def callers(program: bytes, text_start: int, size: int) -> tuple[bytes, int]:
    """Rows for stack traces, and how many; none when the application's call frame information is not understood."""
    try:
        section = elf.Elf(program).section(".eh_frame")
        return frames.rows(program[section.offset : section.offset + section.size], section.addr, text_start, size)
    except (elf.ElfError, frames.FramesError, LookupError, ValueError, struct.error) as error:
        print(f"ukl-link: warning: no callers in stack traces: {error}", file=sys.stderr)
        return b"", 0


def build(args: argparse.Namespace) -> None:
    info = json.loads(args.info.read_text())
    kit = json.loads((args.kit / "kit.json").read_text())
    program = args.out / f"{args.name}.debug"
    text_start = int(kit["text_start"], 16)
    text_limit = int(kit["text_mib"]) * embed.MIB
    obj, empty = elf.Elf(args.object.read_bytes()), (args.kit / "vmlinux").read_bytes()
    check_sizes(obj, text_limit)
    kernel = kernel_symbols(args.kit / "System.map")
    called = functions.addresses(obj, elf.Elf(empty), kernel)
    taken = link(args.object, info, program, Place(text_start), kernel, args.libc, called)
    linked = program.read_bytes()
    code, rest, address = embed.split(linked)
    if address != text_start:
        raise LinkError(f"the code begins at {address:#x} instead of {text_start:#x}")
    embed.check_code(len(code), text_limit)
    with tempfile.TemporaryDirectory() as folder:
        second = Path(folder) / "moved"
        place = Place(text_start, MOVED, f"0x{elf.Elf(linked).build_id()}")
        with contextlib.redirect_stderr(io.StringIO()):  # the linker's warnings were shown
            link(args.object, info, second, place, kernel, args.libc, called)
        there = embed.split(second.read_bytes())[:2]
    symbols = embed.symbol_table(elf.Elf(linked).functions(), text_start, len(code))
    rows, options = callers(linked, text_start, len(code)), sum(embed.OPTIONS[word] for word in set(args.ukl))
    content = embed.blob(args.name, (code, rest), there, MOVED, symbols, rows, options)
    vmlinux = embed.embed(empty, content, kernel["ukl_app_size"])
    (args.out / "vmlinux").write_bytes(vmlinux)
    (args.out / "vmlinux").chmod(0o755)
    program.chmod(0o755)
    summary = {
        "name": args.name,
        "build_id": elf.Elf(linked).build_id(),
        "entry": f"{elf.Elf(linked).entry:#x}",
        "text_size": len(code),
        "file_size": len(rest),
        "kernel_symbols": taken,
        "options": sorted(set(args.ukl)),
    }
    (args.out / "info.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="ukl-link", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--object", type=Path, required=True, help="the relocatable object of the application")
    parser.add_argument("--info", type=Path, required=True, help="the JSON file beside it")
    parser.add_argument("--kit", type=Path, required=True, help="folder of the kernel kit")
    parser.add_argument("--libc", type=Path, help="folder of a libc of ours; without it the base image's is linked")
    parser.add_argument("--name", required=True, help="name of the application, at most 63 bytes")
    parser.add_argument("--ukl", action="append", default=[], choices=embed.OPTIONS, help="an option of the kernel's")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    args = parser.parse_args()
    try:
        if len(args.name.encode()) > 63:
            raise LinkError("the application's name is longer than 63 bytes")
        build(args)
    except LinkError as error:
        sys.stderr.write(error.detail)
        print(f"ukl-link: {args.name}: {error}", file=sys.stderr)
        return 1
    except (embed.NotMovable, embed.TooLarge, functions.FunctionsError, elf.ElfError) as error:
        print(f"ukl-link: {args.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
