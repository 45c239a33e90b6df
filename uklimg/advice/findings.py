"""One thing that was found, and the rules that sources and objects share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from uklimg.digest import JSON
from uklimg.errors import Location


class Level(Enum):
    """ERROR: it will not link, or not run. WARNING: what uses it will not work. INFO: good to know."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """``rule`` is a short stable name. ``member`` is the object in an archive, or ""."""

    level: Level
    rule: str
    location: Location
    message: str
    hint: str = ""
    member: str = ""

    def line(self) -> str:
        place = f"{self.location}({self.member})" if self.member else str(self.location)
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}: {self.level.value}: {self.message}{hint} [{self.rule}]"

    def as_json(self) -> JSON:
        """For ``--format json``; keys are stable, line and column are 0 where there is none."""
        return {
            "level": self.level.value,
            "rule": self.rule,
            "file": self.location.file,
            "line": self.location.line,
            "column": self.location.column,
            "member": self.member,
            "message": self.message,
            "hint": self.hint,
        }


@dataclass(frozen=True)
class Rule:
    """What is said of a function that is called. ``message`` may hold {name}."""

    name: str
    level: Level
    message: str
    hint: str = ""


DLOPEN = Rule(
    "dlopen",
    Level.WARNING,
    "{name}: a program in the kernel loads no shared libraries",
    "link what it would load as a static library",
)
EXEC = Rule(
    "exec",
    Level.WARNING,
    "{name}: the image holds no other programs, a shell least of all",
    "USERLAND busybox or COPY brings programs; or leave out what needs it",
)
USERS = Rule(
    "users",
    Level.INFO,
    "{name}: another user takes nothing from a program at the kernel's level, and without CAP_SYS_RAWIO it cannot "
    "execute itself again",
)
PTRACE = Rule("ptrace", Level.INFO, "{name}: tracing the program takes CAP_SYS_RAWIO")
LDT = Rule(
    "segments",
    Level.WARNING,
    "{name}: in the program GS is the kernel's, and a segment of its own has not been tried",
)

FUNCTIONS: Mapping[str, Rule] = {
    **dict.fromkeys(("dlopen", "dlmopen", "dlsym", "dlvsym"), DLOPEN),
    **dict.fromkeys(
        (
            *("execl", "execle", "execlp", "execv", "execve", "execvp", "execvpe", "execveat", "fexecve"),
            *("posix_spawn", "posix_spawnp", "system", "popen", "wordexp"),
        ),
        EXEC,
    ),
    **dict.fromkeys(("setuid", "seteuid", "setreuid", "setresuid", "capset", "cap_set_proc"), USERS),
    "ptrace": PTRACE,
    "modify_ldt": LDT,
}

# Functions and words that need an option which the series' `base` configuration leaves out.
OPTIONS: Mapping[str, str] = {
    "iopl": "X86_IOPL_IOPERM",
    "ioperm": "X86_IOPL_IOPERM",
    "userfaultfd": "USERFAULTFD",
    "fanotify_init": "FANOTIFY",
    "init_module": "MODULES",
    "finit_module": "MODULES",
    "swapon": "SWAP",
    "add_key": "KEYS",
    "keyctl": "KEYS",
}
WORDS: Mapping[str, str] = {
    "SYS_bpf": "BPF_SYSCALL",
    "__NR_bpf": "BPF_SYSCALL",
    "SYS_userfaultfd": "USERFAULTFD",
    "__NR_userfaultfd": "USERFAULTFD",
    "AF_VSOCK": "VSOCKETS",
    "MAP_HUGETLB": "HUGETLBFS",
    "SHM_HUGETLB": "HUGETLBFS",
    "TUNSETIFF": "TUN",
    "IP_ADD_MEMBERSHIP": "IP_MULTICAST",
    "NETLINK_SOCK_DIAG": "INET_DIAG",
    "NETLINK_NETFILTER": "NETFILTER",
}


def option_rule(option: str) -> Rule:
    message = f"{{name}} needs the kernel option {option}, which the base configuration leaves out"
    return Rule("kernel-option", Level.WARNING, message, f"KCONFIG {option}=y")
