"""ThinLTO indexes: the combined one of a link, and the part of it that one backend compile needs (its shard).

Here belongs reading and rewriting them, as bytes; whose summaries a shard needs is decided in `workers.llvm.thin_plan`,
and when two shards say the same in `workers.llvm.shard_form`.

An index is a module block with a table of modules (id, path, hash) and a block of summaries: one record for each
value and module, whose operands name values by small numbers that stand for GUIDs. Rewriting cuts at two places: the
table of modules is replaced, and records are put in before the first summary. Everything behind is moved, by any
number of bits, and otherwise stays as it was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from attrs import field, frozen

from workers.llvm.bitcode import MODULE_BLOCK, blocks
from workers.llvm.bitstream import BitcodeError, BitCursor, Block, Record
from workers.llvm.record_reader import block_records
from workers.llvm.written_numbers import written

__all__ = [
    "FIELDS_OF_FUNCTION",
    "SUMMARY_VERSION",
    "Index",
    "IndexFrame",
    "IndexedModule",
    "Summary",
    "guid_of",
    "index_frame",
    "read_index",
    "rewrite_index",
]

SUMMARY_VERSION = 12
"""What LLVM 22 writes; in another version records may mean something else."""

FIELDS_OF_FUNCTION = 9
"""Values of a function's summary before the numbers of what it refers to and calls."""

# Block ids and record codes of llvm/Bitcode/LLVMBitCodes.h.
_IDENTIFICATION_BLOCK, _MODULE_TABLE_BLOCK, _SUMMARY_BLOCK, _STRTAB_BLOCK = 13, 19, 20, 23
_ENTRY, _HASH = 1, 2
_MODULE_VERSION, _BLOB = 1, 1
_FUNCTION, _FUNCTION_WITH_PROFILE, _VARIABLE, _ALIAS, _VERSION, _VALUE_GUID, _FLAGS = 4, 5, 6, 8, 10, 16, 20
_DEFINITIONS = frozenset({_FUNCTION, _FUNCTION_WITH_PROFILE, _VARIABLE, _ALIAS})
_OPENING_RECORDS = frozenset({_VERSION, _FLAGS})
_EVERY_RECORD = frozenset(range(64))

_LIVE, _DSO_LOCAL, _NOT_TO_IMPORT = 0x20, 0x40, 0x10

_UNABBREVIATED = 3
_FLUSH = 4096


@frozen
class IndexedModule:
    """A row of the table of modules."""

    id: int
    path: bytes
    hash: tuple[int, ...]

    @property
    def file(self) -> str:
        """The path as Python spells it."""
        return self.path.decode("utf-8", "surrogateescape")


@frozen
class IndexFrame:
    """Where the parts of an index are, and those that are not summaries."""

    modules: tuple[IndexedModule, ...]
    strings: bytes = field(repr=lambda strings: f"<{len(strings)}>")
    """The names of types and functions, one behind the other."""
    module_block: Block
    table: Block
    summaries: Block


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
    """A combined index or a shard."""

    summaries: tuple[Summary, ...] = field(repr=lambda rows: f"<{len(rows)}>")
    frame: IndexFrame

    @property
    def modules(self) -> tuple[IndexedModule, ...]:
        """The table of modules, in its order."""
        return self.frame.modules

    def module(self, path: bytes) -> IndexedModule | None:
        """The row of the module at `path`, spelled exactly so."""
        return next((module for module in self.modules if module.path == path), None)

    def defined(self) -> Iterator[tuple[bytes, int]]:
        """The path of its module and the GUID of every definition."""
        paths = {module.id: module.path for module in self.modules}
        for row in self.summaries:
            yield paths[row.module], row.guid


def guid_of(name: str | bytes) -> int:
    """The GUID of a value with external linkage."""
    text = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    return int.from_bytes(hashlib.md5(text, usedforsecurity=False).digest()[:8], "little")


def index_frame(data: bytes) -> IndexFrame:
    """The parts of an index. Raises `BitcodeError` where it is damaged, has a part that is not known, or is none."""
    module_block: Block | None = None
    strings: bytes | None = None
    inner: dict[int, Block] = {}
    for cursor, block in blocks(data):
        if cursor.origin or block.id not in (MODULE_BLOCK, _STRTAB_BLOCK, _IDENTIFICATION_BLOCK):
            raise BitcodeError("it is not an index")
        if block.id == MODULE_BLOCK:
            if module_block is not None:
                raise BitcodeError("it has more than one module block")
            module_block = block
            for item in cursor.items(block, _EVERY_RECORD):
                if isinstance(item, Record):
                    if item.code != _MODULE_VERSION or item.values != [2]:
                        raise BitcodeError(f"it has the record {item.code} {item.values}, which no index has")
                elif item.id not in (_MODULE_TABLE_BLOCK, _SUMMARY_BLOCK) or item.id in inner:
                    raise BitcodeError(f"it has block {item.id} where no index has one")
                else:
                    inner[item.id] = item
        elif block.id == _STRTAB_BLOCK:
            if strings is not None:
                raise BitcodeError("it has two string tables")
            strings = b""
            for item in cursor.items(block, frozenset({_BLOB})):
                if isinstance(item, Record) and item.blob is not None:
                    begin, size = item.blob
                    strings = bytes(data[begin : begin + size])
    if module_block is None or len(inner) != 2:
        raise BitcodeError("it is not an index")
    table = inner[_MODULE_TABLE_BLOCK]
    return IndexFrame(_read_table(data, table), strings or b"", module_block, table, inner[_SUMMARY_BLOCK])


def read_index(data: bytes) -> Index:
    """Read an index. Raises `BitcodeError` where it is damaged, of another version, or not an index."""
    frame = index_frame(data)
    try:
        summaries = _read_summaries(data, frame.summaries)
    except (IndexError, KeyError, ValueError) as error:
        raise error if isinstance(error, BitcodeError) else BitcodeError("its summaries are damaged") from None
    if not {summary.module for summary in summaries} <= {row.id for row in frame.modules}:
        raise BitcodeError("its summaries are of modules that it does not name")
    return Index(summaries, frame)


def _read_table(data: bytes, table: Block) -> tuple[IndexedModule, ...]:
    rows: list[IndexedModule] = []
    try:
        for code, values, rest in block_records(data, table):
            if code == _ENTRY and not rest:
                rows.append(IndexedModule(values[0], bytes(values[1:]), ()))
            elif code == _HASH and not rest and not rows[-1].hash:
                rows[-1] = IndexedModule(rows[-1].id, rows[-1].path, tuple(values))
            else:
                raise BitcodeError(f"its table of modules has the unknown record {code}")
    except (IndexError, ValueError) as error:
        raise BitcodeError(f"its table of modules is damaged: {error}") from None
    if len({row.id for row in rows}) != len(rows):
        raise BitcodeError("it has two modules with the same number")
    return tuple(rows)


def _read_summaries(data: bytes, block: Block) -> tuple[Summary, ...]:
    guids: dict[bytes, int] = {}
    rows: list[Summary] = []
    is_read = False
    for code, values, rest in block_records(data, block):
        if code in _DEFINITIONS:
            used = frozenset([guids[number] for number in _used(code, values, rest)])
            rows.append(Summary(values[1], guids[written(values[0])], bool(values[2] & _DSO_LOCAL), used))
        elif code == _VALUE_GUID:
            guids[written(values[0])] = values[1] << 32 | values[2]
        elif code == _VERSION:
            is_read = values == [SUMMARY_VERSION]
            if not is_read:
                raise BitcodeError(f"its summaries are of version {values[0]}, not {SUMMARY_VERSION}")
    if not is_read:
        raise BitcodeError("its summaries do not say their version")
    return tuple(rows)


def _used(code: int, values: list[int], rest: list[bytes]) -> list[bytes]:
    """The numbers of the values that a summary names, as they are written."""
    if code == _ALIAS:
        return [written(values[3])]
    if code == _VARIABLE:
        # What it is like stands before what it refers to, in the same array.
        return [*map(written, values[3:]), *rest][1:]
    named = [*map(written, values[FIELDS_OF_FUNCTION:]), *rest]
    references = values[6]
    # With a profile, each callee is followed by how often it is called.
    return named[:references] + named[references :: 2 if code == _FUNCTION_WITH_PROFILE else 1]


def rewrite_index(
    data: bytes, frame: IndexFrame, paths: Mapping[int, bytes], local: Iterable[int] = (), owner: int = 0
) -> bytes:
    """`data`, which `frame` was read from, with other paths of modules (by id) and more summaries.

    The values with the GUIDs `local` are added as defined in this program or library, as if by the module with the id
    `owner`. Raises `BitcodeError`.
    """
    table = _Bits()
    for row in frame.modules:
        table.record(frame.table.width, _ENTRY, [row.id, *paths[row.id]])
        if row.hash:
            table.record(frame.table.width, _HASH, row.hash)
    table.put(0, frame.table.width)  # END_BLOCK
    new = {frame.table: table.words()}
    added = _Bits()
    width = frame.summaries.width
    for guid in (guids := tuple(local)):
        # The number of a value holds until the next that says what it stands for.
        added.record(width, _VALUE_GUID, [0, guid >> 32, guid & 0xFFFFFFFF])
        added.record(width, _VARIABLE, [0, owner, _LIVE | _DSO_LOCAL | _NOT_TO_IMPORT, 0])
    if guids:
        new[frame.summaries] = _inserted(data, frame.summaries, added)
    pieces = []
    at = 0
    for block in sorted(new, key=lambda block: block.start):
        pieces += [data[at : (block.start >> 3) - 4], (len(new[block]) >> 2).to_bytes(4, "little"), new[block]]
        at = block.end >> 3
    out = bytearray(b"".join([*pieces, data[at:]]))
    outer = frame.module_block
    size = (outer.end - outer.start >> 3) + len(out) - len(data)
    out[(outer.start >> 3) - 4 : outer.start >> 3] = (size >> 2).to_bytes(4, "little")
    return bytes(out)


def _inserted(data: bytes, block: Block, added: _Bits) -> bytes:
    """The body of the block of summaries with `added` behind the records that open it."""
    cursor = BitCursor(data, 0, len(data))
    records_at = block.start
    for _ in cursor.items(block, _OPENING_RECORDS):
        records_at = cursor.pos
    body = int.from_bytes(data[block.start >> 3 : block.end >> 3], "little")
    head = records_at - block.start
    bits = _Bits()
    bits.put(body & (1 << head) - 1, head)
    bits.put(*added.bits())
    # Without the padding behind its end, which a reader would take for the end of the block around it.
    rest = cursor.pos - records_at
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
