"""A look at C, C++ and assembler sources: a heuristic over words, which does not know what is compiled."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from uklimg.advice.findings import EXEC, FUNCTIONS, OPTIONS, WORDS, Finding, Level, Rule, option_rule
from uklimg.errors import Location

SUFFIXES = (".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".inc", ".s", ".S")

_COMMENTS_AND_STRINGS = re.compile(
    r"""//(?:\\\n|[^\n])*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL
)
_CALL = re.compile(rf"(?<![\w.>])({'|'.join(sorted({*FUNCTIONS, *OPTIONS}))})\s*\(")
_WORD = re.compile(rf"\b({'|'.join(sorted(WORDS))}|PROT_EXEC|ARCH_SET_GS|__seg_gs|_writegsbase_u64|rseq_cs)\b")
# A word before a call that is not a declaration's type.
_NOT_TYPES = {"return", "else", "do", "case", "throw", "co_return", "sizeof", "not", "and", "or"}
_ASM = re.compile(r"\bint\s+\$?\$?0x80\b|\bsysenter\b|%?%gs(?=:)", re.IGNORECASE)

_EXE = re.compile(r"/proc/(?:self|%d|%i|%u|%ld|%lu|%jd)/exe\b")

_JIT = Rule(
    "run-time-code",
    Level.WARNING,
    "{name}: code that is made at run time does not run: mmap and mprotect refuse it (EACCES)",
    "build without the JIT compiler",
)
_GS = Rule("segments", Level.WARNING, "{name}: in the program GS is the kernel's, not the thread's")
_RSEQ = Rule(
    "rseq",
    Level.WARNING,
    "{name}: the kernel refuses a restartable sequence of the program, whose code is at kernel addresses",
    "build without it",
)
_OWN_PATH = Rule(
    "own-path",
    Level.WARNING,
    "{name}: what the link says, NAME (deleted), is the path of nothing; to execute it works",
    "an argument or a variable can say where the program's files are",
)
_INT80 = Rule("int80", Level.ERROR, "{name}: this kernel has no 32-bit system calls, it does nothing", "use syscall")


def scan_source(text: str, file: str, *, programs: bool = False, options: Collection[str] = ()) -> Iterator[Finding]:
    """Findings in one file's text, by place. ``programs``: the image holds other programs (USERLAND). ``options``:
    kernel options that the Uklfile asks for."""
    starts = [match.end() for match in re.finditer("\n", text)]
    code = _blanked(text, strings=True)
    found: dict[tuple[int, str], tuple[Rule, str]] = {}
    for match in _CALL.finditer(code):
        name = match[1]
        if not _declares(code, match.start()):
            rule = FUNCTIONS.get(name) or option_rule(OPTIONS[name])
            found[match.start(1), rule.name] = rule, name
    for match in _WORD.finditer(code):
        found[match.start(), match[1]] = _rule_of(match[1]), match[1]
    uncommented = _blanked(text, strings=False)
    for match in _ASM.finditer(uncommented):
        found[match.start(), match[0]] = _rule_of_assembler(match[0]), " ".join(match[0].split())
    for match in _EXE.finditer(uncommented):
        found[match.start(), match[0]] = _OWN_PATH, match[0]
    for (at, _), (rule, name) in sorted(found.items(), key=lambda item: item[0]):
        if rule.name == "kernel-option" and rule.hint.removeprefix("KCONFIG ").removesuffix("=y") in options:
            continue
        if rule == EXEC and programs:
            continue
        yield finding(rule, name, _place(text, file, at, starts))


def finding(rule: Rule, name: str, location: Location, member: str = "") -> Finding:
    return Finding(rule.level, rule.name, location, rule.message.format(name=name), rule.hint, member)


def _rule_of(word: str) -> Rule:
    if word in WORDS:
        return option_rule(WORDS[word])
    return {"PROT_EXEC": _JIT, "rseq_cs": _RSEQ}.get(word, _GS)


def _rule_of_assembler(text: str) -> Rule:
    return _GS if "gs" in text.lower() else _INT80


def _blanked(text: str, *, strings: bool) -> str:
    """``text`` of the same length with comments, and ``strings`` if asked for, as blanks."""

    def blank(match: re.Match[str]) -> str:
        if match[0][0] in "\"'" and not strings:
            return match[0]
        return re.sub(r"[^\n]", " ", match[0])

    return _COMMENTS_AND_STRINGS.sub(blank, text)


def _declares(code: str, at: int) -> bool:
    """Whether the name at ``at`` is declared or defined there: a type stands before it."""
    near = code[max(0, at - 80) : at]
    if scope := re.search(r"(\w*)::\Z", near):
        return scope[1] not in ("", "std")
    before = re.search(r"([\w*&>]+)[ \t\n]*\Z", near)
    if before is None or before[1] in _NOT_TYPES:
        return False
    if before[1].strip("*&>") == "":  # of `int *f(`, and of `a * f(`, which nobody writes with these
        return bool(re.search(r"\w[ \t\n]*[*&>]+[ \t\n]*\Z", near))
    return True


def _place(text: str, file: str, at: int, starts: list[int]) -> Location:
    line = text.count("\n", 0, at)
    return Location(file, line + 1, at - (starts[line - 1] if line else 0) + 1)
