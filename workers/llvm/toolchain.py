"""Which clang and lld are used, and what `ltod doctor` has to say about them.

Here belongs finding programs and asking them for their version. Running them on modules is elsewhere.

The order is: the configured directory, the one in `LTOD_TOOLCHAIN`, the static binary in the `ziglang` wheel. A
directory that was named and does not serve is an error, never a reason to fall through to the next.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from workers.action import Action, run
from workers.errors import RequestError

__all__ = ["LLVM_MAJOR", "Finding", "Toolchain", "ToolchainReport", "ask_toolchain", "find_toolchain", "survey"]

LLVM_MAJOR = 22
"""The major version of LLVM that this ltod is written for."""

VARIABLE = "LTOD_TOOLCHAIN"

_QUESTION_SECONDS = 60.0
"""How long a tool may take to tell its version: it takes milliseconds unless the machine is in distress."""

_TOO_SLOW = f"it does not tell its version within {_QUESTION_SECONDS:g} s"

_CLANG_QUESTION = ("-cc1", "-version")

_WHEEL_MEND = "install the wheel: pip install 'ziglang==0.17.1'"

Version = tuple[int, int, int]


@frozen
class Toolchain:
    """A clang and an lld.

    `clang` and `lld` are the beginnings of command lines, absolute path first; `lld` is `None` where a named
    directory has none. `version` is clang's.
    """

    clang: tuple[str, ...]
    lld: tuple[str, ...] | None
    version: Version
    origin: str
    """Where it comes from, for people."""

    def describe(self) -> str:
        """One line: version, program and origin."""
        return f"clang {_dotted(self.version)} ({' '.join(self.clang)}; {self.origin})"


@frozen
class Finding:
    """One line of the doctor's report. With a `problem` there is always a `mend`."""

    name: str
    version: str | None = None
    location: str | None = None
    origin: str | None = None
    problem: str | None = None
    mend: str | None = None


@frozen
class ToolchainReport:
    """Everything that was found, what is used first."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether builds can run as things are."""
        return all(finding.problem is None for finding in self.findings)


def find_toolchain(configured: Path | None, environ: Mapping[str, str]) -> Toolchain:
    """Find the toolchain to use; starts clang once to learn its version, and blocks until it tells.

    Raises `RequestError`, with the mend, when a named directory does not serve or there is no toolchain at all.
    """
    candidate = _candidate(configured, environ)
    return _accepted(candidate, _version(candidate.clang, _CLANG_QUESTION))


async def ask_toolchain(configured: Path | None, environ: Mapping[str, str], scratch: Path) -> Toolchain:
    """Like `find_toolchain`; waits without blocking, and asks in a directory below `scratch`.

    When cancelled, what was started is gone with all its descendants.
    """
    candidate = _candidate(configured, environ)
    action = Action(argv=(*candidate.clang, *_CLANG_QUESTION), inputs={}, time_limit=_QUESTION_SECONDS)
    async with run(action, scratch) as result:
        if result.timed_out:
            version: Version | str = _TOO_SLOW
        elif result.not_started is not None:
            version = f"it {result.not_started.replace(f'cannot start {candidate.clang[0]}', 'cannot be started')}"
        else:
            status = -result.signal if result.signal is not None else result.status
            version = _read_version(result.stdout + result.stderr, status)
    return _accepted(candidate, version)


def survey(environ: Mapping[str, str], configured: Path | None = None) -> ToolchainReport:
    """Look at everything: the toolchain in use, its lld, llvmlite, and whether they match. Raises nothing."""
    findings = []
    clang_version: Version | None = None
    try:
        candidate = _candidate(configured, environ)
    except RequestError as error:
        message, _, mend = str(error).partition("; ")
        findings.append(Finding("clang", problem=message, mend=mend or _WHEEL_MEND))
    else:
        finding, clang_version = _examine("clang", candidate.clang, _CLANG_QUESTION, candidate)
        if clang_version is not None and clang_version[0] != LLVM_MAJOR:
            problem = f"it is version {clang_version[0]}, and ltod needs {LLVM_MAJOR}"
            finding = Finding("clang", finding.version, finding.location, finding.origin, problem, candidate.mend)
        findings.append(finding)
        findings.append(_examine_lld(candidate, clang_version))
    findings.append(_examine_llvmlite(clang_version))
    return ToolchainReport(tuple(findings))


@frozen
class _Candidate:
    clang: tuple[str, ...]
    lld: tuple[str, ...] | None
    origin: str
    mend: str
    """What to do if it does not serve."""


def _candidate(configured: Path | None, environ: Mapping[str, str]) -> _Candidate:
    named = environ.get(VARIABLE, "")
    if configured is not None:
        return _in_directory(configured, "the configuration")
    if named:
        return _in_directory(Path(named), VARIABLE)
    zig = _zig()
    if zig is None:
        raise RequestError(f"there is no LLVM toolchain; {_WHEEL_MEND}, or set {VARIABLE} to a directory with clang")
    return _Candidate((str(zig), "clang"), (str(zig), "ld.lld"), "the ziglang wheel", _WHEEL_MEND)


def _in_directory(directory: Path, origin: str) -> _Candidate:
    mend = f"name a directory with clang-{LLVM_MAJOR} and ld.lld-{LLVM_MAJOR}, or leave it out to use the ziglang wheel"
    try:
        directory = directory.expanduser().absolute()
    except RuntimeError as error:
        raise RequestError(f"{origin} names {directory}: {error}; {mend}") from error
    if not directory.is_dir():
        raise RequestError(f"{origin} names {directory}, which is not a directory; {mend}")
    clang = _executable(directory, "clang")
    if clang is None:
        raise RequestError(f"{origin} names {directory}, and there is no clang in it or in its bin/; {mend}")
    lld = _executable(directory, "ld.lld")
    return _Candidate((str(clang),), None if lld is None else (str(lld),), origin, mend)


def _executable(directory: Path, name: str) -> Path | None:
    for path in _places(directory, name):
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None


def _places(directory: Path, name: str) -> Iterator[Path]:
    # The versioned name first: /usr/bin may hold several, and the bare one is the distribution's default.
    for file in (f"{name}-{LLVM_MAJOR}", name):
        for folder in (directory, directory / "bin"):
            yield folder / file


def _zig() -> Path | None:
    """The binary in the ziglang wheel, found without importing the package."""
    spec = importlib.util.find_spec("ziglang")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder).absolute() / "zig"
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None


def _accepted(candidate: _Candidate, version: Version | str) -> Toolchain:
    if isinstance(version, str):
        raise RequestError(f"{' '.join(candidate.clang)} from {candidate.origin}: {version}; {candidate.mend}")
    if version[0] != LLVM_MAJOR:
        raise RequestError(
            f"{' '.join(candidate.clang)} from {candidate.origin} is clang {_dotted(version)}, and ltod needs "
            f"{LLVM_MAJOR}; {candidate.mend}"
        )
    return Toolchain(candidate.clang, candidate.lld, version, candidate.origin)


def _version(prefix: Sequence[str], question: Sequence[str]) -> Version | str:
    """Ask a tool for its version; a string says why it does not tell."""
    try:
        answer = _ask([*prefix, *question], env={})
    except subprocess.TimeoutExpired:
        return _TOO_SLOW
    except OSError as error:
        return f"it cannot be started: {error.strerror}"
    return _read_version(answer.stdout + answer.stderr, answer.returncode)


def _ask(argv: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run something short, in a process group that ends with it. Raises `OSError` and `TimeoutExpired`."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        process_group=0,
    )
    with process:
        try:
            stdout, stderr = process.communicate(timeout=_QUESTION_SECONDS)
        finally:
            # What is left in the group holds the pipes: whatever interrupts us must not wait for it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


def _read_version(said: bytes, status: int | None) -> Version | str:
    match = re.search(rb"(?:LLVM version|LLD) (\d+)\.(\d+)\.(\d+)", said)
    if status != 0 or match is None:
        return f"it does not tell its version (exit status {status})"
    return int(match[1]), int(match[2]), int(match[3])


def _examine(
    name: str, prefix: Sequence[str], question: Sequence[str], candidate: _Candidate
) -> tuple[Finding, Version | None]:
    location = " ".join(prefix)
    version = _version(prefix, question)
    if isinstance(version, str):
        return Finding(name, None, location, candidate.origin, version, candidate.mend), None
    return Finding(name, _dotted(version), location, candidate.origin), version


def _examine_lld(candidate: _Candidate, clang: Version | None) -> Finding:
    if candidate.lld is None:
        problem = "there is no ld.lld beside clang: extra passes and linking do not work"
        return Finding("lld", origin=candidate.origin, problem=problem, mend=candidate.mend)
    finding, version = _examine("lld", candidate.lld, ("--version",), candidate)
    if version is None or clang is None or version == clang:
        return finding
    problem = f"lld {_dotted(version)} does not match clang {_dotted(clang)}"
    return Finding("lld", finding.version, finding.location, finding.origin, problem, candidate.mend)


_ASK_LLVMLITE = (
    "import llvmlite, llvmlite.binding as b; "
    "print(llvmlite.__version__, *b.llvm_version_info, llvmlite.__file__, sep='\\n')"
)


def _examine_llvmlite(clang: Version | None) -> Finding:
    """Look at llvmlite in a process of its own: a broken one cannot harm this one."""
    mend = "install the matching pair: pip install 'llvmlite==0.50.*' 'ziglang==0.17.1'"
    try:
        answer = _ask([sys.executable, "-c", _ASK_LLVMLITE])
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("llvmlite", problem=f"it cannot be examined: {error}", mend=mend)
    lines = answer.stdout.decode(errors="replace").splitlines()
    if answer.returncode != 0 or len(lines) != 5:
        last = answer.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return Finding("llvmlite", problem=f"it cannot be imported: {last}", mend=mend)
    name, major, minor, patch, location = lines
    version = f"{name} (LLVM {major}.{minor}.{patch})"
    problem = None
    if int(major) < LLVM_MAJOR:
        problem = f"it holds LLVM {major}, which cannot read LLVM {LLVM_MAJOR}'s modules"
    elif clang is not None and (int(major), int(minor)) != clang[:2]:
        problem = f"it holds LLVM {major}.{minor}, and clang is {_dotted(clang)}: the engines would not agree"
    origin = "the llvmlite wheel"
    return Finding("llvmlite", version, str(Path(location).parent), origin, problem, mend if problem else None)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
