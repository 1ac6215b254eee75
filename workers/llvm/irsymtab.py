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
from workers.llvm.index_shard import guid_of

__all__ = ["Symbol", "read_symbols", "value_names"]

_STRTAB_BLOCK = 23
_SYMTAB_BLOCK = 25
_BLOB = frozenset({1})

_VERSIONS = (3, 4)
"""Layouts that agree in what is read here."""

# All words are 32 bits, little-endian. A header begins with the version, the producer, three ranges (offset, number) of
# which the last is that of the symbols, another range, the target and the name of the source (offset, size). A symbol
# has its name and its name in the IR (offset, size), the number of its comdat, and flags.
_HEADER = struct.Struct("<28x2I16x2I")
_SYMBOL = struct.Struct("<6I")
_WORD = struct.Struct("<I")

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
    table = _read(data)
    if table is None:
        return None
    return tuple(
        Symbol(
            table.strings[begin : begin + size].decode(errors="surrogateescape"),
            bool(flags & _UNDEFINED),
            bool(flags & _COMMON),
            not flags & _GLOBAL,
            flags & _USED_CODE == _USED_CODE,
        )
        for begin, size, _, _, _, flags in _SYMBOL.iter_unpack(table.rows)
        if not flags & _FORMAT_SPECIFIC
    )


def value_names(data: Source) -> dict[int, str]:
    """The names of what a module defines and declares, by GUID; nothing without a table. Raises `BitcodeError`."""
    table = _read(data)
    if table is None:
        return {}
    found: dict[int, str] = {}
    for _, _, begin, size, _, flags in _SYMBOL.iter_unpack(table.rows):
        name = table.strings[begin : begin + size].removeprefix(b"\1")
        is_local = not flags & _GLOBAL
        guid = guid_of((table.source or b"<unknown>") + b";" + name if is_local else name)
        found[guid] = name.decode("utf-8", "backslashreplace")
    return found


@frozen
class _Table:
    """The rows of a table, and what they point into; `source` is the name of the first module's source."""

    rows: bytes
    strings: bytes
    source: bytes


def _read(data: Source) -> _Table | None:
    """The table of a bitcode file. Raises `BitcodeError`."""
    table: bytes | None = None
    for cursor, block in blocks(data):
        if block.id == _SYMTAB_BLOCK and table is None:
            table = _blob(data, cursor, block)
        elif block.id == _STRTAB_BLOCK and table is not None:
            strings = _blob(data, cursor, block)
            return None if strings is None else _table(table, strings)
    return None


def _blob(data: Source, cursor: BitCursor, block: Block) -> bytes | None:
    for record in cursor.items(block, _BLOB):
        if isinstance(record, Record) and record.blob is not None:
            begin, size = record.blob
            return bytes(data[cursor.origin + begin : cursor.origin + begin + size])
    return None


def _table(table: bytes, strings: bytes) -> _Table | None:
    if len(table) < _HEADER.size:
        return None
    (version,) = _WORD.unpack_from(table)
    offset, number, source, size = _HEADER.unpack_from(table)
    rows = table[offset : offset + number * _SYMBOL.size]
    if version not in _VERSIONS or len(rows) != number * _SYMBOL.size:
        return None
    return _Table(rows, strings, strings[source : source + size])
