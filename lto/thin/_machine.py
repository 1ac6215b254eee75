"""The thin loop's decisions: events go in, commands come out. No I/O, no clock, no logging, no trio.

Order
    Costliest first: what is long must not start last.
Batches
    Compiles with an equal batch key may share a process. They are given out in rounds, one batch for each slot (the
    factoring of self-scheduled loops): the first round takes most of the work in few processes, each later one most of
    what is left, so that what was estimated wrongly evens out and all tokens finish together.
Slots
    A few batches wait for a slot at any time, not one, so that a smaller one can go where the memory for the
    costliest is not there yet; not all, so that late batches are cut to what is left then.
Deferred items
    What somebody else is making already is awaited without a slot, and then tried again before all others.
Abort
    A state: after the first failure (unless the build keeps going) what waits is withdrawn, what is awaited is given
    up, what runs is drained.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

from attrs import define, field

from lto.thin._messages import (
    AwaitItem,
    BatchEnded,
    BatchStarted,
    Command,
    Ended,
    Event,
    ItemReturned,
    LinkEnded,
    StartBatch,
    StartLink,
    StopAwaiting,
    WithdrawBatch,
)
from workers.errors import InternalError
from workers.thin import ThinCompile
from workers.work import Estimate

__all__ = ["Machine"]

BATCH_ITEMS = 256
"""Most modules in one batch: bounds what is compiled again, one by one, when a batch is not clean."""
BATCH_SECONDS = 5.0
"""Most predicted work in one batch: others who wait for the slot wait that long."""
ROUND_SHARE = 0.7
"""How much of what is left one round takes: estimates of whole batches are wrong by less than the rest can make up."""
LEAST_BATCH_SECONDS = 0.25
"""What a batch may have whatever its share: less would not pay for a process that does the thin link again."""
WAITING = 4
"""How many batches wait for a slot at once."""


@define
class Machine:
    """The state of one build's ThinLTO. `limit` is the most slots there are.

    `handle` raises `InternalError`, and changes nothing, for an event that cannot happen.
    """

    limit: int
    keep_going: bool
    _linking: bool = field(default=False, init=False)
    _queue: deque[ThinCompile] = field(factory=deque, init=False)
    _queued_seconds: float = field(default=0.0, init=False)
    _share: float = field(default=0.0, init=False)
    _left_in_round: int = field(default=0, init=False)
    _waiting: dict[int, StartBatch] = field(factory=dict, init=False)
    _running: dict[int, StartBatch] = field(factory=dict, init=False)
    _withdrawn: set[int] = field(factory=set, init=False)
    _awaited: set[str] = field(factory=set, init=False)
    _aborted: bool = field(default=False, init=False)
    _skipped: list[str] = field(factory=list, init=False)
    _batches: int = field(default=0, init=False)
    _story: deque[Event | Command] = field(factory=lambda: deque(maxlen=200), init=False, repr=False)

    def begin(self) -> list[Command]:
        """The first commands."""
        self._linking = True
        return [StartLink()]

    def handle(self, event: Event) -> list[Command]:
        """Take one event; the commands are to be performed in order."""
        commands: list[Command] = []
        match event:
            case LinkEnded(compiles, ok):
                if not self._linking:
                    raise self._impossible("the thin link ended twice")
                self._linking = False
                self._aborted = not ok
                self._queue = deque(sorted(compiles, key=_costliest_first) if ok else ())
                self._queued_seconds = sum(compile_.estimate.seconds for compile_ in self._queue)
            case BatchStarted(batch):
                if batch not in self._waiting:
                    raise self._impossible(f"batch {batch} does not wait for a slot")
                self._running[batch] = self._waiting.pop(batch)
                self._withdrawn.discard(batch)  # it had its slot before it could be told
            case BatchEnded(batch, failures, skipped, deferred):
                self._batch_ended(batch, failures, commands)
                self._skipped += skipped
                self._defer(deferred, commands)
            case ItemReturned(item):
                if item.name in self._awaited:
                    self._awaited.remove(item.name)
                    self._queue.appendleft(item)
                    self._queued_seconds += item.estimate.seconds
            case _:
                assert_never(event)
        self._story.append(event)
        self._start_batches(commands)
        if not (self._linking or self._queue or self._waiting or self._running or self._awaited):
            commands.append(Ended(tuple(sorted(self._skipped))))
        self._story.extend(commands)
        return commands

    def _batch_ended(self, batch: int, failures: int, commands: list[Command]) -> None:
        started = self._running.pop(batch, None)
        if started is None:
            if batch not in self._waiting or batch not in self._withdrawn:
                raise self._impossible(f"batch {batch} is not running")
            self._skipped += [item.name for item in self._waiting.pop(batch).items]
        self._withdrawn.discard(batch)
        if failures and not self.keep_going and not self._aborted:
            self._aborted = True
            self._skipped += [item.name for item in self._queue]
            self._queue.clear()
            self._withdrawn |= self._waiting.keys()
            commands += [WithdrawBatch(waiting) for waiting in self._waiting]
            if self._awaited:
                self._skipped += self._awaited
                self._awaited.clear()
                commands.append(StopAwaiting())

    def _defer(self, items: tuple[ThinCompile, ...], commands: list[Command]) -> None:
        if self._aborted:
            self._skipped += [item.name for item in items]
        else:
            self._awaited |= {item.name for item in items}
            commands += [AwaitItem(item) for item in items]

    def _start_batches(self, commands: list[Command]) -> None:
        while self._queue and len(self._waiting) < WAITING:
            items = self._take_batch()
            self._batches += 1
            estimate = Estimate(
                sum(item.estimate.seconds for item in items), max(item.estimate.peak_rss_bytes for item in items)
            )
            batch = StartBatch(self._batches, tuple(items), estimate)
            self._waiting[batch.batch] = batch
            commands.append(batch)

    def _take_batch(self) -> list[ThinCompile]:
        if not self._left_in_round:
            self._left_in_round = self.limit
            share = ROUND_SHARE * self._queued_seconds / self.limit
            self._share = min(BATCH_SECONDS, max(LEAST_BATCH_SECONDS, share))
        self._left_in_round -= 1
        batch = [self._queue.popleft()]
        seconds = batch[0].estimate.seconds
        key = batch[0].estimate.batch
        while key is not None and self._queue and len(batch) < BATCH_ITEMS:
            following = self._queue[0].estimate
            if following.batch != key or seconds + following.seconds > self._share:
                break
            seconds += following.seconds
            batch.append(self._queue.popleft())
        self._queued_seconds = max(0.0, self._queued_seconds - seconds) if self._queue else 0.0
        return batch

    def check_invariants(self) -> None:
        """Raise `InternalError` where the state contradicts itself; for tests."""
        if self._aborted and (self._queue or self._awaited):
            raise self._impossible("an aborted loop has a queue")
        if self._waiting.keys() & self._running.keys():
            raise self._impossible("a batch waits and runs")
        if not self._withdrawn <= self._waiting.keys():
            raise self._impossible("a batch that does not wait is withdrawn")

    def _impossible(self, what: str) -> InternalError:
        story = "\n  ".join(repr(entry) for entry in self._story)
        return InternalError(f"thin loop: {what}. What led there:\n  {story}")


def _costliest_first(item: ThinCompile) -> tuple[float, str]:
    return -item.estimate.seconds, item.name
