"""WebAssembly files as far as inputs need them: what kind of file it is, and where custom sections are."""

from __future__ import annotations

from collections.abc import Iterator, Set
from functools import partial

from workers.llvm.content import Source
from workers.llvm.sections import ObjectError, ObjectType, Section, take

__all__ = ["object_type", "sections"]

_FILE = "a WebAssembly file"
_MODULE = b"\0asm\x01\0\0\0"
_CUSTOM = 0
_MOST_SECTIONS = 10_000
"""Compilers make a few dozen."""
_LONGEST_NAME = 64

_take = partial(take, file=_FILE)


def object_type(source: Source) -> ObjectType:
    """What kind of WebAssembly file this is. Raises `ObjectError` where it is damaged."""
    found = {section.name for section in sections(source, frozenset({b"linking", b"dylink", b"dylink.0"}))}
    if b"linking" in found:
        return ObjectType.RELOCATABLE
    return ObjectType.SHARED if found else ObjectType.EXECUTABLE


def sections(source: Source, wanted: Set[bytes]) -> Iterator[Section]:
    """The custom sections with these names, in file order. Raises `ObjectError` where the file is damaged."""
    if bytes(source[:8]) != _MODULE:
        raise ObjectError(f"{_FILE} that is no module of version 1")
    at = len(_MODULE)
    for _ in range(_MOST_SECTIONS):
        if at >= len(source):
            return
        head = bytes(source[at : at + _LONGEST_NAME + 11])
        size, start = _number(head, 1, at)
        end = at + start + size
        if end > len(source):
            raise ObjectError(f"{_FILE} that is cut off in its section at byte {at}")
        if head[0] == _CUSTOM:
            length, begin = _number(head, start, at)
            name = head[begin : begin + length]
            if at + begin + length > end:
                raise ObjectError(f"{_FILE} with a damaged section at byte {at}")
            if name in wanted:
                offset = at + begin + length
                yield Section(name, offset, end - offset, at)
        at = end
    raise ObjectError(f"{_FILE} with more than {_MOST_SECTIONS} sections")


def _number(data: bytes, at: int, where: int) -> tuple[int, int]:
    """The number at `at`, of at most five bytes with seven bits each, and where it ends."""
    value = 0
    for index in range(5):
        if at + index >= len(data):
            break
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ObjectError(f"{_FILE} with a damaged section at byte {where}")
