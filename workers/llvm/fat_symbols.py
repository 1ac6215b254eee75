"""Names of what was local in a program before it was split. Pure.

When LLVM splits a program it makes every local symbol global and hidden, under the name that it has. That name may be
somebody else's: of a native object in the same link, or in a program that a static library of ours is linked into
later. So in each part's object such symbols get a suffix, the same in all parts. Names that stay are those that some
module knows as a global symbol; and those that begin with two underscores, for LLVM makes hidden symbols of its own
(`__stack_chk_fail_local`) that are defined elsewhere.

Only what is hidden in a part's bitcode can have been local before. So which names change in its object follows from
the part's own names, whatever else is in the program.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Set

from attrs import field, frozen

from workers.llvm.bitcode import MODULE_BLOCK, blocks
from workers.llvm.bitstream import Record
from workers.llvm.content import Source
from workers.llvm.elf import sections
from workers.llvm.irsymtab import Symbol
from workers.llvm.sections import ObjectError
from workers.work import count

__all__ = ["Promotion", "hidden_names", "promoted", "promotion", "rename_promoted"]

_SUFFIX = ".ltod"
_DIGEST_BYTES = 6

_RESERVED = b"__"
_UNNAMED = b"__llvmsplit_unnamed"

# Block ids and record codes of llvm/Bitcode/LLVMBitCodes.h: names are stretches of the string table.
_STRTAB_BLOCK = 23
_BLOB = frozenset({1})
_VISIBILITY = {7: 8, 8: 9, 14: 6, 18: 6}
"""Where variables, functions, aliases and resolvers have it in their records."""
_HIDDEN = 1
_VERBATIM = b"\1"
"""Begins names that are to stay as they are, which they do on ELF."""

_STB_GLOBAL = 1
_STV_HIDDEN = 2

# By the class of the file: name, info and other of a symbol, and where a section header has its offset and size.
_SYMBOL = {1: "I8xBB2x", 2: "IBB18x"}
_EXTENT = {1: (16, "II"), 2: (24, "QQ")}


@frozen
class Promotion:
    """Which names of global hidden symbols stay as they are, and what the others end with."""

    kept: Set[bytes] = field(repr=count)
    suffix: bytes


def promotion(symbols: Iterable[Symbol], exports: Set[str], *, is_final: bool) -> Promotion:
    """The names for a program whose modules have `symbols`.

    What `is_final` meets no other program, so one suffix does for all; else it depends on what the program defines.
    With `exports` given and more to be linked later, only these are anybody's business.
    """
    defined: set[str] = set()
    needed: set[str] = set()
    for symbol in symbols:
        if symbol.local:
            continue
        (needed if symbol.undefined else defined).add(symbol.name)
    kept = needed | defined
    if is_final:
        suffix = _SUFFIX
    else:
        listed = "\n".join(sorted(defined)).encode(errors="surrogateescape")
        suffix = f"{_SUFFIX}.{hashlib.blake2b(listed, digest_size=_DIGEST_BYTES).hexdigest()}"
        if exports:
            kept = (needed - defined) | exports
    return Promotion(frozenset(name.encode(errors="surrogateescape") for name in kept), suffix.encode())


def hidden_names(bitcode: Source) -> frozenset[bytes]:
    """The hidden symbols that a part defines and declares. Raises `BitcodeError`, `ContentError`."""
    spans: list[list[int]] = []
    strings = b""
    for cursor, block in blocks(bitcode):
        if block.id == MODULE_BLOCK:
            records = (item for item in cursor.items(block, frozenset(_VISIBILITY)) if isinstance(item, Record))
            # Where it is the default, it may be left out.
            spans += (one.values[:2] for one in records if one.values[_VISIBILITY[one.code] :][:1] == [_HIDDEN])
        elif block.id == _STRTAB_BLOCK:
            for item in cursor.items(block, _BLOB):
                if isinstance(item, Record) and item.blob is not None:
                    begin = cursor.origin + item.blob[0]
                    strings = bytes(bitcode[begin : begin + item.blob[1]])
    return frozenset(strings[begin : begin + size].removeprefix(_VERBATIM) for begin, size in spans)


def promoted(hidden: Set[bytes], names: Promotion) -> frozenset[bytes]:
    """Those of a part's hidden symbols that were local, and whose names change."""
    return frozenset(
        name for name in hidden - names.kept if not name.startswith(_RESERVED) or name.startswith(_UNNAMED)
    )


def rename_promoted(data: bytes, changing: Set[bytes], suffix: bytes) -> bytes:
    """`data`, an ELF object, with the names of promoted symbols changed. Raises `ObjectError` where it is damaged."""
    found = {section.name: section for section in sections(data, {b".symtab", b".strtab"})}
    if len(found) != 2:
        raise ObjectError("an ELF file without symbols or without their names")
    table, strings = found[b".symtab"], found[b".strtab"]
    order, kind = "<" if data[5] == 1 else ">", data[4]
    symbol = struct.Struct(order + _SYMBOL[kind])
    renamed = bytearray(data)
    text = bytearray(data[strings.offset : strings.offset + strings.size])
    rows = data[table.offset : table.offset + table.size // symbol.size * symbol.size]
    for number, (name, info, other) in enumerate(symbol.iter_unpack(rows)):
        if info >> 4 != _STB_GLOBAL or other & 3 != _STV_HIDDEN:
            continue
        end = text.find(b"\0", name)
        if end < 0:
            raise ObjectError("an ELF file in which the name of a symbol has no end")
        old = bytes(text[name:end])
        if old not in changing:
            continue
        struct.pack_into(f"{order}I", renamed, table.offset + number * symbol.size, len(text))
        text += old + suffix + b"\0"
    if len(text) == strings.size:
        return data
    place, form = _EXTENT[kind]
    struct.pack_into(order + form, renamed, strings.header + place, len(renamed), len(text))
    return bytes(renamed + text)
