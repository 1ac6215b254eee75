"""Slots for the LTO loops: tokens and memory that the main loop's machine gives out beside its own items.

An LTO loop decides what of its build runs next and runs it in workers of its own. Whether there is a token and the
memory for it is decided where all builds meet, in the main loop: to it a slot is an item of a stage like any other,
whose work is to wait until the slot is given back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio
from attrs import define, evolve, field

from coordinator._messages import QueuedItem
from workers.work import Estimate

if TYPE_CHECKING:
    from coordinator._loop import MainLoop, Stage

__all__ = ["Lease", "StageSlots", "run_with_slots"]

_T = TypeVar("_T")

_RETURN_SECONDS = 60.0
"""How long the holder of a revoked slot may take to give it back: it kills its processes first."""


@define(eq=False)
class Lease:
    """A slot between the main loop, which serves it, and its holder. `revoke` tells the holder to stop."""

    name: str
    revoke: Callable[[], object]
    granted: trio.Event = field(factory=trio.Event, init=False)
    returned: trio.Event = field(factory=trio.Event, init=False)

    async def serve(self) -> None:
        """In a worker of the main loop: give the slot out, and wait until it is back. Cancelling revokes it."""
        if self.returned.is_set():
            return  # nobody waits for it any more
        self.granted.set()
        try:
            await self.returned.wait()
        except trio.Cancelled:
            self.revoke()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _RETURN_SECONDS):
                await self.returned.wait()
            raise


@define(eq=False)
class StageSlots:
    """The slots of one stage; `limit` is the most there are. Keeps the contract of `workers.slots.Slots`.

    `revoke` is called when the main loop wants its slots back.
    """

    stage: Stage
    limit: int
    revoke: Callable[[], object]

    @asynccontextmanager
    async def hold(self, name: str, estimate: Estimate) -> AsyncIterator[None]:
        """Wait for a slot, and hold it until the context is left. Raises `RequestError` on a closed coordinator."""
        lease = Lease(name, self.revoke)
        try:
            # Each holder has a slot of its own, whatever shares a batch where the holder decides.
            await self.stage.queue(QueuedItem(name, lease, evolve(estimate, batch=None)))
            await lease.granted.wait()
            yield
        finally:
            lease.returned.set()


async def run_with_slots(
    loop: MainLoop, opened: Callable[[Stage], bool], work: Callable[[StageSlots], Awaitable[_T]]
) -> _T | None:
    """Do `work` with slots of `loop`; `None` if it was cancelled, by the loop or through the slots' stage.

    `opened` is told the stage, and says whether to go on. Raises `RequestError` on a closed coordinator.
    """
    # The LTO loops report what they do in their slots themselves.
    stage = await loop.open_stage(keep_going=True, on_started=_ignore, on_results=_ignore)
    done: _T | None = None
    try:
        with trio.CancelScope() as scope:
            if opened(stage):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, stage.ended, scope)
                    done = await work(StageSlots(stage, loop.tokens.limit, scope.cancel))
                    nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _RETURN_SECONDS):
            await stage.cancel()  # what nobody waits for any more may still be queued
    return done


def _ignore(_: object) -> None: ...


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
