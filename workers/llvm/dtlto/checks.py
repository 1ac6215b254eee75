"""Whether a job is what it seems. clang does not ask, and makes an object of it in any case (FACTS: it fails open).

A shard is made for one module. If the module's path is not in it, letter for letter, clang compiles nothing of it; if
another module is at one of its paths, clang imports what happens to be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workers.llvm.bitcode import MODULE_BLOCK, blocks
from workers.llvm.bitstream import BitcodeError, Record
from workers.llvm.content import ContentError, Source, open_file
from workers.llvm.index_shard import IndexedModule

__all__ = ["wrong_module"]

_HASH_RECORD = 17
"""MODULE_CODE_HASH of llvm/Bitcode/LLVMBitCodes.h."""

_WIDTH = 3
"""Bits of an abbreviation id in a module's block."""
_UNABBREVIATED = 3
_WORD_BITS = 32
_ENDING_BYTES = 40
"""More than a hash record and the end of its block take."""


def wrong_module(path: Path, expected: IndexedModule) -> str | None:
    """What is wrong with the file at `path`, if it is not the module that the index was made of."""
    try:
        with open_file(path) as view:
            if not len(view):
                return "it is empty"
            found = any(
                _ends_with(view, cursor.origin + (block.end >> 3), expected.hash)
                or any(
                    isinstance(item, Record) and tuple(item.values) == expected.hash
                    for item in cursor.items(block, frozenset({_HASH_RECORD}))
                )
                for cursor, block in blocks(view)
                if block.id == MODULE_BLOCK
            )
    except (ContentError, BitcodeError) as error:
        return f"its bitcode cannot be read: {error}"
    # A module that was made without a hash is in the index with none, or with nothing but zeros.
    if found or not any(expected.hash):
        return None
    return "it is not the module that the linker has read: its hash is another one"


def _ends_with(data: Source, end: int, words: Sequence[int]) -> bool:
    """Whether the module block that ends there does so with these words in a hash record.

    That is where LLVM writes it, and looking there takes no time.
    """
    ending = data[max(0, end - _ENDING_BYTES) : end]
    bits, size = 0, 0

    def put(value: int, width: int) -> None:
        nonlocal bits, size
        bits |= value << size
        size += width

    def put_vbr6(value: int) -> None:
        while value > 31:
            put(value & 31 | 32, 6)
            value >>= 5
        put(value, 6)

    put(_UNABBREVIATED, _WIDTH)
    for value in (_HASH_RECORD, len(words), *words):
        put_vbr6(value)
    put(0, _WIDTH)  # END_BLOCK; what follows is filled up with zeros to a whole word
    tail = int.from_bytes(ending, "little")
    total = len(ending) * 8
    return any(tail >> (total - size - padding) == bits for padding in range(_WORD_BITS) if size + padding <= total)
