"""LLVM's bitstream container: blocks, records and abbreviations, without knowing what they mean.

Made for looking at a few records of large files that may be damaged: blocks are skipped by their length word,
records that nobody wants are skipped without being built, nothing is read beyond what is asked for, and any
damage is a `BitcodeError`.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator

from attrs import field, frozen

from workers.llvm.content import Source

__all__ = ["BitCursor", "BitcodeError", "Block", "Record"]

_WINDOW = 1 << 16
_SLACK = 17  # bytes that hold the longest 64-bit VBR (64 chunks of two bits) from any bit on
_MAX_VALUES = 1 << 20  # of one record that is wanted; strings in real files end far below
_MAX_DEFINED = 1 << 12  # abbreviations of a block, operands of an abbreviation; LLVM makes a few dozen

_END_BLOCK, _ENTER_SUBBLOCK, _DEFINE_ABBREV, _UNABBREV_RECORD = range(4)
_LITERAL, _FIXED, _VBR, _ARRAY, _CHAR6, _BLOB = range(6)
_Operand = tuple[int, int]

_CHAR6_TEXT = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_FROM_BASE64 = bytes.maketrans(_BASE64, bytes(range(64)))
_CONTINUED = bytes(range(32, 64))  # six-bit chunks of a VBR that are not its last


class BitcodeError(ValueError):
    """The bitcode is damaged; the message says how and at which byte."""


@frozen
class Block:
    """A nested block; `width` is that of its abbreviation ids.

    `at`, `start` and `end` are bit positions: of the field that holds its id, and of its body.
    """

    id: int
    width: int
    start: int
    end: int
    at: int


@frozen
class Record:
    """A record that was asked for, however it was abbreviated.

    `at` is the bit position of its values. A blob is not among them: `blob` is its byte position and size.
    """

    code: int
    values: list[int]
    at: int = field(default=0, eq=False)
    blob: tuple[int, int] | None = None


class BitCursor:
    """Reads `source` from byte `origin` on, `size` bytes; `pos` and `end` are bit positions counted from there."""

    __slots__ = ("_base", "_last", "_source", "_window", "end", "origin", "pos")

    def __init__(self, source: Source, origin: int, size: int) -> None:
        self._source = source
        self.origin = origin
        self._window = b""
        self._base = 0
        self._last = -1
        self.pos = 0
        self.end = size * 8

    def fixed(self, width: int) -> int:
        """An integer of `width` bits (0 to 64)."""
        pos = self.pos
        start = (pos >> 3) - self._base
        if not 0 <= start <= self._last:
            start = self._refill(pos >> 3)
        self.pos = pos + width
        if self.pos > self.end:
            raise self.overrun()
        return (int.from_bytes(self._window[start : start + 9], "little") >> (pos & 7)) & ((1 << width) - 1)

    def vbr(self, width: int) -> int:
        """An integer in chunks of `width` bits (2 to 32), of at most 64 bits."""
        pos = self.pos
        start = (pos >> 3) - self._base
        if not 0 <= start <= self._last:
            start = self._refill(pos >> 3)
        word = int.from_bytes(self._window[start : start + _SLACK], "little") >> (pos & 7)
        more = 1 << (width - 1)
        value = word & (more - 1)
        used, shift = width, 0
        while word & more:
            word >>= width
            shift += width - 1
            if shift >= 64:
                raise BitcodeError(f"the number at byte {pos >> 3} has no end")
            value |= (word & (more - 1)) << shift
            used += width
        self.pos = pos + used
        if self.pos > self.end:
            raise self.overrun()
        return value

    def align(self) -> None:
        """Go to the next multiple of 32 bits."""
        self.pos = (self.pos + 31) & ~31

    def skip(self, bits: int) -> None:
        """Go forward."""
        self.pos += bits
        if self.pos > self.end:
            raise self.overrun()

    def enter(self) -> Block:
        """The block whose abbreviation id was just read; the cursor goes to its body."""
        id_at = self.pos
        at = id_at >> 3
        block_id = self.vbr(8)
        width = self.vbr(4)
        self.align()
        size = self.fixed(32) * 32
        start = self.pos
        if not 2 <= width <= 32:
            raise BitcodeError(f"the block at byte {at} has abbreviation ids of {width} bits")
        if start + size > self.end:
            raise BitcodeError(
                f"it is cut off: block {block_id} at byte {at} takes {size >> 3} bytes, "
                f"but only {(self.end - start) >> 3} are left"
            )
        return Block(block_id, width, start, start + size, id_at)

    def items(self, block: Block, wanted: frozenset[int]) -> Iterator[Record | Block]:
        """The nested blocks of `block`, not entered, and its records with a code in `wanted`, in file order.

        Within the iteration the cursor ends at the block's end; it stays where the iteration was left.
        """
        self.pos, self.end = block.start, block.end
        abbreviations: list[tuple[_Operand, ...]] = []
        while (abbreviation := self.fixed(block.width)) != _END_BLOCK:
            if abbreviation == _ENTER_SUBBLOCK:
                nested = self.enter()
                yield nested
                self.pos = nested.end
            elif abbreviation == _DEFINE_ABBREV:
                abbreviations.append(self._definition())
                if len(abbreviations) > _MAX_DEFINED:
                    raise BitcodeError(f"the block at byte {block.start >> 3} defines too many abbreviations")
            elif abbreviation == _UNABBREV_RECORD:
                code = self.vbr(6)
                count = self.vbr(6)
                if code in wanted:
                    at = self.pos
                    yield Record(code, self._vbr6_values(count), at)
                else:
                    for _ in self._vbr6_chunks(count):
                        pass
            elif abbreviation - 4 < len(abbreviations):
                record = self._abbreviated(abbreviations[abbreviation - 4], wanted)
                if record is not None:
                    yield record
            else:
                raise BitcodeError(f"the record at byte {self.pos >> 3} has an abbreviation that nothing defines")

    def overrun(self) -> BitcodeError:
        """The error for contents that go on behind the end."""
        return BitcodeError(f"the contents that should end at byte {self.end >> 3} run over it")

    def _refill(self, byte: int) -> int:
        """Move the window to `byte`; gives the index of that byte in it."""
        if byte * 8 > self.end:
            raise self.overrun()
        begin = self.origin + byte
        self._window = bytes(self._source[begin : begin + _WINDOW])
        self._base = byte
        whole = begin + len(self._window) >= len(self._source)
        self._last = len(self._window) if whole else len(self._window) - _SLACK
        if self._last < 0:
            raise BitcodeError(f"the file became shorter while it was read, at byte {byte}")
        return 0

    def _definition(self) -> tuple[_Operand, ...]:
        at = self.pos >> 3
        operands: list[_Operand] = []
        count = self.vbr(5)
        if count > _MAX_DEFINED:
            raise BitcodeError(f"the abbreviation at byte {at} has {count} operands")
        for _ in range(count):
            if self.fixed(1):
                operands.append((_LITERAL, self.vbr(8)))
                continue
            encoding = self.fixed(3)
            if encoding in (_FIXED, _VBR):
                width = self.vbr(5)
                if width > 32 or (encoding, width) == (_VBR, 1):
                    raise BitcodeError(f"the abbreviation at byte {at} has an operand of {width} bits")
                operands.append((encoding, width) if width else (_LITERAL, 0))
            elif encoding in (_ARRAY, _CHAR6, _BLOB):
                operands.append((encoding, 6))
            else:
                raise BitcodeError(f"the abbreviation at byte {at} has the unknown encoding {encoding}")
        kinds = [kind for kind, _ in operands]
        # The code comes first; an array's element is the last operand and itself a scalar; a blob is the last one.
        if (
            not kinds
            or kinds[0] in (_ARRAY, _BLOB)
            or _ARRAY in (*kinds[:-2], kinds[-1])
            or _BLOB in kinds[:-1]
            or kinds[-2:] == [_ARRAY, _BLOB]
        ):
            raise BitcodeError(f"the abbreviation at byte {at} makes no record")
        return tuple(operands)

    def _abbreviated(self, operands: tuple[_Operand, ...], wanted: frozenset[int]) -> Record | None:
        code = self._scalar(operands[0])
        if code not in wanted:
            for operand in self._flat(operands):
                self._skip_operand(operand)
            return None
        at = self.pos
        values: list[int] = []
        for kind, width, count in self._flat(operands):
            if kind == _BLOB:
                blob = self.pos >> 3, count
                self._skip_operand((kind, width, count))
                return Record(code, values, at, blob)
            if len(values) + count > _MAX_VALUES:
                raise BitcodeError(f"the record at byte {self.pos >> 3} has {count} values")
            values.extend(self._scalar((kind, width)) for _ in range(count))
        return Record(code, values, at)

    def _flat(self, operands: tuple[_Operand, ...]) -> Iterator[tuple[int, int, int]]:
        """Kind, width and number of repetitions of each operand after the code, lengths read as they come."""
        for index, (kind, width) in enumerate(operands[1:], 1):
            if kind == _ARRAY:
                element, bits = operands[index + 1]
                yield element, bits, self.vbr(6)
                return
            if kind == _BLOB:
                count = self.vbr(6)
                self.align()
                yield kind, 8, count
            else:
                yield kind, width, 1

    def _skip_operand(self, operand: tuple[int, int, int]) -> None:
        kind, width, count = operand
        if kind in (_FIXED, _CHAR6, _BLOB):
            self.skip(width * count)
            if kind == _BLOB:
                self.align()
        elif kind == _VBR:
            for _ in range(count):
                self.vbr(width)

    def _scalar(self, operand: _Operand) -> int:
        kind, value = operand
        if kind == _LITERAL:
            return value
        if kind == _FIXED:
            return self.fixed(value)
        if kind == _VBR:
            return self.vbr(value)
        return _CHAR6_TEXT[self.fixed(6)]

    def _vbr6_values(self, count: int) -> list[int]:
        at = self.pos >> 3
        if count > _MAX_VALUES:
            raise BitcodeError(f"the record at byte {at} has {count} values")
        values: list[int] = []
        value = shift = 0
        for chunks in self._vbr6_chunks(count):
            for chunk in chunks:
                value |= (chunk & 31) << shift
                if chunk < 32:
                    values.append(value)
                    value = shift = 0
                else:
                    shift += 5
                    if shift >= 64:
                        raise BitcodeError(f"a number in the record at byte {at} has no end")
        return values

    def _vbr6_chunks(self, count: int) -> Iterator[bytes]:
        """Read `count` VBR6 integers; gives their chunks, one byte each (32 is added to all but the last of one).

        What real files hold at the level of a module is mostly this, so it is done for many chunks at once:
        base64 also cuts into six bits, from the other end. As every integer has a chunk, `count` chunks never
        reach behind the last integer; those that were not a last chunk are still missing afterwards.
        """
        stalled = 0
        while count:
            size = min(count, _WINDOW)
            begin, shift = self.pos >> 3, self.pos & 7
            self.skip(size * 6)
            start = begin - self._base
            if not 0 <= start <= self._last or self.pos >> 3 >= self._base + len(self._window):
                start = self._refill(begin)
            word = int.from_bytes(self._window[start : start + (size * 6 + shift + 7 >> 3)], "little") >> shift
            groups = size + 3 >> 2
            text = binascii.b2a_base64((word & (1 << groups * 24) - 1).to_bytes(groups * 3, "big"), newline=False)
            chunks = text.translate(_FROM_BASE64)[::-1][:size]
            finished = len(chunks.translate(None, _CONTINUED))
            count -= finished
            stalled = 0 if finished else stalled + size
            if stalled > 13:
                raise BitcodeError(f"a number at byte {begin} has no end")
            yield chunks
