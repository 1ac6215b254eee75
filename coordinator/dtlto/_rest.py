"""What is left of a link's jobs, compiled by a coordinator of our own: tokens, memory, the thin loop, the store."""

from __future__ import annotations

import os
import signal
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import trio
from attrs import define, field, frozen

from coordinator._cache import Cache, OpenCache, open_cache
from coordinator._history import History
from coordinator._ledger import Ledger
from coordinator._loop import MainLoop
from coordinator._machine import Machine
from coordinator._memory import memory_limit
from coordinator._past import Past
from coordinator._records import ItemRecord, Records, Thing
from coordinator._slots import run_with_slots
from coordinator._tokens import token_source
from coordinator.cli._exit import ExitCode, Interrupted
from coordinator.cli._signals import StopSignals
from coordinator.cli._terminal import say
from coordinator.dtlto._linker import Linker
from coordinator.dtlto._options import Options
from coordinator.dtlto._report import Line, Report
from lto.thin import ThinEnded, ThinReport, run_thin
from workers.cached import CachedJobs, Shelf
from workers.errors import RequestError
from workers.ingredients import Key, NoKey
from workers.keeper import kept_directory
from workers.llvm.dtlto.compile import JobBackend, PlannedJob, estimate_of
from workers.llvm.dtlto.job_file import Job, JobFile
from workers.llvm.dtlto.keys import JobKey, JobKeys
from workers.llvm.fork_server import Starter
from workers.slots import Slots
from workers.thin import PlannedCompile, ThinCompile, ThinLink, ThinLinked, ThinLtoBackend
from workers.work import (
    CacheOutcome,
    CodegenOptions,
    Estimate,
    Failed,
    Finished,
    Step,
    Target,
)

__all__ = ["Request", "compile_left"]

_MEMORY_SHARE = 0.8
"""The rest is the linker's."""


@frozen(eq=False)
class Request:
    """What is left to do, and what is known of it. `before` is what became of each module the last time.

    The compiler is begun by the `starter`, if there is one.
    """

    options: Options
    job_file: JobFile
    directory: Path
    cache_dir: Path | None
    keys: JobKeys
    left: tuple[tuple[Job, Key | NoKey], ...]
    before: Mapping[tuple[str, str], ItemRecord]
    linker: Linker
    starter: Starter | None


def compile_left(request: Request, report: Report, mask: Iterable[int]) -> tuple[int, list[ItemRecord]]:
    """Compile it: gives the exit code, and the records. What goes wrong is said on standard error."""
    run = _Run(request, report)
    code: int
    with StopSignals() as signals:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signals.defer()
            trio.run(run.run, signals)
            code = run.code(signals)
        except Interrupted as interrupted:
            say(f"ltod-dtlto: {interrupted.message}")
            code = interrupted.exit_code
        except RequestError as error:
            say(f"ltod-dtlto: error: {error}")
            code = ExitCode.USAGE
        except Exception as error:
            say("this is a bug in ltod, please report it with all of the following:\n" + traceback.format_exc())
            say(f"ltod-dtlto: internal error: {type(error).__name__}: {error}")
            code = ExitCode.BUG
    return code, [ItemRecord.of(result) for result in run.results]


@define(eq=False)
class _Run:
    request: Request
    report: Report
    results: list[Finished | Failed] = field(factory=list)
    _gone: bool = False
    _finished: bool = False

    def code(self, signals: StopSignals) -> int:
        """The exit code, when all has ended."""
        if self._finished:
            failed = any(isinstance(result, Failed) for result in self.results)
            return ExitCode.FAILED if failed or self.report.skipped else ExitCode.OK
        if signals.received is not None and not self._gone:
            say(f"ltod-dtlto: {signals.received.message}")
            return signals.received.exit_code
        return ExitCode.FAILED

    async def run(self, signals: StopSignals) -> None:
        """All of it, unless a signal or the linker's end comes first."""
        with trio.CancelScope() as scope:
            signals.cancels(scope)
            cache = Cache(directory=self.request.cache_dir)
            async with open_cache(cache, os.environ) as opened:
                await self._compile(scope, opened)
                if opened.warning is not None:
                    say(f"ltod-dtlto: warning: {opened.warning}")
            self._finished = True

    async def _compile(self, scope: trio.CancelScope, cache: OpenCache) -> None:
        request = self.request
        failure: Exception | None = None
        with ExitStack() as stack:
            tokens = stack.enter_context(token_source(request.options.jobs, os.environ))
            if tokens.warning is not None:
                say(f"ltod-dtlto: warning: {tokens.warning}")
            parent = Path(tempfile.gettempdir())
            try:
                scratch = stack.enter_context(kept_directory(parent, "ltod-"))
            except OSError as error:
                raise RequestError(f"cannot make temporary files in {parent}: {error.strerror}; set TMPDIR") from error
            backend = CachedJobs(self._backend(scratch), Shelf(cache.store), scratch)
            loop = MainLoop(tokens, Machine(tokens.limit, int(memory_limit() * _MEMORY_SHARE)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_linker, scope)
                await nursery.start(loop.run)
                try:
                    await run_with_slots(loop, lambda _: True, lambda slots: self._work(backend, slots))
                except Exception as error:
                    failure = error  # raised again outside, where no nursery makes a group of it
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _watch_linker(self, scope: trio.CancelScope) -> None:
        """When nobody waits for us any more, stop."""
        descriptor = self.request.linker.pidfd()
        try:
            if descriptor is not None:
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        self._gone = True
        scope.cancel()

    def _backend(self, scratch: Path) -> JobBackend:
        request = self.request
        compiles = []
        for job, key in request.left:
            cc1 = request.keys.cc1(job) if isinstance(key, JobKey) else None
            inner = PlannedJob(job, cc1)
            holds = key.holds if isinstance(key, JobKey) else bool
            planned = PlannedCompile(key, request.directory / job.output, holds, inner)
            estimate = estimate_of(job, request.directory)
            compiles.append(ThinCompile(job.name, Path(job.bitcode), Path(job.shard), estimate, planned))
        output = Path(request.job_file.output)
        return JobBackend(
            self._program(),
            request.job_file,
            compiles,
            request.directory,
            scratch,
            request.directory / output.with_name(f"{output.name}.reproducers"),
            os.environ,
            request.starter,
        )

    def _program(self) -> tuple[str, ...]:
        """The compiler. Raises `RequestError` where there is none."""
        try:
            program = self.request.keys.program()
        except OSError as error:
            raise RequestError(f"the compiler {error.filename} that the linker names is not in PATH") from error
        if not os.access(program[0], os.X_OK) or os.path.isdir(program[0]):  # noqa: PTH112
            raise RequestError(f"the compiler {program[0]} that the linker names is no program that can be run")
        return program

    async def _work(self, backend: ThinLtoBackend, slots: Slots) -> None:
        request = self.request
        past = None
        if request.cache_dir is not None:
            past = Past(Records(request.cache_dir), Thing(Path(self.report.output), ""), request.before)
        ledger = Ledger(request.directory, CodegenOptions(), History(), past)
        link = ThinLink(
            (),
            None,
            (),
            ledger.options,
            Target("", ""),
            request.directory,
            request.directory,
            request.directory,
        )
        send, receive = trio.open_memory_channel[ThinReport](0)
        skipped: list[str] = []

        async def run() -> None:
            with send:
                skipped.extend(await run_thin(link, backend, slots, send, predict=self._predict, keep_going=False))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            with receive:
                async for report in receive:
                    if isinstance(report, ThinEnded) and not isinstance(report.result, ThinLinked):
                        ledger.add([report.result])
                        self._tell(ledger.results[-1])
        self.report.skipped = len(skipped)

    def _predict(self, name: str, step: Step, estimate: Estimate) -> Estimate:
        """What it took the last time, if that is known."""
        item = self.request.before.get((name, step.value))
        seconds = 0.0 if item is None else item.seconds or item.saved
        return Estimate(seconds, estimate.peak_rss_bytes) if seconds else estimate

    def _tell(self, result: object) -> None:
        if not isinstance(result, Finished | Failed):
            return
        self.results.append(result)
        use = result.cache
        there = use.outcome in (CacheOutcome.HIT, CacheOutcome.SHARED)
        seconds = use.saved_seconds if there else result.seconds
        self.report.add(Line(result.module, use.outcome, isinstance(result, Finished), seconds, use.reason))
        for diagnostic in result.diagnostics:
            say(f"ltod-dtlto: {diagnostic}")
