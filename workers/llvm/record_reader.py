"""Records of one block of a bitstream, many per second: for blocks that are read from end to end.

Here belongs decoding, without knowing what a record means. `workers.llvm.bitstream` finds the blocks, and is the one
to ask for a few records of a large file.

A record without its array has a few dozen bits, laid out as its abbreviation says. So the bits are written out as
text, the first bit first, and every abbreviation becomes one regular expression, which finds all operands at once.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from workers.llvm.bitstream import BitcodeError, Block
from workers.llvm.written_numbers import CHARACTERS, FIXED_NUMBERS, vbr_numbers

__all__ = ["block_records"]

_END_BLOCK, _ENTER_SUBBLOCK, _DEFINE_ABBREV, _UNABBREV_RECORD = range(4)
_LITERAL, _FIXED, _VBR, _ARRAY, _CHAR6 = range(5)
_Operand = tuple[int, int]

_WINDOW = 1 << 15
"""Bytes that are written out as text at a time, which takes eight times as much."""

_SLACK = 1 << 14
"""Bits that hold any record without its array."""

_MAX_OPERANDS = 20
_MAX_ABBREVIATIONS = 64
_MAX_WIDTH = 64
_MAX_CHUNKS = 13
"""Of one number; LLVM's have 64 bits, written in chunks of six or more; what is in chunks of four is smaller."""

_MANY = 4

_VBR8_NUMBER = re.compile(rb"[\x80-\xff]{0,9}[\0-\x7f]")
_DEFINITION = re.compile(r"((?:.{4}1){0,2}.{4}0)")
_OPERAND = re.compile(r"1((?:.{7}1){0,9}.{7}0)|0(?:(100|010)((?:.{4}1){0,2}.{4}0)|(110|001))")


def block_records(data: bytes, block: Block) -> Iterator[tuple[int, list[int], list[bytes]]]:
    """Code, values and rest of every record of `block`, in file order. Raises `BitcodeError` where it is damaged.

    The rest are the values of an array that is written in chunks of eight bits, as they are written: each is what
    `written_numbers.written` makes of the value. Mostly these are names for something that is to be looked up.

    A block inside, a blob and an abbreviation without a code of its own are errors as well: no block of an index has
    one.
    """
    width, end = block.width, block.end
    if not 2 <= width <= 16 or end > len(data) * 8:
        raise BitcodeError(f"the block at byte {block.start >> 3} cannot be read")
    layouts: dict[str, _Layout] = {}
    end_block, define = _bits(_END_BLOCK, width), _bits(_DEFINE_ABBREV, width)
    unabbreviated = _bits(_UNABBREV_RECORD, width)
    base = at = block.start
    text = ""
    limit = -1
    while True:
        here = at - base
        if here > limit:
            if at >= end:
                raise BitcodeError(f"the block at byte {block.start >> 3} has no end")
            base, here = at, 0
            text = _text(data, at, min(_WINDOW * 8, end - at))
            limit = len(text) - 1 if at + len(text) == end else len(text) - _SLACK
        name = text[here : here + width]
        layout = layouts.get(name)
        if layout is not None:
            if layout.element is None:
                # One kind of record mostly comes many times in a row.
                run = layout.run.match(text, here)
                if run is None:
                    raise _damaged(at)
                at = base + run.end()
                code = layout.code
                for values in layout.rows(layout.head.findall(text, here, run.end())):
                    yield code, values, []
                continue
            head = layout.head.match(text, here)
            if head is None:
                raise _damaged(at)
            code, values = layout.code, layout.values(head.groups())
            at = base + head.end()
            count = values.pop()
            rest: list[bytes] = []
            if count and layout.element == (_VBR, 8):
                rest, at = _vbr8s(data, at, end, count)
            elif count:
                more, at = layout.array(data, at, end, count)
                values += more
            yield code, values, rest
        elif name == unabbreviated:
            head = _UNABBREVIATED.match(text, here + width)
            if head is None:
                raise _damaged(at)
            known = vbr_numbers(6)
            code, count = known[head[1]], known[head[2]]
            values, at = _vbrs(data, base + head.end(), end, count, 6) if count else ([], base + head.end())
            yield code, values, []
        elif name == define:
            at, operands = _definition(text, here + width, base)
            if len(layouts) >= min(_MAX_ABBREVIATIONS, (1 << width) - 4):
                raise BitcodeError(f"the block at byte {block.start >> 3} defines too many abbreviations")
            name = _bits(len(layouts) + 4, width)
            layouts[name] = _layout(name, operands)
        elif name == end_block:
            return
        else:
            raise _damaged(at)


class _Layout:
    """How the records of an abbreviation are laid out, whose id has the bits `name`.

    `head` finds all up to the elements of an array, `run` as many records as follow each other.
    """

    def __init__(self, name: str, operands: tuple[_Operand, ...]) -> None:
        """`operands` are encodings with widths, or values of literals; an array is followed by its elements'."""
        (kind, self.code), rest = operands[0], operands[1:]
        self.element: _Operand | None = None
        kinds = [operand[0] for operand in rest]
        if _ARRAY in kinds:
            if kinds.index(_ARRAY) != len(kinds) - 2 or kinds[-1] == _ARRAY:
                raise BitcodeError("an abbreviation has an array that is not its end")
            self.element = rest[-1]
            rest = (*rest[:-2], (_VBR, 6))
        if kind != _LITERAL:
            raise BitcodeError("an abbreviation has no code of its own")
        self._literals = [(index, value) for index, (kind, value) in enumerate(rest) if kind == _LITERAL]
        rest = tuple(operand for operand in rest if operand[0] != _LITERAL)
        self._operands = rest
        self._numbers = tuple(map(_numbers, rest))
        patterns = [_vbr_pattern(size) if kind == _VBR else f".{{{size}}}" for kind, size in rest]
        # With two groups or more, `findall` gives tuples.
        self.head = re.compile(name + "".join(f"({pattern})" for pattern in patterns) + "()()")
        self.run = re.compile(f"(?:{name}{''.join(patterns)})+")

    def values(self, groups: tuple[str, ...]) -> list[int]:
        """The values of a record that `head` has found, without the elements of an array, but with their number."""
        values = [known[text] for known, text in zip(self._numbers, groups, strict=False)]
        for index, value in self._literals:
            values.insert(index, value)
        return values

    def rows(self, found: list[tuple[str, ...]]) -> list[list[int]]:
        """The values of many records without arrays."""
        if self._literals or len(found) < _MANY:
            return [self.values(groups) for groups in found]
        columns: list[Sequence[int]] = []
        for (kind, width), known, texts in zip(self._operands, self._numbers, zip(*found, strict=True), strict=False):
            if kind == _FIXED and width == 32:
                # One large number is quicker made than many small ones.
                word = int("".join(texts)[::-1], 2).to_bytes(len(texts) * 4, "little")
                columns.append(struct.unpack(f"<{len(texts)}I", word))
            else:
                columns.append([known[text] for text in texts])
        return [list(row) for row in zip(*columns, strict=True)]

    def array(self, data: bytes, at: int, end: int, count: int) -> tuple[list[int], int]:
        """The `count` elements at bit `at`, and where they end."""
        assert self.element is not None  # noqa: S101
        kind, width = self.element
        if kind == _VBR:
            return _vbrs(data, at, end, count, width)
        if kind == _LITERAL:
            raise _damaged(at)
        size = count * width
        if at + size > end:
            raise _overrun(at)
        if width == 8 and kind == _FIXED:
            return list(_word(data, at, size).to_bytes(count, "little")), at + size
        text, known = _text(data, at, size), _numbers(self.element)
        return [known[text[start : start + width]] for start in range(0, size, width)], at + size


def _numbers(operand: _Operand) -> Mapping[str, int]:
    kind, size = operand
    if kind == _VBR:
        return vbr_numbers(size)
    return FIXED_NUMBERS if kind == _FIXED else CHARACTERS


@lru_cache(512)
def _layout(name: str, operands: tuple[_Operand, ...]) -> _Layout:
    return _Layout(name, operands)


def _definition(text: str, here: int, base: int) -> tuple[int, tuple[_Operand, ...]]:
    """The operands of the abbreviation at index `here` of `text`, which begins at bit `base`, and where it ends."""
    # Real files have few, and always the same; no definition is the beginning of another.
    for size, same_size in list(_known_definitions.items()):
        operands = same_size.get(text[here : here + size])
        if operands is not None:
            return base + here + size, operands
    damaged = BitcodeError(f"the abbreviation at byte {(base + here) >> 3} cannot be read")
    begin = here
    found = _DEFINITION.match(text, here)
    if found is None:
        raise damaged
    count = vbr_numbers(5)[found[1]]
    if not 0 < count <= _MAX_OPERANDS:
        raise damaged
    here = found.end()
    made: list[_Operand] = []
    for _ in range(count):
        found = _OPERAND.match(text, here)
        if found is None:
            raise damaged
        here = found.end()
        literal, encoding, width, plain = found.groups()
        if literal is not None:
            made.append((_LITERAL, vbr_numbers(8)[literal]))
        elif plain is not None:
            made.append((FIXED_NUMBERS[plain], 6))
        else:
            kind, bits = FIXED_NUMBERS[encoding], vbr_numbers(5)[width]
            if bits > _MAX_WIDTH or (kind == _VBR and bits == 1):
                raise damaged
            made.append((kind, bits) if bits else (_LITERAL, 0))
    operands = tuple(made)
    if sum(map(len, list(_known_definitions.values()))) < _MAX_ABBREVIATIONS:
        _known_definitions.setdefault(here - begin, {})[text[begin:here]] = operands
    return base + here, operands


_known_definitions: dict[int, dict[str, tuple[_Operand, ...]]] = {}
_UNABBREVIATED = re.compile(r"((?:.{5}1){0,12}.{5}0)((?:.{5}1){0,12}.{5}0)")


def _vbr8s(data: bytes, at: int, end: int, count: int) -> tuple[list[bytes], int]:
    """`count` numbers in chunks of eight bits, and where they end."""
    guess = count + (count >> 1)
    while True:
        room = end - at >> 3
        if count > room:
            raise _overrun(at)
        size = guess if guess < room else room
        begin = at >> 3
        word = int.from_bytes(data[begin : begin + size + 1], "little") >> (at & 7)
        # What is behind the last chunk does not matter.
        chunks = (word & (1 << size * 8) - 1).to_bytes(size, "little")
        found = _VBR8_NUMBER.findall(chunks)
        if len(found) >= count:
            break
        if size == room or guess > count * _MAX_CHUNKS:
            raise _overrun(at)
        guess *= 2
    del found[count:]
    used = b"".join(found)
    if not chunks.startswith(used):
        raise BitcodeError(f"the array at byte {at >> 3} has a number without an end")
    return found, at + len(used) * 8


def _vbrs(data: bytes, at: int, end: int, count: int, width: int) -> tuple[list[int], int]:
    """`count` numbers in chunks of `width` bits, and where they end."""
    guess = count + (count >> 1) + _MAX_CHUNKS
    pattern = re.compile(_vbr_pattern(width))
    while True:
        if at + count * width > end:
            raise _overrun(at)
        size = min(guess * width, end - at)
        text = _text(data, at, size)
        found = pattern.findall(text)[:count]
        used = "".join(found)
        # A number that is cut off makes what is behind it look like others.
        if len(found) == count and text.startswith(used):
            break
        if size == end - at or guess > (count + 1) * (_MAX_CHUNKS + 1):
            raise _overrun(at)
        guess *= 2
    known = vbr_numbers(width)
    return [known[number] for number in found], at + len(used)


def _vbr_pattern(width: int) -> str:
    return f"(?>(?:.{{{width - 1}}}1){{0,{_MAX_CHUNKS - 1}}}).{{{width - 1}}}0"


def _bits(value: int, width: int) -> str:
    return f"{value:0{width}b}"[::-1]


def _word(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at >> 3 : at + size + 7 >> 3], "little") >> (at & 7) & (1 << size) - 1


def _text(data: bytes, at: int, size: int) -> str:
    return f"{_word(data, at, size):0{size}b}"[::-1]


def _damaged(at: int) -> BitcodeError:
    return BitcodeError(f"the record at byte {at >> 3} is damaged")


def _overrun(at: int) -> BitcodeError:
    return BitcodeError(f"the array at byte {at >> 3} runs over the end of its block")
