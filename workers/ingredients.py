"""What a result was made of, as far as it bears upon the result: the values, and their form in records.

A backend says what the ingredients of an item are; whoever has those of an earlier build of the same item can tell the
user what changed (`workers.changes`).
"""

from __future__ import annotations

import enum
import json
import zlib
from collections.abc import Callable, Iterable

from attrs import field, frozen

__all__ = ["Ingredient", "IngredientKind", "Key", "NoKey", "decode", "encode"]

# Below this, what compressing saves is less than a block of any disk.
_COMPRESS_BYTES = 512
# A record of 64 MiB would be of a program of half a million modules: rather a bomb.
_MOST_BYTES = 64 * 1024 * 1024


class IngredientKind(enum.Enum):
    """What an ingredient is; the value is its name in records. How `name`, `value` and `symbols` are used follows."""

    COMPILER = "compiler"
    """`name` is a tool's, `value` its version and digest."""
    OPTION = "option"
    """`name` is an option's, without its value: `-O`, `-mllvm -inline-threshold=`; `value` is '' where it has none.

    An option that is there twice is two ingredients.
    """
    FILE = "file"
    """Something read besides modules, such as a profile or a native library; `value` is its digest."""
    MODULE = "module"
    """The module itself, with the item's `name`, or one of those that are merged; `value` is its digest."""
    IMPORT = "import"
    """A module that functions are imported from: `symbols` are they, `value` is its digest."""
    EXPORT = "export"
    """`symbols` are the module's own that other modules use, and so must not be made local to it."""
    SYMBOL = "symbol"
    """What the link found out about a symbol of the module: `value` has words such as `dead` or `defined elsewhere`.

    They go on after 'it is', with commas between them; no ingredient is the same as no words.
    """
    SUMMARY = "summary"
    """`value` is the digest of what else the link knows; `name` says about what, or is ''."""


@frozen
class Ingredient:
    """One thing that a result was made of."""

    kind: IngredientKind
    name: str
    value: str = ""
    symbols: tuple[str, ...] = field(default=(), repr=lambda symbols: f"<{len(symbols)}>")


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


def encode(ingredients: Iterable[Ingredient]) -> bytes:
    """The ingredients in few bytes, for records."""
    rows = [[one.kind.value, one.name, one.value, *one.symbols] for one in ingredients]
    plain = json.dumps(rows, separators=(",", ":")).encode("ascii")
    return plain if len(plain) < _COMPRESS_BYTES else zlib.compress(plain, 1)


def decode(data: bytes) -> tuple[Ingredient, ...]:
    """What was encoded, without what only a later version knows; nothing if it is damaged."""
    try:
        if data[:1] != b"[":
            data = zlib.decompressobj().decompress(data, _MOST_BYTES)
        return tuple(
            Ingredient(_KINDS[kind], name, value, tuple(symbols))
            for kind, name, value, *symbols in json.loads(data)
            if kind in _KINDS and all(isinstance(text, str) for text in (name, value, *symbols))
        )
    except (ValueError, TypeError, RecursionError, zlib.error):
        return ()


_KINDS = {kind.value: kind for kind in IngredientKind}
