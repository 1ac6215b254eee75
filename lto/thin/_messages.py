"""What the thin loop's machine takes in (events) and gives out (commands), and what the loop tells the build.

Values only. Each event says who sends it, each command what answers it.
"""

from __future__ import annotations

from attrs import field, frozen

from workers.thin import ThinCompile, ThinLinked
from workers.work import Estimate, Failed, Finished, Step, count, typed

__all__ = [
    "AwaitItem",
    "BatchEnded",
    "BatchStarted",
    "Command",
    "Ended",
    "Event",
    "ItemReturned",
    "LinkEnded",
    "StartBatch",
    "StartLink",
    "StopAwaiting",
    "ThinEnded",
    "ThinLto",
    "ThinQueued",
    "ThinReport",
    "ThinStarted",
    "WithdrawBatch",
]


@frozen
class ThinLto:
    """Ask for ThinLTO. `local` is rustc's thin-local LTO: across a build's modules, with every symbol left visible."""

    local: bool = field(default=False, validator=typed(bool))


# Events: what has happened


@frozen
class LinkEnded:
    """The thin link has left its worker; `compiles` are to be done unless it failed."""

    compiles: tuple[ThinCompile, ...] = field(repr=count)
    ok: bool


@frozen
class BatchStarted:
    """The batch has got its slot."""

    batch: int


@frozen
class BatchEnded:
    """The batch has left its worker; `failures` counts its failed items, `skipped` names those that it did not get to.

    One that was withdrawn has done nothing. Neither was anything done for the `deferred` ones, which somebody else is
    making.
    """

    batch: int
    failures: int = 0
    skipped: tuple[str, ...] = ()
    deferred: tuple[ThinCompile, ...] = field(default=(), repr=count)


@frozen
class ItemReturned:
    """Answer to `AwaitItem`: the item can be tried again. May cross with `StopAwaiting`."""

    item: ThinCompile


Event = LinkEnded | BatchStarted | BatchEnded | ItemReturned


# Commands: what the shell must do


@frozen
class StartLink:
    """Do the thin link as soon as there is a slot; answer with `LinkEnded`."""


@frozen
class StartBatch:
    """Compile `items` in one worker as soon as there is a slot; answer with `BatchStarted`, then `BatchEnded`."""

    batch: int
    items: tuple[ThinCompile, ...] = field(repr=count)
    estimate: Estimate


@frozen
class WithdrawBatch:
    """The batch is not to be started any more; its `BatchEnded` still comes."""

    batch: int


@frozen
class AwaitItem:
    """Wait, without a slot, until whoever is making the deferred item has ended; answer with `ItemReturned`."""

    item: ThinCompile


@frozen
class StopAwaiting:
    """No deferred item is wanted any more."""


@frozen
class Ended:
    """The loop is done: nothing runs, nothing waits. `skipped` names the modules that were never compiled."""

    skipped: tuple[str, ...]


Command = StartLink | StartBatch | WithdrawBatch | AwaitItem | StopAwaiting | Ended


# Reports: what the build hears


@frozen
class ThinQueued:
    """A backend compile is planned."""

    module: str


@frozen
class ThinStarted:
    """A worker has begun with the thin link or with a backend compile."""

    module: str
    step: Step


@frozen
class ThinEnded:
    """The thin link or a backend compile has ended, for better or worse."""

    result: ThinLinked | Finished | Failed


ThinReport = ThinQueued | ThinStarted | ThinEnded
