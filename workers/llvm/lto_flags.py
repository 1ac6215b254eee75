"""Module flags that tie a module to one kind of LTO.

Whoever prepares a module for LTO leaves flags in it: for which kind its summary is (`ThinLTO`), and whether it is part
of a split LTO unit (`EnableSplitLTOUnit`, which is also in the summary). Clang adds them where they are missing and
respects them where they are not, and linkers refuse modules whose flags disagree. To prepare a module anew, with the
flags that all others get for unified LTO, those that say something else are given names that mean nothing: the first
one, which is only there to say no, and the second one where it says no. Names are strings in the module's metadata and
keep their length, so nothing else moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from workers.llvm.bitcode import METADATA_BLOCK, MODULE_BLOCK, SUMMARY_BLOCKS, blocks
from workers.llvm.bitstream import BitcodeError, BitCursor, Block, Record
from workers.llvm.content import open_file
from workers.llvm.kind import ContentKind, sniff

__all__ = ["module_flag_names", "without_lto_flags"]

_SPLIT = b"EnableSplitLTOUnit"
_RENAMED = {_SPLIT: b"ltod.was-not-split", b"ThinLTO": b"not-lto"}
_METADATA_STRINGS = 35
_SUMMARY_FLAGS = 20
_SPLIT_FLAG = 0x8
_LENGTH_BITS = 6


def without_lto_flags(content: Path | bytes) -> Path | bytes:
    """A module without such flags: `content` itself if it is no bitcode, or has none.

    Raises `BitcodeError` where it is damaged, `ContentError` where it cannot be read.
    """
    if isinstance(content, bytes):
        data = content
    else:
        with open_file(content) as view:
            if sniff(view) is not ContentKind.BITCODE:
                return content
            data = view[:]
    if sniff(data) is not ContentKind.BITCODE or not any(name in data for name in _RENAMED):
        return content
    renamed = bytearray(data)
    for cursor, block in blocks(data):
        if block.id != MODULE_BLOCK:
            continue
        nested = [item for item in cursor.items(block, frozenset()) if isinstance(item, Block)]
        kept = {_SPLIT} if _is_split(cursor, nested) else set()
        for start, name in module_flag_names(data, cursor, nested):
            if name in _RENAMED and name not in kept:
                renamed[start : start + len(name)] = _RENAMED[name]
    return bytes(renamed)


def module_flag_names(data: bytes, cursor: BitCursor, nested: Iterable[Block]) -> Iterator[tuple[int, bytes]]:
    """The strings in the metadata of a module, of which the names of its flags are some, and where they are in `data`.

    `nested` are the blocks of the module. Raises `BitcodeError` where they are damaged.
    """
    for record in _records(cursor, nested, frozenset({METADATA_BLOCK}), _METADATA_STRINGS):
        yield from _strings(data, cursor.origin, record)


def _is_split(cursor: BitCursor, nested: Iterable[Block]) -> bool:
    flags = _records(cursor, nested, SUMMARY_BLOCKS, _SUMMARY_FLAGS)
    return any(record.values and record.values[0] & _SPLIT_FLAG for record in flags)


def _records(cursor: BitCursor, nested: Iterable[Block], ids: frozenset[int], code: int) -> Iterator[Record]:
    for block in nested:
        if block.id in ids:
            for item in cursor.items(block, frozenset({code})):
                if isinstance(item, Record):
                    yield item


def _strings(data: bytes, origin: int, record: Record) -> Iterator[tuple[int, bytes]]:
    """The strings of one record and where they are in `data`: first all lengths, padding, then all characters."""
    if record.blob is None or len(record.values) != 2 or record.values[1] > record.blob[1]:
        raise BitcodeError("its metadata has no strings where they should be")
    count, offset = record.values
    begin = origin + record.blob[0]
    lengths = BitCursor(data, begin, offset)
    start, end = begin + offset, begin + record.blob[1]
    for _ in range(count):
        length = lengths.vbr(_LENGTH_BITS)
        if start + length > end:
            raise BitcodeError("its metadata's strings are longer than what holds them")
        yield start, data[start : start + length]
        start += length
