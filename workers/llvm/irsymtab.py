"""Symbol tables of bitcode files, as linkers read them: which symbols a module defines, and which it needs.

LLVM writes such a table beside a module, so that linkers need not read the module itself. It names symbols as objects
do, those of inline assembly included.
"""

from __future__ import annotations

import struct

from attrs import frozen

from workers.llvm.bitcode import blocks
from workers.llvm.bitstream import BitCursor, Block, Record
from workers.llvm.content import Source

__all__ = ["Symbol", "read_symbols"]

_STRTAB_BLOCK = 23
_SYMTAB_BLOCK = 25
_BLOB = frozenset({1})

_VERSIONS = (3, 4)
"""Layouts that agree in what is read here."""

# All words are 32 bits, little-endian. A header begins with the version, the producer and three ranges (offset, number)
# of which the last is that of the symbols. A symbol has its name and its name in the IR (offset, size), the number of
# its comdat, and flags.
_HEADER = struct.Struct("<9I")
_SYMBOL = struct.Struct("<6I")

_UNDEFINED, _COMMON, _GLOBAL, _FORMAT_SPECIFIC = (1 << bit for bit in (3, 5, 10, 11))
_USED_CODE = 1 << 7 | 1 << 13


@frozen
class Symbol:
    """One symbol. A `common` one is defined, but not more than once if another file defines it, too."""

    name: str
    undefined: bool
    common: bool
    local: bool = False
    """Only its module knows it."""
    called_by_name: bool = False
    """A function that is marked as used: assembly may name it."""


def read_symbols(data: Source) -> tuple[Symbol, ...] | None:
    """The symbols of all modules in a bitcode file; `None` without a table, or with one of an unknown version.

    What is not UTF-8 in names becomes surrogates, as in the names of files. Raises `BitcodeError` where the file is
    damaged.
    """
    table: bytes | None = None
    for cursor, block in blocks(data):
        if block.id == _SYMTAB_BLOCK and table is None:
            table = _blob(data, cursor, block)
        elif block.id == _STRTAB_BLOCK and table is not None:
            strings = _blob(data, cursor, block)
            return None if strings is None else _symbols(table, strings)
    return None


def _blob(data: Source, cursor: BitCursor, block: Block) -> bytes | None:
    for record in cursor.items(block, _BLOB):
        if isinstance(record, Record) and record.blob is not None:
            begin, size = record.blob
            return bytes(data[cursor.origin + begin : cursor.origin + begin + size])
    return None


def _symbols(table: bytes, strings: bytes) -> tuple[Symbol, ...] | None:
    if len(table) < _HEADER.size:
        return None
    version, *_, offset, number = _HEADER.unpack_from(table)
    rows = table[offset : offset + number * _SYMBOL.size]
    if version not in _VERSIONS or len(rows) != number * _SYMBOL.size:
        return None
    return tuple(
        Symbol(
            strings[begin : begin + size].decode(errors="surrogateescape"),
            bool(flags & _UNDEFINED),
            bool(flags & _COMMON),
            not flags & _GLOBAL,
            flags & _USED_CODE == _USED_CODE,
        )
        for begin, size, _, _, _, flags in _SYMBOL.iter_unpack(rows)
        if not flags & _FORMAT_SPECIFIC
    )
