"""Hermetic runs of a tool: what goes in, what comes out, and nothing else.

Here belong the `Action` (one run, described completely) and `run` (which performs it on this machine); what becomes of
its outputs is the business of `workers.placing`. Nothing here knows LLVM.

An action sees a directory of its own with its inputs at the relative paths that it names, an environment that holds
only what it names, no standard input, and limits on time and address space. Inputs are *copied*: through a hard or
symbolic link a tool could change its caller's file, and a caller that rewrites a file during the run would change
what is compiled. A copy costs about 30 microseconds for a small module and is nothing beside the compilation of a
large one.

A tool runs in a process group of its own, and the group is killed as a whole before its leader is reaped, on every
path: while the leader is a zombie its number cannot be given to a stranger. Should this process be killed meanwhile,
the keeper of the directory (`workers.keeper`), if it has one, does the same.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import trio
from attrs import field, frozen

from workers.keeper import Keeper, keeper_of
from workers.starting import Process, Start, start_directly

__all__ = ["Action", "ActionResult", "run"]

_CAPTURE_BYTES = 128 * 1024
"""How much of a tool's output is kept from its beginning, and as much again from its end."""

_THREAD_BYTES = 1024 * 1024
"""Inputs larger than this are copied in a thread, so that the event loop never waits long for a disk."""

_REAP_SECONDS = 30.0
"""How long a killed process may take to die: only a process stuck in the kernel needs any time at all."""

_FULL_BYTES = 1024 * 1024
"""A disk with less than this is as good as full."""

_COPY_CHUNK = 1024 * 1024


def _no_directory_climbing(_: object, __: object, paths: Iterable[str]) -> None:
    for path in paths:
        if not path or path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"not a path inside the action's directory: {path!r}")


@frozen(kw_only=True)
class Action:
    """One run of a tool.

    `argv` starts with the tool's absolute path; every other path in it is relative to the action's directory.
    `inputs` maps a relative path to a file or to the content itself; `outputs` are the relative paths of the files
    that the tool is expected to write. `time_limit` is in seconds of wall time, `memory_limit` in bytes of address
    space (`None`: no limit). Without any time, a run times out at once.
    """

    argv: tuple[str, ...]
    inputs: Mapping[str, Path | bytes] = field(
        repr=lambda inputs: str(sorted(inputs)), validator=_no_directory_climbing
    )
    outputs: tuple[str, ...] = field(default=(), validator=_no_directory_climbing)
    environment: Mapping[str, str] = field(factory=dict)
    time_limit: float = 600.0
    memory_limit: int | None = None


@frozen(kw_only=True)
class ActionResult:
    """How a run ended. The directory is there until the context manager that gave this result is left.

    Exactly one of these holds: `not_started` says why the tool did not run at all; `timed_out`; `signal` is the
    number of the signal that ended it; `status` is its exit status.
    """

    directory: Path
    status: int | None = None
    signal: int | None = None
    timed_out: bool = False
    not_started: str | None = None
    stdout: bytes = field(default=b"", repr=lambda data: f"<{len(data)} bytes>")
    """Beginning and end of the standard output, with a line that says how much is left out between them."""
    stderr: bytes = field(default=b"", repr=lambda data: f"<{len(data)} bytes>")
    """The standard error in the same form."""
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    missing: tuple[str, ...] = ()
    """Declared outputs that are not there, are empty, or are not regular files."""
    disk_full: bool = False
    """Whether the tool failed without a word and there is next to no space left where it ran."""

    @property
    def succeeded(self) -> bool:
        """Whether the tool ended with status 0 and wrote everything it was expected to write."""
        return self.status == 0 and not self.missing


@asynccontextmanager
async def run(
    action: Action,
    scratch: Path,
    *,
    stderr_to: Callable[[IO[bytes]], object] | None = None,
    start: Start = start_directly,
) -> AsyncIterator[ActionResult]:
    """Perform `action` in a fresh directory below `scratch`, and remove the directory when the block is left.

    Everything that can go wrong with the tool, its inputs or the disk is told by the result. `stderr_to` is called
    in a thread with the complete standard error as a file, for a caller that needs all of it. `start` begins the
    tool's process.

    Cancelling kills the tool with all its descendants, waits until it is gone and leaves nothing behind.
    """
    await trio.lowlevel.checkpoint()
    try:
        base = Path(tempfile.mkdtemp(prefix="action-", dir=scratch))
    except OSError as error:
        reason = _no_space(error, scratch) or f"cannot make a directory in {scratch}: {error.strerror}"
        yield ActionResult(directory=scratch, not_started=reason)
        return
    try:
        yield await _run_in(action, base, stderr_to, start)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _REAP_SECONDS):
            await _remove_tree(base)


async def _run_in(
    action: Action, base: Path, stderr_to: Callable[[IO[bytes]], object] | None, start: Start
) -> ActionResult:
    for name, content in action.inputs.items():
        try:
            await _lay_down(content, base / name)
        except OSError as error:
            source = content if isinstance(content, Path) else name
            reason = _no_space(error, base.parent) or f"cannot lay down {source}: {error.strerror or error}"
            return ActionResult(directory=base, not_started=reason)
    try:
        with (
            tempfile.TemporaryFile(dir=base, buffering=0) as stdout,
            tempfile.TemporaryFile(dir=base, buffering=0) as stderr,
        ):
            result = await _spawn(action, base, stdout, stderr, start)
            if stderr_to is not None:
                stderr.seek(0)
                await trio.to_thread.run_sync(stderr_to, stderr)
            return result
    except OSError as error:
        reason = _no_space(error, base.parent) or f"cannot run {action.argv[0]}: {error.strerror}"
        return ActionResult(directory=base, not_started=reason)


def _no_space(error: OSError, scratch: Path) -> str | None:
    return f"no space left on {scratch}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None


def _is_full(action: Action, base: Path) -> bool:
    """Whether there is next to no space; the tool may have removed what it had written, which is taken into account."""
    with suppress(OSError):
        disk = os.statvfs(base)
        inputs = sum((base / name).stat().st_size for name in action.inputs)
        return disk.f_bavail * disk.f_frsize < _FULL_BYTES + 4 * inputs
    return False


async def _spawn(action: Action, base: Path, stdout: IO[bytes], stderr: IO[bytes], start: Start) -> ActionResult:
    started = trio.current_time()
    keeper = keeper_of(base)
    try:
        process = start(action.argv, base, action.environment, stdout.fileno(), stderr.fileno())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return ActionResult(directory=base, not_started=f"cannot start {action.argv[0]}: {reason}")
    ended: tuple[int, resource.struct_rusage] | None = None
    timed_out = True
    sampled = 0
    try:
        if keeper is not None:
            keeper.add(process.pid)
        _limit(process.pid, action.memory_limit)
        with trio.move_on_after(max(0.0, action.time_limit)):
            sampled = await _until_exit(process.pid)
            timed_out = False
    finally:
        ended = await _kill_and_reap(process, keeper)
    if ended is None:
        message = f"process {process.pid} did not die within {_REAP_SECONDS:g} s of being killed"
        return ActionResult(directory=base, not_started=message)
    returncode, usage = ended
    said = _capture(stderr)
    return ActionResult(
        directory=base,
        status=returncode if returncode >= 0 and not timed_out else None,
        signal=-returncode if returncode < 0 and not timed_out else None,
        timed_out=timed_out,
        stdout=_capture(stdout),
        stderr=said,
        seconds=trio.current_time() - started,
        peak_rss_bytes=_peak_rss(usage, sampled),
        missing=tuple(name for name in action.outputs if not _is_output(base / name)),
        disk_full=returncode > 0 and not said and _is_full(action, base),
    )


def _limit(pid: int, memory_limit: int | None) -> None:
    """Set the limits from outside, so that the fast path of process creation (vfork) stays usable.

    The tool may have started, but has not had time for more than its loader's work. No core file: the reproducer
    is better, and writing one takes longer than most compilations.
    """
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        if memory_limit is not None:
            hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
            limit = memory_limit if hard == resource.RLIM_INFINITY else min(memory_limit, hard)
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


async def _until_exit(pid: int) -> int:
    """Wait until the process has ended, without reaping it. Returns the highest peak RSS seen, in bytes.

    The samples are a tenth of the elapsed time apart, 5 milliseconds at least. There are no more of them, and 0 is
    returned, when it has clearly had more than we: then its own account is going to tell (see `_peak_rss`).
    """
    started = trio.current_time()
    peak = 0
    enough = 1.25 * _high_water("self")
    pidfd = os.pidfd_open(pid)
    try:
        while True:
            pause = min(0.25, max(0.005, (trio.current_time() - started) / 10))
            with trio.move_on_after(pause):
                await trio.lowlevel.wait_readable(pidfd)
                return peak
            peak = max(peak, _high_water(pid))
            if peak > enough:
                await trio.lowlevel.wait_readable(pidfd)
                return 0
    finally:
        os.close(pidfd)


async def _kill_and_reap(process: Process, keeper: Keeper | None) -> tuple[int, resource.struct_rusage] | None:
    """Kill what is left of the group, reap its leader, and say how that ended (`None`: it does not die)."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if keeper is not None:
        keeper.remove(process.pid)
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _REAP_SECONDS):
        pause = 0.0005
        while True:
            ended = process.reap()
            if ended is not None:
                return ended
            await trio.sleep(pause)
            pause = min(0.05, pause * 2)
    return None


def _high_water(pid: int | str) -> int:
    """The peak RSS of a living process's own memory in bytes; 0 when it cannot be told."""
    try:
        with Path(f"/proc/{pid}/status").open("rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _peak_rss(usage: resource.struct_rusage, sampled: int) -> int:
    """The peak RSS of a child in bytes.

    The kernel starts a child's `ru_maxrss` at its parent's peak (until the exec it shares the parent's memory), so a
    figure that is not above our own peak only says "no more than we had". Then the samples are the better answer.
    """
    told = usage.ru_maxrss * 1024
    if sampled and told <= _high_water("self"):
        return sampled
    return told


def _capture(file: IO[bytes]) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= 2 * _CAPTURE_BYTES:
        return file.read(size)
    head = file.read(_CAPTURE_BYTES)
    file.seek(size - _CAPTURE_BYTES)
    tail = file.read(_CAPTURE_BYTES)
    return head + f"\n[... {size - 2 * _CAPTURE_BYTES} bytes left out ...]\n".encode() + tail


def _is_output(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


async def _lay_down(content: Path | bytes, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        destination.write_bytes(content)
        return
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    source = os.open(content, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is not a regular file")
        if found.st_size > _THREAD_BYTES:
            await trio.to_thread.run_sync(_copy, source, destination)
        else:
            _copy(source, destination)
    finally:
        os.close(source)


def _copy(source: int, destination: Path) -> None:
    with destination.open("xb") as target:
        while os.sendfile(target.fileno(), source, None, _COPY_CHUNK):
            pass


async def _remove_tree(base: Path) -> None:
    """Remove a directory whose last writer was killed a moment ago and may still be dying."""
    for pause in (0.001, 0.01, 0.1, 1.0):
        shutil.rmtree(base, ignore_errors=True)
        with suppress(OSError):
            base.rmdir()  # rmtree needs descriptors, of which there may be none left
        if not base.exists():
            return
        await trio.sleep(pause)
