"""What a tool's ending means for the module it worked on. Pure: text and numbers in, messages out.

Tools end in four ways: well; with errors in the module or in what was asked (their own words are the message); by a
fault of their own (abort, crash, hang, kill: worth a reproducer); or they lie (status 0 and no output).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence

from attrs import frozen

from workers.action import ActionResult
from workers.work import EmitKind, Severity

__all__ = ["Message", "Verdict", "describe_signal", "foreign_output", "judge", "of_another_target", "parse_messages"]

_MESSAGE_CHARACTERS = 4000
_MESSAGES = 50

_LLVM_FATAL_STATUS = 70
"""clang's exit status after LLVM's `report_fatal_error` (EX_SOFTWARE)."""

_HEAD = re.compile(
    r"(?:(?P<file>[^\s:][^:\n]*?)(?P<position>(?::\d+){0,2}): )?"
    r"(?:(?P<kind>fatal error|error|warning|note|remark)|LLVM (?P<llvm>ERROR)): (?P<text>.*)"
)
_SUMMARY = re.compile(r"\d+ (?:warnings?|errors?)(?: and \d+ errors?)? generated\.")
_ECHO = re.compile(r"(?:error|warning): cannot compile inline asm(?: \[-W[a-z-]+\])?")  # what it follows says why
# What follows is no part of a message: a stack, or what the driver would have run.
_TAIL = re.compile(r"PLEASE submit a bug report|Stack dump:| \(in-process\)$| \"\S+\" \"-cc1\" ")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WRONG_PIPELINE = "unable to parse pass pipeline description"
_IGNORED_OPTION = re.compile(
    r"('[^']*' is not a recognized (?:feature|processor) for this target)(?: \(ignoring (?:feature|processor)\))?"
)
_UNKNOWN_NAMES = 3
"""More names of features and processors than this are those of another target, and not mistakes."""

_NO_SPACE = "No space left on device"
_OUT_OF_MEMORY = ("bad_alloc", "out of memory", "Cannot allocate memory")
_MAPPED_BYTES = 256 * 2**20
"""What tools map without using it: a limit of the address space is reached long before the memory used is."""


@frozen
class Message:
    """One diagnostic, not yet of a module."""

    severity: Severity
    text: str


@frozen
class Verdict:
    """`messages` holds an error exactly if the run `failed`; `fault` says that the tool is to blame.

    A `passing` failure is this machine's at this moment: it says nothing about the module or the request.
    """

    messages: tuple[Message, ...]
    failed: bool = False
    fault: bool = False
    passing: bool = False


def judge(
    result: ActionResult,
    *,
    tool: str,
    names: Mapping[str, str],
    time_limit: float,
    memory_limit: int | None,
    out_of_memory: bool,
) -> Verdict:
    """Say what `result` means.

    `tool` is the tool's name for people, `names` maps paths within the action to what people know them as.
    `out_of_memory` tells whether the kernel has killed for lack of memory lately (read for `SIGKILL` only).
    """
    if result.not_started is not None:
        return _failure(result.not_started, passing=True)
    stderr = result.stderr.decode(errors="replace")
    if result.timed_out:
        return _fault(f"{tool} was still running after its time limit of {time_limit:g} s")
    messages = parse_messages(stderr, names)
    first_error = next((message.text for message in messages if message.severity is Severity.ERROR), None)
    if first_error is not None and _WRONG_PIPELINE in first_error:
        return _failure(first_error)
    if result.disk_full or (result.status != 0 and first_error is not None and _NO_SPACE in first_error):
        return _failure(f"no space left on {result.directory.parent}", passing=True)
    memory = _about_memory(result, stderr, memory_limit, first_error)
    if result.signal is not None:
        how = describe_signal(result.signal, out_of_memory=out_of_memory, peak_rss_bytes=result.peak_rss_bytes)
        reason = f": {first_error}" if first_error is not None else ""
        return _fault(f"{tool} {how}{memory}{reason}")
    if result.status == _LLVM_FATAL_STATUS:
        return _fault(f"{tool} aborted{memory}: {first_error or stderr.strip() or 'it does not say why'}")
    if result.status != 0:
        if first_error is not None:
            return Verdict(messages, failed=True)
        said = stderr.strip()
        return _fault(f"{tool} failed with exit status {result.status}{memory}: {said or 'it does not say why'}")
    if first_error is not None:
        return Verdict(messages, failed=True)
    if result.missing:
        return _fault(f"{tool} ended with status 0 and did not write its output")
    return Verdict(messages)


def _about_memory(result: ActionResult, stderr: str, limit: int | None, first_error: str | None) -> str:
    """What a limit of memory has to do with it that the tool did not end well, as a part of a sentence."""
    if limit is None:
        return ""
    used = _mib(result.peak_rss_bytes)
    crashed = result.signal in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
    is_near = result.peak_rss_bytes + _MAPPED_BYTES >= limit / 2
    if any(sign in stderr for sign in _OUT_OF_MEMORY) or (crashed and first_error is None and is_near):
        return f", most likely because of its memory limit of {_mib(limit)} (it used {used})"
    return f" (memory limit {_mib(limit)}, used {used})"


def of_another_target(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages about a module, with one in place of many about CPUs and features that the target does not have."""
    unknown = [message for message in messages if _IGNORED_OPTION.fullmatch(message.text)]
    if len(unknown) <= _UNKNOWN_NAMES:
        return tuple(messages)
    examples = ", ".join(message.text.partition(" is not ")[0] for message in unknown[:_UNKNOWN_NAMES])
    text = f"the module's functions name {len(unknown)} CPU features of another target: {examples} and others"
    kept = [message for message in messages if message not in unknown]
    return (Message(Severity.ERROR, text), *kept)


def _failure(text: str, *, passing: bool = False) -> Verdict:
    return Verdict((Message(Severity.ERROR, _tidy(text)),), failed=True, passing=passing)


def _fault(text: str) -> Verdict:
    return Verdict((Message(Severity.ERROR, _tidy(text)),), failed=True, fault=True)


def describe_signal(number: int, *, out_of_memory: bool, peak_rss_bytes: int) -> str:
    """What a signal did to a tool, as the end of a sentence."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number != signal.SIGKILL:
        return f"crashed with {name}"
    used = f"; it used {_mib(peak_rss_bytes)}" if peak_rss_bytes else ""
    if out_of_memory:
        return f"was killed ({name}) by the kernel for lack of memory{used}"
    return f"was killed ({name}) by somebody else or, if memory was short, by the kernel{used}"


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def parse_messages(stderr: str, names: Mapping[str, str]) -> tuple[Message, ...]:
    """Cut a tool's standard error into diagnostics. Notes and quoted code stay with the message they belong to.

    Text without a severity counts as a warning, unless it says that an option of ours was ignored: that is an error.
    """
    parts: list[tuple[Severity, list[str]]] = []
    for line in stderr.splitlines():
        if _SUMMARY.fullmatch(line) or not line.strip() or (parts and _ECHO.fullmatch(line)):
            continue
        if _TAIL.match(line):
            break
        head = _HEAD.fullmatch(line)
        if head is not None and head["kind"] not in ("note", "remark"):
            severity = Severity.WARNING if head["kind"] == "warning" else Severity.ERROR
            parts.append((severity, [_place(head, names) + head["text"].removeprefix("error in backend: ")]))
        elif head is None and (ignored := _IGNORED_OPTION.fullmatch(line.strip())):
            if (Severity.ERROR, [ignored[1]]) not in parts:
                parts.append((Severity.ERROR, [ignored[1]]))
        elif parts:
            parts[-1][1].append(line)
        else:
            parts.append((Severity.WARNING, [line]))
    return tuple(Message(severity, _tidy("\n".join(lines), names)) for severity, lines in parts[:_MESSAGES])


def _place(head: re.Match[str], names: Mapping[str, str]) -> str:
    """Where a message points to: only the position when it is in the module itself, nothing for a tool's name."""
    if not head["position"]:
        return ""
    return f"{head['position'][1:] if head['file'] in names else head['file'] + head['position']}: "


def _tidy(text: str, names: Mapping[str, str] | None = None) -> str:
    for path, name in (names or {}).items():
        text = text.replace(path, name)
    text = _UNPRINTABLE.sub("\ufffd", text)
    if len(text) > _MESSAGE_CHARACTERS:
        return f"{text[:_MESSAGE_CHARACTERS]} [... {len(text) - _MESSAGE_CHARACTERS} characters left out ...]"
    return text


_OBJECT_MAGICS = (
    b"\x7fELF",
    b"\xcf\xfa\xed\xfe",  # Mach-O, 64 bit
    b"\xce\xfa\xed\xfe",  # Mach-O, 32 bit
    b"\xfe\xed\xfa\xce",  # Mach-O, big-endian
    b"\xfe\xed\xfa\xcf",
    b"\0asm",
    b"\x64\x86",  # COFF: x86-64, i386, ARM64, ARM64EC, ARM
    b"\x4c\x01",
    b"\x64\xaa",
    b"\x41\xa6",
    b"\xc4\x01",
    b"\0\0\xff\xff",  # COFF with many sections
    b"\x01\xdf",  # XCOFF
    b"\x01\xf7",
    b"\x03\xf0\x00",  # GOFF
    b"\x03\x02\x23\x07",  # SPIR-V
    b"DXBC",
)
_BITCODE_MAGICS = (b"BC\xc0\xde", b"\xde\xc0\x17\x0b")


def foreign_output(kind: EmitKind, head: bytes) -> bool:
    """Whether a file that begins with `head` cannot be what was asked for."""
    match kind:
        case EmitKind.OBJECT | EmitKind.FATOBJ:
            return not head.startswith(_OBJECT_MAGICS)
        case EmitKind.BITCODE:
            return not head.startswith(_BITCODE_MAGICS)
        case EmitKind.ASSEMBLY | EmitKind.IR:
            return b"\0" in head
