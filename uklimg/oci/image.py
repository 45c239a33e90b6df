"""What an image of ours is: one table of files, one of platforms, and RunConfig to and from image configurations.

One tag is an index; below it lies a manifest for each platform, and they share the layers. Where a path, annotation
or label is as it is because another runtime reads it, the table says which.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from uklimg.digest import canonical_json
from uklimg.errors import CorruptError, InternalError, UserError
from uklimg.oci import layer
from uklimg.oci.health import HealthCheck, decode_health, encode_health
from uklimg.oci.model import (
    CONFIG,
    LAYER,
    MANIFESTS,
    Descriptor,
    History,
    ImageConfig,
    Index,
    Manifest,
    Platform,
)
from uklimg.oci.parse import MAX_CONFIG, MAX_MANIFEST, parse_config, parse_index, parse_manifest

VMLINUX = "vmlinux"
BZIMAGE = "bzImage"
INITRAMFS = "initramfs"

ROLE = "org.uklimg.file"
"""Annotation of a layer: which of the files it holds."""
TITLE = "org.opencontainers.image.title"
"""Annotation of a layer: the name under which `oras pull` writes it; those without one it passes over."""


@dataclass(frozen=True)
class ImageFile:
    """A file of an image: ``path`` in its layer; ``annotations`` of the layer beside ROLE, each naming the path."""

    role: str
    path: str
    annotations: tuple[str, ...] = ()


FILES = (
    # KraftKit finds both by path and annotation; urunc and KubeVirt are told the path. An ELF with a PVH note is what
    # Firecracker, Cloud Hypervisor and QEMU's -kernel all start.
    ImageFile(VMLINUX, "/unikraft/bin/kernel", ("org.unikraft.kernel.image",)),
    ImageFile(BZIMAGE, "/boot/bzImage"),
    ImageFile(INITRAMFS, "/unikraft/bin/initrd", ("org.unikraft.kernel.initrd",)),
)
PATHS: Mapping[str, str] = {file.role: file.path for file in FILES}

# containerd, skopeo, podman, urunc and KubeVirt take the first; KraftKit takes "qemu" or "fc", and says x86_64.
LINUX = Platform("linux", "amd64")
QEMU = Platform("qemu", "x86_64")
FIRECRACKER = Platform("fc", "x86_64")
PLATFORMS = (LINUX, QEMU, FIRECRACKER)

# KraftKit before April 2026 passes over indexes, entries and manifests without it; only its presence is looked at.
KRAFTKIT_MARK = {"sh.kraftkit.version": "uklimg"}
KRAFTKIT_FEATURES = ("CONFIG_UKL=y",)
"""``os.features`` of the unikernel on KraftKit's platforms, which reads an entry as a line of a kernel configuration.
Only the line that tells it from Linux: all of them would make every index a hundred kilobytes long."""

URUNC_FILE = "/urunc.json"  # urunc's annotations with base64 values: Docker and ctr lose annotations and labels
TARGET_UKL, TARGET_LINUX = "ukl", "linux"
"""What an image is: the unikernel, or its plain-Linux twin."""
_URUNC = "com.urunc.unikernel."
_LABEL = "org.uklimg."
_RESERVED = (_LABEL, _URUNC)
_NO_ENTRYPOINT = {_LABEL + "entrypoint": "none"}  # the entry point of the configuration is the command's first word
_SPEC_ANNOTATIONS = "org.opencontainers.image."

_ABSOLUTE = re.compile(r"/(?!.*(?:^|/)\.\.(?:/|$))[^\x00-\x1f]*")
_SIGNAL = re.compile(r"SIG[A-Z0-9+-]{1,16}|[0-9]{1,3}")
_TARGET = re.compile(f"{TARGET_UKL}|{TARGET_LINUX}")
_PORT = re.compile(r"[0-9]{1,5}/(?:tcp|udp)")


@dataclass(frozen=True)
class RunConfig:
    """What a runner needs to know of an image.

    ``program`` is the name under which the kernel knows the application (its stub is ``/ukl/<program>``; with
    ``target`` "linux", the plain twin, an ordinary program). ``memory`` in bytes and ``cpus`` are 0 where the
    Uklfile says nothing. ``exposed_ports`` are ``6379/tcp``; ``cmdline`` is kernel parameters as one text;
    ``boot`` the protocols that the files serve: "pvh" (vmlinux), "linux" and "efi" (bzImage). ``reproducible`` is
    False when a step used what is not in any key (RUN --mount=type=cache).
    """

    program: str
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    workdir: str = "/"
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = "SIGTERM"
    memory: int = 0
    cpus: int = 0
    cmdline: str = ""
    ukl_options: tuple[str, ...] = ()
    kernel_version: str = ""
    libc_version: str = ""
    target: str = TARGET_UKL
    boot: tuple[str, ...] = ("pvh", "linux", "efi")
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    reproducible: bool = True
    healthcheck: HealthCheck | None = None

    @property
    def argv(self) -> tuple[str, ...]:
        """What runs when nobody says otherwise: entry point and command, or the program alone."""
        return self.entrypoint + self.cmd or (self.program,)

    def argv_with(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """What ``run REF ARG…`` runs: as with Docker, arguments replace the command and not the entry point."""
        return self.entrypoint + tuple(arguments) if arguments else self.argv

    @property
    def stub(self) -> str:
        """The path whose execution starts the application in the kernel."""
        return f"/ukl/{self.program}"


def image_config(run: RunConfig, platform: Platform, layers: Sequence[Descriptor]) -> ImageConfig:
    """The image configuration for ``platform``; raises UserError for a label in a name space of ours."""
    for name in run.labels:
        if name.startswith(_RESERVED):
            raise UserError(f"the label {name!r} is set by uklimg itself", hint="choose another name")
    entrypoint, cmd = _started_by_path(run) if platform == LINUX else _started_by_kernel(run)
    own = _own_labels(run) | ({} if run.entrypoint or platform == LINUX else _NO_ENTRYPOINT)
    return ImageConfig(
        platform=platform if platform == LINUX else _kraftkit(platform, run),
        diff_ids=tuple(blob.digest for blob in layers),
        entrypoint=entrypoint,
        cmd=cmd,
        env=tuple(f"{name}={value}" for name, value in sorted(run.env.items())),
        workdir=run.workdir,
        exposed_ports=run.exposed_ports,
        volumes=run.volumes,
        labels={**run.labels, **own, **(urunc_fields(run) if platform == LINUX else {})},
        stop_signal=run.stop_signal,
        history=tuple(History(_created_by(blob.annotations.get(ROLE, URUNC_FILE))) for blob in layers),
    )


def _created_by(role: str) -> str:
    return f"uklimg {role}"


def _kraftkit(platform: Platform, run: RunConfig) -> Platform:
    features = KRAFTKIT_FEATURES if run.target == TARGET_UKL else ()
    return replace(platform, os_version=run.kernel_version, os_features=features)


def run_config(config: ImageConfig) -> RunConfig:
    """The inverse of ``image_config`` (a command that was left to its default comes back spelt out).

    Raises CorruptError for what cannot be ours, UserError for foreign images.
    """
    labels = config.labels
    program = labels.get(_LABEL + "program", "")
    if not program:
        raise UserError("this is an ordinary image, not one that uklimg built", hint="it has no kernel to boot")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}", program):
        raise CorruptError(f"the image names the program {program[:64]!r}")
    _check("exposes the port", config.exposed_ports, _PORT)
    _check("has the volume", config.volumes, _ABSOLUTE)
    _check("starts in", (config.workdir or "/",), _ABSOLUTE)
    _check("is for", (labels.get(_LABEL + "target", TARGET_UKL),), _TARGET)
    _check("is stopped by", (config.stop_signal or "SIGTERM",), _SIGNAL)
    run = RunConfig(
        program=program,
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        env=dict(_split_env(text) for text in config.env),
        workdir=config.workdir or "/",
        exposed_ports=config.exposed_ports,
        volumes=config.volumes,
        stop_signal=config.stop_signal or "SIGTERM",
        memory=_number(labels, "memory", 1 << 50),
        cpus=_number(labels, "cpus", 4096),
        cmdline=_one_line(labels, "cmdline"),
        ukl_options=tuple(_one_line(labels, "ukl").split()),
        kernel_version=_one_line(labels, "kernel"),
        libc_version=_one_line(labels, "libc"),
        target=labels.get(_LABEL + "target", TARGET_UKL),
        boot=tuple(_one_line(labels, "boot").split()),
        labels={name: value for name, value in labels.items() if not name.startswith(_RESERVED)},
        reproducible=labels.get(_LABEL + "reproducible") != "false",
        healthcheck=decode_health(labels.get(_LABEL + "healthcheck", "")),
    )
    if _NO_ENTRYPOINT.items() <= labels.items():
        run = replace(run, entrypoint=(), cmd=run.argv)
    return _started_by_name(run) if config.platform == LINUX else run


def urunc_fields(run: RunConfig) -> dict[str, str]:
    """What urunc wants to know, as manifest annotations, labels and (base64) in URUNC_FILE."""
    values = {
        "unikernelType": "linux",
        "hypervisor": "qemu",
        "binary": PATHS[VMLINUX],
        "initrd": PATHS[INITRAMFS],
        # Versions that look at it start the first word as rdinit=, as all do with the configuration's command.
        "cmdline": shlex.join(_argv_by_path(run)),
        "unikernelVersion": run.kernel_version,
    }
    return {_URUNC + name: value for name, value in values.items() if value}


def urunc_json(run: RunConfig) -> bytes:
    """The content of URUNC_FILE."""
    return canonical_json({k: base64.b64encode(v.encode()).decode() for k, v in urunc_fields(run).items()})


@dataclass(frozen=True)
class Blob:
    """A small blob in memory."""

    descriptor: Descriptor
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Assembled:
    """Everything of an image but its big layers. ``blobs`` in the order in which they may be stored or pushed
    (what a blob refers to comes before it); ``index``, the last of them, is the image."""

    blobs: tuple[Blob, ...]
    index: Descriptor


def file_layer(role: str, blob: Descriptor) -> Descriptor:
    """``blob`` (a layer of one file) as the layer that holds ``role``."""
    file = next((file for file in FILES if file.role == role), None)
    if file is None:
        raise InternalError(f"no file {role!r} in an image")
    notes = {ROLE: role, TITLE: f"{role}.tar", **dict.fromkeys(file.annotations, file.path)}
    return Descriptor(LAYER, blob.digest, blob.size, notes)


def assemble(layers: Mapping[str, Descriptor], run: RunConfig) -> Assembled:
    """Configurations, manifests and index of the image whose layers, by role, are given."""
    shared = tuple(file_layer(file.role, layers[file.role]) for file in FILES)
    described = {name: value for name, value in run.labels.items() if name.startswith(_SPEC_ANNOTATIONS)}
    if run.target != TARGET_UKL:
        described[_LABEL + "target"] = run.target
    urunc = _blob(LAYER, layer.of_bytes(URUNC_FILE, urunc_json(run)))
    blobs, entries = [urunc], []
    for platform in PLATFORMS:
        on_linux = platform == LINUX
        own = (*shared, urunc.descriptor.annotated({TITLE: "urunc.json.tar"})) if on_linux else shared
        config = image_config(run, platform, own)
        config_blob = _blob(CONFIG, config.encode())
        annotations = {**described, **(urunc_fields(run) if on_linux else KRAFTKIT_MARK)}
        # KraftKit takes the platform from the manifest's descriptor of the configuration, and dies where it has none.
        described_config = replace(config_blob.descriptor, platform=None if on_linux else config.platform)
        manifest = Manifest(described_config, own, annotations)
        manifest_blob = _blob(manifest.media_type, manifest.encode())
        blobs += [config_blob, manifest_blob]
        entry = replace(manifest_blob.descriptor, platform=config.platform)
        entries.append(entry if on_linux else entry.annotated(KRAFTKIT_MARK))
    index = Index(tuple(entries), {**described, **KRAFTKIT_MARK})
    index_blob = _blob(index.media_type, index.encode())
    return Assembled((*blobs, index_blob), index_blob.descriptor)


@dataclass(frozen=True)
class Image:
    """An image of ours as a runner or ``inspect`` reads it; ``manifests`` are parallel to ``index.manifests``."""

    descriptor: Descriptor
    index: Index
    manifests: tuple[Manifest, ...]
    config: ImageConfig
    run: RunConfig

    def file(self, role: str) -> Descriptor:
        """The layer that holds ``role`` (VMLINUX, BZIMAGE, INITRAMFS); the file lies in it as ``layer`` says.

        Podman and Docker write manifests of their own, without annotations of layers; which is which then stands in
        the configuration's history. UserError when there is none, or a packed one.
        """
        for manifest in self.manifests:
            for blob in manifest.layers:
                if blob.annotations.get(ROLE) == role:
                    return blob
        made = [line.created_by for line in self.config.history if not line.empty_layer]
        for line, blob in zip(made, self.manifests[0].layers, strict=False):
            if line == _created_by(role):
                if not blob.media_type.endswith(".tar"):
                    raise UserError(
                        f"the layer of the image's {role} was packed by another tool",
                        hint="`podman save --format oci-archive --uncompressed` leaves it as it is",
                    )
                return blob
        raise UserError(f"the image holds no {role}")


def read_image(read: Callable[[Descriptor], bytes], root: Descriptor) -> Image:
    """Load the image ``root``, an index or a single manifest, which is read as an index of that alone. ``read``
    returns a blob whole, verified.

    Raises UserError when it is no image of ours, CorruptError when it is malformed.
    """
    if root.media_type in MANIFESTS:
        manifest = parse_manifest(_read(read, root, MAX_MANIFEST))
        config = parse_config(_read(read, manifest.config, MAX_CONFIG))
        index = Index((replace(root.bare(), platform=config.platform),))
        return Image(root, index, (manifest,), config, run_config(config))
    index = parse_index(_read(read, root, MAX_MANIFEST))
    entries = tuple(e for e in index.manifests if e.platform is not None and not e.artifact_type)
    manifests = tuple(parse_manifest(_read(read, entry, MAX_MANIFEST)) for entry in entries)
    if not manifests:
        raise UserError("the image has no manifest for any platform")
    # Any platform's says the same; the one that foreign tools are likeliest to have kept is the first.
    config = parse_config(_read(read, manifests[0].config, MAX_CONFIG))
    return Image(root, replace(index, manifests=entries), manifests, config, run_config(config))


def _read(read: Callable[[Descriptor], bytes], blob: Descriptor, limit: int) -> bytes:
    if blob.size > limit:
        raise CorruptError(f"{blob.digest} has {blob.size} bytes, more than {limit}")
    return read(blob)


def _blob(media_type: str, data: bytes) -> Blob:
    return Blob(Descriptor.of(media_type, data), data)


def _started_by_path(run: RunConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Entry point and command with the stub's path for the program's name: urunc starts argv[0] as ``rdinit=``."""
    argv = _argv_by_path(run)
    return argv[: len(run.entrypoint)], argv[len(run.entrypoint) :]


def _started_by_kernel(run: RunConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """KraftKit puts the command after "--" on the kernel's command line, whose words come after argv[0] and the entry
    point (PID 1 keeps them): so both are the entry point here."""
    keep = max(1, len(run.entrypoint))
    return run.argv[:keep], run.argv[keep:]


def _argv_by_path(run: RunConfig) -> tuple[str, ...]:
    argv = run.argv
    return (run.stub, *argv[1:]) if argv[0] == run.program else argv


def _started_by_name(run: RunConfig) -> RunConfig:
    argv = run.argv
    if argv[0] != run.stub:
        return run
    argv = (run.program, *argv[1:])
    return replace(run, entrypoint=argv[: len(run.entrypoint)], cmd=argv[len(run.entrypoint) :])


def _own_labels(run: RunConfig) -> dict[str, str]:
    values = {
        "program": run.program,
        "target": run.target,
        "kernel": run.kernel_version,
        "libc": run.libc_version,
        "ukl": " ".join(run.ukl_options),
        "boot": " ".join(run.boot),
        "cmdline": run.cmdline,
        "memory": str(run.memory) if run.memory else "",
        "cpus": str(run.cpus) if run.cpus else "",
        "reproducible": "" if run.reproducible else "false",
        "healthcheck": encode_health(run.healthcheck) if run.healthcheck else "",
    }
    return {_LABEL + name: value for name, value in values.items() if value}


def _split_env(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise CorruptError(f"the image's environment holds {text[:40]!r}")
    return name, value


def _number(labels: Mapping[str, str], name: str, limit: int) -> int:
    text = labels.get(_LABEL + name, "0")
    if not re.fullmatch(r"[0-9]{1,16}", text, re.ASCII) or int(text) > limit:
        raise CorruptError(f"the image's label {_LABEL}{name} is {text[:40]!r}")
    return int(text)


def _check(what: str, values: Sequence[str], allowed: re.Pattern[str]) -> None:
    for value in values:
        if not allowed.fullmatch(value):
            raise CorruptError(f"the image {what} {value[:60]!r}")


def _one_line(labels: Mapping[str, str], name: str) -> str:
    text = labels.get(_LABEL + name, "")
    if not text.isprintable():
        raise CorruptError(f"the image's label {_LABEL}{name} has control characters")
    return text
