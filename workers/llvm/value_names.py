"""What the GUIDs of a module's values are called in it."""

from __future__ import annotations

from workers.llvm.bitcode import MODULE_BLOCK, blocks
from workers.llvm.bitstream import Record
from workers.llvm.content import Source
from workers.llvm.index_shard import guid_of

__all__ = ["value_names"]

# Block ids and record codes of llvm/Bitcode/LLVMBitCodes.h.
_STRTAB_BLOCK = 23
_GLOBALVAR, _FUNCTION, _ALIAS, _IFUNC, _SOURCE_FILENAME, _BLOB = 7, 8, 14, 18, 16, 1
_VALUES = frozenset({_GLOBALVAR, _FUNCTION, _ALIAS, _IFUNC})
_LOCAL_LINKAGES = frozenset({3, 9})


def value_names(bitcode: Source) -> dict[int, str]:
    """The names of what a module defines and declares, by GUID. Raises `BitcodeError`, `ContentError`."""
    spans: list[tuple[int, int, bool, bytes]] = []
    strings = b""
    for cursor, block in blocks(bitcode):
        if block.id == MODULE_BLOCK:
            source = b""
            own: list[list[int]] = []
            for item in cursor.items(block, _VALUES | {_SOURCE_FILENAME}):
                if isinstance(item, Record):
                    if item.code == _SOURCE_FILENAME:
                        source = bytes(value & 0xFF for value in item.values)
                    elif len(item.values) > 5:
                        own.append(item.values)
            spans += ((values[0], values[1], values[5] in _LOCAL_LINKAGES, source) for values in own)
        elif block.id == _STRTAB_BLOCK:
            for item in cursor.items(block, frozenset({_BLOB})):
                if isinstance(item, Record) and item.blob is not None:
                    begin, size = (cursor.origin + item.blob[0], item.blob[1])
                    strings = bytes(bitcode[begin : begin + size])
    found: dict[int, str] = {}
    for begin, size, is_local, source in spans:
        name = strings[begin : begin + size].removeprefix(b"\1")
        guid = guid_of((source or b"<unknown>") + b";" + name if is_local else name)
        found[guid] = name.decode("utf-8", "backslashreplace")
    return found
