"""Modules that were prepared for ThinLTO, made fit for being merged.

LLVM keeps the intent in three places of a module's bitcode, and all of them are changed in place, at their size:

* Linkers do ThinLTO for a module whose summary block has the id `GLOBALVAL_SUMMARY`, and merge one whose summary block
  has the id `FULL_LTO_GLOBALVAL_SUMMARY`. The contents have one form.
* The summary's flags say that the module is for unified LTO, which linkers do with all modules or none, and that it is
  (or is no) split LTO unit. What is merged lies in one unit, so all modules are to say yes.
* A module flag says the latter once more, and modules that disagree cannot be merged. No pass after the merge asks for
  the flag; where the summary says no, it gets a name of its own.

Symbol tables and string tables stay valid. The module's hash does not, which is for ThinLTO's caches alone.
"""

from __future__ import annotations

from attrs import define

from workers.llvm.bitcode import METADATA_BLOCK, MODULE_BLOCK, SUMMARY_BLOCKS, blocks
from workers.llvm.bitstream import BitcodeError, BitCursor, Block, Record

__all__ = ["make_regular"]

_FULL_LTO_GLOBALVAL_SUMMARY_BLOCK = 24

_METADATA_STRINGS = 35
_SUMMARY_FLAGS = 20
_SPLIT_LTO_UNIT = 0x8
_UNIFIED_LTO = 0x200

_SPLIT_FLAG = b"EnableSplitLTOUnit"
_OTHER_FLAG = b"ltod.was-not-split"

_VBR_BITS = 6
_CHUNK_BITS = _VBR_BITS - 1


def make_regular(data: bytes) -> bytes:
    """`data`, bitcode of any number of modules, so that a linker merges all of them. Raises `BitcodeError`."""
    patched = _Patched(bytearray(data), 0)
    for cursor, block in blocks(data):
        if block.id == MODULE_BLOCK:
            patched.origin = cursor.origin
            patched.module(data, cursor, block)
    return bytes(patched.data)


@define
class _Patched:
    data: bytearray
    origin: int

    def module(self, source: bytes, cursor: BitCursor, block: Block) -> None:
        nested = [item for item in cursor.items(block, frozenset()) if isinstance(item, Block)]
        split = False
        for summary in (item for item in nested if item.id in SUMMARY_BLOCKS):
            self.set_bits(summary.at, 8, summary.id, _FULL_LTO_GLOBALVAL_SUMMARY_BLOCK)
            for flags in _records(cursor, summary, _SUMMARY_FLAGS):
                split |= bool(flags.values and flags.values[0] & _SPLIT_LTO_UNIT)
                self.set_flags(flags)
        if not split:
            for metadata in (item for item in nested if item.id == METADATA_BLOCK):
                for strings in _records(cursor, metadata, _METADATA_STRINGS):
                    self.rename(source, strings)

    def set_flags(self, record: Record) -> None:
        """Set the flags in the chunks that they were written in: LLVM writes the record without an abbreviation."""
        if not record.values:
            return
        old = record.values[0]
        new = (old | _SPLIT_LTO_UNIT) & ~_UNIFIED_LTO
        if new != old:
            chunks = max(1, -(-old.bit_length() // _CHUNK_BITS))
            self.set_bits(record.at, chunks * _VBR_BITS, _vbr(old, chunks), _vbr(new, chunks))

    def rename(self, source: bytes, record: Record) -> None:
        """Rename the module flag among the metadata's strings: lengths first, then all characters, then padding."""
        if record.blob is None or len(record.values) != 2 or record.values[1] > record.blob[1]:
            raise BitcodeError("its metadata has no strings where they should be")
        count, offset = record.values
        begin = self.origin + record.blob[0]
        start, end = begin + offset, begin + record.blob[1]
        found = source.find(_SPLIT_FLAG, start, end)
        if found < 0:
            return
        lengths = BitCursor(source, begin, offset)
        for _ in range(count):
            length = lengths.vbr(_VBR_BITS)
            if source[start : start + length] == _SPLIT_FLAG:
                self.data[start : start + length] = _OTHER_FLAG
            start += length
            if start > end:
                raise BitcodeError("its metadata's strings are longer than what holds them")

    def set_bits(self, at: int, width: int, old: int, new: int) -> None:
        """Replace `width` bits, which are to be `old`: whatever was written in another way is not what we know."""
        byte, shift = self.origin + (at >> 3), at & 7
        size = (shift + width + 7) >> 3
        word = int.from_bytes(self.data[byte : byte + size], "little")
        mask = (1 << width) - 1
        if word >> shift & mask != old:
            raise BitcodeError(f"its ThinLTO summary is written in an unknown way at byte {byte}")
        self.data[byte : byte + size] = (word & ~(mask << shift) | new << shift).to_bytes(size, "little")


def _records(cursor: BitCursor, block: Block, code: int) -> list[Record]:
    return [item for item in cursor.items(block, frozenset({code})) if isinstance(item, Record)]


def _vbr(value: int, chunks: int) -> int:
    """The bits of `value` in that many chunks, also where fewer would do."""
    bits = 0
    for index in range(chunks):
        chunk = value >> index * _CHUNK_BITS & (1 << _CHUNK_BITS) - 1
        more = 1 << _CHUNK_BITS if index < chunks - 1 else 0
        bits |= (chunk | more) << index * _VBR_BITS
    return bits
