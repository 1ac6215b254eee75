"""ELF files as far as inputs and embedding need them: what kind of file it is, and where sections are."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Set
from functools import partial
from pathlib import Path

from attrs import frozen

from workers.llvm.content import Source, open_file
from workers.llvm.sections import ObjectError, ObjectType, Section, take

__all__ = ["exclude_as", "is_shared_library", "object_type", "sections", "symbol_names"]

_TYPES = {1: ObjectType.RELOCATABLE, 2: ObjectType.EXECUTABLE, 3: ObjectType.SHARED, 4: ObjectType.CORE}
_SHT_NOBITS = 8
_SHT_LLVM_LTO = 0x6FFF4C0C
_SHF_EXCLUDE = 0x80000000
_SHN_XINDEX = 0xFFFF
_CHUNK = 1 << 16

_take = partial(take, file="an ELF file")


@frozen
class _Layout:
    """Where the fields are: formats for `struct`."""

    file_header: struct.Struct
    """type, section table offset, section header size, their number, index of the name section"""
    section: struct.Struct
    """name, type, offset, size, link"""
    start: struct.Struct
    """name, type, flags, address, offset and size: how a section header begins"""


@frozen
class _Table:
    """The section table, and the content of the section that has the names."""

    layout: _Layout
    offset: int
    stride: int
    count: int
    names: bytes
    names_header: int


# Byte order is set on use. `x` skips what nobody reads.
_FORMATS = {1: ("16xH14xI10xHHH", "II8xIII12x", "IIIIII"), 2: ("16xH22xQ10xHHH", "II16xQQI20x", "IIQQQQ")}

_SYMBOL = {1: "I12x", 2: "I20x"}
"""By the class of the file: the name of a symbol."""


def is_shared_library(head: bytes) -> bool:
    """Whether a file that begins with `head`, 18 bytes or more, is a shared library, as far as that tells."""
    return head.startswith(b"\x7fELF") and head[16:18] in (b"\x03\0", b"\0\x03")


def object_type(source: Source) -> ObjectType:
    """What kind of ELF file this is. Raises `ObjectError` where it is damaged or of another type."""
    layout = _layout(source)
    kind = int(layout.file_header.unpack(bytes(source[: layout.file_header.size]))[0])
    if kind not in _TYPES:
        raise ObjectError(f"an ELF file of the unknown type {kind}")
    return _TYPES[kind]


def sections(source: Source, wanted: Set[bytes]) -> Iterator[Section]:
    """The sections with these names, in file order. Raises `ObjectError` where the file is damaged."""
    table = _table(source)
    if table is None or not any(name in table.names for name in wanted):
        return
    step = max(1, _CHUNK // table.stride)
    for first in range(0, table.count, step):
        begin = table.offset + first * table.stride
        chunk = _take(source, begin, min(step, table.count - first) * table.stride, "its section table")
        for at in range(0, len(chunk), table.stride):
            name, kind, offset, size, _ = table.layout.section.unpack_from(chunk, at)
            if kind == _SHT_NOBITS:
                continue
            for text in wanted:
                if table.names.startswith(text + b"\0", name):
                    yield Section(text, offset, size, begin + at)


def symbol_names(data: bytes) -> frozenset[bytes]:
    """The names of the symbols that an object has and needs. Raises `ObjectError` where it is damaged."""
    found = {section.name: section for section in sections(data, {b".symtab", b".strtab"})}
    if len(found) != 2:
        return frozenset()
    table, strings = found[b".symtab"], found[b".strtab"]
    symbol = struct.Struct(("<" if data[5] == 1 else ">") + _SYMBOL[data[4]])
    names = _take(data, strings.offset, strings.size, "its names")
    rows = _take(data, table.offset, table.size // symbol.size * symbol.size, "its symbol table")
    starts = (start for (start,) in symbol.iter_unpack(rows) if start)
    return frozenset(names[start : names.find(b"\0", start)] for start in starts)


def exclude_as(path: Path, section: Section, name: bytes) -> None:
    """Give a section of an object another name, the type of LLVM's bitcode for LTO, and make linkers leave it out.

    The names, one longer, move to the end of the file. Raises `ObjectError` where the file is damaged.
    """
    with open_file(path) as source:
        end = len(source)
        table = _table(source)
        if table is None:
            raise ObjectError("an ELF file without a section table")
        start = table.layout.start
        *kept, _, _ = start.unpack(_take(source, table.names_header, start.size, "its section table"))
        _, _, flags, *rest = start.unpack(_take(source, section.header, start.size, "its section table"))
    names = table.names + name + b"\0"
    with path.open("r+b") as file:
        file.seek(table.names_header)
        file.write(start.pack(*kept, end, len(names)))
        file.seek(section.header)
        file.write(start.pack(len(table.names), _SHT_LLVM_LTO, flags | _SHF_EXCLUDE, *rest))
        file.seek(end)
        file.write(names)


def _layout(source: Source) -> _Layout:
    ident = bytes(source[:16])
    if ident[:4] != b"\x7fELF":
        raise ObjectError("not an ELF file")
    if len(ident) < 16 or ident[4] not in _FORMATS or ident[5] not in (1, 2):
        raise ObjectError("an ELF file with a damaged header")
    order = "<" if ident[5] == 1 else ">"
    layout = _Layout(*(struct.Struct(order + form) for form in _FORMATS[ident[4]]))
    if len(source) < layout.file_header.size:
        raise ObjectError("an ELF file that is cut off in its header")
    return layout


def _table(source: Source) -> _Table | None:
    """The section table; `None` where the file has none."""
    layout = _layout(source)
    header = bytes(source[: layout.file_header.size])
    _, table, stride, count, names_index = layout.file_header.unpack(header)
    if not table:
        return None
    if stride < layout.section.size:
        raise ObjectError("an ELF file with a damaged header")
    # What does not fit into the header's 16 bits is in the first section header.
    _, _, _, first_size, first_link = _section(source, layout, table)
    count = count or first_size
    if names_index == _SHN_XINDEX:
        names_index = first_link
    if table + count * stride > len(source):
        raise ObjectError("an ELF file that is cut off: its section table is not there")
    if names_index >= count:
        raise ObjectError("an ELF file with a damaged header: no section has the names")
    names_header = table + names_index * stride
    _, _, offset, size, _ = _section(source, layout, names_header)
    return _Table(layout, table, stride, count, _take(source, offset, size, "its section names"), names_header)


def _section(source: Source, layout: _Layout, offset: int) -> tuple[int, int, int, int, int]:
    name, kind, start, size, link = layout.section.unpack(
        _take(source, offset, layout.section.size, "its section table")
    )
    return name, kind, start, size, link
