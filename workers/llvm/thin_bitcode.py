"""Modules that were prepared for unified LTO, made fit for a thin link with modules that were not.

Linkers refuse a link in which some modules are for unified LTO and others are not, and so does the import of functions
between modules that disagree on being a split LTO unit, which clang says of unified modules even where nothing was
split. Nothing of either matters to ThinLTO itself, so both are taken back in place, at their size: bits in the flags of
the summary, and the name of a module flag. A module that really is split stays split.

Symbol tables, string tables and the module's hash, which promoted names are made of, stay as they are.
"""

from __future__ import annotations

from workers.llvm.bitcode import MODULE_BLOCK, SUMMARY_BLOCKS, blocks
from workers.llvm.bitstream import BitcodeError, BitCursor, Block, Record
from workers.llvm.lto_flags import module_flag_names

__all__ = ["make_plain"]

_GLOBALVAL_SUMMARY_BLOCK = 20
_FLAGS = 20
_SPLIT_LTO_UNIT = 0x8
_UNIFIED_LTO = 0x200

_SPLIT_FLAG = b"EnableSplitLTOUnit"
_OTHER_FLAG = b"ltod.was-splitting"

_VBR_BITS = 6
_PAYLOAD_BITS = _VBR_BITS - 1


def make_plain(data: bytes) -> bytes:
    """`data`, bitcode, without what only modules for unified LTO say: `data` itself where it says nothing of it.

    Raises `BitcodeError`.
    """
    modules = [(cursor, block, _nested(cursor, block)) for cursor, block in blocks(data) if block.id == MODULE_BLOCK]
    plain = bytearray(data)
    for cursor, _, nested in modules:
        flags = _summary_flags(cursor, nested)
        if flags is None or not flags.values[0] & _UNIFIED_LTO:
            continue
        old = flags.values[0]
        # Of a split module, one part is to be merged; so is a whole one that has no ThinLTO summary.
        stays = len(modules) > 1 or not any(block.id == _GLOBALVAL_SUMMARY_BLOCK for block in nested)
        _replace(plain, cursor.origin, flags, old & ~(_UNIFIED_LTO if stays else _UNIFIED_LTO | _SPLIT_LTO_UNIT))
        if old & _SPLIT_LTO_UNIT and not stays:
            for start, name in module_flag_names(data, cursor, nested):
                if name == _SPLIT_FLAG:
                    plain[start : start + len(name)] = _OTHER_FLAG
    return bytes(plain) if plain != data else data


def _nested(cursor: BitCursor, module: Block) -> list[Block]:
    return [item for item in cursor.items(module, frozenset()) if isinstance(item, Block)]


def _summary_flags(cursor: BitCursor, nested: list[Block]) -> Record | None:
    """The record with the flags of the summary, of either kind."""
    for block in nested:
        if block.id in SUMMARY_BLOCKS:
            for item in cursor.items(block, frozenset({_FLAGS})):
                if isinstance(item, Record) and item.values:
                    return item
    return None


def _replace(data: bytearray, origin: int, record: Record, new: int) -> None:
    """Write the first value of a record anew in as many chunks as it takes: LLVM writes it without an abbreviation."""
    old = record.values[0]
    chunks = max(1, -(-old.bit_length() // _PAYLOAD_BITS))
    byte, shift = origin + (record.at >> 3), record.at & 7
    size = (shift + chunks * _VBR_BITS + 7) >> 3
    word = int.from_bytes(data[byte : byte + size], "little")
    mask = (1 << chunks * _VBR_BITS) - 1
    if word >> shift & mask != _vbr(old, chunks):
        raise BitcodeError(f"its ThinLTO summary is written in an unknown way at byte {byte}")
    data[byte : byte + size] = (word & ~(mask << shift) | _vbr(new, chunks) << shift).to_bytes(size, "little")


def _vbr(value: int, chunks: int) -> int:
    """The bits of `value` in that many chunks, also where fewer would do."""
    bits = 0
    for index in range(chunks):
        chunk = value >> index * _PAYLOAD_BITS & (1 << _PAYLOAD_BITS) - 1
        more = 1 << _PAYLOAD_BITS if index < chunks - 1 else 0
        bits |= (chunk | more) << index * _VBR_BITS
    return bits
