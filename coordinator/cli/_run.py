"""Runs one build in a trio program of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio
from attrs import frozen

from coordinator._cache import Cache
from coordinator._config import BuildConfig
from coordinator._coordinator import open_coordinator
from coordinator._events import BuildEvent, BuildFailed, BuildResult
from coordinator.cli._inputs import NativeInput
from coordinator.cli._progress import Progress
from coordinator.cli._signals import StopSignals
from workers.work import Diagnostic, Module, Severity

__all__ = ["BuildRequest", "run_build"]


@frozen(kw_only=True)
class BuildRequest:
    """What to build and what with; `None` means what `open_coordinator` makes of it."""

    config: BuildConfig
    jobs: int | None
    memory_budget: int | None
    toolchain: Path | None
    cache: Cache | None


def run_build(
    request: BuildRequest, files: Sequence[Module | NativeInput], progress: Progress, signals: StopSignals
) -> tuple[BuildResult | None, Sequence[Diagnostic]]:
    """Build `files`: the result, and what is to be told beside it.

    They are handed over in their order, which is the order a program is linked in. A signal cancels the build; there
    is no result when it came before the build began. Raises `RequestError`.
    """
    signals.defer()
    return trio.run(_run, request, files, progress, signals)


async def _run(
    request: BuildRequest, files: Sequence[Module | NativeInput], progress: Progress, signals: StopSignals
) -> tuple[BuildResult | None, Sequence[Diagnostic]]:
    warnings: list[Diagnostic] = []
    result: BuildResult | None = None
    failure: Exception | None = None
    with trio.CancelScope() as scope:
        signals.cancels(scope)
        async with open_coordinator(
            jobs=request.jobs,
            memory_budget=request.memory_budget,
            toolchain=request.toolchain,
            short_lived=True,
            cache=request.cache,
        ) as coordinator:
            if coordinator.warning is not None:
                warnings.append(Diagnostic(Severity.WARNING, None, coordinator.warning))
                progress.diagnostic(warnings[0])
            build = coordinator.build(request.config)
            try:
                async with trio.open_nursery() as nursery:
                    try:
                        async with build:
                            nursery.start_soon(progress.run)
                            nursery.start_soon(_follow, build.watch(), progress)
                            for file in files:
                                if isinstance(file, NativeInput):
                                    build.add_native(file.path, lazy=file.lazy)
                                elif not await build.submit(file):
                                    break
                            await build.finish()
                    except BuildFailed:
                        pass
                    except Exception as error:
                        # Raised again outside, where no nursery makes a group of it.
                        failure = error
                    nursery.cancel_scope.cancel()
            finally:
                result = build.result
            if coordinator.cache_warning is not None:
                warnings.append(Diagnostic(Severity.WARNING, None, coordinator.cache_warning))
                progress.diagnostic(warnings[-1])
    if failure is not None:
        raise failure
    return result, warnings


async def _follow(events: trio.MemoryReceiveChannel[BuildEvent], progress: Progress) -> None:
    """Show the events until the build has ended, however it ends: its last words count most."""
    with trio.CancelScope(shield=True), events:
        async for event in events:
            progress.event(event)
