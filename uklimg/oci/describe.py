"""What ``uklimg inspect`` says about an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uklimg.digest import JSON, Digest
from uklimg.oci.health import health_fields
from uklimg.oci.image import BZIMAGE, FILES, ROLE, TARGET_LINUX, VMLINUX, RunConfig, run_config
from uklimg.oci.model import ImageConfig, Index, Manifest

_KASLR = "vmlinux has no KASLR: PVH starts it where it was linked; bzImage has (run --boot bzimage)"

# What UKL takes away, by option; docs/kernel.md and docs/security.md.
_UKL = "UKL: the program runs at CPL 0 and can read and write the whole guest; what contains it is the hypervisor"
_WEAKENS = {
    "BYP": "BYP: system calls do no speculation barriers (nor, for the program, do others) and erase no stack",
    "SHORTCUT": "SHORTCUT: HARDENED_USERCOPY does not check the program's copies, inotify and /proc/PID/io miss them",
    "RET": "RET: the 16 bytes at RSP-144 are overwritten at any moment, and returns do not serialise the processor",
    "RTC": "RTC: a thread that never blocks keeps its processor but for 50 ms of each second",
}
_TWIN = "the plain-Linux twin: the program is an ordinary process, and the kernel has no UKL"
_NOT_REPRODUCIBLE = "not reproducible: a step of its build used RUN --mount=type=cache"


@dataclass(frozen=True)
class FileSummary:
    """``size`` in bytes is the layer's: the file and at most 2 KiB around it."""

    role: str
    path: str
    digest: Digest
    size: int


@dataclass(frozen=True)
class PlatformSummary:
    """``size``: bytes of config and layers, of which most are shared with the other platforms."""

    platform: str
    manifest: Digest
    size: int


@dataclass(frozen=True)
class Summary:
    """``size``: bytes of all blobs, shared ones once. ``run`` has versions, options, command, ports and the like.
    ``weakens``: which protections UKL and its options take away."""

    digest: Digest
    run: RunConfig
    platforms: tuple[PlatformSummary, ...]
    files: tuple[FileSummary, ...]
    size: int
    created: str
    notes: tuple[str, ...]
    weakens: tuple[str, ...] = ()

    def as_json(self) -> JSON:
        """For ``--format json``; keys are stable."""
        run = self.run
        return {
            "digest": str(self.digest),
            "size": self.size,
            "created": self.created,
            "program": run.program,
            "target": run.target,
            "kernel": run.kernel_version,
            "libc": run.libc_version,
            "ukl": list(run.ukl_options),
            "boot": list(run.boot),
            "entrypoint": list(run.entrypoint),
            "cmd": list(run.cmd),
            "env": dict(run.env),
            "workdir": run.workdir,
            "ports": list(run.exposed_ports),
            "volumes": list(run.volumes),
            "stop_signal": run.stop_signal,
            "healthcheck": health_fields(run.healthcheck) if run.healthcheck else None,
            "memory": run.memory,
            "cpus": run.cpus,
            "cmdline": run.cmdline,
            "labels": dict(run.labels),
            "reproducible": run.reproducible,
            "files": [{"role": f.role, "path": f.path, "digest": str(f.digest), "size": f.size} for f in self.files],
            "platforms": [
                {"platform": p.platform, "manifest": str(p.manifest), "size": p.size} for p in self.platforms
            ],
            "weakens": list(self.weakens),
            "notes": list(self.notes),
        }


def describe(index: Index, manifests: Sequence[Manifest], config: ImageConfig, digest: Digest) -> Summary:
    """``manifests`` are parallel to ``index.manifests``, ``config`` is any of theirs, ``digest`` the index's."""
    run = run_config(config)
    roles = {file.role: file for file in FILES}
    layers = {blob.annotations.get(ROLE, ""): blob for manifest in manifests for blob in manifest.layers}
    files = tuple(
        FileSummary(role, file.path, layers[role].digest, layers[role].size)
        for role, file in roles.items()
        if role in layers
    )
    every = {blob.digest: blob.size for manifest in manifests for blob in manifest.blobs()}
    every |= {entry.digest: entry.size for entry in index.manifests}
    return Summary(
        digest=digest,
        run=run,
        platforms=tuple(
            PlatformSummary(str(entry.platform), entry.digest, sum(blob.size for blob in manifest.blobs()))
            for entry, manifest in zip(index.manifests, manifests, strict=True)
        ),
        files=files,
        size=sum(every.values()),
        created=config.created,
        notes=(
            *((_TWIN,) if run.target == TARGET_LINUX else ()),
            *((_KASLR,) if VMLINUX in layers or BZIMAGE in layers else ()),
            *(() if run.reproducible else (_NOT_REPRODUCIBLE,)),
        ),
        weakens=()
        if run.target == TARGET_LINUX
        else (_UKL, *(_WEAKENS[option] for option in run.ukl_options if option in _WEAKENS)),
    )
