"""ThinLTO indexes: the combined one of a link, and the part of it that one backend compile needs (its shard).

Here belongs reading and rewriting them, as bytes; whose summaries a shard needs is decided in `workers.llvm.thin_plan`.

An index is a module block with a table of modules (id, path, hash) and a block of summaries: one record for each
value and module, whose operands name values by small numbers that stand for GUIDs. Rewriting cuts at two places: the
table of modules is replaced, and records are put in before the first summary. Everything behind is moved, by any
number of bits, and otherwise stays as it was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from attrs import field, frozen

from workers.llvm.bitstream import BitcodeError, BitCursor, Block, Record

__all__ = ["Index", "IndexedModule", "Summary", "guid_of", "read_index", "rewrite_index"]

_MAGIC = b"BC\xc0\xde"

# Block ids and record codes of llvm/Bitcode/LLVMBitCodes.h.
_BLOCKINFO_BLOCK, _MODULE_BLOCK, _MODULE_TABLE_BLOCK, _SUMMARY_BLOCK = 0, 8, 19, 20
_ENTRY, _HASH = 1, 2
_FUNCTION, _FUNCTION_WITH_PROFILE, _VARIABLE, _ALIAS, _VERSION, _VALUE_GUID, _FLAGS = 4, 5, 6, 8, 10, 16, 20
_TABLE_RECORDS = frozenset({_ENTRY, _HASH})
_SUMMARY_RECORDS = frozenset({_FUNCTION, _FUNCTION_WITH_PROFILE, _VARIABLE, _ALIAS, _VERSION, _VALUE_GUID, _FLAGS})

_SUMMARY_VERSION = 12
"""What LLVM 22 writes; in another version records may mean something else."""

_LIVE, _DSO_LOCAL, _NOT_TO_IMPORT = 0x20, 0x40, 0x10

_UNABBREVIATED = 3
_OPERANDS_BEFORE_REFERENCES = 9
_FLUSH = 4096


@frozen
class IndexedModule:
    """A row of the table of modules."""

    id: int
    path: bytes
    hash: tuple[int, ...]


@frozen
class Summary:
    """What an index says of one definition: the value `guid` in the module with the id `module`.

    `uses` are the GUIDs of what it calls, refers to or is another name of. `dso_local` says that the linker has found
    it to be in the program or library itself.
    """

    module: int
    guid: int
    dso_local: bool
    uses: frozenset[int]


@frozen
class Index:
    """A combined index or a shard. What is private is for `rewrite_index`."""

    modules: tuple[IndexedModule, ...]
    summaries: tuple[Summary, ...] = field(repr=lambda rows: f"<{len(rows)}>")
    _module_block: Block
    _table: Block
    _summary_block: Block
    _records_at: int
    """The bit position behind the records that open the summary block."""
    _end_at: int
    """The bit position behind its end, before the padding."""

    def module(self, path: bytes) -> IndexedModule | None:
        """The row of the module at `path`, spelled exactly so."""
        return next((module for module in self.modules if module.path == path), None)


def guid_of(name: str | bytes) -> int:
    """The GUID of a value with external linkage."""
    text = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    return int.from_bytes(hashlib.md5(text, usedforsecurity=False).digest()[:8], "little")


def read_index(data: bytes) -> Index:
    """Read an index. Raises `BitcodeError` where it is damaged, of another version, or not an index."""
    if not data.startswith(_MAGIC):
        raise BitcodeError("it does not begin as bitcode does")
    cursor = BitCursor(data, 0, len(data))
    cursor.pos = len(_MAGIC) * 8
    module_block: Block | None = None
    while cursor.pos < len(data) * 8:
        if cursor.fixed(2) != 1:
            raise BitcodeError(f"there is no block at byte {cursor.pos >> 3}")
        block = cursor.enter()
        if block.id == _MODULE_BLOCK:
            if module_block is not None:
                raise BitcodeError("it has more than one module block")
            module_block = block
        cursor.pos = block.end
    if module_block is None:
        raise BitcodeError("it has no module block")
    blocks: dict[int, Block] = {}
    for item in cursor.items(module_block, frozenset()):
        if isinstance(item, Block) and blocks.setdefault(item.id, item) is not item:
            raise BitcodeError(f"it has block {item.id} twice")
    if _BLOCKINFO_BLOCK in blocks:
        raise BitcodeError("it has abbreviations where no index has any")
    if _MODULE_TABLE_BLOCK not in blocks or _SUMMARY_BLOCK not in blocks:
        raise BitcodeError("it is not an index")
    table, summary_block = blocks[_MODULE_TABLE_BLOCK], blocks[_SUMMARY_BLOCK]
    rows = _read_table(cursor, table)
    summaries, records_at = _read_summaries(cursor, summary_block)
    if not {summary.module for summary in summaries} <= {row.id for row in rows}:
        raise BitcodeError("its summaries are of modules that it does not name")
    return Index(rows, summaries, module_block, table, summary_block, records_at, cursor.pos)


def _read_table(cursor: BitCursor, table: Block) -> tuple[IndexedModule, ...]:
    rows: list[IndexedModule] = []
    for item in cursor.items(table, _TABLE_RECORDS):
        if not isinstance(item, Record) or not item.values or (item.code == _HASH and not rows):
            raise BitcodeError("its table of modules is damaged")
        if item.code == _ENTRY:
            path = bytes(value & 0xFF for value in item.values[1:])
            rows.append(IndexedModule(item.values[0], path, ()))
        else:
            rows[-1] = IndexedModule(rows[-1].id, rows[-1].path, tuple(item.values))
    return tuple(rows)


def _read_summaries(cursor: BitCursor, block: Block) -> tuple[tuple[Summary, ...], int]:
    guids: dict[int, int] = {}
    rows: list[Summary] = []
    records_at = 0
    try:
        for item in cursor.items(block, _SUMMARY_RECORDS):
            if not isinstance(item, Record):
                raise BitcodeError("its block of summaries has a block inside")
            values = item.values
            match item.code:
                case code if code == _VERSION:
                    if values[0] != _SUMMARY_VERSION:
                        raise BitcodeError(f"its summaries are of version {values[0]}, not {_SUMMARY_VERSION}")
                    records_at = cursor.pos
                case code if code == _FLAGS:
                    records_at = cursor.pos
                case code if code == _VALUE_GUID:
                    guids[values[0]] = values[1] << 32 | values[2]
                case code:
                    uses = frozenset(guids[value] for value in _used(code, values))
                    rows.append(Summary(values[1], guids[values[0]], bool(values[2] & _DSO_LOCAL), uses))
    except (IndexError, KeyError):
        raise BitcodeError(f"the summary before byte {cursor.pos >> 3} is damaged") from None
    if not records_at:
        raise BitcodeError("its summaries do not say their version")
    return tuple(rows), records_at


def _used(code: int, values: list[int]) -> list[int]:
    """The numbers of the values that a summary names."""
    if code == _VARIABLE:
        return values[4:]
    if code == _ALIAS:
        return values[3:4]
    calls = _OPERANDS_BEFORE_REFERENCES + values[6]
    references = values[_OPERANDS_BEFORE_REFERENCES:calls]
    # With a profile, each callee is followed by how often it is called.
    return references + values[calls :: 2 if code == _FUNCTION_WITH_PROFILE else 1]


def rewrite_index(
    data: bytes, index: Index, paths: Mapping[int, bytes], local: Iterable[int] = (), owner: int = 0
) -> bytes:
    """`data`, which `index` was read from, with other paths of modules (by id) and more summaries.

    The values with the GUIDs `local` are added as defined in this program or library, as if by the module with the id
    `owner`.
    """
    table = _Bits()
    for row in index.modules:
        table.record(index._table.width, _ENTRY, [row.id, *paths[row.id]])
        if row.hash:
            table.record(index._table.width, _HASH, row.hash)
    table.put(0, index._table.width)  # END_BLOCK
    added = _Bits()
    width = index._summary_block.width
    for guid in local:
        # The number of a value holds until the next that says what it stands for.
        added.record(width, _VALUE_GUID, [0, guid >> 32, guid & 0xFFFFFFFF])
        added.record(width, _VARIABLE, [0, owner, _LIVE | _DSO_LOCAL | _NOT_TO_IMPORT, 0])
    new = {index._table: table.words(), index._summary_block: _inserted(data, index, added)}
    pieces = []
    at = 0
    for block in sorted(new, key=lambda block: block.start):
        pieces += [data[at : (block.start >> 3) - 4], (len(new[block]) >> 2).to_bytes(4, "little"), new[block]]
        at = block.end >> 3
    out = bytearray(b"".join([*pieces, data[at:]]))
    outer = index._module_block
    size = (outer.end - outer.start >> 3) + len(out) - len(data)
    out[(outer.start >> 3) - 4 : outer.start >> 3] = (size >> 2).to_bytes(4, "little")
    return bytes(out)


def _inserted(data: bytes, index: Index, added: _Bits) -> bytes:
    block = index._summary_block
    body = int.from_bytes(data[block.start >> 3 : block.end >> 3], "little")
    head = index._records_at - block.start
    bits = _Bits()
    bits.put(body & (1 << head) - 1, head)
    bits.put(*added.bits())
    # Without the padding behind its end, which a reader would take for the end of the block around it.
    rest = index._end_at - index._records_at
    bits.put(body >> head & (1 << rest) - 1, rest)
    return bits.words()


class _Bits:
    """Bits written one after the other, the lowest first."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._rest = 0
        self._rest_size = 0

    def put(self, value: int, size: int) -> None:
        """Write the `size` low bits of `value`, which has no others."""
        self._rest |= value << self._rest_size
        self._rest_size += size
        if self._rest_size >= _FLUSH:
            whole = self._rest_size >> 3
            self._bytes += (self._rest & (1 << whole * 8) - 1).to_bytes(whole, "little")
            self._rest >>= whole * 8
            self._rest_size &= 7

    def record(self, width: int, code: int, values: Iterable[int]) -> None:
        """Write a record without an abbreviation, where abbreviation ids have `width` bits."""
        values = tuple(values)
        self.put(_UNABBREVIATED, width)
        for value in (code, len(values), *values):
            while value > 31:
                self.put(value & 31 | 32, 6)
                value >>= 5
            self.put(value, 6)

    def bits(self) -> tuple[int, int]:
        """All of it as one number, and its size."""
        return int.from_bytes(self._bytes, "little") | self._rest << len(self._bytes) * 8, (
            len(self._bytes) * 8 + self._rest_size
        )

    def words(self) -> bytes:
        """All of it, filled up with zeros to words of 32 bits."""
        value, size = self.bits()
        return value.to_bytes((size + 31 >> 5) * 4, "little")
