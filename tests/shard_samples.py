"""Index shards made by hand, and what may differ between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from workers.llvm.index_shard import guid_of

__all__ = [
    "A_PATH",
    "B_PATH",
    "CHANGES",
    "C_PATH",
    "DIGESTS",
    "FLAGS",
    "GUIDS",
    "HELPER",
    "MAIN",
    "MODULES",
    "NAMES",
    "ONE",
    "SUMMARIES",
    "TABLE",
    "THREE",
    "TWO",
    "VERSION",
    "Record",
    "shard",
    "swapped",
]

Record = tuple[int, Sequence[int]]

VERSION, FLAGS = (10, [12]), (20, [0x461])
NAMES = ("main", "helper", "table")
GUIDS = tuple(map(guid_of, NAMES))
ONE, TWO, THREE = ((16, [number, guid >> 32, guid & 0xFFFFFFFF]) for number, guid in enumerate(GUIDS, 1))
MAIN = (5, [1, 0, 0x60, 9, 0, 0, 1, 0, 0, 3, 2, 8])
HELPER = (5, [2, 1, 0x60, 4, 0, 0, 0, 0, 0])
TABLE = (6, [3, 1, 0x60, 5])
A_PATH, B_PATH, C_PATH = b"a/a.bc", b"a/b.bc", b"a/c.bc"
DIGESTS = {"a/a.bc": "aa", "a/b.bc": "bb", "a/c.bc": "cc"}
MODULES = [(0, A_PATH, [1, 2, 3, 4, 5]), (1, B_PATH, [6, 7, 8, 9, 10]), (2, C_PATH, [9, 9, 9, 9, 9])]
SUMMARIES: list[Record] = [VERSION, FLAGS, ONE, TWO, THREE, MAIN, HELPER, TABLE]


class Bits:
    """A bitstream, written the plainest way."""

    def __init__(self) -> None:
        self.text = ""

    def put(self, value: int, width: int) -> None:
        self.text += f"{value:0{width}b}"[::-1]

    def vbr(self, value: int, width: int) -> None:
        half = 1 << (width - 1)
        while value >= half:
            self.put(value & (half - 1) | half, width)
            value >>= width - 1
        self.put(value, width)

    def record(self, width: int, code: int, values: Iterable[int]) -> None:
        values = list(values)
        self.put(3, width)
        for value in (code, len(values), *values):
            self.vbr(value, 6)

    def align(self) -> None:
        self.text += "0" * (-len(self.text) % 32)

    def block(self, number: int, outer: int, width: int, write: Callable[[Bits], None]) -> None:
        self.put(1, outer)
        self.vbr(number, 8)
        self.vbr(width, 4)
        self.align()
        inner = Bits()
        write(inner)
        inner.put(0, width)
        inner.align()
        self.put(len(inner.text) // 32, 32)
        self.text += inner.text

    def data(self) -> bytes:
        return b"BC\xc0\xde" + int(self.text[::-1], 2).to_bytes(len(self.text) // 8, "little")


def shard(
    summaries: Sequence[Record] = SUMMARIES,
    modules: Sequence[tuple[int, bytes, list[int]]] = MODULES,
    strings: bytes = b"",
    version: int = 2,
) -> bytes:
    def table(bits: Bits) -> None:
        for number, path, words in modules:
            bits.record(3, 1, [number, *path])
            bits.record(3, 2, words)

    def index(bits: Bits) -> None:
        for code, values in summaries:
            bits.record(4, code, values)

    def module(bits: Bits) -> None:
        bits.record(3, 1, [version])
        bits.block(19, 3, 3, table)
        bits.block(20, 3, 4, index)

    def strtab(bits: Bits) -> None:
        bits.put(2, 3)
        bits.vbr(2, 5)
        bits.put(1, 1)
        bits.vbr(1, 8)
        bits.put(5 << 1, 4)
        bits.put(4, 3)
        bits.vbr(len(strings), 6)
        bits.align()
        for byte in strings:
            bits.put(byte, 8)
        bits.align()

    bits = Bits()
    bits.block(8, 2, 3, module)
    bits.block(23, 2, 3, strtab)
    return bits.data()


def swapped(records: Sequence[Record], old: Record, *new: Record) -> list[Record]:
    at = list(records).index(old)
    return [*records[:at], *new, *records[at + 1 :]]


CHANGES: dict[str, tuple[list[Record], Sequence[tuple[int, bytes, list[int]]]]] = {
    "index flags": (swapped(SUMMARIES, FLAGS, (20, [0x441])), MODULES),
    "dead": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x40, *MAIN[1][3:]])), MODULES),
    "not local": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x20, *MAIN[1][3:]])), MODULES),
    "private": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x68, *MAIN[1][3:]])), MODULES),
    "internalised": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x67, *MAIN[1][3:]])), MODULES),
    "function flags": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x60, 9, 4, *MAIN[1][5:]])), MODULES),
    "instructions": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x60, 10, *MAIN[1][4:]])), MODULES),
    "read only": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x60, 9, 0, 0, 1, 1, 0, 3, 2, 8])), MODULES),
    "callee": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x60, 9, 0, 0, 1, 0, 0, 3, 1, 8])), MODULES),
    "hotness": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x60, 9, 0, 0, 1, 0, 0, 3, 2, 9])), MODULES),
    "reference for call": (swapped(SUMMARIES, MAIN, (5, [1, 0, 0x60, 9, 0, 0, 3, 0, 0, 3, 2, 2])), MODULES),
    "without profile": (swapped(SUMMARIES, MAIN, (4, [1, 0, 0x60, 9, 0, 0, 1, 0, 0, 3, 2])), MODULES),
    "home of all": (SUMMARIES, [MODULES[0], (1, C_PATH, [6, 7, 8, 9, 10]), (2, B_PATH, [9, 9, 9, 9, 9])]),
    "variable's nature": (swapped(SUMMARIES, TABLE, (6, [3, 1, 0x60, 4])), MODULES),
    "variable refers": (swapped(SUMMARIES, TABLE, (6, [3, 1, 0x60, 5, 2])), MODULES),
    "another variable": (swapped(SUMMARIES, TABLE, (16, [3, 33, 334]), TABLE), MODULES),
    "other home": (swapped(SUMMARIES, TABLE, (6, [3, 0, 0x60, 5])), MODULES),
    "other home of a constant": (swapped(SUMMARIES, TABLE, (6, [3, 0, 0x60, 4])), MODULES),
    "other import": (swapped(SUMMARIES, HELPER, (5, [2, 2, *HELPER[1][2:]])), MODULES),
    "import less": (swapped(SUMMARIES, TABLE), MODULES),
    "alias": (swapped(SUMMARIES, HELPER, (8, [2, 1, 0x60, 3])), MODULES),
    "alias of nothing known": (swapped(SUMMARIES, HELPER, (8, [2, 1, 0x60, 0])), MODULES),
    "hash": (SUMMARIES, [MODULES[0], (1, B_PATH, [6, 7, 8, 9, 11]), MODULES[2]]),
    "own hash": (SUMMARIES, [(0, A_PATH, [1, 2, 3, 4, 6]), *MODULES[1:]]),
    "order of imports": (SUMMARIES, [MODULES[0], MODULES[2], MODULES[1]]),
    "no hashes": (SUMMARIES[:-2], [(number, path, []) for number, path, _ in MODULES]),
    "no hashes, another order": (SUMMARIES[:-2], [(MODULES[at][0], MODULES[at][1], []) for at in (0, 2, 1)]),
    "module less": (SUMMARIES, MODULES[:2]),
    "modules less": (swapped(swapped(SUMMARIES, TABLE), HELPER), MODULES[:1]),
    "block count": ([*SUMMARIES, (24, [7])], MODULES),
    "type test": (swapped(SUMMARIES, MAIN, (11, [77]), MAIN), MODULES),
    "type test of another": (swapped(SUMMARIES, HELPER, (11, [77]), HELPER), MODULES),
    "virtual call": (swapped(SUMMARIES, MAIN, (12, [77, 8]), MAIN), MODULES),
    "checked call": (swapped(SUMMARIES, MAIN, (13, [77, 8]), MAIN), MODULES),
    "constant call": (swapped(SUMMARIES, MAIN, (14, [77, 8, 1]), MAIN), MODULES),
    "constant checked call": (swapped(SUMMARIES, MAIN, (15, [77, 8, 1]), MAIN), MODULES),
    "accesses": (swapped(SUMMARIES, MAIN, (25, [0, 0, 8, 1, 0, 2, 0, 8]), MAIN), MODULES),
    "accesses otherwise": (swapped(SUMMARIES, MAIN, (25, [0, 0, 8, 1, 0, 3, 0, 8]), MAIN), MODULES),
    "call site": (swapped(SUMMARIES, MAIN, (30, [1, 2, 3, 4]), (28, [2, 1, 1, 0, 0]), MAIN), MODULES),
    "call site's frame": (swapped(SUMMARIES, MAIN, (30, [1, 2, 3, 4]), (28, [2, 1, 1, 1, 0]), MAIN), MODULES),
    "call site's version": (swapped(SUMMARIES, MAIN, (30, [1, 2, 3, 4]), (28, [2, 1, 1, 0, 1]), MAIN), MODULES),
    "allocation": (swapped(SUMMARIES, MAIN, (33, [1, 1, 2, 1]), MAIN), MODULES),
    "allocation's version": (swapped(SUMMARIES, MAIN, (33, [1, 1, 2, 2]), MAIN), MODULES),
}
