"""What of a module matters to those that import from it, where that is less than all of it.

A module's HASH and the name of its source get into other objects through the names and the GUIDs of values that are
local to it. Where it has none, they do not matter. rustc gives every program a module of its own with five small
functions (`__rust_alloc` and its like), from which all crates import: but for these two it is always the same.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

from workers.llvm.bitcode import MODULE_BLOCK, blocks
from workers.llvm.bitstream import BitcodeError, BitCursor, Block, Record

__all__ = ["MOST_BYTES", "import_digest"]

MOST_BYTES = 16 * 1024
"""What is larger has something local to it, mostly, and would take long to be read."""

# Block ids and record codes of llvm/Bitcode/LLVMBitCodes.h.
_IDENTIFICATION_BLOCK, _VALUE_SYMTAB_BLOCK, _STRTAB_BLOCK, _SYMTAB_BLOCK = 13, 14, 23, 25
_VERSION, _GLOBALVAR, _FUNCTION, _VSTOFFSET, _ALIAS, _SOURCE_FILENAME, _HASH, _IFUNC = 1, 7, 8, 13, 14, 16, 17, 18
_VALUES = frozenset({_GLOBALVAR, _FUNCTION, _ALIAS, _IFUNC})
_EVERY_RECORD = frozenset(range(64))
_BLOB = frozenset({1})
_LINKAGE = 5
"""Which of a value's numbers is its linkage, behind its name's place and size in the table of strings."""
_LOCAL_LINKAGES = frozenset({3, 9})


def import_digest(data: bytes) -> str | None:
    """SHA-256 of what matters of a bitcode file; `None`: all of it.

    Equal ones mean that whoever imports from the one or from the other gets the same, where the index says the same.
    """
    if len(data) > MOST_BYTES:
        return None
    try:
        return _digest(data)
    except BitcodeError:
        return None


def _digest(data: bytes) -> str | None:
    parts: list[tuple[int | bytes, ...]] = []
    name = strings = b""
    is_hashed = False
    seen: set[int] = set()
    for cursor, outer in blocks(data):
        if cursor.origin or outer.id in seen:
            return None
        seen.add(outer.id)
        if outer.id == MODULE_BLOCK:
            for item in cursor.items(outer, _EVERY_RECORD):
                if isinstance(item, Block):
                    # Of a module of this version, it only says where functions begin.
                    if item.id != _VALUE_SYMTAB_BLOCK:
                        parts.append((item.id, item.width, _body(data, item)))
                elif _is_local(item) or item.blob is not None or (item.code == _VERSION and item.values != [2]):
                    return None
                elif item.code == _SOURCE_FILENAME:
                    name = bytes(value & 0xFF for value in item.values)
                elif item.code == _HASH:
                    is_hashed = True
                elif item.code != _VSTOFFSET:
                    parts.append((item.code, *item.values))
        elif outer.id == _IDENTIFICATION_BLOCK:
            parts.append((outer.id, _body(data, outer)))
        elif outer.id == _STRTAB_BLOCK:
            strings = _blob(data, cursor, outer)
        elif outer.id != _SYMTAB_BLOCK:
            return None
    # The table of symbols has put the name of the source among the strings, where it may be a symbol's, too.
    if not (is_hashed and name and strings.count(name) == 1):
        return None
    place = strings.index(name), len(name)
    if any(place == pair for part in parts for pair in pairwise(part)):
        return None
    parts.append((strings.replace(name, b""),))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _is_local(record: Record) -> bool:
    """Whether it is of a value that only its module knows, or is not understood."""
    values = record.values
    return record.code in _VALUES and (len(values) <= _LINKAGE or values[_LINKAGE] in _LOCAL_LINKAGES)


def _body(data: bytes, block: Block) -> bytes:
    return data[block.start >> 3 : block.end >> 3]


def _blob(data: bytes, cursor: BitCursor, block: Block) -> bytes:
    for item in cursor.items(block, _BLOB):
        if isinstance(item, Record) and item.blob is not None:
            begin, size = item.blob
            return data[begin : begin + size]
    return b""
