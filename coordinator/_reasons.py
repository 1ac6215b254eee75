"""What a user is told about one item and the cache: pure, one sentence each."""

from __future__ import annotations

from typing import assert_never

from coordinator._records import ItemRecord
from workers.changes import what_changed
from workers.outcome import CacheOutcome, CacheUse, Step

__all__ = ["reason_for"]

_LINKS = frozenset({Step.THIN_LINK, Step.FAT_LINK, Step.LINK})


def reason_for(before: ItemRecord | None, use: CacheUse, item: str, step: Step, *, known: bool) -> str:
    """Why the cache did for `item` what it did. `before` is the same item when it was last built.

    `known` says whether the thing that the item is a part of was built before at all.
    """
    match use.outcome:
        case CacheOutcome.OFF:
            return use.note or "the cache was not asked"
        case CacheOutcome.SHARED:
            return "another build was making the same at that time"
        case CacheOutcome.HIT:
            return _why_there(before, use)
        case CacheOutcome.MISS:
            return _why_not_there(before, use, item, step, known=known)
        case never:
            assert_never(never)


def _why_there(before: ItemRecord | None, use: CacheUse) -> str:
    if before is None or not before.key:
        return "the same was made before, in another build"
    if before.key != use.key:
        return "it changed since the last build, to what was made before"
    return "nothing it is made of has changed"


def _why_not_there(before: ItemRecord | None, use: CacheUse, item: str, step: Step, *, known: bool) -> str:
    if before is None:
        return "new in this build" if known else "not built before"
    if not before.key:
        return "the last build did not use the cache for it"
    if before.key == use.key and step is Step.LINK and before.ok:
        return "what was linked was changed or removed since"
    if before.key == use.key:
        return "its result was no longer in the cache" if before.ok else "it failed the last time"
    again = "linked again" if step in _LINKS else "recompiled"
    if not before.ok and not before.ingredients:
        return "it failed the last time"
    if not before.ingredients:
        return f"{again} because it changed; what it was made of before is not on record any more"
    changed = what_changed(before.ingredients, use.ingredients, item) if use.ingredients else ""
    return f"{again} because {changed or 'something that it is made of changed'}"
