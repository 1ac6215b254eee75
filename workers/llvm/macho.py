"""Mach-O files as far as inputs need them: what kind of file it is, and where sections are."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Set
from functools import partial

from workers.llvm.content import Source
from workers.llvm.sections import ObjectError, ObjectType, Section, take

__all__ = ["object_type", "sections"]

_FILE = "a Mach-O file"
_MAGICS = {
    b"\xce\xfa\xed\xfe": ("<", False),
    b"\xcf\xfa\xed\xfe": ("<", True),
    b"\xfe\xed\xfa\xce": (">", False),
    b"\xfe\xed\xfa\xcf": (">", True),
}
_TYPES = {
    1: ObjectType.RELOCATABLE,
    2: ObjectType.EXECUTABLE,
    4: ObjectType.CORE,
    6: ObjectType.SHARED,
    8: ObjectType.SHARED,
    9: ObjectType.SHARED,
}
_ZERO_FILLED = (0x1, 0xC, 0x12)
"""Types of section without content."""

_take = partial(take, file=_FILE)


def object_type(source: Source) -> ObjectType:
    """What kind of Mach-O file this is. Raises `ObjectError` where it is damaged or of another type."""
    order, _ = _layout(source)
    (kind,) = struct.unpack_from(order + "I", _take(source, 0, 28, "its header"), 12)
    if kind not in _TYPES:
        raise ObjectError(f"{_FILE} of the type {kind}, which is no object")
    return _TYPES[kind]


def sections(source: Source, wanted: Set[bytes]) -> Iterator[Section]:
    """The sections with these names, as in `__LLVM,__bitcode`, in file order. Raises `ObjectError` for damage."""
    order, is_64 = _layout(source)
    start = 32 if is_64 else 28
    count, size = struct.unpack_from(order + "II", _take(source, 0, start, "its header"), 16)
    commands = _take(source, start, size, "its table of load commands")
    # A segment's number of sections; then names, size and offset of each, and what type it is.
    number, form, segment = ("56xI4x", "16s16s8xQI12xI12x", 0x19) if is_64 else ("40xI4x", "16s16s4xII12xI8x", 0x1)
    head, section = struct.Struct(order + "8x" + number), struct.Struct(order + form)
    at = 0
    for _ in range(count):
        if at + 8 > size:
            raise ObjectError(f"{_FILE} whose load commands take more space than it says")
        command, length = struct.unpack_from(order + "II", commands, at)
        if length < 8 or at + length > size:
            raise ObjectError(f"{_FILE} with a damaged load command at byte {start + at}")
        if command == segment:
            places = range(at + head.size, at + length - section.size + 1, section.size)
            if length < head.size or (declared := head.unpack_from(commands, at)[0]) > len(places):
                raise ObjectError(f"{_FILE} with a damaged segment at byte {start + at}")
            for place in places[:declared]:
                name, of, extent, offset, flags = section.unpack_from(commands, place)
                label = of.rstrip(b"\0") + b"," + name.rstrip(b"\0")
                if label in wanted and flags & 0xFF not in _ZERO_FILLED:
                    yield Section(label, offset, extent, start + place)
        at += length


def _layout(source: Source) -> tuple[str, bool]:
    """The byte order, and whether it is a file of 64 bits."""
    magic = bytes(source[:4])
    if magic not in _MAGICS:
        raise ObjectError("not a Mach-O file")
    return _MAGICS[magic]
