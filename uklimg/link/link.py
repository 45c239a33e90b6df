"""Link an application's object for the split layout and embed it: ``link.py --help``.

Input is what the compiler wrapper kept (an object without libc, and a JSON file that says with what it wants to be
linked) and a kernel kit. Standard library only; runs in the build container.

Exit status: 0; 1 with one line on stderr that starts with ``ukl-link:`` when the application cannot be linked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uklimg.link import elf, embed
else:  # in the container there is this folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import elf
    import embed

UNDEFINED = re.compile(r"undefined reference to `([^']+)'")
TRUNCATED = re.compile(r"relocation truncated to fit: (\S+) against")
# In these libraries' place the link has a group with all of them, which resolves what they need of one another.
LIBC_FAMILY = {"-lc", "-lpthread", "-ldl", "-lrt", "-lutil", "-lgcc", "-lgcc_eh", "-lgcc_s"}


class LinkError(Exception):
    """One line for the user; ``detail`` is the linker's own words."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


def gcc_file(name: str) -> str:
    """The path of a file that gcc knows where to find (crt1.o, crtbeginS.o)."""
    done = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def library_folders() -> list[str]:
    done = subprocess.run(["gcc", "-print-search-dirs"], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        if line.startswith("libraries: ="):
            return line.partition("=")[2].split(":")
    return []


def link_cmd(
    *,
    obj: Path,
    out: Path,
    libs: list[str],
    options: list[str],
    crt: dict[str, str],
    folders: list[str],
    text_start: int,
    symbols: dict[str, int],
) -> list[str]:
    """ld's command line. crtbeginS.o, not crtbeginT.o: the latter's addresses are 32 bits wide."""
    script = Path(__file__).resolve().with_name("app.lds")
    middle = [lib for lib in libs if lib not in LIBC_FAMILY]
    return [
        "ld", "-static", "-z", "noexecstack", "-z", "max-page-size=4096", "--build-id=sha1", "--eh-frame-hdr",
        f"--defsym=UKL_TEXT_START={text_start:#x}",
        *(f"--defsym={name}={value:#x}" for name, value in sorted(symbols.items())),
        "-T", str(script), "-o", str(out), *options,
        crt["crt1.o"], crt["crti.o"], crt["crtbeginS.o"], str(obj),
        *(f"-L{folder}" for folder in folders),
        *middle, "--start-group", "-lgcc", "-lgcc_eh", "-lc", "--end-group",
        crt["crtendS.o"], crt["crtn.o"],
    ]  # fmt: skip


def run_linker(cmd: list[str]) -> tuple[int, str]:
    done = subprocess.run(cmd, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def link(obj: Path, info: dict[str, object], out: Path, text_start: int, kernel: dict[str, int]) -> list[str]:
    """Link ``obj`` to ``out``; names it lacks are looked for in the kernel. Returns those taken from there."""
    crt = {n: gcc_file(n) for n in ("crt1.o", "crti.o", "crtbeginS.o", "crtendS.o", "crtn.o")}
    libs = [str(x) for x in info.get("libs", [])]  # type: ignore[attr-defined]
    if info.get("language") == "c++" and "-lstdc++" not in libs:
        libs = ["-lstdc++", *libs]
    if "-lm" not in libs:
        libs.append("-lm")
    options = [str(x) for x in info.get("ld_options", [])]  # type: ignore[attr-defined]
    folders = library_folders()

    def attempt(symbols: dict[str, int]) -> tuple[int, str]:
        cmd = link_cmd(
            obj=obj,
            out=out,
            libs=libs,
            options=options,
            crt=crt,
            folders=folders,
            text_start=text_start,
            symbols=symbols,
        )
        return run_linker(cmd)

    status, words = attempt({})
    wanted = sorted(set(UNDEFINED.findall(words)))
    taken = {name: kernel[name] for name in wanted if name in kernel}
    if status and wanted and len(taken) == len(wanted):
        status, words = attempt(taken)
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
    return sorted(taken)


def kernel_symbols(path: Path) -> dict[str, int]:
    """Global symbols of the kernel, from its System.map."""
    found = {}
    for line in path.read_text().splitlines():
        value, kind, name = line.split(maxsplit=2)
        if kind in "TDRB":
            found[name] = int(value, 16)
    return found


def build(args: argparse.Namespace) -> None:
    info = json.loads(args.info.read_text())
    kit = json.loads((args.kit / "kit.json").read_text())
    program = args.out / f"{args.name}.debug"
    text_start = int(kit["text_start"], 16)
    taken = link(args.object, info, program, text_start, kernel_symbols(args.kit / "System.map"))
    linked = program.read_bytes()
    code, rest, address = embed.split(linked)
    if address != text_start:
        raise LinkError(f"the code begins at {address:#x} instead of {text_start:#x}")
    content = embed.blob(args.name, code, rest)
    vmlinux = embed.embed((args.kit / "vmlinux").read_bytes(), content)
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
    }
    (args.out / "info.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="ukl-link", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--object", type=Path, required=True, help="the relocatable object of the application")
    parser.add_argument("--info", type=Path, required=True, help="the JSON file beside it")
    parser.add_argument("--kit", type=Path, required=True, help="folder of the kernel kit")
    parser.add_argument("--name", required=True, help="name of the application, at most 63 bytes")
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
    except (embed.TooLarge, elf.ElfError) as error:
        print(f"ukl-link: {args.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
