"""What is noted of a result in the store beside its outputs: how it was made, what was said, what it is made of."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from workers.ingredients import Ingredient, encode

__all__ = ["pack", "seconds_in", "unpack"]

_MOST_BYTES = 64 * 2**20
_MOST_SECONDS = 1e6
"""Nothing takes eleven days to make."""


def pack(note: Mapping[str, Any], ingredients: Iterable[Ingredient]) -> bytes:
    """A note in few bytes."""
    return zlib.compress(json.dumps(note).encode() + b"\n" + encode(ingredients), 1)


def unpack(data: bytes) -> tuple[Mapping[str, Any], bytes]:
    """A note, and the ingredients, still encoded. It may be anybody's. Raises `ValueError`."""
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacking.eof:
        raise ValueError("it has no end")
    head, _, rest = text.partition(b"\n")
    try:
        note = json.loads(head)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(note, dict):
        raise ValueError("it is no object")
    return note, rest


def seconds_in(note: Mapping[str, Any]) -> float:
    """How long making a result took; 0.0 where the note does not say so, or makes no sense."""
    match note.get("seconds"):
        case float(seconds) | int(seconds) if 0 <= seconds <= _MOST_SECONDS:
            return float(seconds)
    return 0.0
