"""How fat LTO is asked for, and what it tells the build. Values only."""

from __future__ import annotations

from attrs import field, frozen

from workers.errors import RequestError
from workers.fat import FatLinked
from workers.work import Failed, Finished, Step, typed

__all__ = ["FatEnded", "FatLto", "FatQueued", "FatReport", "FatStarted"]

_MOST_PARTITIONS = 256


@frozen
class FatLto:
    """Ask for fat LTO. `partitions` is in how many parts code is generated; by default the program's size says."""

    partitions: int | None = field(default=None, validator=typed(int, None))

    def __attrs_post_init__(self) -> None:
        if self.partitions is not None and not 1 <= self.partitions <= _MOST_PARTITIONS:
            raise RequestError(f"{self.partitions} partitions: give a number from 1 to {_MOST_PARTITIONS}")


@frozen
class FatQueued:
    """A partition is whole and waits for code generation."""

    partition: str


@frozen
class FatStarted:
    """A worker has begun to merge, or to generate code for a partition."""

    name: str
    step: Step


@frozen
class FatEnded:
    """Merging and optimising, or code generation for a partition, has ended, for better or worse."""

    result: FatLinked | Finished | Failed


FatReport = FatQueued | FatStarted | FatEnded
