"""The main loop's shell: performs the machine's commands, feeds what becomes of them back as events.

One task owns the machine. Producers and workers reach it over one memory channel without a buffer: a sender
goes on as soon as the loop has taken its message, so nothing piles up that the machine does not know of. Each
batch is run by a worker task of its own, in the loop's nursery and in a cancel scope of its own.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import assert_never

import trio
from attrs import define, field, frozen

from coordinator._machine import Machine
from coordinator._messages import (
    AwaitItem,
    BatchEnded,
    CancelBatch,
    Command,
    EndStage,
    Event,
    ItemQueued,
    ItemReturned,
    PauseProducer,
    QueuedItem,
    ReleaseToken,
    RequestToken,
    ResumeProducer,
    StageCancelled,
    StageClosed,
    StageFailed,
    StageOpened,
    StartBatch,
    StopAwaiting,
    TokenGranted,
    WithdrawRequest,
)
from coordinator._slots import Lease
from coordinator._tokens import TokenSource
from workers.cached import CachedBackend
from workers.errors import InternalError, RequestError, bug_message
from workers.work import CopyArtifacts, Deferred, Diagnostic, Failed, Link, Optimize, Severity, WorkResult

__all__ = ["MainLoop", "Stage"]


@frozen
class _Worked:
    """A worker is done with a batch; no results if it was cancelled."""

    start: StartBatch
    results: Sequence[WorkResult | Deferred]


_Message = Event | _Worked


@define(eq=False)
class Stage:
    """A build's view of the main loop: one queue of items, from `MainLoop.open_stage`.

    `ended` is set when nothing of it is queued or running any more; it is `lost` if that is because the main loop
    has stopped. The two callbacks run in the main loop's task and must not block.
    """

    id: int
    on_started: Callable[[Sequence[QueuedItem]], None]
    on_results: Callable[[Sequence[WorkResult]], None]
    _channel: trio.MemorySendChannel[_Message]
    ended: trio.Event = field(factory=trio.Event, init=False)
    skipped: tuple[str, ...] = field(default=(), init=False)
    lost: bool = field(default=False, init=False)
    room: trio.Event | None = field(default=None, init=False)
    _producers: int = field(default=0, init=False)
    _quiet: trio.Event = field(factory=trio.Event, init=False)

    @contextmanager
    def producing(self) -> Iterator[None]:
        """While a task is in here with an item to queue, `close` waits for it."""
        self._producers += 1
        try:
            yield
        finally:
            self._producers -= 1
            if not self._producers:
                self._quiet.set()

    async def queue(self, item: QueuedItem) -> None:
        """Hand an item over; waits while the queue is full enough. Raises `RequestError` on a closed coordinator."""
        while self.room is not None:
            await self.room.wait()
        await self._send(ItemQueued(self.id, item))

    async def fail(self) -> None:
        """Count a failure that happened outside the queue."""
        await self._send(StageFailed(self.id))

    async def close(self) -> None:
        """Say that no more items come, once those on their way have arrived; `ended` follows."""
        while self._producers:
            self._quiet = trio.Event()
            await self._quiet.wait()
        await self._send(StageClosed(self.id))

    async def cancel(self) -> None:
        """Stop what runs, drop what waits, and wait until both is done. A coordinator that is gone is no error."""
        if not self.ended.is_set():
            try:
                await self._channel.send(StageCancelled(self.id))
            except trio.BrokenResourceError:
                return
            await self.ended.wait()

    async def _send(self, event: Event) -> None:
        try:
            await self._channel.send(event)
        except trio.BrokenResourceError:
            raise RequestError("the coordinator is closed: open another one") from None


@define(eq=False)
class MainLoop:
    """Runs the machine over a token source. Without a backend it has no work of its own, and only gives out slots."""

    tokens: TokenSource
    machine: Machine
    backend: CachedBackend | None = None
    _send: trio.MemorySendChannel[_Message] = field(init=False)
    _receive: trio.MemoryReceiveChannel[_Message] = field(init=False)
    _stages: dict[int, Stage] = field(factory=dict, init=False)
    _ids: itertools.count[int] = field(factory=itertools.count, init=False)
    _scopes: dict[int, trio.CancelScope] = field(factory=dict, init=False)
    _request: trio.CancelScope | None = field(default=None, init=False)
    _released: dict[str, Callable[[], Awaitable[None]]] = field(factory=dict, init=False)
    """How to wait for the deferred items of the batch that ended last."""
    _waits: dict[int, set[trio.CancelScope]] = field(factory=lambda: defaultdict(set), init=False)
    """For deferred items, by stage."""

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[_Message](0)

    async def open_stage(
        self,
        *,
        keep_going: bool,
        on_started: Callable[[Sequence[QueuedItem]], None],
        on_results: Callable[[Sequence[WorkResult]], None],
    ) -> Stage:
        """Open a queue of items for a build. Raises `RequestError` on a closed coordinator."""
        stage = Stage(next(self._ids), on_started, on_results, self._send)
        self._stages[stage.id] = stage
        await stage._send(StageOpened(stage.id, keep_going))
        return stage

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Then every worker is stopped, every token is back, every stage has ended."""
        try:
            with self._receive:
                async with trio.open_nursery() as nursery:
                    task_status.started()
                    async for message in self._receive:
                        for command in self._take(message):
                            self._perform(command, nursery)
        finally:
            for stage in self._stages.values():
                stage.lost = True
                _let_go(stage)
            self.tokens.close()

    def _take(self, message: _Message) -> list[Command]:
        if not isinstance(message, _Worked):
            match message:
                case ItemQueued(stage) | StageFailed(stage) | StageClosed(stage) | StageCancelled(stage) if (
                    stage not in self._stages
                ):
                    return []  # sent before its sender could know that another task had cancelled the build
            return self.machine.handle(message)
        start = message.start
        del self._scopes[start.batch]
        results = [result for result in message.results if not isinstance(result, Deferred)]
        if results:
            self._stages[start.stage].on_results(results)
        self._released = {result.module: result.released for result in message.results if isinstance(result, Deferred)}
        deferred = tuple(item for item in start.items if item.name in self._released)
        failures = sum(isinstance(result, Failed) for result in results)
        return self.machine.handle(BatchEnded(start.batch, failures, deferred))

    def _perform(self, command: Command, nursery: trio.Nursery) -> None:
        match command:
            case StartBatch():
                self._stages[command.stage].on_started(command.items)
                scope = self._scopes[command.batch] = trio.CancelScope()
                nursery.start_soon(self._work, command, scope, self._send.clone())
            case EndStage(stage, skipped):
                ended = self._stages.pop(stage)
                ended.skipped = skipped
                self._waits.pop(stage, None)
                _let_go(ended)
            case PauseProducer(stage):
                self._stages[stage].room = trio.Event()
            case ResumeProducer(stage):
                _resume(self._stages[stage])
            case CancelBatch(batch):
                self._scopes[batch].cancel()
            case AwaitItem(stage, item):
                scope = trio.CancelScope()
                self._waits[stage].add(scope)
                nursery.start_soon(self._wait, command, self._released[item.name], scope, self._send.clone())
            case StopAwaiting(stage):
                for scope in self._waits.pop(stage, ()):
                    scope.cancel()
            case RequestToken():
                self._request = trio.CancelScope()
                nursery.start_soon(self._acquire, self._request, self._send.clone())
            case WithdrawRequest():
                if self._request is not None:
                    self._request.cancel()
            case ReleaseToken(token):
                self.tokens.release(token)
            case _:
                assert_never(command)

    async def _acquire(self, scope: trio.CancelScope, events: trio.MemorySendChannel[_Message]) -> None:
        with events, scope:
            token = await self.tokens.acquire()
            try:
                await events.send(TokenGranted(token))
            except BaseException:
                self.tokens.release(token)
                raise

    async def _work(
        self, start: StartBatch, scope: trio.CancelScope, results: trio.MemorySendChannel[_Message]
    ) -> None:
        """A worker task: one batch on one token."""
        with results:
            outcome: Sequence[WorkResult | Deferred] = ()
            with scope:
                outcome = await self._run([item.work for item in start.items])
            await results.send(_Worked(start, outcome))

    async def _wait(
        self,
        command: AwaitItem,
        released: Callable[[], Awaitable[None]],
        scope: trio.CancelScope,
        events: trio.MemorySendChannel[_Message],
    ) -> None:
        """Wait for what somebody else is doing. It needs no token."""
        with events, scope:
            await released()
            await events.send(ItemReturned(command.stage, command.item))
        if command.stage in self._waits:
            self._waits[command.stage].discard(scope)

    async def _run(self, works: Sequence[Optimize | CopyArtifacts | Link | Lease]) -> Sequence[WorkResult | Deferred]:
        try:
            match works[0]:
                case Lease() as lease:
                    await lease.serve()
                    return []
                case _ if self.backend is None:
                    raise InternalError("a main loop without a backend was given work")
                case Link() as link:
                    return [await self.backend.link(link)]
                case Optimize() | CopyArtifacts():
                    return await self.backend.compile(
                        [work for work in works if isinstance(work, Optimize | CopyArtifacts)]
                    )
                case _:
                    assert_never(works[0])
        except Exception as error:
            # A bug in a backend costs the build that met it, not the service and the builds beside it.
            return [_bug(work, error) for work in works if not isinstance(work, Lease)]


def _let_go(stage: Stage) -> None:
    _resume(stage)
    stage.ended.set()


def _resume(stage: Stage) -> None:
    if stage.room is not None:
        stage.room.set()
        stage.room = None


def _bug(work: Optimize | CopyArtifacts | Link, error: Exception) -> Failed:
    options = work.item.options if isinstance(work, CopyArtifacts) else work.options
    return Failed(work.name, options.engine, 0.0, 0, (Diagnostic(Severity.ERROR, work.name, bug_message(error)),))
