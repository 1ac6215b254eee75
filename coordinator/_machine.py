"""The main loop's decisions: events go in, commands come out. No I/O, no clock, no logging, no trio.

The shell (`coordinator._loop`) performs each command and feeds its outcome back as an event, failures
included. What is decided here:

Order
    Costliest first within a build (the longest-processing-time rule: what is long must not start last).
Sharing
    The build with the fewest running batches goes next, then the one that has been served least. A build that
    opens late starts at the service of the least served one, so it neither starves nor is starved.
Tokens
    A running batch holds one token. The implicit token is ours for ever; explicit ones are asked for one at a
    time, only when an item could start, and are given back as soon as nothing can start on them.
Memory
    An item starts only if its predicted peak fits what is left of the budget. One item may always run, so a
    prediction above the budget cannot deadlock. Items that fit may overtake one that does not, a bounded
    number of times; then nothing else starts until it has had its turn.
Batches
    Items of one build with an equal batch key may share one dispatch. A batch takes a share of what is queued
    (guided self-scheduling), so batches shrink towards the end and all tokens finish together.
Deferred items
    What somebody else is computing already is awaited without a token, and then queued again. The stage stays open for
    it.
Abort
    A state: the first failure (unless the build keeps going) empties the build's queue and starts nothing
    more of it; what runs is drained, and its results count; what is awaited is given up. Cancelling a build also stops
    what runs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import assert_never

from attrs import define, field, frozen

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
from coordinator._tokens import IMPLICIT, Token
from workers.errors import InternalError

__all__ = ["Machine", "queue_full_enough"]

BATCH_ITEMS = 32
"""Most items in one batch: bounds what is run again one by one when a batch is not clean."""
BATCH_SECONDS = 0.25
"""Most predicted work in one batch: some 20 process starts' worth, so the start is paid for many times over."""
LEAST_BATCH_SECONDS = 0.1
"""What a batch may have whatever its share: less would not pay for the start, and bounds how long others wait for
the last batch."""
LOOKAHEAD = 8
"""How many of a build's costliest items are tried when they do not fit the memory that is left."""
OVERTAKE_LIMIT = 32
"""How often an item may be overtaken for want of memory before everything else waits for it."""


def queue_full_enough(items: int, held_bytes: int, limit: int) -> bool:
    """Whether a producer should wait before it submits more.

    A long queue is what makes costliest-first and batches work, and a queued file costs about a kilobyte: so the
    bound on their number is generous. What a queue must not do is hold the whole program in memory, so content
    that is held in memory counts by its bytes, once every token has two items to go on with.
    """
    return items >= 512 * limit or (held_bytes >= 256 * 2**20 and items >= 2 * limit)


@define(order=False)
class _Entry:
    """One queued item; `overtaken` counts the items started before it for want of memory."""

    item: QueuedItem
    stage: int
    overtaken: int = 0


@define
class _Stage:
    """What is known of one stage; `service` is the predicted seconds started for it so far."""

    id: int
    keep_going: bool
    service: float
    queue: list[tuple[float, int, _Entry]] = field(factory=list)
    queued_seconds: float = 0.0
    held_bytes: int = 0
    running: int = 0
    closed: bool = False
    aborted: bool = False
    paused: bool = False
    skipped: list[str] = field(factory=list)
    awaited: dict[str, QueuedItem] = field(factory=dict)

    @property
    def waiting(self) -> int:
        """Items that have not been done yet, but for those that run."""
        return len(self.queue) + len(self.awaited)


@frozen
class _Running:
    stage: int
    token: Token
    peak: int


@define
class Machine:
    """The state of the main loop. `limit` is the most tokens at once, `budget` the memory in bytes.

    `handle` raises `InternalError`, and changes nothing, for an event that cannot happen.
    """

    limit: int
    budget: int
    _stages: dict[int, _Stage] = field(factory=dict, init=False)
    _running: dict[int, _Running] = field(factory=dict, init=False)
    _idle: list[Token] = field(factory=lambda: [IMPLICIT], init=False)
    _requested: bool = field(default=False, init=False)
    _reserved: int = field(default=0, init=False)
    _starving: _Entry | None = field(default=None, init=False)
    _sequence: int = field(default=0, init=False)
    _batches: int = field(default=0, init=False)
    _may_end: _Stage | None = field(default=None, init=False)
    _story: deque[Event | Command] = field(factory=lambda: deque(maxlen=200), init=False, repr=False)

    def handle(self, event: Event) -> list[Command]:
        """Take one event; the commands are to be performed in order."""
        commands: list[Command] = []
        match event:
            case ItemQueued(stage, item):
                self._queue(self._stage(stage), item, commands)
            case BatchEnded(batch, failures, deferred):
                self._batch_ended(batch, failures, deferred, commands)
            case ItemReturned(stage, item):
                if stage in self._stages and self._stages[stage].awaited.pop(item.name, None) is not None:
                    self._stages[stage].held_bytes -= item.held_bytes
                    self._push(self._stages[stage], item)
            case TokenGranted(token):
                self._requested = False
                self._idle.append(token)
            case StageOpened(stage, keep_going):
                if stage in self._stages:
                    raise self._impossible(f"stage {stage} is open already")
                service = min((s.service for s in self._stages.values()), default=0.0)
                self._stages[stage] = _Stage(stage, keep_going, service)
            case StageFailed(stage):
                state = self._stage(stage)
                if not state.keep_going:
                    self._abort(state, commands)
            case StageClosed(stage):
                self._close(self._stage(stage))
            case StageCancelled(stage):
                state = self._stage(stage)
                self._abort(state, commands)
                self._close(state)
                commands += [CancelBatch(b) for b, running in self._running.items() if running.stage == stage]
            case _:
                assert_never(event)
        self._story.append(event)
        self._dispatch(commands)
        self._end_stages(commands)
        self._story.extend(commands)
        return commands

    # One event each

    def _queue(self, stage: _Stage, item: QueuedItem, commands: list[Command]) -> None:
        if stage.aborted:
            stage.skipped.append(item.name)
            return
        if stage.closed:
            raise self._impossible(f"item {item.name!r} for the closed stage {stage.id}")
        self._push(stage, item)
        if not stage.paused and queue_full_enough(stage.waiting, stage.held_bytes, self.limit):
            stage.paused = True
            commands.append(PauseProducer(stage.id))

    def _push(self, stage: _Stage, item: QueuedItem) -> None:
        self._sequence += 1
        heapq.heappush(stage.queue, (-item.estimate.seconds, self._sequence, _Entry(item, stage.id)))
        stage.queued_seconds += item.estimate.seconds
        stage.held_bytes += item.held_bytes

    def _batch_ended(
        self, batch: int, failures: int, deferred: tuple[QueuedItem, ...], commands: list[Command]
    ) -> None:
        running = self._running.pop(batch, None)
        if running is None:
            raise self._impossible(f"batch {batch} is not running")
        stage = self._stage(running.stage)
        stage.running -= 1
        self._reserved -= running.peak
        self._idle.append(running.token)
        if failures and not stage.keep_going:
            self._abort(stage, commands)
        if stage.aborted:
            stage.skipped += [item.name for item in deferred]
        else:
            for item in deferred:
                stage.awaited[item.name] = item
                stage.held_bytes += item.held_bytes  # it waits on
                stage.service -= item.estimate.seconds  # it was not served
                commands.append(AwaitItem(stage.id, item))
        self._may_end = stage

    def _close(self, stage: _Stage) -> None:
        stage.closed = True
        self._may_end = stage

    def _abort(self, stage: _Stage, commands: list[Command]) -> None:
        stage.aborted = True
        stage.skipped += [entry.item.name for _, _, entry in stage.queue]
        stage.queue.clear()
        if stage.awaited:
            stage.skipped += stage.awaited
            stage.awaited.clear()
            commands.append(StopAwaiting(stage.id))
        stage.queued_seconds = 0.0
        stage.held_bytes = 0
        if self._starving is not None and self._starving.stage == stage.id:
            self._starving = None
        self._resume(stage, commands)

    # After every event

    def _dispatch(self, commands: list[Command]) -> None:
        """Start what can start, then settle the tokens with what is left."""
        if not self._idle and (self._requested or len(self._running) == self.limit) and self._has_queue():
            return
        startable, overtaken = self._next()
        while startable is not None and self._idle:
            self._count_overtaking(overtaken)
            self._start(startable, commands)
            startable, overtaken = self._next()
        if startable is not None:
            # Every token is busy: ask for one more, if there can be one.
            if not self._requested and len(self._running) < self.limit:
                self._requested = True
                commands.append(RequestToken())
            return
        if self._requested:
            self._requested = False
            commands.append(WithdrawRequest())
        self._release_idle(commands)

    def _has_queue(self) -> bool:
        return any(stage.queue for stage in self._stages.values())

    def _release_idle(self, commands: list[Command]) -> None:
        commands += [ReleaseToken(token) for token in self._idle if token is not IMPLICIT]
        self._idle = [token for token in self._idle if token is IMPLICIT]

    def _next(self) -> tuple[_Entry | None, list[_Entry]]:
        """The item to start next, left in its queue, and those that it overtakes for want of memory."""
        if self._starving is not None:
            return (self._starving if self._fits(self._starving) else None), []
        waiting = [stage for stage in self._stages.values() if stage.queue]
        if len(waiting) > 1:
            waiting.sort(key=_fair_share)
        blocked: list[_Entry] = []
        for stage in waiting:
            head = stage.queue[0][2]
            candidates = (head,) if self._fits(head) else [e for _, _, e in heapq.nsmallest(LOOKAHEAD, stage.queue)]
            for entry in candidates:
                if self._fits(entry):
                    return entry, blocked
                blocked.append(entry)
        return None, blocked

    def _fits(self, entry: _Entry) -> bool:
        return not self._running or self._reserved + entry.item.estimate.peak_rss_bytes <= self.budget

    def _count_overtaking(self, blocked: list[_Entry]) -> None:
        for entry in blocked:
            entry.overtaken += 1
            if entry.overtaken >= OVERTAKE_LIMIT and self._starving is None:
                self._starving = entry

    def _start(self, first: _Entry, commands: list[Command]) -> None:
        stage = self._stages[first.stage]
        if self._starving is first:
            self._starving = None
        entries = self._take_batch(stage, first)
        # The implicit token first, so that explicit ones go back to the others soonest.
        token = IMPLICIT if IMPLICIT in self._idle else self._idle[-1]
        self._idle.remove(token)
        self._batches += 1
        peak = max(entry.item.estimate.peak_rss_bytes for entry in entries)
        self._running[self._batches] = _Running(stage.id, token, peak)
        self._reserved += peak
        stage.running += 1
        for entry in entries:
            stage.service += entry.item.estimate.seconds
            stage.held_bytes -= entry.item.held_bytes
        commands.append(StartBatch(self._batches, stage.id, tuple(entry.item for entry in entries), token))
        if stage.paused and not queue_full_enough(2 * stage.waiting, 2 * stage.held_bytes, self.limit):
            self._resume(stage, commands)

    def _take_batch(self, stage: _Stage, first: _Entry) -> list[_Entry]:
        """Take `first` out of its queue, and with it as many like it as make a good batch."""
        key = first.item.estimate.batch
        share = min(BATCH_SECONDS, max(LEAST_BATCH_SECONDS, stage.queued_seconds / (2 * self.limit)))
        if stage.queue[0][2] is first:
            heapq.heappop(stage.queue)
        else:
            stage.queue = [queued for queued in stage.queue if queued[2] is not first]
            heapq.heapify(stage.queue)
        batch = [first]
        seconds = first.item.estimate.seconds
        while key is not None and stage.queue and len(batch) < BATCH_ITEMS:
            entry = stage.queue[0][2]
            estimate = entry.item.estimate
            if estimate.batch != key or seconds + estimate.seconds > share or entry is self._starving:
                break
            if estimate.peak_rss_bytes > first.item.estimate.peak_rss_bytes and not self._fits(entry):
                break
            heapq.heappop(stage.queue)
            batch.append(entry)
            seconds += estimate.seconds
        stage.queued_seconds = max(0.0, stage.queued_seconds - seconds) if stage.queue else 0.0
        return batch

    def _resume(self, stage: _Stage, commands: list[Command]) -> None:
        if stage.paused:
            stage.paused = False
            commands.append(ResumeProducer(stage.id))

    def _end_stages(self, commands: list[Command]) -> None:
        stage, self._may_end = self._may_end, None
        if stage is not None and stage.closed and not (stage.queue or stage.running or stage.awaited):
            del self._stages[stage.id]
            commands.append(EndStage(stage.id, tuple(sorted(stage.skipped))))

    # For the shell, for tests, and for reports

    @property
    def story(self) -> tuple[Event | Command, ...]:
        """The latest events and commands, oldest first."""
        return tuple(self._story)

    def check_invariants(self) -> None:
        """Raise `InternalError` where the state contradicts itself; for tests."""
        claims: dict[str, Callable[[], bool]] = {
            "no more batches than tokens": lambda: len(self._running) <= self.limit,
            "memory is reserved for what runs": lambda: self._reserved == sum(r.peak for r in self._running.values()),
            "memory is within the budget, or one batch runs": lambda: (
                self._reserved <= self.budget or len(self._running) <= 1
            ),
            "tokens are held once": lambda: (
                len({id(t) for t in (*self._idle, *(r.token for r in self._running.values()))})
                == len(self._idle) + len(self._running)
            ),
            "the implicit token is never lost": lambda: (
                IMPLICIT in self._idle or any(r.token is IMPLICIT for r in self._running.values())
            ),
            "running batches are counted": lambda: all(
                s.running == sum(r.stage == s.id for r in self._running.values()) for s in self._stages.values()
            ),
            "an aborted stage has no queue": lambda: (
                not any(s.aborted and (s.queue or s.awaited) for s in self._stages.values())
            ),
            "no explicit token idles": lambda: all(t is IMPLICIT for t in self._idle),
            "the implicit token idles only when nothing can start": lambda: not self._idle or self._next()[0] is None,
        }
        for claim, holds in claims.items():
            if not holds():
                raise self._impossible(f"it does not hold that {claim}")

    def _stage(self, stage: int) -> _Stage:
        try:
            return self._stages[stage]
        except KeyError:
            raise self._impossible(f"stage {stage} is not open") from None

    def _impossible(self, what: str) -> InternalError:
        story = "\n  ".join(repr(entry) for entry in self._story)
        return InternalError(f"main loop: {what}. What led there:\n  {story}")


def _fair_share(stage: _Stage) -> tuple[int, float, int]:
    return stage.running, stage.service, stage.id
