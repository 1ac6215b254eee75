"""COFF objects as far as inputs and embedding need them: where sections are.

Two forms: the ordinary one, which begins with the number of a machine, and the one for very many sections (`/bigobj`).
What stands in an import library for a function of a DLL begins like the second one, and has no sections.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Set
from functools import partial
from pathlib import Path

from attrs import frozen

from workers.llvm.content import Source, open_file
from workers.llvm.sections import ObjectError, ObjectType, Section, take

__all__ = ["exclude_as", "looks_like_coff", "object_type", "sections"]

_FILE = "a COFF object"
_MACHINES = frozenset({0x8664, 0x014C, 0xAA64, 0xA641, 0xA64E, 0x01C4})
"""x86-64, i386, ARM64, ARM64EC, ARM64X, ARM"""

_OTHER_FORM = b"\0\0\xff\xff"
_IMPORTS = (b"\0\0", b"\1\0")
"""Versions of the other form that are imports, or for a compiler of Microsoft's alone."""
_BIG_FORM = bytes.fromhex("c7a1bad1eebaa94baf20faf86aa4dcb8")
_HEADER = struct.Struct("<2xH4xIIH2x")
"""number of sections, offset and number of symbols, size of the header that only linked files have"""
_BIG_HEADER = struct.Struct("<44xIII")
"""number of sections, offset and number of symbols"""
_SECTION = struct.Struct("<8s8xII12xI")
"""name, size, offset, characteristics"""
_UNINITIALIZED = 0x80
_REMOVE = 0x800
_CHUNK = 1600 * _SECTION.size
_LONGEST_OFFSET = 9_999_999

_take = partial(take, file=_FILE)


@frozen
class _Layout:
    """Where the section table is, how many sections it has, and where the table of long strings begins."""

    table: int
    count: int
    strings: int


def looks_like_coff(head: bytes) -> bool:
    """Whether a file may be a COFF object: `head` is its first 20 bytes, or all that it has."""
    if head.startswith(_OTHER_FORM):
        return True
    return int.from_bytes(head[:2], "little") in _MACHINES and head[16:18] in (b"", b"\0", b"\0\0")


def object_type(source: Source) -> ObjectType:
    """An object is all that a COFF file without the header of linked files can be."""
    del source
    return ObjectType.RELOCATABLE


def sections(source: Source, wanted: Set[bytes]) -> Iterator[Section]:
    """The sections with these names, in file order. Raises `ObjectError` where the file is damaged."""
    layout = _layout(source)
    if layout is None:
        return
    longest = max(len(name) for name in wanted) + 1
    end = layout.table + layout.count * _SECTION.size
    for begin in range(layout.table, end, _CHUNK):
        chunk = _take(source, begin, min(_CHUNK, end - begin), "its section table")
        for at in range(0, len(chunk), _SECTION.size):
            name, size, offset, characteristics = _SECTION.unpack_from(chunk, at)
            if name.startswith(b"/") and name[1:].rstrip(b"\0").isdigit():
                where = layout.strings + int(name[1:].rstrip(b"\0"))
                name = bytes(source[where : where + longest]).partition(b"\0")[0]
            name = name.rstrip(b"\0")
            if name in wanted and not characteristics & _UNINITIALIZED:
                yield Section(name, offset, size, begin + at)


def exclude_as(path: Path, section: Section, name: bytes) -> None:
    """Give a section of an object another name, of more than eight bytes, and make linkers leave it out.

    The name is added to the long strings, which are the end of the file. Raises `ObjectError` where they are not.
    """
    with open_file(path) as source:
        end = len(source)
        layout = _layout(source)
        strings = layout.strings if layout is not None else end
        size = int.from_bytes(_take(source, strings, 4, "its string table"), "little")
        *_, characteristics = _SECTION.unpack(_take(source, section.header, _SECTION.size, "its section table"))
    if strings + size != end or size > _LONGEST_OFFSET:
        raise ObjectError(f"{_FILE} that has no room for a name")
    with path.open("r+b") as file:
        file.seek(section.header)
        file.write(f"/{size}".encode().ljust(8, b"\0"))
        file.seek(section.header + _SECTION.size - 4)
        file.write((characteristics | _REMOVE).to_bytes(4, "little"))
        file.seek(strings)
        file.write((size + len(name) + 1).to_bytes(4, "little"))
        file.seek(end)
        file.write(name + b"\0")


def _layout(source: Source) -> _Layout | None:
    """Where things are; `None` for an import or another object that has no sections."""
    if bytes(source[:4]) == _OTHER_FORM:
        if bytes(source[4:6]) in _IMPORTS:
            return None
        header = _take(source, 0, _BIG_HEADER.size, "its header")
        if header[12:28] != _BIG_FORM:
            return None
        count, symbols, symbol_count = _BIG_HEADER.unpack(header)
        return _checked(source, _Layout(_BIG_HEADER.size, count, symbols + symbol_count * 20))
    count, symbols, symbol_count, optional = _HEADER.unpack(_take(source, 0, _HEADER.size, "its header"))
    if optional:
        raise ObjectError("not a COFF object")
    return _checked(source, _Layout(_HEADER.size, count, symbols + symbol_count * 18))


def _checked(source: Source, layout: _Layout) -> _Layout:
    if layout.table + layout.count * _SECTION.size > len(source) or layout.strings > len(source):
        raise ObjectError(f"{_FILE} that is cut off: its tables are not there")
    return layout
