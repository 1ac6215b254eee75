"""What is told of an item's result: the step of a build that it belongs to, and what the cache did for it.

Apart from `workers.work`, which has these names as well, because its many classes take 10 ms to load.
"""

from __future__ import annotations

import enum

from attrs import field, frozen

from workers.ingredients import Ingredient

__all__ = ["NOT_ASKED", "CacheOutcome", "CacheUse", "Step"]


class Step(enum.Enum):
    """What of a build a result is about; the value is its name in reports."""

    CODEGEN = "codegen"
    PRE_LINK = "pre-link"
    THIN_LINK = "thin-link"
    THIN_BACKEND = "thin-backend"
    FAT_LINK = "fat-link"
    FAT_CODEGEN = "fat-codegen"
    LINK = "link"


class CacheOutcome(enum.Enum):
    """What the cache did for an item; the value is its name in reports."""

    HIT = "hit"
    """Its result was there."""
    MISS = "miss"
    """It had to be made, and may be there the next time."""
    SHARED = "shared"
    """Another build was making just this, and its result was waited for."""
    OFF = "off"
    """The cache was not asked."""


@frozen
class CacheUse:
    """What the cache did for an item, and what is known for explaining that.

    `key` and `ingredients` are what the result was made of, as far as the cache was asked; `note` is why it was not,
    and with `warn` that is something that the user can mend. `reason` has the words for the user, once the build has
    compared with an earlier one. `saved_seconds` is how long making the result took, where it need not be made again;
    0.0 where nobody knows.
    """

    outcome: CacheOutcome = CacheOutcome.OFF
    key: str = ""
    ingredients: tuple[Ingredient, ...] = field(default=(), repr=lambda ingredients: f"<{len(ingredients)}>")
    note: str = ""
    warn: bool = False
    reason: str = ""
    saved_seconds: float = 0.0


NOT_ASKED = CacheUse()
