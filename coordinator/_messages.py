"""What the main loop's machine takes in (events) and gives out (commands). Values only.

Each event says who sends it, each command what answers it. A *stage* is one queue of items of one build.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from coordinator._tokens import Token
from workers.work import Estimate

__all__ = [
    "AwaitItem",
    "BatchEnded",
    "CancelBatch",
    "Command",
    "EndStage",
    "Event",
    "ItemQueued",
    "ItemReturned",
    "PauseProducer",
    "QueuedItem",
    "ReleaseToken",
    "RequestToken",
    "ResumeProducer",
    "StageCancelled",
    "StageClosed",
    "StageFailed",
    "StageOpened",
    "StartBatch",
    "StopAwaiting",
    "TokenGranted",
    "WithdrawRequest",
]


@frozen
class QueuedItem:
    """One item as the machine sees it; `work` is opaque here.

    `held_bytes` is the memory that the item holds while it waits.
    """

    name: str
    work: Any
    estimate: Estimate
    held_bytes: int = 0


# Events: what has happened


@frozen
class StageOpened:
    """A build begins to submit items."""

    stage: int
    keep_going: bool = False


@frozen
class ItemQueued:
    """The build's producer submitted an item."""

    stage: int
    item: QueuedItem


@frozen
class StageFailed:
    """Something failed outside the queue: a module that could not even be inspected."""

    stage: int


@frozen
class StageClosed:
    """The producer has no more items."""

    stage: int


@frozen
class StageCancelled:
    """The build is not wanted any more: stop what runs."""

    stage: int


@frozen
class TokenGranted:
    """Answer to `RequestToken`; may cross with `WithdrawRequest`."""

    token: Token


@frozen
class BatchEnded:
    """A batch has left its worker, whatever became of it; `failures` counts its failed items.

    Nothing was done for the `deferred` ones, as somebody else is doing it.
    """

    batch: int
    failures: int = 0
    deferred: tuple[QueuedItem, ...] = ()


@frozen
class ItemReturned:
    """Answer to `AwaitItem`: the item can be tried again. May cross with `StopAwaiting`."""

    stage: int
    item: QueuedItem


Event = StageOpened | ItemQueued | StageFailed | StageClosed | StageCancelled | TokenGranted | BatchEnded | ItemReturned


# Commands: what the shell must do


@frozen
class StartBatch:
    """Run `items` in one worker on `token`; answer with `BatchEnded`."""

    batch: int
    stage: int
    items: tuple[QueuedItem, ...]
    token: Token


@frozen
class CancelBatch:
    """Stop a running batch; its `BatchEnded` still comes."""

    batch: int


@frozen
class AwaitItem:
    """Wait, without a token, until whoever is making the deferred item has ended; answer with `ItemReturned`."""

    stage: int
    item: QueuedItem


@frozen
class StopAwaiting:
    """None of the stage's deferred items is wanted any more."""

    stage: int


@frozen
class RequestToken:
    """Wait for one explicit token; answer with `TokenGranted`."""


@frozen
class WithdrawRequest:
    """The token asked for is not needed any more."""


@frozen
class ReleaseToken:
    """Give an explicit token back."""

    token: Token


@frozen
class PauseProducer:
    """The stage's queue is full enough: let its producer wait."""

    stage: int


@frozen
class ResumeProducer:
    """The stage's producer may go on."""

    stage: int


@frozen
class EndStage:
    """The stage is done: nothing queued, nothing running, and no more to come. `skipped` never started."""

    stage: int
    skipped: tuple[str, ...]


Command = (
    StartBatch
    | CancelBatch
    | AwaitItem
    | StopAwaiting
    | RequestToken
    | WithdrawRequest
    | ReleaseToken
    | PauseProducer
    | ResumeProducer
    | EndStage
)
