"""ELF objects as far as inputs need them: what kind of file it is, and where bitcode is inside."""

from __future__ import annotations

import enum
import struct

from attrs import frozen

from workers.llvm.content import Source

__all__ = ["ElfType", "ObjectError", "elf_type", "find_bitcode"]

_BITCODE_MAGICS = (b"BC\xc0\xde", b"\xde\xc0\x17\x0b")
_FAT_LTO_SECTION = b".llvm.lto\0"
_EMBEDDED_SECTION = b".llvmbc\0"
_SHT_NOBITS = 8
_SHN_XINDEX = 0xFFFF
_CHUNK = 1 << 16


class ObjectError(ValueError):
    """The object file is damaged or of no use; the message says how."""


class ElfType(enum.IntEnum):
    """The types of ELF file (`e_type`)."""

    RELOCATABLE = 1
    EXECUTABLE = 2
    SHARED = 3
    CORE = 4


@frozen
class _Layout:
    """Where the fields are: formats for `struct`, and the offset of the section table's place in the file header."""

    file_header: struct.Struct
    """type, section table offset, section header size, their number, index of the name section"""
    section: struct.Struct
    """name, type, offset, size, link"""


# Byte order is set on use. `x` skips what nobody reads.
_FORMATS = {1: ("16xH14xI10xHHH", "II8xIII12x"), 2: ("16xH22xQ10xHHH", "II16xQQI20x")}


def elf_type(source: Source) -> ElfType:
    """What kind of ELF file this is. Raises `ObjectError` where it is damaged or of another type."""
    layout = _layout(source)
    kind = int(layout.file_header.unpack(bytes(source[: layout.file_header.size]))[0])
    try:
        return ElfType(kind)
    except ValueError:
        raise ObjectError(f"an ELF file of the unknown type {kind}") from None


def find_bitcode(source: Source) -> tuple[int, int] | None:
    """Offset and size of the bitcode in a relocatable object; `None` where there is none.

    That is the section `.llvm.lto` (FatLTO), else `.llvmbc` (`-fembed-bitcode`, rustc) unless it is only
    a marker. Raises `ObjectError` where the file is damaged, or has several such sections.
    """
    layout = _layout(source)
    table, stride, count, names_index = _section_table(source, layout)
    if not count:
        return None
    _, _, offset, size, _ = _section(source, layout, table + names_index * stride)
    names = _bytes(source, offset, size, "its section names")
    if b".llvm" not in names:
        return None
    found: dict[bytes, list[tuple[int, int]]] = {_FAT_LTO_SECTION: [], _EMBEDDED_SECTION: []}
    step = max(1, _CHUNK // stride)
    for first in range(0, count, step):
        chunk = _bytes(source, table + first * stride, min(step, count - first) * stride, "its section table")
        for at in range(0, len(chunk), stride):
            name, kind, offset, size, _ = layout.section.unpack_from(chunk, at)
            if kind != _SHT_NOBITS and names.startswith(b".llvm", name):
                for wanted, places in found.items():
                    if names.startswith(wanted, name):
                        places.append((offset, size))
    for wanted, places in found.items():
        if len(places) > 1:
            raise ObjectError(
                f"an ELF object with {len(places)} sections {_label(wanted)}: give the modules one by one"
            )
        if places:
            offset, size = places[0]
            if offset + size > len(source):
                raise ObjectError(f"an ELF object that is cut off in its section {_label(wanted)}")
            if bytes(source[offset : offset + min(size, 4)]) in _BITCODE_MAGICS:
                return offset, size
            if wanted == _FAT_LTO_SECTION:
                raise ObjectError(f"an ELF object whose section {_label(wanted)} holds no bitcode")
    return None


def _label(section: bytes) -> str:
    return section.rstrip(b"\0").decode()


def _layout(source: Source) -> _Layout:
    ident = bytes(source[:16])
    if ident[:4] != b"\x7fELF":
        raise ObjectError("not an ELF file")
    if len(ident) < 16 or ident[4] not in _FORMATS or ident[5] not in (1, 2):
        raise ObjectError("an ELF file with a damaged header")
    order = "<" if ident[5] == 1 else ">"
    file_header, section = (struct.Struct(order + form) for form in _FORMATS[ident[4]])
    if len(source) < file_header.size:
        raise ObjectError("an ELF file that is cut off in its header")
    return _Layout(file_header, section)


def _section_table(source: Source, layout: _Layout) -> tuple[int, int, int, int]:
    """Offset of the section table, size of an entry, their number and the index of the one with the names."""
    header = bytes(source[: layout.file_header.size])
    _, table, stride, count, names_index = layout.file_header.unpack(header)
    if not table:
        return 0, 0, 0, 0
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
    return table, stride, count, names_index


def _section(source: Source, layout: _Layout, offset: int) -> tuple[int, int, int, int, int]:
    name, kind, start, size, link = layout.section.unpack(
        _bytes(source, offset, layout.section.size, "its section table")
    )
    return name, kind, start, size, link


def _bytes(source: Source, offset: int, size: int, what: str) -> bytes:
    if offset + size > len(source):
        raise ObjectError(f"an ELF file that is cut off: {what} is not there")
    part = bytes(source[offset : offset + size])
    if len(part) < size:
        raise ObjectError("an ELF file that became shorter while it was read")
    return part
