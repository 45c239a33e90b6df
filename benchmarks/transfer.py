"""Push and pull over loopback: uklimg, oras and skopeo in turn, against a docker-registry of this script's own.

Times are of whole processes, start to end, each begun when what was written before is on the disk. Peak memory is the
kernel's VmHWM of the process, read every few milliseconds until it ends: what the operating system gave it at most,
libraries and interpreter included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from uklimg import oci
from uklimg.imagebuild import build_image
from uklimg.store import Store

MODULE = "benchmarks.transfer"
ROOT = Path(__file__).resolve().parent.parent
MB = 1_000_000
_UKLIMG = "from uklimg.cli.main import entry; entry()"
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
_RUN = oci.RunConfig(program="benchmark", memory=64 << 20, kernel_version="6.12")
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


@dataclass(frozen=True)
class Ran:
    """Seconds, peak memory in bytes, what it printed as progress (uklimg's events)."""

    seconds: float
    peak: int
    said: str


@dataclass
class Registry:
    """``host`` is where it listens; its storage is emptied by ``clear``."""

    host: str
    storage: Path
    log: Path
    _seen: int = field(default=0, init=False)

    def clear(self) -> None:
        shutil.rmtree(self.storage, ignore_errors=True)

    def requests(self) -> list[str]:
        """``METHOD PATH STATUS`` of what it answered since the last call, by its access log."""
        time.sleep(0.2)
        text = self.log.read_text(errors="replace")
        lines, self._seen = text[self._seen :], len(text)
        return [" ".join(found) for found in re.findall(r'"([A-Z]+) (\S+) HTTP/[\d.]+" (\d{3})', lines)]


def main() -> int:
    top = argparse.ArgumentParser(prog=f"python -m {MODULE}", description="Time push and pull over loopback.")
    top.add_argument("--size", type=int, default=200, help="MB of the blob (200)")
    top.add_argument("--rounds", type=int, default=7, help="how often each tool takes its turn (7)")
    top.add_argument("--oras", default="", help="the oras program (PATH's, else what scripts/trixie.sh unpacks)")
    top.add_argument("--skopeo", default="", help="the skopeo program (likewise)")
    top.add_argument("--json", metavar="FILE", default="", help="also write what was measured to this file")
    args = top.parse_args()
    tools = {"oras": args.oras or _find("oras"), "skopeo": args.skopeo or _find("skopeo")}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, _registry(Path(folder)) as registry:
        found = Bench(Path(folder), registry, tools, args.size * MB)
        facts: dict[str, report.Cell] = {
            "date": time.strftime("%Y-%m-%d"),
            "processors": len(os.sched_getaffinity(0)),
        }
        facts |= {"load before": round(os.getloadavg()[0], 1)}
        tables = (found.compare(args.rounds), found.less(args.rounds))
        result = report.Report("transfer", facts | {"after": round(os.getloadavg()[0], 1)}, tables)
    report.show(result, sys.stdout)
    if args.json:
        report.write(result, Path(args.json))
    return 0


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        home = subprocess.run([str(ROOT / "scripts/trixie.sh")], check=True, capture_output=True, text=True).stdout
        found = f"{home.strip()}/bin/{program}"
    return found


class Bench:
    def __init__(self, work: Path, registry: Registry, tools: Mapping[str, str], size: int) -> None:
        self._work = work
        self._registry = registry
        self._tools = tools
        self._size = size
        self._policy = work / "policy.json"
        self._policy.write_text(json.dumps(_POLICY))
        with (work / "big.bin").open("wb") as file:
            for _ in range(size // MB):
                file.write(os.urandom(MB))
        self._store = Store(work / "store")
        layer = self._store.put_file(work / "big.bin", oci.LAYER)
        config = self._store.put_bytes(oci.ImageConfig(oci.Platform("linux", "amd64"), ()).encode(), oci.CONFIG)
        root = self._store.put_bytes(oci.Manifest(config, (layer,)).encode(), oci.MANIFEST)
        self._store.tag("big:1", root)

    def uklimg(self, store: str, *argv: str) -> list[str]:
        return [sys.executable, "-c", _UKLIMG, "--store", str(self._work / store), *argv]

    # Table 1

    def compare(self, rounds: int) -> report.Table:
        ran: dict[tuple[str, str], list[Ran]] = {}
        for _ in range(rounds):
            for tool, commands in self._commands().items():
                self._registry.clear()
                for action, argv in commands.items():
                    ran.setdefault((tool, action), []).append(run(argv, self._work))
                shutil.rmtree(self._work / "to", ignore_errors=True)
        rows: list[tuple[report.Cell, ...]] = []
        for action in ("push", "pull"):
            fastest = min(_median(ran[tool, action]) for tool in self._tools)
            least = min(_least(ran[tool, action]) for tool in self._tools)
            for tool in ("uklimg", *self._tools):
                times = ran[tool, action]
                peak = max(one.peak for one in times) / MB
                ratios = (_median(times) / fastest, _least(times) / least) if tool == "uklimg" else (None, None)
                rows.append((f"{action}, {tool}", _least(times), _median(times), *ratios, round(peak)))
        plain = run([sys.executable, "-c", "import time; time.sleep(0.1)"], self._work)
        there = run(self.uklimg("store", "images"), self._work)
        note = (
            f"The interpreter alone takes {plain.peak / MB:.0f} MB, `uklimg images` {there.peak / MB:.0f} MB. uklimg "
            "flushes what it pulled to the disk (fsync) before it says so; oras does not."
        )
        columns = ("what", "minimum, s", "median, s", "of medians", "of minima", "peak, MB")
        title = f"One blob of {self._size // MB} MB, {rounds} times in turn; ratios are to the faster of the others"
        return report.Table(title, columns, tuple(rows), note)

    def _commands(self) -> dict[str, dict[str, list[str]]]:
        host, to = self._registry.host, self._work / "to"
        oras, skopeo = self._tools["oras"], self._tools["skopeo"]
        copy = [skopeo, "--policy", str(self._policy), "copy", "--quiet"]
        return {
            "uklimg": {
                "push": self.uklimg("store", "push", "big:1", f"{host}/uklimg:1"),
                "pull": self.uklimg("to", "pull", f"{host}/uklimg:1"),
            },
            "oras": {
                "push": [oras, "push", "--plain-http", f"{host}/oras:1", "big.bin"],
                "pull": [oras, "pull", "--plain-http", "--output", str(to), f"{host}/oras:1"],
            },
            "skopeo": {
                "push": [*copy, "--dest-tls-verify=false", f"oci:{self._work}/store:big:1", f"docker://{host}/sk:1"],
                "pull": [*copy, "--src-tls-verify=false", f"docker://{host}/sk:1", f"oci:{to}:big:1"],
            },
        }

    # Table 2

    def less(self, rounds: int) -> report.Table:
        """What is not moved."""
        name = f"{self._registry.host}/image:1"
        self._registry.clear()
        rows: list[tuple[report.Cell, ...]] = []
        sizes = {oci.VMLINUX: 20 * MB, oci.BZIMAGE: 10 * MB, oci.INITRAMFS: 5 * MB}
        files = {role: self._file(role, size) for role, size in sizes.items()}
        self._registry.requests()
        for what in ("first push", "second push, another initramfs"):
            self._image(files, name)
            rows.append(self._row(what, run(self.uklimg("made", "push", "--progress", "json", name), self._work)))
            files[oci.INITRAMFS] = self._file("initramfs-2", sizes[oci.INITRAMFS] + 512)
        pull = self.uklimg("pulled", "pull", "--progress", "json", name)
        rows.append(self._row("pull", run(pull, self._work)))
        again = [run(pull, self._work) for _ in range(rounds)]
        self._registry.requests()
        again.append(run(pull, self._work))
        fastest = Ran(_median(again), again[-1].peak, again[-1].said)
        rows.append(self._row(f"pull of what is there, median of {len(again)}", fastest))
        self._registry.clear()
        run(self.uklimg("store", "push", "big:1", f"{self._registry.host}/big:1"), self._work)
        self._registry.requests()
        rows.extend(self._resumed(f"{self._registry.host}/big:1"))
        columns = ("what", "seconds", "MB moved", "blobs sent", "blobs got", "requests")
        return report.Table("What is not moved", columns, tuple(rows), "Requests are those of the registry's log.")

    def _file(self, name: str, size: int) -> Path:
        path = self._work / name
        path.write_bytes(os.urandom(size))
        return path

    def _image(self, files: Mapping[str, Path], name: str) -> None:
        made = self._work / "layout"
        root = build_image(files, made, _RUN)
        store = Store(self._work / "made")
        for blob in sorted((made / "blobs/sha256").iterdir()):
            store.put_file(blob)
        store.tag(name, root)
        shutil.rmtree(made)

    def _resumed(self, name: str) -> Iterator[tuple[report.Cell, ...]]:
        """A pull that is killed in the middle, and the next one."""
        argv = self.uklimg("resumed", "pull", "--progress", "json", name)
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT)
        assert process.stderr is not None
        began, moved, said = time.monotonic(), 0, []
        for line in process.stderr:
            said.append(line.decode())
            moved += json.loads(line).get("advanced", 0)
            if moved > self._size // 2:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        yield self._row("pull, killed in the middle", Ran(time.monotonic() - began, 0, "".join(said)))
        yield self._row("the next pull", run(argv, self._work))

    def _row(self, what: str, ran: Ran) -> tuple[report.Cell, ...]:
        seen = self._registry.requests()
        moved = sum(json.loads(line).get("advanced", 0) for line in ran.said.splitlines() if line.startswith("{"))
        sent = sum(line.startswith("PUT") and "/blobs/uploads/" in line for line in seen)
        got = sum(line.startswith("GET") and "/blobs/" in line for line in seen)
        return what, ran.seconds, moved / MB, sent, got, len(seen)


def run(argv: Sequence[str], cwd: Path) -> Ran:
    """Run a command to its end; its standard error is kept. CalledProcessError when it fails."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPATH"] = str(ROOT)
    said = cwd / "said"
    os.sync()  # what others have written is not to be waited for
    with said.open("wb") as errors:
        began = time.monotonic()
        process = subprocess.Popen(argv, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=errors)
        peak = 0
        while process.poll() is None:
            try:
                found = _PEAK.search(Path(f"/proc/{process.pid}/status").read_text())
            except OSError:
                found = None
            peak = max(peak, int(found[1]) * 1024 if found else 0)
            time.sleep(0.004)
        seconds = time.monotonic() - began
    text = said.read_text(errors="replace")
    if process.returncode:
        sys.stderr.write(text)
        raise subprocess.CalledProcessError(process.returncode, argv)
    return Ran(seconds, peak, text)


def _median(ran: Sequence[Ran]) -> float:
    return statistics.median(one.seconds for one in ran)


def _least(ran: Sequence[Ran]) -> float:
    return min(one.seconds for one in ran)


@contextmanager
def _registry(work: Path) -> Iterator[Registry]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config, log, storage = work / "registry.yml", work / "registry.log", work / "storage"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with log.open("wb") as out:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=out, stderr=out)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield Registry(f"127.0.0.1:{port}", storage, log)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
