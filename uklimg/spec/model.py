"""The validated Spec: what a Uklfile means, frozen, with every variable substituted.

Paths inside a stage or the image are absolute and normalised; paths of the build context are relative to it,
normalised, never leave it, and may hold wildcards where the field says so. ``location`` is the place in the Uklfile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from uklimg.digest import Digest
from uklimg.errors import Location

Environment: TypeAlias = tuple[tuple[str, str], ...]  # sorted by name, each name once

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL = ("/bin/sh", "-c")
DEFAULT_MEMORY = 256 << 20
USERLANDS: Mapping[str, tuple[str, ...]] = {"none": (), "busybox": ("busybox-static",)}
"""What USERLAND may name, and the Debian packages that it consists of."""
DEBIAN_LIBC, UKL_LIBC = "debian", "ukl"
"""What GLIBC may name instead of a version: the base image's own, or the newest of ours."""
HEREDOC_FOLDER = "/dev/pipes"  # where BuildKit puts a heredoc that is a script with a #! line


@dataclass(frozen=True)
class SeriesInfo:
    """What the checker must know of a kernel series (a folder of kernel/): its UKL options, upper case."""

    name: str
    ukl_options: tuple[str, ...]


@dataclass(frozen=True)
class BaseImage:
    """A folder of base-images/, by the folder's name (``debian:trixie`` is ``debian-trixie``)."""

    name: str


@dataclass(frozen=True)
class StageRef:
    """An earlier build stage, by ``BuildStage.name``."""

    name: str


@dataclass(frozen=True)
class OciImage:
    """An image of a registry, as written: ``host[:port]/name[:tag][@digest]``."""

    reference: str


Origin: TypeAlias = BaseImage | StageRef | OciImage


@dataclass(frozen=True)
class HeredocFile:
    """A file written in the Uklfile itself. ``name`` is the heredoc's."""

    name: str
    content: bytes = field(repr=False)
    mode: int = 0o644


@dataclass(frozen=True)
class Mount:
    """``RUN --mount``. ``kind`` is bind, cache, tmpfs or secret; ``size`` in bytes (tmpfs; 0 = no limit).

    ``origin`` None with kind bind means the build context. ``env`` is the variable that a secret goes to; without
    a ``target`` it goes nowhere else.
    """

    kind: str
    target: str
    source: str = ""
    origin: Origin | None = None
    read_only: bool = False
    id: str = ""
    sharing: str = ""
    size: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    required: bool = False
    env: str = ""


@dataclass(frozen=True)
class Run:
    """Run ``argv`` (the shell included) in ``workdir`` as ``user``, with ``env`` (ARGs included) and nothing else.

    ``files`` are to be found at HEREDOC_FOLDER/name meanwhile. ``text`` is the command as written, for titles.
    ``proxies`` are further variables, which tell where the network is and change no result.
    """

    location: Location
    argv: tuple[str, ...]
    env: Environment
    workdir: str
    user: str
    text: str
    network: bool = False
    mounts: tuple[Mount, ...] = ()
    files: tuple[HeredocFile, ...] = ()
    proxies: Environment = ()


@dataclass(frozen=True)
class Copy:
    """COPY, or ADD (then ``unpack``: local tar archives are unpacked).

    ``sources`` may hold wildcards (path.Match of Go, a component at a time). They are relative to ``origin``, None
    being the build context. ``dest`` ends in "/" when it is a folder whatever the sources are. ``chown`` is
    ``user[:group]`` or "" for root; ``chmod`` None keeps the modes.
    """

    location: Location
    sources: tuple[str, ...]
    files: tuple[HeredocFile, ...]
    dest: str
    origin: Origin | None = None
    unpack: bool = False
    chown: str = ""
    chmod: int | None = None
    parents: bool = False
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class DebianSource:
    """A Debian source package; ``version`` "" takes the archive's newest once, for the lock."""

    name: str
    version: str = ""


@dataclass(frozen=True)
class UrlSource:
    url: str


@dataclass(frozen=True)
class GitSource:
    """``url`` without ``git+`` and fragment; ``commit`` a commit, tag or branch that the lock pins."""

    url: str
    commit: str


@dataclass(frozen=True)
class ContextSource:
    """A file or folder of the build context."""

    path: str


SourceRef: TypeAlias = DebianSource | UrlSource | GitSource | ContextSource


@dataclass(frozen=True)
class Source:
    """Unpack ``what`` as a fresh writable tree at ``dest``.

    ``strip`` leading components go (None: what the kind of archive suggests); ``patches`` is a folder of the context
    whose patches are applied, or "".
    """

    location: Location
    what: SourceRef
    dest: str
    checksum: Digest | None = None
    strip: int | None = None
    patches: str = ""


@dataclass(frozen=True)
class Package:
    """A Debian package, or with ``recipe`` a folder of libs/; ``version`` "" leaves the choice to the lock."""

    name: str
    version: str = ""
    recipe: bool = False


@dataclass(frozen=True)
class Packages:
    """Debian packages to install in the build container."""

    location: Location
    items: tuple[Package, ...]


@dataclass(frozen=True)
class Depends:
    """Static libraries to put into the sysroot."""

    location: Location
    items: tuple[Package, ...]


@dataclass(frozen=True)
class MakeFolder:
    """WORKDIR: make ``path`` (owned by ``user``) unless it is there."""

    location: Location
    path: str
    user: str


Instruction: TypeAlias = Run | Copy | Source | Packages | Depends | MakeFolder


@dataclass(frozen=True)
class BuildStage:
    """A container in which something is built. ``name`` is the one given with AS, else its number from 0.

    ``env`` (ENV only), ``workdir``, ``user`` and ``labels`` are those at its end.
    """

    location: Location
    name: str
    base: Origin
    instructions: tuple[Instruction, ...]
    env: Environment
    workdir: str
    user: str
    labels: Environment


@dataclass(frozen=True)
class Override:
    """KERNEL or GLIBC: empty fields leave the series' choice. ``patches`` is a folder of the context. GLIBC's version
    may be DEBIAN_LIBC or UKL_LIBC."""

    location: Location
    version: str = ""
    source: str = ""
    patches: str = ""


@dataclass(frozen=True)
class KconfigOption:
    """``name`` without CONFIG_; ``value`` as in a .config: y, m, n, a number, or a string in double quotes."""

    location: Location
    name: str
    value: str


@dataclass(frozen=True)
class Link:
    """The program that becomes part of the kernel: ``path`` in the build stage named ``stage``."""

    location: Location
    stage: str
    path: str
    name: str


@dataclass(frozen=True, order=True)
class Port:
    number: int
    protocol: str  # tcp or udp

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


@dataclass(frozen=True)
class Command:
    """``argv`` to execute, or with ``shell`` one text for the image's /bin/sh."""

    argv: tuple[str, ...]
    shell: bool = False


@dataclass(frozen=True)
class Healthcheck:
    """``command`` None is HEALTHCHECK NONE. Times in nanoseconds (as in an image's config), 0 = the default."""

    location: Location
    command: Command | None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True)
class ImageTest:
    """A command that ``uklimg test`` runs against the booted image, in a container of the build stage ``stage``
    ("" for LINK's).

    ``argv``, the shell included, and ``files`` as for Run; ``text`` is the command as written. ``ended``: when the
    program has ended by itself, not while it runs; None where the Uklfile leaves that open. ``timeout`` in seconds,
    0 = the default.
    """

    location: Location
    name: str
    argv: tuple[str, ...]
    text: str
    stage: str
    ended: bool | None
    files: tuple[HeredocFile, ...] = ()
    timeout: int = 0


@dataclass(frozen=True)
class ImageStage:
    """The last stage: the kernel with its program, the initramfs, and what a runner needs to know.

    ``argv`` is ENTRYPOINT followed by CMD, or the program's name when both are absent. ``memory`` in bytes.
    ``cmdline`` are kernel parameters, one an item, unquoted. ``env`` is ENV only.
    """

    location: Location
    series: str
    link: Link
    kernel: Override | None
    glibc: Override | None
    kconfig: tuple[KconfigOption, ...]
    kconfig_files: tuple[str, ...]
    ukl_options: tuple[str, ...]
    copies: tuple[Copy, ...]
    userland: str
    env: Environment
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    workdir: str
    cmdline: tuple[str, ...]
    ports: tuple[Port, ...]
    volumes: tuple[str, ...]
    memory: int
    cpus: int
    stop_signal: str
    healthcheck: Healthcheck | None
    labels: Environment
    tests: tuple[ImageTest, ...]

    @property
    def argv(self) -> tuple[str, ...]:
        return (*self.entrypoint, *self.cmd) or (self.link.name,)


@dataclass(frozen=True)
class Spec:
    """A whole Uklfile. ``stages`` in the order of the file; ``warnings`` are for the user, sorted by place."""

    filename: str
    stages: tuple[BuildStage, ...]
    image: ImageStage
    warnings: tuple[tuple[Location, str], ...] = ()

    def stage(self, name: str) -> BuildStage:
        """The build stage of that name (KeyError when there is none)."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)
