"""Fat LTO, a straight line: merge and optimise on one slot, release what was merged, generate code on all slots."""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define, field

from lto.fat._messages import FatEnded, FatQueued, FatReport, FatStarted
from workers.errors import bug_message
from workers.fat import FatLink, FatLinked, FatLtoBackend, FatPartition
from workers.slots import Slots
from workers.work import Deferred, Diagnostic, Engine, Estimate, Failed, Finished, NeedsFatLto, Severity, Step

__all__ = ["run_fat"]


async def run_fat(
    link: FatLink,
    backend: FatLtoBackend,
    slots: Slots,
    reports: trio.MemorySendChannel[FatReport],
    *,
    predict: Callable[[str, Step, Estimate], Estimate],
    keep_going: bool,
) -> tuple[str, ...]:
    """Merge, optimise, generate code; gives the partitions that were skipped after a failure.

    `predict` may know better than an estimate. The modules' bitcode is removed as soon as it has been merged. What
    happens goes to `reports`, results included; they come in any order. Cancelling stops what runs.
    """
    run = _Run(link, backend, slots, reports, predict, keep_going)
    await run.run()
    return tuple(sorted(run.skipped))


@define
class _Run:
    link: FatLink
    backend: FatLtoBackend
    slots: Slots
    reports: trio.MemorySendChannel[FatReport]
    predict: Callable[[str, Step, Estimate], Estimate]
    keep_going: bool
    aborted: bool = False
    waits: set[trio.CancelScope] = field(factory=set)
    skipped: list[str] = field(factory=list)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:

            def ready(partition: FatPartition) -> None:
                nursery.start_soon(self._generate, partition)

            result = await self._merge(ready)
            while isinstance(result, Deferred):
                await result.released()
                result = await self._merge(ready)
            # Whether or not it worked: nobody merges them again.
            for file in self.link.files:
                if isinstance(file, NeedsFatLto):
                    file.bitcode.unlink(missing_ok=True)
                    await trio.lowlevel.checkpoint()
            if isinstance(result, Failed):
                # Without all of its partitions there is no program, whatever the build would go on with.
                self._abort()
            await self.reports.send(FatEnded(result))

    async def _merge(self, ready: Callable[[FatPartition], None]) -> FatLinked | Failed | Deferred:
        """One attempt, on a slot."""
        estimate = self.predict(self.link.name, Step.FAT_LINK, self.backend.fat_estimate(self.link))
        async with self.slots.hold(self.link.name, estimate):
            await self.reports.send(FatStarted(self.link.name, Step.FAT_LINK))
            try:
                return await self.backend.fat_link(self.link, ready)
            except Exception as error:
                return _bug(self.link.name, error, Step.FAT_LINK)

    async def _generate(self, partition: FatPartition) -> None:
        """A worker task: one partition on a slot, and again if somebody else was making it."""
        await self.reports.send(FatQueued(partition.name))
        result = await self._attempt(partition)
        while isinstance(result, Deferred):
            with trio.CancelScope() as wait:
                self.waits.add(wait)
                await result.released()
            self.waits.discard(wait)
            result = await self._attempt(partition)
        if result is None:
            self.skipped.append(partition.name)
            return
        if isinstance(result, Failed) and not self.keep_going:
            self._abort()
        await self.reports.send(FatEnded(result))

    async def _attempt(self, partition: FatPartition) -> Finished | Failed | Deferred | None:
        """`None` where there is no point in it any more."""
        estimate = self.predict(partition.name, Step.FAT_CODEGEN, partition.estimate)
        async with self.slots.hold(partition.name, estimate):
            if self.aborted:
                return None
            await self.reports.send(FatStarted(partition.name, Step.FAT_CODEGEN))
            try:
                return await self.backend.fat_codegen(partition)
            except Exception as error:
                return _bug(partition.name, error, Step.FAT_CODEGEN)

    def _abort(self) -> None:
        self.aborted = True
        for wait in self.waits:
            wait.cancel()


def _bug(name: str, error: Exception, step: Step) -> Failed:
    """A bug in a backend costs the build that met it, not the service and the builds beside it."""
    return Failed(name, Engine.TOOLCHAIN, 0.0, 0, (Diagnostic(Severity.ERROR, name, bug_message(error)),), step)
