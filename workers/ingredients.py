"""What a result was made of, as far as it bears upon the result, and why it had to be made again.

Values and words only. A backend says what the ingredients of an item are; whoever has those of an earlier build of the
same item can tell the user what changed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from attrs import field, frozen

from workers.work import count

__all__ = ["Ingredient", "IngredientKind", "Key", "NoKey"]


class IngredientKind(enum.Enum):
    """What an ingredient is; the value is its name in records. How `name`, `value` and `symbols` are used follows."""

    COMPILER = "compiler"
    """`name` is a tool's, `value` its version and digest."""
    OPTION = "option"
    """`name` is an option's, without its value: `-O`, `-mllvm -inline-threshold=`; `value` is ''  where it has none."""
    FILE = "file"
    """Something read besides modules, such as a profile or a native library; `value` is its digest."""
    MODULE = "module"
    """The module itself, or one of those that are merged; `value` is its digest."""
    IMPORT = "import"
    """A module that functions are imported from: `symbols` are they, `value` is its digest."""
    EXPORT = "export"
    """`symbols` are the module's own that other modules use, and so must not be made local to it."""
    SYMBOL = "symbol"
    """What the link found out about a symbol of the module: `value` has words such as `dead` or `defined elsewhere`."""
    SUMMARY = "summary"
    """The digest of all else that is known of the module's surroundings."""


@frozen
class Ingredient:
    """One thing that a result was made of."""

    kind: IngredientKind
    name: str
    value: str = ""
    symbols: tuple[str, ...] = field(default=(), repr=count)


@frozen
class Key:
    """Two items with one `digest` (SHA-256, hexadecimal) have the same result, byte for byte.

    `ingredients` says what it stands for. That may take a while, so it is asked only where a user may want to know.
    """

    digest: str
    ingredients: Callable[[], tuple[Ingredient, ...]] = field(repr=False, eq=False)


@frozen
class NoKey:
    """An item whose result cannot be told apart from others' for certain, so that it is made each time.

    `reason` is for the user. With `warn`, it is something that the user can do something about.
    """

    reason: str
    warn: bool = False
