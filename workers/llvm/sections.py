"""What the readers of object files share: the kinds of file, sections, and careful reading."""

from __future__ import annotations

import enum

from attrs import frozen

from workers.llvm.content import Source

__all__ = ["ObjectError", "ObjectType", "Section", "take"]


class ObjectError(ValueError):
    """The object file is damaged or of no use; the message says how, and would go on behind `it is`."""


class ObjectType(enum.Enum):
    """What an object file is for."""

    RELOCATABLE = "relocatable"
    EXECUTABLE = "executable"
    SHARED = "shared"
    CORE = "core"


@frozen
class Section:
    """A section: its content is `size` bytes at `offset`, and its header (or all of it) begins at `header`."""

    name: bytes
    offset: int
    size: int
    header: int


def take(source: Source, offset: int, size: int, what: str, file: str) -> bytes:
    """`size` bytes at `offset`; `what` and `file` say what is read. Raises `ObjectError` where they are not there."""
    if offset + size > len(source):
        raise ObjectError(f"{file} that is cut off: {what} is not there")
    part = bytes(source[offset : offset + size])
    if len(part) < size:
        raise ObjectError(f"{file} that became shorter while it was read")
    return part
