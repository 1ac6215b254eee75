"""The thin loop's shell: performs the machine's commands, feeds what becomes of them back as events.

One task owns the machine. The thin link and every batch run in worker tasks of their own, each on a slot; their
results come back over one memory channel without a buffer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define, evolve, field, frozen

from lto.thin._machine import Machine
from lto.thin._messages import (
    AwaitItem,
    BatchEnded,
    BatchStarted,
    Command,
    Ended,
    ItemReturned,
    LinkEnded,
    StartBatch,
    StartLink,
    StopAwaiting,
    ThinEnded,
    ThinQueued,
    ThinReport,
    ThinStarted,
    WithdrawBatch,
)
from workers.errors import bug_message
from workers.slots import Slots
from workers.thin import ThinCompile, ThinLink, ThinLinked, ThinLtoBackend
from workers.work import Deferred, Diagnostic, Engine, Estimate, Failed, Finished, Severity, Step

__all__ = ["run_thin"]


async def run_thin(
    link: ThinLink,
    backend: ThinLtoBackend,
    slots: Slots,
    reports: trio.MemorySendChannel[ThinReport],
    *,
    predict: Callable[[str, Step, Estimate], Estimate],
    keep_going: bool,
) -> tuple[str, ...]:
    """Do the thin link and every backend compile; gives the modules that were skipped after a failure.

    `predict` may know better than an estimate. What happens goes to `reports`, results included; they come in any
    order. Cancelling stops what runs.
    """
    loop = _Loop(link, backend, slots, reports, predict, Machine(slots.limit, keep_going))
    return await loop.run()


@frozen
class _Linked:
    """A worker is done with the thin link."""

    result: ThinLinked | Failed


@frozen
class _Compiled:
    """A worker is done with a batch; no results if it was withdrawn, fewer than items if it ended with a failure."""

    batch: int
    results: tuple[Finished | Failed | Deferred, ...]


_Message = _Linked | BatchStarted | _Compiled | ItemReturned


@define
class _Loop:
    link: ThinLink
    backend: ThinLtoBackend
    slots: Slots
    reports: trio.MemorySendChannel[ThinReport]
    predict: Callable[[str, Step, Estimate], Estimate]
    machine: Machine
    scopes: dict[int, trio.CancelScope] = field(factory=dict)
    batches: dict[int, StartBatch] = field(factory=dict)
    released: dict[str, Callable[[], Awaitable[None]]] = field(factory=dict)
    """How to wait for the deferred items of the batch that ended last."""
    waits: set[trio.CancelScope] = field(factory=set)
    told: set[str] = field(factory=set)
    """Compiles that are known to the build."""

    async def run(self) -> tuple[str, ...]:
        send, receive = trio.open_memory_channel[_Message](0)
        with send, receive:
            async with trio.open_nursery() as nursery:
                commands = self.machine.begin()
                while True:
                    for command in commands:
                        if isinstance(command, Ended):
                            return command.skipped
                        await self._perform(command, nursery, send)
                    commands = await self._take(await receive.receive())

    async def _take(self, message: _Message) -> list[Command]:
        match message:
            case BatchStarted(batch):
                for item in self.batches[batch].items:
                    await self.reports.send(ThinStarted(item.name, Step.THIN_BACKEND))
                return self.machine.handle(message)
            case _Linked(result):
                await self.reports.send(ThinEnded(result))
                if isinstance(result, Failed):
                    return self.machine.handle(LinkEnded((), ok=False))
                if result.regular is not None:
                    await self.reports.send(ThinEnded(result.regular))
                compiles = tuple(
                    evolve(item, estimate=self.predict(item.name, Step.THIN_BACKEND, item.estimate))
                    for item in result.compiles
                )
                return self.machine.handle(LinkEnded(compiles, ok=True))
            case _Compiled(batch, results):
                del self.scopes[batch]
                items = self.batches.pop(batch).items
                for done in results:
                    if not isinstance(done, Deferred):
                        await self.reports.send(ThinEnded(done))
                failures = sum(isinstance(done, Failed) for done in results)
                skipped = tuple(item.name for item in items[len(results) :]) if failures else ()
                self.released = {done.module: done.released for done in results if isinstance(done, Deferred)}
                deferred = tuple(item for item in items if item.name in self.released)
                return self.machine.handle(BatchEnded(batch, failures, skipped, deferred))
            case ItemReturned():
                return self.machine.handle(message)

    async def _perform(
        self,
        command: StartLink | StartBatch | WithdrawBatch | AwaitItem | StopAwaiting,
        nursery: trio.Nursery,
        send: trio.MemorySendChannel[_Message],
    ) -> None:
        match command:
            case StartLink():
                nursery.start_soon(self._do_link, send.clone())
            case StartBatch(batch, items):
                self.batches[batch] = command
                self.scopes[batch] = trio.CancelScope()
                for item in items:
                    if item.name not in self.told:
                        self.told.add(item.name)
                        await self.reports.send(ThinQueued(item.name))
                nursery.start_soon(self._compile, command, self.scopes[batch], send.clone())
            case WithdrawBatch(batch):
                self.scopes[batch].cancel()
            case AwaitItem(item):
                scope = trio.CancelScope()
                self.waits.add(scope)
                nursery.start_soon(self._wait, item, self.released[item.name], scope, send.clone())
            case StopAwaiting():
                for scope in self.waits:
                    scope.cancel()

    async def _do_link(self, send: trio.MemorySendChannel[_Message]) -> None:
        """A worker task: the thin link on a slot."""
        with send:
            estimate = self.predict(self.link.name, Step.THIN_LINK, self.backend.thin_estimate(self.link))
            async with self.slots.hold(self.link.name, estimate):
                await self.reports.send(ThinStarted(self.link.name, Step.THIN_LINK))
                try:
                    result = await self.backend.thin_link(self.link)
                except Exception as error:
                    result = _bug(self.link.name, error, Step.THIN_LINK)
            await send.send(_Linked(result))

    async def _compile(
        self, batch: StartBatch, scope: trio.CancelScope, send: trio.MemorySendChannel[_Message]
    ) -> None:
        """A worker task: one batch on one slot."""
        with send:
            results: tuple[Finished | Failed | Deferred, ...] = ()
            with scope:
                async with self.slots.hold(batch.items[0].name, batch.estimate):
                    # Once the loop has taken this, the batch is not withdrawn any more.
                    await send.send(BatchStarted(batch.batch))
                    try:
                        compiled = await self.backend.thin_compile(batch.items, keep_going=self.machine.keep_going)
                        results = tuple(compiled)
                    except Exception as error:
                        results = tuple(_bug(item.name, error, Step.THIN_BACKEND) for item in batch.items)
            await send.send(_Compiled(batch.batch, results))

    async def _wait(
        self,
        item: ThinCompile,
        released: Callable[[], Awaitable[None]],
        scope: trio.CancelScope,
        send: trio.MemorySendChannel[_Message],
    ) -> None:
        """Wait for what somebody else is making. It needs no slot."""
        with send, scope:
            await released()
            await send.send(ItemReturned(item))
        self.waits.discard(scope)


def _bug(name: str, error: Exception, step: Step) -> Failed:
    """A bug in a backend costs the build that met it, not the service and the builds beside it."""
    return Failed(name, Engine.TOOLCHAIN, 0.0, 0, (Diagnostic(Severity.ERROR, name, bug_message(error)),), step)
