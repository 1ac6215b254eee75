"""What a build knows of the build before it of the same thing, and leaves behind for the next one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from attrs import define, field

from coordinator._reasons import reason_for
from coordinator._records import BuildRecord, ItemRecord, Records, Thing
from workers.work import CacheUse, Step, WorkResult

__all__ = ["Past"]


@define(eq=False)
class Past:
    """The records of one build. It is asked for nothing before the first result.

    `before` is what became of each item the last time; `None`: the records are asked.
    """

    records: Records
    thing: Thing
    _before: Mapping[tuple[str, str], ItemRecord] | None = None
    _started: float = field(factory=time.time, init=False)

    def reason(self, module: str, step: Step, use: CacheUse) -> str:
        """Why the cache did what it did, in words."""
        if self._before is None:
            self._before = self.records.previous(self.thing)
        return reason_for(self._before.get((module, step.value)), use, module, step, known=bool(self._before))

    def record(self, results: Sequence[WorkResult], *, seconds: float, ok: bool) -> None:
        """Leave behind what became of the build."""
        items = tuple(ItemRecord.of(result) for result in results)
        self.records.add(BuildRecord(thing=self.thing, started=self._started, seconds=seconds, ok=ok, items=items))
