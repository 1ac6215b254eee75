"""Records are read as they are written, and damage is told. Layer: pure."""

from __future__ import annotations

import pytest

from tests.shard_samples import Bits
from workers.llvm.bitstream import BitcodeError, BitCursor, Block
from workers.llvm.record_reader import block_records
from workers.llvm.written_numbers import number, written

pytestmark = pytest.mark.pure

FIXED, VBR, ARRAY, CHAR6 = 1, 2, 3, 4
Operand = tuple[int, int] | int


def define(bits: Bits, *operands: Operand) -> None:
    """Define an abbreviation; a plain number is a literal."""
    bits.put(2, 4)
    bits.vbr(len(operands), 5)
    for operand in operands:
        if isinstance(operand, int):
            bits.put(1, 1)
            bits.vbr(operand, 8)
        else:
            bits.put(operand[0] << 1, 4)
            if operand[0] in (FIXED, VBR):
                bits.vbr(operand[1], 5)


def block_of(bits: Bits) -> tuple[bytes, Block]:
    data = Bits()
    data.block(9, 2, 4, lambda body: setattr(body, "text", bits.text))
    whole = data.data()
    cursor = BitCursor(whole, 0, len(whole))
    cursor.pos = 34
    return whole, cursor.enter()


def records(bits: Bits) -> list[tuple[int, list[int]]]:
    return [
        (code, values + [number(chunks) for chunks in rest]) for code, values, rest in block_records(*block_of(bits))
    ]


@pytest.mark.parametrize("count", [1, 3, 4, 5000])
def test_fields_of_every_encoding_many_times_in_a_row(count: int) -> None:
    """More of them than fit in what is looked at in one go."""
    bits = Bits()
    define(bits, 7, (FIXED, 3), (VBR, 6), (FIXED, 32), 99, (CHAR6, 0), (VBR, 8))
    want = []
    text = []
    for at in range(count):
        one = Bits()
        one.put(4, 4)
        one.put(at % 8, 3)
        one.vbr(at * at, 6)
        one.put(at * 77777 % 2**32, 32)
        one.put(at % 26, 6)
        one.vbr(2**64 - 1 - at, 8)
        text.append(one.text)
        want.append((7, [at % 8, at * at, at * 77777 % 2**32, 99, ord("a") + at % 26, 2**64 - 1 - at]))
    bits.text += "".join(text)
    assert records(bits) == want


@pytest.mark.parametrize("element", [(FIXED, 8), (FIXED, 7), (VBR, 6), (VBR, 8)])
@pytest.mark.parametrize("values", [[], [5], list(range(120))])
def test_arrays(element: tuple[int, int], values: list[int]) -> None:
    bits = Bits()
    define(bits, 3, (VBR, 6), (ARRAY, 0), element)
    bits.put(4, 4)
    bits.vbr(1234, 6)
    bits.vbr(len(values), 6)
    for value in values:
        if element[0] == FIXED:
            bits.put(value, element[1])
        else:
            bits.vbr(value, element[1])
    bits.record(4, 8, [1, 2, 3])
    assert records(bits) == [(3, [1234, *values]), (8, [1, 2, 3])]


@pytest.mark.parametrize("value", [0, 127, 128, 2**32, 2**64 - 1])
def test_numbers_are_what_is_written(value: int) -> None:
    assert number(written(value)) == value


@pytest.mark.parametrize("width", [6, 8])
def test_a_number_without_an_end_is_told(width: int) -> None:
    bits = Bits()
    define(bits, 3, (ARRAY, 0), (VBR, width))
    bits.put(4, 4)
    bits.vbr(2, 6)
    for _ in range(20):
        # What would be read instead, from its middle on, is the end of the block.
        bits.put(1 << width - 1, width)
    for _ in range(4):
        bits.put(1, width)
    with pytest.raises(BitcodeError):
        records(bits)


@pytest.mark.parametrize(
    "operands", [((FIXED, 8),), (3, (ARRAY, 0)), (3, (ARRAY, 0), (ARRAY, 0)), (3, (VBR, 1)), (3, (5, 0)), (3, (6, 0))]
)
def test_abbreviations_that_no_index_has_are_refused(operands: tuple[Operand, ...]) -> None:
    bits = Bits()
    define(bits, *operands)
    bits.put(4, 4)
    bits.vbr(0, 6)
    with pytest.raises(BitcodeError):
        records(bits)


def test_blocks_inside_and_records_that_nothing_defines_are_refused() -> None:
    for abbreviation in (1, 4, 9):
        bits = Bits()
        bits.put(abbreviation, 4)
        with pytest.raises(BitcodeError, match="damaged"):
            records(bits)
