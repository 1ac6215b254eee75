"""llvmlite in persistent child processes: LLVM without a tool's start-up, and its crashes kept away from us.

Here belongs who works on what, and what became of it. One child's handling is in `llvmlite_process`, what can be
asked of it in `llvmlite_request`, what it does in `workers.llvm.child`.

A child works on one module at a time. Whatever ends it (an LLVM abort, a segmentation fault, the kernel, the time
limit) is the outcome of the module it had in work and of no other; the next module gets another child, and nothing
is tried again. LLVM's last words are in the child's stderr, a file in memory: there is nothing to remove, whatever
happens.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import trio
from attrs import field, frozen

from workers.errors import InternalError
from workers.llvm.llvmlite_process import Child, ChildEndedError
from workers.llvm.llvmlite_request import Job, make_request
from workers.work import CodegenOptions, EmitKind

__all__ = ["Compiled", "Died", "LlvmlitePool", "Outcome", "Rejected", "Unsuitable"]

_MAX_IDLE_RSS = 512 << 20
"""A child that holds more than this after a module is replaced. A fresh one holds 60 MB, and 110 MB after its first
module; what lies above is fragmented heap that other items could use. A module that makes a heap this large compiles
for seconds, beside which the 60 ms of a new child are nothing. (What llvmlite leaks, 2 kB per module, needs 200,000
modules to get here.)"""

_READ_AHEAD = 32 << 10
"""Requests up to this size are sent while the module before them is in work: two fit into a pipe (64 kB), so that
sending never waits for the compiler."""

_LLVM_ERROR_STATUS = 1
"""How LLVM ends a process after an error in the module that it has reported: bad inline assembly, for one."""

_OUT_OF_MEMORY = ("bad_alloc", "out of memory")
"""What the C++ runtime, LLVM or the child writes to stderr before it aborts because memory cannot be had."""


@frozen(kw_only=True)
class Compiled:
    """All outputs are written. `seconds` is what the module took in the child; `stderr` has LLVM's warnings."""

    seconds: float
    peak_rss_bytes: int
    stderr: str = field(default="", repr=False)


@frozen(kw_only=True)
class Rejected:
    """LLVM says what is wrong with the module, or a file cannot be read or written; nothing crashed."""

    message: str
    seconds: float
    peak_rss_bytes: int = 0


@frozen(kw_only=True)
class Unsuitable:
    """Only the toolchain does with this module what clang would do; `reason` says why."""

    reason: str


@frozen(kw_only=True)
class Died:
    """The module ended its child, or no child could be started (`returncode`, as in `subprocess`, is `None`)."""

    description: str
    stderr: str = field(default="", repr=False)
    returncode: int | None = None
    timed_out: bool = False
    seconds: float = 0.0


Outcome = Compiled | Rejected | Unsuitable | Died


class LlvmlitePool:
    """At most `limit` children at a time, started when first needed and used again; `async with` ends them all.

    Children run in `scratch_dir`, and write nothing but the outputs they are told to write. Many tasks may use one
    pool. The thread that opens it must live as long as it, as the thread of a `trio.run` does.
    """

    def __init__(self, limit: int, scratch_dir: Path) -> None:
        self._slots = trio.Semaphore(limit)
        self._directory = scratch_dir
        self._idle: list[Child] = []
        self._alive: set[Child] = set()
        self._open = False

    async def __aenter__(self) -> LlvmlitePool:
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        children = tuple(self._alive)
        for child in children:
            child.signal_kill()
        for child in children:
            await self._discard(child)

    async def compile(
        self,
        module_name: str,
        content: Path | bytes,
        triple: str,
        options: CodegenOptions,
        outputs: Mapping[EmitKind, Path],
    ) -> Outcome:
        """Compile one module; like `compile_batch` in everything."""
        return (await self.compile_batch([Job(module_name, content, triple, options, outputs)]))[0]

    async def compile_batch(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Compile modules one after the other in one child: an outcome for each, in the order of `jobs`.

        The child does not wait for us between two of them. Each has its own limits of time and memory, and one that
        ends the child takes no other with it. When cancelled, the child is killed, finished outputs stay, and of
        the others there is no trace.

        Raises `InternalError` for options that `unsupported` refuses, or if the pool is not open.
        """
        requests = [json.dumps(make_request(job)).encode() for job in jobs]
        outcomes: list[Outcome] = []
        async with self._slots:
            while len(outcomes) < len(jobs):
                child = await self._take()
                if isinstance(child, Died):
                    outcomes.append(child)
                    continue
                done = len(outcomes)
                try:
                    fit = await _work(child, jobs[done:], requests[done:], outcomes)
                except BaseException:
                    await self._discard(child)
                    _remove_parts(jobs[done:], child)
                    raise
                if fit and self._open and child.rss_bytes <= _MAX_IDLE_RSS:
                    self._idle.append(child)
                else:
                    await self._discard(child)
                    _remove_parts(jobs[done:], child)
        return outcomes

    async def _take(self) -> Child | Died:
        """An idle child, or a new one, or why there is none."""
        if not self._open:
            raise InternalError("the llvmlite pool is used outside of its 'async with' block")
        while self._idle:
            child = self._idle.pop()
            if child.is_alive():
                child.forget_stderr()
                return child
            await self._discard(child)
        try:
            child = Child.start(self._directory)
        except OSError as error:
            return Died(description=f"no llvmlite process could be started: {error}")
        self._alive.add(child)
        try:
            await child.greeting()
        except (ChildEndedError, trio.TooSlowError):
            returncode, stderr = await child.end()
            self._alive.discard(child)
            return Died(
                description=f"an llvmlite process did not get ready: {_how(returncode)}",
                stderr=stderr,
                returncode=returncode,
            )
        except BaseException:
            await self._discard(child)
            raise
        return child

    async def _discard(self, child: Child) -> None:
        await child.kill()
        self._alive.discard(child)


async def _work(child: Child, jobs: Sequence[Job], requests: Sequence[bytes], outcomes: list[Outcome]) -> bool:
    """Let `child` work through `jobs`, adding to `outcomes`, until it is no longer fit for work. Is it still?"""
    sent = 0
    for index, job in enumerate(jobs):
        started = trio.current_time()
        try:
            with trio.fail_after(job.options.time_limit):
                while sent < len(jobs) and (sent <= index or (sent == index + 1 and _is_small(jobs[sent]))):
                    content = jobs[sent].content
                    await child.send(requests[sent], content if isinstance(content, bytes) else b"")
                    sent += 1
                answer = await child.receive()
        except trio.TooSlowError:
            description = f"did not end within {job.options.time_limit:g} s"
            stderr = child.take_stderr()
            seconds = trio.current_time() - started
            outcomes.append(Died(description=description, stderr=stderr, timed_out=True, seconds=seconds))
            return False
        except ChildEndedError:
            returncode, stderr = await child.end()
            seconds = trio.current_time() - started
            outcomes.append(_ending(returncode, stderr, seconds, job.options.memory_limit))
            return False
        outcomes.append(_outcome(answer, child.take_stderr(answer["stderr_end"])))
        if child.rss_bytes > _MAX_IDLE_RSS:
            # A module that was sent ahead is lost with the child, and goes to the next one.
            return False
    return True


def _is_small(job: Job) -> bool:
    return isinstance(job.content, Path) or len(job.content) <= _READ_AHEAD


def _outcome(answer: Mapping[str, Any], stderr: str) -> Outcome:
    if "unsuitable" in answer:
        return Unsuitable(reason=answer["unsuitable"])
    seconds, peak = answer["seconds"], answer["peak_rss"]
    if "rejected" in answer:
        return Rejected(message=answer["rejected"], seconds=seconds, peak_rss_bytes=peak)
    return Compiled(seconds=seconds, peak_rss_bytes=peak, stderr=stderr)


def _ending(returncode: int | None, stderr: str, seconds: float, memory_limit: int | None) -> Outcome:
    if returncode == _LLVM_ERROR_STATUS and stderr:
        return Rejected(message=stderr, seconds=seconds)
    description = _how(returncode)
    if any(sign in stderr for sign in _OUT_OF_MEMORY):
        limit = "" if memory_limit is None else f" with a limit of {memory_limit} bytes"
        description = f"out of memory{limit}, {description}"
    return Died(description=description, stderr=stderr, returncode=returncode, seconds=seconds)


def _how(returncode: int | None) -> str:
    match returncode:
        case None:
            return "it does not end, although it was killed"
        case -9:
            return "killed by SIGKILL: by somebody else or, if memory was short, by the kernel"
        case code if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"killed by {name} ({signal.strsignal(-code)})"
        case code:
            return f"ended with status {code}"


def _remove_parts(jobs: Sequence[Job], child: Child) -> None:
    """Remove what a dead child may have left of outputs in work; `workers.llvm.child.main` names them."""
    for job in jobs:
        for path in job.outputs.values():
            with suppress(OSError):
                path.with_name(f"{path.name}.part{child.pid}").unlink()
