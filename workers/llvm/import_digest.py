"""What of a module matters to those that import from it, where that is less than all of it.

A module's HASH and the name of its source get into other objects through the names and the GUIDs of values that are
local to it. Where it has none, they do not matter. rustc gives every program a module of its own with five small
functions (`__rust_alloc` and its like), from which all crates import: but for these two it is always the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from attrs import define, field

from workers.llvm.bitcode import MODULE_BLOCK, blocks
from workers.llvm.bitstream import BitcodeError, BitCursor, Block, Record

__all__ = ["MOST_BYTES", "import_digest"]

MOST_BYTES = 16 * 1024
"""What is larger has something local to it, mostly, and would take long to be read."""

# Block ids and record codes of llvm/Bitcode/LLVMBitCodes.h.
_IDENTIFICATION_BLOCK, _STRTAB_BLOCK, _SYMTAB_BLOCK = 13, 23, 25
_VERSION, _GLOBALVAR, _FUNCTION, _COMDAT, _ALIAS, _SOURCE_FILENAME, _HASH, _IFUNC = 1, 7, 8, 12, 14, 16, 17, 18
_BLOB = 1
_VALUES = frozenset({_GLOBALVAR, _FUNCTION, _ALIAS, _IFUNC})
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
        return _Module(data).digest()
    except BitcodeError:
        return None


@define
class _Module:
    """A file with one module, while it is read."""

    _data: bytes
    _name: bytes | None = None
    _names: list[tuple[int, int]] = field(factory=list)
    """What refers to the table of strings, as far as it may: places and sizes."""
    _pieces: list[bytes] = field(factory=list)

    def digest(self) -> str | None:
        seen = []
        for cursor, block in blocks(self._data):
            if cursor.origin or block.id in seen:
                return None
            seen.append(block.id)
            if block.id == MODULE_BLOCK:
                if not self._read_module(cursor, block):
                    return None
            elif block.id == _STRTAB_BLOCK:
                if not self._read_strings(cursor, block):
                    return None
            elif block.id in (_IDENTIFICATION_BLOCK, _SYMTAB_BLOCK):
                self._keep(block.start, block.end)
            else:
                return None
        if not {MODULE_BLOCK, _STRTAB_BLOCK} <= set(seen):
            return None
        whole = b"".join(b"%d:%b" % (len(piece), piece) for piece in self._pieces)
        return hashlib.sha256(whole).hexdigest()

    def _read_module(self, cursor: BitCursor, block: Block) -> bool:
        """Keep what matters of it; whether anything else is known not to."""
        kept_to = block.start
        is_hashed = False
        for item in cursor.items(block, _VALUES | {_VERSION, _COMDAT, _SOURCE_FILENAME, _HASH}):
            if is_hashed:
                return False  # the HASH is the last that a writer knows
            if not isinstance(item, Record):
                continue
            if item.code == _VERSION:
                if item.values != [2]:  # others have their names elsewhere
                    return False
            elif item.code == _SOURCE_FILENAME:
                if self._name is not None:
                    return False
                self._name = bytes(value & 0xFF for value in item.values)
                self._keep(kept_to, item.at)
                kept_to = cursor.pos
            elif item.code == _HASH:
                is_hashed = True
                self._keep(kept_to, item.at)
            else:
                if item.code in _VALUES and (len(item.values) <= _LINKAGE or item.values[_LINKAGE] in _LOCAL_LINKAGES):
                    return False
                self._names += zip(item.values, item.values[1:], strict=False)
        return is_hashed and self._name is not None

    def _read_strings(self, cursor: BitCursor, block: Block) -> bool:
        """Keep the table of strings, less the name of the source, which the table of symbols has put there."""
        strings = _blob(self._data, cursor, block)
        if strings is None or self._name is None:
            return False
        if self._name:
            if strings.count(self._name) != 1 or (strings.index(self._name), len(self._name)) in self._names:
                return False
            strings = strings.replace(self._name, b"")
        self._pieces.append(strings)
        return True

    def _keep(self, begin: int, end: int) -> None:
        """Keep these bits."""
        size = end - begin
        word = int.from_bytes(self._data[begin >> 3 : end + 7 >> 3], "little") >> (begin & 7) & (1 << size) - 1
        self._pieces.append(b"%d %b" % (size, word.to_bytes(size + 7 >> 3, "little")))


def _blob(data: bytes, cursor: BitCursor, block: Block) -> bytes | None:
    found: Sequence[Record | Block] = list(cursor.items(block, frozenset({_BLOB})))
    if len(found) != 1 or not isinstance(found[0], Record) or found[0].blob is None:
        return None
    begin, size = found[0].blob
    return data[begin : begin + size]
