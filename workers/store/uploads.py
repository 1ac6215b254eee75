"""Uploads to the second tier that nobody waits for.

Here belongs which uploads wait and for how long; what an upload is, is told by who owns them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

__all__ = ["Uploads"]

_T = TypeVar("_T")

_WAITING = 2_000
"""An entry that waits is a few hundred bytes, its files stay where they are. This is several builds of uploads."""

_WORKERS = 4


class Uploads(Generic[_T]):
    """Performs `upload`, which never raises: at once, or within `background` later and in the order of coming."""

    def __init__(self, upload: Callable[[_T], Awaitable[None]], dropped: Callable[[int], None]) -> None:
        self._upload = upload
        self._dropped = dropped
        self._send: trio.MemorySendChannel[_T] | None = None

    async def put(self, item: _T) -> None:
        """Upload, or have it uploaded. Never waits in the background: what does not fit in the queue is dropped."""
        if self._send is None:
            await self._upload(item)
            return
        try:
            self._send.send_nowait(item)
        except trio.WouldBlock:
            self._dropped(1)

    @asynccontextmanager
    async def background(self, drain_seconds: float) -> AsyncIterator[None]:
        """While in the block, `put` does not wait. At its end, what waits is uploaded for at most so long, or dropped.

        What the block raises is raised after that; when it is cancelled, everything is dropped at once.
        """
        if self._send is not None:
            raise RuntimeError("uploads are in the background already")
        failure: Exception | None = None
        send, receive = trio.open_memory_channel[_T](_WAITING)
        unfinished = 0

        async def work() -> None:
            nonlocal unfinished
            async for item in receive:
                unfinished += 1
                await self._upload(item)
                unfinished -= 1

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(_WORKERS):
                    nursery.start_soon(work)
                self._send = send
                try:
                    yield
                except Exception as error:
                    # Raised by the nursery it would be in a group.
                    failure = error
                finally:
                    self._send = None
                    send.close()
                    nursery.cancel_scope.deadline = trio.current_time() + drain_seconds
        finally:
            dropped = unfinished + receive.statistics().current_buffer_used
            receive.close()
            if dropped:
                self._dropped(dropped)
        if failure is not None:
            raise failure
