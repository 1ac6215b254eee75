"""What a bitcode file says about itself before anything is compiled: producer, target, whether it is whole.

Only the top-level blocks and the module's own records are read. That costs about 0.1 ms for a small module, and
for a large one grows with its number of functions and globals, not with their size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import evolve, frozen

from workers.llvm.bitstream import BitcodeError, BitCursor, Block, Record
from workers.llvm.content import Source

__all__ = [
    "METADATA_BLOCK",
    "MODULE_BLOCK",
    "SUMMARY_BLOCKS",
    "BitcodeError",
    "Header",
    "blocks",
    "check_whole",
    "is_complete",
    "producer_major",
    "read_header",
]

_RAW_MAGIC = b"BC\xc0\xde"
_WRAPPER_MAGIC = b"\xde\xc0\x17\x0b"
_WRAPPER_SIZE = 20
_MAX_PADDING = 1 << 20

# Block ids of llvm/Bitcode/LLVMBitCodes.h.
MODULE_BLOCK = 8
METADATA_BLOCK = 15
_FUNCTION_BLOCK = 12
_IDENTIFICATION_BLOCK = 13
_MODULE_STRTAB_BLOCK = 19
_GLOBALVAL_SUMMARY_BLOCK = 20
_STRTAB_BLOCK = 23
_FULL_LTO_GLOBALVAL_SUMMARY_BLOCK = 24
SUMMARY_BLOCKS = frozenset({_GLOBALVAL_SUMMARY_BLOCK, _FULL_LTO_GLOBALVAL_SUMMARY_BLOCK})

# Record codes of the identification block and of the module block.
_STRING, _EPOCH = 1, 2
_VERSION, _TRIPLE, _DATA_LAYOUT, _SOURCE_FILENAME = 1, 2, 3, 16
_SUMMARY_FLAGS, _UNIFIED_LTO = 20, 0x200
_IDENTIFICATION_RECORDS = frozenset({_STRING, _EPOCH})
_MODULE_RECORDS = frozenset({_VERSION, _TRIPLE, _DATA_LAYOUT, _SOURCE_FILENAME})

_LLVM_PRODUCER = re.compile(r"LLVM(\d{1,4})\.")


@frozen
class Header:
    """What a module says about itself. Strings are '' and `epoch` is 0 where it says nothing.

    `triple`, `data_layout` and `source_filename` are those of the first module where there are several.
    """

    triple: str = ""
    data_layout: str = ""
    source_filename: str = ""
    producer: str = ""
    """The compiler's library, such as `LLVM22.1.8`; '' for textual IR, which names none."""
    epoch: int = 0
    has_summary: bool = False
    """A ThinLTO or fat LTO summary is present: the module went through a pre-link pipeline already."""
    is_unified: bool = False
    """The summary says that the module is for unified LTO."""
    is_index: bool = False
    """Not a module but a ThinLTO index, which names modules by their paths."""
    module_count: int = 1
    """More than one for split LTO units and for files that several modules were written into."""
    size: int = 0
    """Bytes of bitcode or text."""
    code_bytes: int = 0
    """Bytes of bitcode that are bodies of functions; 0 for textual IR."""


def read_header(data: Source) -> Header:
    """Read the header of bitcode, and see that all of it is there. Raises `BitcodeError` where it is damaged."""
    header = Header(module_count=0, size=len(data))
    strings_due = False
    for cursor, block in blocks(data):
        if block.id == _IDENTIFICATION_BLOCK and not header.producer:
            header = _with_identification(header, cursor, block)
        elif block.id == MODULE_BLOCK:
            header, version = _with_module(header, cursor, block)
            # From version 2 on, a module's names are in a string table behind it.
            strings_due = version >= 2 and not header.is_index
        elif block.id == _STRTAB_BLOCK:
            strings_due = False
    if not header.module_count:
        raise BitcodeError("it has no module")
    if strings_due:
        raise BitcodeError(f"it ends at byte {len(data)}, before the module's string table")
    return header


def check_whole(data: Source) -> None:
    """See that all blocks of bitcode are there, without looking into them: quicker than `read_header`.

    A file cut off exactly between two blocks goes unnoticed here. Raises `BitcodeError`.
    """
    ids = {block.id for _, block in blocks(data)}
    if MODULE_BLOCK not in ids:
        raise BitcodeError("it has no module")


def is_complete(data: Source) -> bool:
    """Whether bitcode as today's LLVM writes it is there to its end, for a file that may still grow.

    Raises nothing: half a file is no error here.
    """
    last = None
    try:
        for _, block in blocks(data):
            last = block.id
    except BitcodeError:
        return False
    return last == _STRTAB_BLOCK


def producer_major(producer: str) -> int | None:
    """LLVM's major version in a producer string; `None` for compilers that count otherwise (Apple's, Zig's own)."""
    found = _LLVM_PRODUCER.match(producer)
    return int(found[1]) if found else None


def blocks(data: Source) -> Iterator[tuple[BitCursor, Block]]:
    """The top-level blocks up to the end of `data`; whoever takes one may move the cursor. Raises `BitcodeError`."""
    origin, size = _extent(data)
    cursor = BitCursor(data, origin, size)
    cursor.pos = len(_RAW_MAGIC) * 8
    while not _is_padding(data, origin + (cursor.pos >> 3), origin + size):
        at = cursor.pos >> 3
        if bytes(data[origin + at : origin + at + 64]).lstrip(b"\0").startswith(_RAW_MAGIC):
            raise BitcodeError(
                f"a second bitcode file follows at byte {at}: they were joined, by 'ld -r' or 'cat', and must be given "
                "one by one"
            )
        if size - at < 8:
            raise BitcodeError(f"it is cut off: {size - at} bytes are left at byte {at}, too few for a block")
        if cursor.fixed(2) != 1:
            raise BitcodeError(f"there is no block at byte {at}")
        block = cursor.enter()
        yield cursor, block
        cursor.pos, cursor.end = block.end, size * 8


def _extent(data: Source) -> tuple[int, int]:
    """Where the bitcode begins and how long it is, behind the wrapper header that Darwin's tools may put before."""
    magic = bytes(data[:_WRAPPER_SIZE])
    origin, size = 0, len(data)
    if magic.startswith(_WRAPPER_MAGIC):
        if len(magic) < _WRAPPER_SIZE:
            raise BitcodeError(f"it is cut off: {len(magic)} bytes are less than a wrapper header")
        origin = int.from_bytes(magic[8:12], "little")
        size = int.from_bytes(magic[12:16], "little")
        if origin < _WRAPPER_SIZE or origin + size > len(data):
            raise BitcodeError(f"its wrapper promises {size} bytes from byte {origin} on, but the file has {len(data)}")
    if bytes(data[origin : origin + 4]) != _RAW_MAGIC or size < 4:
        raise BitcodeError(f"there is no bitcode magic at byte {origin}")
    return origin, size


def _is_padding(data: Source, begin: int, end: int) -> bool:
    """Whether nothing follows but padding: zeros, or the newlines that archivers align members with."""
    if end - begin < 4:
        return not bytes(data[begin:end]).strip(b"\0\n")
    # A block begins with neither, so it is padding to its end or damage.
    starts = bytes(data[begin : begin + 1]) in (b"\0", b"\n")
    return starts and end - begin <= _MAX_PADDING and not bytes(data[begin:end]).strip(b"\0\n")


def _with_identification(header: Header, cursor: BitCursor, block: Block) -> Header:
    for item in cursor.items(block, _IDENTIFICATION_RECORDS):
        if isinstance(item, Record):
            if item.code == _STRING:
                header = evolve(header, producer=_text(item))
            elif item.values:
                header = evolve(header, epoch=item.values[0])
    return header


def _with_module(header: Header, cursor: BitCursor, block: Block) -> tuple[Header, int]:
    """`header` with what a module block says, and the version of the block's layout."""
    strings: dict[int, str] = {}
    version = code_bytes = 0
    is_index = False
    summaries: list[Block] = []
    for item in cursor.items(block, _MODULE_RECORDS):
        if isinstance(item, Block):
            if item.id in SUMMARY_BLOCKS:
                summaries.append(item)
            elif item.id == _MODULE_STRTAB_BLOCK:
                is_index = True
            elif item.id == _FUNCTION_BLOCK:
                code_bytes += item.end - item.start >> 3
        elif item.code == _VERSION:
            version = item.values[0] if item.values else 0
        else:
            strings.setdefault(item.code, _text(item))
    flags = [_summary_flags(cursor, summary) for summary in summaries]
    first = header.module_count == 0
    return (
        Header(
            triple=strings.get(_TRIPLE, "") if first else header.triple,
            data_layout=strings.get(_DATA_LAYOUT, "") if first else header.data_layout,
            source_filename=strings.get(_SOURCE_FILENAME, "") if first else header.source_filename,
            producer=header.producer,
            epoch=header.epoch,
            has_summary=header.has_summary or bool(summaries),
            is_unified=header.is_unified or any(value & _UNIFIED_LTO for value in flags),
            is_index=header.is_index or is_index,
            module_count=header.module_count + 1,
            size=header.size,
            code_bytes=header.code_bytes + code_bytes,
        ),
        version,
    )


def _summary_flags(cursor: BitCursor, summary: Block) -> int:
    for item in cursor.items(summary, frozenset({_SUMMARY_FLAGS})):
        if isinstance(item, Record) and item.values:
            return item.values[0]
    return 0


def _text(record: Record) -> str:
    """A string record. What is not UTF-8 is written as escapes, so that every string can be printed."""
    return bytes(value & 0xFF for value in record.values).decode("utf-8", "backslashreplace")
