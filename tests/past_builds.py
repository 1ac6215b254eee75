"""A history of builds that a test writes. Shared by the tests of the commands that look back."""

from __future__ import annotations

from pathlib import Path

from coordinator._reasons import reason_for
from coordinator._records import BuildRecord, ItemRecord, Records, Thing
from workers.ingredients import Ingredient
from workers.work import CacheOutcome, CacheUse, Step

__all__ = ["LINKER", "STARTED", "History", "use"]

STARTED = 1.8e9
"""When each build began: 2027-01-15 08:00:00 UTC."""
LINKER = "ThinLTO for a linker"
"""What kind of build it is when a linker runs ltod."""


class History:
    """Builds as a coordinator records them."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._records = Records(directory)

    def add(
        self,
        path: Path,
        *uses: tuple[str, CacheUse],
        ok: bool = True,
        step: Step = Step.THIN_BACKEND,
        kind: str = "thin",
        seconds: float = 1.25,
    ) -> None:
        """A build of what is at `path`; where it is not `ok`, each item failed."""
        thing = Thing(path, kind)
        earlier = self._records.previous(thing)
        items = []
        for name, one in uses:
            reason = reason_for(earlier.get((name, step.value)), one, name, step, known=bool(earlier))
            items.append(
                ItemRecord(
                    name,
                    step.value,
                    one.outcome,
                    one.key,
                    reason,
                    0.25,
                    ok,
                    saved=one.saved_seconds,
                    made_of=one.ingredients,
                )
            )
        build = BuildRecord(thing=thing, started=STARTED, seconds=seconds, ok=ok, items=tuple(items))
        assert self._records.add(build) is not None


def use(outcome: CacheOutcome, key: str, *ingredients: Ingredient, saved: float = 0.0) -> CacheUse:
    """What the cache did for an item."""
    return CacheUse(outcome, key, ingredients, saved_seconds=saved)
